"""From a simulated trajectory to the frames that the oracle shall label."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module

import numpy as np
from jaxtyping import Float32, Shaped

from cgal.errors import BadParams, EmptyTrajectory
from cgal.frames import CGTrajectory, rmsd_nm
from cgal.outcomes import RoundOutcome
from cgal.params import CampaignParams, SelectionParams
from cgal.selection.closing import closing_reason, joint_reason, nothing_to_label, shares
from cgal.selection.committee import Committee
from cgal.selection.coverage import Coverage
from cgal.selection.nearest import nearest_rmsd_nm
from cgal.selection.picks import Candidates, Selection
from cgal.selection.pool import Picks, Pool, Strategy, drop_reasons

__all__ = ["Acquisition", "Finding", "acquire", "measure_pool", "select", "strategy_of"]


def strategy_of(name: str) -> Strategy:
    """Strategy of a name in `params.yaml`: `pick` of the module of that name."""
    found: Strategy = import_module(f"cgal.selection.strategies.{name}").pick
    return found


def no_committee() -> Committee:
    """Stand in for a committee where none is given; raises BadParams."""
    raise BadParams("selection.strategy asks for a committee of networks, and none was given: pass `committee`")


@dataclass(frozen=True, eq=False)
class Acquisition:
    """What a round asks the oracle for, what it found, and why it is the last one ("" while the campaign goes on)."""

    selection: Selection
    outcome: RoundOutcome
    closing: str


@dataclass(frozen=True, eq=False)
class Finding:
    """What a round found for one protein: its pool, its TICA W1, what the rounds before found, a seed for picking."""

    pool: Pool
    w1: Mapping[str, float]
    earlier: Sequence[RoundOutcome]
    seed: int

    @property
    def outcome(self) -> RoundOutcome:
        """The same in short, for the rounds after."""
        return RoundOutcome(
            w1=self.w1["value"],
            low=self.w1["low"],
            high=self.w1["high"],
            uncovered_fraction=self.pool.uncovered_fraction,
        )


def acquire(
    findings: Sequence[Finding], campaign: CampaignParams, round_index: int, *, affordable: int
) -> list[Acquisition]:
    """Decide whether the campaign goes on, and pick the frames of the next labels if it does, for each of its proteins.

    It goes on while one protein asks for labels. `affordable` is the picks that the budget pays for in all
    (`cgal.selection.closing`); they are divided by the candidates that are uncovered (`shares`). A round without a pick
    is the last one too: covered, or too much of it was dropped to say so.
    """
    outcomes = [each.outcome for each in findings]
    closing = joint_reason(
        [
            closing_reason(campaign, round_index, affordable=affordable, outcomes=[*each.earlier, outcome])
            for each, outcome in zip(findings, outcomes, strict=True)
        ]
    )
    counts = shares(0 if closing else affordable, [each.pool.candidates.uncovered_fraction for each in findings])
    wanted = -(-findings[0].pool.params.frames // len(findings))
    selections = [
        replace(select(each.pool, count, each.seed), wanted=wanted)
        for each, count in zip(findings, counts, strict=True)
    ]
    if not closing and not any(map(len, selections)):
        closing = nothing_to_label(campaign, [each.pool.dropped_fraction for each in findings])
    return [Acquisition(selection, outcome, closing) for selection, outcome in zip(selections, outcomes, strict=True)]


def measure_pool(
    trajectory: CGTrajectory,
    training: Float32[np.ndarray, "training_frames beads 3"],
    reference: Float32[np.ndarray, "beads 3"],
    params: SelectionParams,
    committee: Callable[[], Committee] = no_committee,
) -> Pool:
    """The physical frames of a simulation, and how far each is from the training set; others are counted by reason.

    `training` are the positions of the whole training set [nm], `reference` the frame that RMSDs are measured to.
    `committee` is called, once, only if the strategy needs networks and a pick is wanted. Raises EmptyTrajectory when
    no simulated frame is physical or the training set is empty.
    """
    rmsd = rmsd_nm(trajectory.positions, reference)
    reasons = drop_reasons(trajectory, rmsd, params)
    frame = np.flatnonzero(reasons == "")
    dropped = _count(reasons)
    if len(frame) == 0:
        raise EmptyTrajectory(
            f"selection: none of {len(trajectory)} simulated frames is physical ({dropped or 'no frame at all'}); "
            "train longer, or widen the bounds under selection"
        )
    coverage = Coverage.measure(rmsd[frame], rmsd_nm(training, reference), params.bins, params.cutoff_nm)
    positions = trajectory.positions[frame]
    candidates = Candidates(frame, nearest_rmsd_nm(positions, training)[0], params.novel_nm)
    return Pool(trajectory.sequence, candidates, positions, rmsd[frame], dropped, coverage, params, committee)


def select(pool: Pool, count: int, seed: int) -> Selection:
    """Pick `count` candidates of a pool by its strategy; all of them when fewer qualify, none for a count of zero.

    Raises BadParams when the strategy needs a committee that was not given.
    """
    picks = strategy_of(pool.params.strategy)(pool, count, np.random.default_rng(seed)) if count else _none()
    return Selection(
        pool.params.strategy,
        pool.sequence,
        pool.positions[picks.candidate],
        pool.candidates.frame[picks.candidate],
        picks.score,
        pool.rmsd_nm[picks.candidate],
        count,
        pool.params.frames,
        pool.dropped,
        pool.coverage,
        replace(pool.candidates, disagreement=picks.disagreement),
        picks.calibration,
    )


def _none() -> Picks:
    return Picks(np.zeros(0, dtype=np.int64), np.zeros(0))


def _count(reasons: Shaped[np.ndarray, " frames"]) -> dict[str, int]:
    return dict(sorted(Counter(str(reason) for reason in reasons if reason).items()))
