"""When a campaign stops asking for labels: its rounds are done, its budget is spent, or nothing is left to gain."""

import math
from collections.abc import Sequence

from cgal.outcomes import RoundOutcome
from cgal.params import CampaignParams

__all__ = ["affordable_picks", "closing_reason", "joint_reason", "nothing_to_label", "shares", "w1_change"]


MANY_DROPPED = 0.02
"""Share of dropped frames beyond which nothing is called covered, where `stop_below` does not say it."""

PASSED = 0.1
"""A cut of which no larger share is left is passed: what it would still pay for is not worth a round."""


def affordable_picks(params: CampaignParams, wanted: int, *, spent_steps: int, steps_per_pick: int) -> int:
    """How many of the wanted picks the rest of the budget pays for, and what is left to the next cut.

    All of them without a budget and a cut. With cuts the budget is the last of them, and none is beyond it.
    """
    budget = params.limit_steps
    limits = [limit for limit in (*params.cut_steps, budget) if 0 < limit <= budget]
    if not limits:
        return wanted
    passed = PASSED if any(cut <= budget for cut in params.cut_steps) else 0.0
    left = [limit - spent_steps for limit in limits if limit - spent_steps >= max(steps_per_pick, passed * limit)]
    return min(wanted, min(left, default=0) // steps_per_pick)


def closing_reason(
    params: CampaignParams, round_index: int, *, affordable: int, outcomes: Sequence[RoundOutcome]
) -> str:
    """Say why this round is the closing one, which asks for no label; "" while the campaign goes on.

    `affordable` is what `affordable_picks` left of the picks; `outcomes` are those of rounds 0 to `round_index`.
    Converged means both: in each of the last `stop_rounds` rounds no more than `stop_below` of the simulated frames
    were uncovered, where dropped ones count as uncovered, and W1 did not change measurably from the last round but one
    to the last (see `w1_change`).
    """
    if round_index >= params.rounds:
        return f"rounds: all {params.rounds} acquisition rounds are done"
    if affordable == 0:
        return f"budget: what is left of {params.limit_steps} all-atom steps pays for no further label"
    return _converged(params, outcomes[-params.stop_rounds :], outcomes[-2:])


def joint_reason(reasons: Sequence[str]) -> str:
    """Say why a round of several proteins is the closing one, by what `closing_reason` says of each; "" unless all do.

    >>> joint_reason(["budget: spent", ""]), joint_reason(["rounds: done", "rounds: done"])
    ('', 'rounds: done')
    """
    return "; ".join(dict.fromkeys(reasons)) if all(reasons) else ""


def nothing_to_label(params: CampaignParams, dropped: Sequence[float]) -> str:
    """Say why a round that picked no frame is the closing one, by the share of frames that each protein dropped.

    >>> nothing_to_label(CampaignParams(), [0.01])
    'covered: no simulated frame is worth a label'
    """
    if max(dropped) <= (params.stop_below or MANY_DROPPED):
        return "covered: no simulated frame is worth a label"
    return (
        f"dropped: {max(dropped):.1%} of the simulated frames were dropped as unphysical (selection.json counts the "
        "reasons), and no other is worth a label; train longer, or widen the bounds under selection"
    )


def shares(count: int, uncovered: Sequence[float]) -> list[int]:
    """Divide a round's picks among proteins by their uncovered fractions; all go to an only one.

    Each that has any gets one, while there are enough; the rest is dealt one by one, to whoever has the most uncovered
    for its next pick (highest averages, as seats are dealt by D'Hondt). Where nothing is uncovered all count alike.

    >>> shares(10, [0.6, 0.2, 0.0]), shares(5, [0.0, 0.0]), shares(2, [0.9, 0.01])
    ([8, 2, 0], [3, 2], [1, 1])
    """
    weights = list(uncovered) if any(uncovered) else [1.0] * len(uncovered)
    dealt = [0] * len(weights)
    for _ in range(count):
        # the first pick of each comes before the second of any
        place = max(range(len(weights)), key=lambda n: (weights[n] > 0 and not dealt[n], weights[n] / (dealt[n] + 1)))
        dealt[place] += 1
    return dealt


def w1_change(before: RoundOutcome, after: RoundOutcome) -> tuple[float, float]:
    """95 % interval of the change of W1 between two rounds.

    From the two bootstrap intervals as if they were independent: their distances to the estimates are added in
    quadrature, the method of variance estimates recovery (Zou & Donner, Stat. Med. 27, 1693, 2008). The replicas are
    others, but both intervals hold the resampling of one reference, whose error mostly cancels in the change: the
    interval is too wide, up to five times where that error dominates, and a campaign converges sooner.
    """
    change = after.w1 - before.w1
    down = math.hypot(after.w1 - after.low, before.high - before.w1)
    up = math.hypot(after.high - after.w1, before.w1 - before.low)
    return change - down, change + up


def _converged(params: CampaignParams, recent: Sequence[RoundOutcome], pair: Sequence[RoundOutcome]) -> str:
    covered = all(outcome.uncovered_fraction <= params.stop_below for outcome in recent)
    if not params.stop_below or len(recent) < params.stop_rounds or len(pair) < 2 or not covered:
        return ""
    low, high = w1_change(*pair)
    if not low <= 0.0 <= high:
        return ""
    return (
        f"converged: at most {params.stop_below:.1%} of the simulated frames were uncovered in {params.stop_rounds} "
        f"rounds, and TICA W1 changed by {low:+.3f} to {high:+.3f}"
    )
