"""Picked frames through `label`, on chignolin: a second process, and how many a core labels in an hour."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.harness import Result
from benchmarks.oracle import ORACLE, PHYSICS, TEMPERATURE_K, bundled_frames
from cgal.all_atom.backmapping.backmap import backmap
from cgal.all_atom.oracle import OracleResult, label
from cgal.frames import alpha_carbons
from cgal.params import BackmappingParams, OracleParams

BACKMAPPING = BackmappingParams()
PICKS = 12
FIRST = 2
"""Picks whose time is not counted: in them two processes load their code, and picks differ in what they cost."""

REPETITIONS = 5


@dataclass(frozen=True)
class Labelling:
    """One call of `label`: seconds in all, until the `FIRST` picks are done, and picks per second after that."""

    seconds: float
    start_s: float
    picks_per_s: float
    result: OracleResult


def results() -> Iterator[Result]:
    """The real path: backmapping, burn-in, average, files, processes; steady rates, start-up told apart."""
    pairs = [(_label(2, ORACLE), _label(1, ORACLE)) for _ in range(REPETITIONS)]
    free = _label(1, ORACLE.model_copy(update={"mode": "free"}))
    ratios = sorted(two.picks_per_s / one.picks_per_s for two, one in pairs)
    two, one = (median(each.picks_per_s for each in side) for side in zip(*pairs, strict=True))
    note = (
        f"picked frames done a second by 2 processes against 1, after the first {FIRST} of {PICKS} picks (there after "
        f"{pairs[0][0].start_s:.1f} s with 2 and {pairs[0][1].start_s:.1f} s with 1) through `label`: "
        f"backmapping, {ORACLE.burn_in_steps} + {ORACLE.average_steps} steps; ratio {ratios[0]:.2f} to "
        f"{ratios[-1]:.2f} over {REPETITIONS} repetitions"
    )
    yield Result("oracle_scaling_2", two, one, median(ratios), "picks/s", note)
    for mode, labelling in (("mean_force", pairs[0][1]), ("free", free)):
        labels = len(labelling.result.labelled) / max(PICKS - len(labelling.result.failures), 1)
        note = (
            f"{labels:.0f} labels a pick; one core, {PICKS} picks by `label`: start-up, compilation from the cache, "
            f"backmapping, failed tries ({len(labelling.result.failures)} picks failed) and steps, "
            f"{labelling.seconds:.1f} s in all"
        )
        picks = (PICKS - len(labelling.result.failures)) / labelling.seconds * 3600
        yield Result(f"picks_per_core_hour_{mode}", picks, None, None, "picks/h", note)


def _label(workers: int, oracle: OracleParams) -> Labelling:
    frames = bundled_frames()
    rebuild = partial(
        backmap, structure=frames.pdb, params=BACKMAPPING, force_field=PHYSICS, temperature_K=TEMPERATURE_K
    )
    told: list[float] = []
    with TemporaryDirectory() as scratch:
        start = time.perf_counter()
        result = label(
            frames.positions[:PICKS, alpha_carbons(frames.topology)],
            frames.pdb,
            rebuild=rebuild,
            force_field=PHYSICS,
            oracle=oracle,
            temperature_K=TEMPERATURE_K,
            seeds=range(1, PICKS + 1),
            workers=workers,
            scratch=Path(scratch),
            progress=lambda done, total, note="": told.append(time.perf_counter() - start),
        )
    first = told[FIRST]  # told[0] is before any frame
    return Labelling(told[-1], first, (PICKS - FIRST) / (told[-1] - first), result)
