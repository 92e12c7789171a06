"""How a figure is taken: ours and the peer's in turn within one process, medians over the repetitions."""

import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

__all__ = ["Result", "Timing", "interleave", "seconds"]


class Result(NamedTuple):
    """One line of results.json; `ratio` says how many times better ours is, whichever way the unit runs."""

    name: str
    ours: float
    peer: float | None
    ratio: float | None
    unit: str
    note: str = ""


class Timing(NamedTuple):
    """Median seconds of ours and of the peer (None: not installed), and the ratio within each repetition."""

    ours_s: float
    peer_s: float | None
    ratio: float | None
    spread: str

    def rates(self, name: str, work: float, unit: str, note: str = "") -> Result:
        """Give the result as work done per second: higher is better."""
        peer = None if self.peer_s is None else work / self.peer_s
        return Result(name, work / self.ours_s, peer, self.ratio, unit, _join(note, self.spread))

    def times(self, name: str, note: str = "") -> Result:
        """Give the result in seconds: lower is better."""
        return Result(name, self.ours_s, self.peer_s, self.ratio, "s", _join(note, self.spread))


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call [s]."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def interleave(
    ours: Callable[[], object], peer: Callable[[], object] | None, repetitions: int = 7, warm_up: int = 1
) -> Timing:
    """Time ours and the peer in turn, so that a slow phase of the machine meets both.

    The ratio is the median of the repetitions' own ratios, and the spread their lowest and highest.
    """
    for _ in range(warm_up):
        ours()
        if peer is not None:
            peer()
    if peer is None:
        return Timing(median(seconds(ours) for _ in range(repetitions)), None, None, "")
    pairs = [(seconds(ours), seconds(peer)) for _ in range(repetitions)]
    ratios = sorted(theirs / own for own, theirs in pairs)
    spread = f"ratio {ratios[0]:.2f} to {ratios[-1]:.2f} over {repetitions} repetitions"
    return Timing(median(own for own, _ in pairs), median(theirs for _, theirs in pairs), median(ratios), spread)


def _join(note: str, spread: str) -> str:
    return "; ".join(part for part in (note, spread) if part)
