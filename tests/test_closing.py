"""When a campaign stops: never while it learns, always when nothing pays for a label."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgal.outcomes import RoundOutcome
from cgal.params import CampaignParams
from cgal.selection.closing import affordable_picks, closing_reason, nothing_to_label, w1_change

PARAMS = CampaignParams(rounds=5, budget_steps=10_000, stop_below=0.05, stop_rounds=2)


def outcome(w1: float = 1.0, uncovered: float = 0.5, half_width: float = 0.1) -> RoundOutcome:
    return RoundOutcome(w1=w1, low=w1 - half_width, high=w1 + half_width, uncovered_fraction=uncovered)


@given(spent=st.integers(0, 20_000), wanted=st.integers(1, 50), cost=st.integers(1, 5_000))
def test_affordable_picks_never_overspend_and_never_leave_one_unbought(spent: int, wanted: int, cost: int) -> None:
    picks = affordable_picks(PARAMS, wanted, spent_steps=spent, steps_per_pick=cost)
    assert 0 <= picks <= wanted
    if picks:
        assert spent + picks * cost <= PARAMS.budget_steps
    if picks < wanted:
        assert spent + (picks + 1) * cost > PARAMS.budget_steps


def test_without_a_budget_all_picks_are_affordable() -> None:
    unlimited = CampaignParams(budget_steps=0)
    assert affordable_picks(unlimited, 20, spent_steps=10**9, steps_per_pick=10**6) == 20


@given(spent=st.integers(0, 20_000), wanted=st.integers(1, 50), cost=st.integers(1, 5_000))
def test_a_round_does_not_pass_a_cut_that_it_has_not_nearly_reached(spent: int, wanted: int, cost: int) -> None:
    cuts = PARAMS.model_copy(update={"cut_steps": (2_000, 6_000)})
    picks = affordable_picks(cuts, wanted, spent_steps=spent, steps_per_pick=cost)
    free = affordable_picks(PARAMS, wanted, spent_steps=spent, steps_per_pick=cost)
    assert picks <= free
    for cut in cuts.cut_steps:
        if spent < 0.9 * cut and spent + cost <= cut:
            assert picks > 0
            assert spent + picks * cost <= cut
    if spent < 0.9 * PARAMS.budget_steps:
        assert bool(picks) == bool(free), "a cut never ends a campaign"


def test_a_cut_beyond_the_budget_changes_nothing() -> None:
    campaign = CampaignParams(budget_steps=150_000, cut_steps=(100_000, 200_000))
    for spent in (0, 92_000, 120_000, 136_000, 149_000):
        within = campaign.model_copy(update={"cut_steps": (100_000,)})
        picks, expected = (
            affordable_picks(each, 10, spent_steps=spent, steps_per_pick=5450) for each in (campaign, within)
        )
        assert picks == expected
        assert spent + picks * 5450 <= 150_000
    beyond = CampaignParams(budget_steps=1000, cut_steps=(2000,))
    assert affordable_picks(beyond, 10, spent_steps=920, steps_per_pick=10) == 8
    assert "of 150000 all-atom steps" in closing_reason(campaign, 0, affordable=0, outcomes=[outcome()])


def test_a_round_that_dropped_frames_and_picks_none_is_not_called_covered() -> None:
    assert nothing_to_label(PARAMS, [0.05, 0.0]).startswith("covered")
    assert nothing_to_label(PARAMS, [0.0, 0.96]).startswith("dropped: 96.0% of the simulated frames")
    never = PARAMS.model_copy(update={"stop_below": 0.0})
    assert nothing_to_label(never, [0.0004]).startswith("covered")
    assert nothing_to_label(never, [0.5]).startswith("dropped")


def test_a_campaign_goes_on_while_rounds_budget_and_uncovered_frames_are_left() -> None:
    assert closing_reason(PARAMS, 3, affordable=1, outcomes=[outcome()] * 4) == ""


@pytest.mark.parametrize(("round_index", "affordable", "reason"), [(5, 20, "rounds"), (2, 0, "budget")])
def test_rounds_and_budget_end_it(round_index: int, affordable: int, reason: str) -> None:
    found = closing_reason(PARAMS, round_index, affordable=affordable, outcomes=[outcome()] * (round_index + 1))
    assert found.startswith(reason)


def test_covered_and_unchanged_for_long_enough_is_converged() -> None:
    covered = [outcome(), outcome(1.02, uncovered=0.01), outcome(1.0, uncovered=0.02)]
    assert closing_reason(PARAMS, 2, affordable=9, outcomes=covered).startswith("converged")
    assert closing_reason(PARAMS, 1, affordable=9, outcomes=covered[:2]) == "", "one covered round is not enough"


def test_a_measurable_change_of_w1_goes_on_however_covered_the_frames_are() -> None:
    falling = [outcome(2.0, 0.0), outcome(1.5, 0.0), outcome(1.0, 0.0)]
    assert closing_reason(PARAMS, 2, affordable=9, outcomes=falling) == ""


def test_zero_switches_the_convergence_rule_off() -> None:
    never = PARAMS.model_copy(update={"stop_below": 0.0})
    assert closing_reason(never, 3, affordable=9, outcomes=[outcome(1.0, 0.0)] * 4) == ""


@given(before=st.floats(0, 5), after=st.floats(0, 5), widths=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)))
def test_interval_of_a_change_holds_it_and_is_no_narrower_than_either_interval(
    before: float, after: float, widths: tuple[float, float]
) -> None:
    low, high = w1_change(outcome(before, 0.0, widths[0]), outcome(after, 0.0, widths[1]))
    assert low <= after - before <= high
    assert high - low >= 2 * max(widths) - 1e-9
