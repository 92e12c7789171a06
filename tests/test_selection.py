"""What selection drops, returns, stores and draws."""

from typing import get_args

import matplotlib.image
import numpy as np
import pytest

from cgal.dataset import load_manifest, load_shards, prepare
from cgal.errors import BadFile, BadParams, EmptyTrajectory
from cgal.frames import rmsd_nm
from cgal.params import CampaignParams, SelectionParams
from cgal.progress import silent
from cgal.selection import Finding, Selection, acquire, acquisition, measure_pool, nearest_rmsd_nm, plot_selection
from cgal.selection.acquisition import strategy_of
from cgal.selection.pool import chain_cutoff_nm
from cgal.training.held_out import held_out_masks
from flows.campaign.stages import _calibrated, _committee_members
from flows.workspace import Workspace

from .laws.test_selection import SEQUENCE, hairpins, pick, toy_committee, trajectory_of

SIMULATED = hairpins(np.linspace(0.0, 1.5, 60))
TRAINING = hairpins([0.1] * 20, seed=3)
COMMITTEES = ("committee", "committee_coverage")
STRATEGIES = get_args(SelectionParams.model_fields["strategy"].annotation)
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES)


@every_strategy
def test_every_strategy_in_the_params_exists(strategy):
    assert callable(strategy_of(strategy))


@every_strategy
def test_unphysical_frames_are_dropped_for_one_stated_reason_each(strategy):
    frames = np.concatenate([SIMULATED, np.repeat(SIMULATED[:1], 3, axis=0)])
    frames[60, 3] = np.nan
    frames[61, 7] += 0.5
    frames[62, 4:] = frames[62, 3::-1] + np.float32([0.0, 0.28, 0.0])  # strands 0.28 nm apart
    selection = pick(frames, TRAINING, strategy=strategy, count=100, cutoff_nm=0.35)
    assert selection.dropped.keys() == {"not finite", "unphysical bond", "overlap", "beyond cutoff"}
    assert selection.dropped["not finite"] == selection.dropped["unphysical bond"] == selection.dropped["overlap"] == 1
    assert len(selection.candidates) + sum(selection.dropped.values()) == 63
    assert 0 < len(selection) <= len(selection.candidates) < 60
    assert selection.rmsd_nm.max() <= 0.35
    assert not {60, 61, 62} & set(selection.frame)
    assert "1 not finite" in selection.note
    assert "asked for 100" in selection.note


def test_random_picks_all_there_are_when_more_are_asked_for():
    assert len(pick(SIMULATED, TRAINING, strategy="random", count=100)) == 60


@every_strategy
def test_closing_round_picks_nothing_but_still_measures(strategy):
    """And asks no committee."""
    selection = pick(SIMULATED, TRAINING, strategy=strategy, count=0, committee=lambda: pytest.fail("asked"))
    assert len(selection) == selection.bins_used == 0
    assert selection.positions.shape == (0, 8, 3)
    assert selection.coverage.simulated.sum() == pytest.approx(1.0)
    assert 0.5 < selection.uncovered_fraction < 1.0
    assert "asked for" not in selection.note
    assert selection.calibration is None


@every_strategy
@pytest.mark.parametrize("rounds", [0, 1])
def test_pairs_with_the_training_set_are_searched_once_a_round(strategy, rounds, monkeypatch):
    """In the closing round (no acquisition round is left) as in another."""
    searched = []

    def search(frames, training):
        searched.append(len(frames) * len(training))
        return nearest_rmsd_nm(frames, training)

    monkeypatch.setattr(acquisition, "nearest_rmsd_nm", search)
    params = SelectionParams(strategy=strategy, frames=3)
    pool = measure_pool(trajectory_of(SIMULATED), TRAINING, TRAINING[0], params, toy_committee)
    w1 = {"value": 1.0, "low": 0.9, "high": 1.1}
    found = acquire([Finding(pool, w1, [], 1)], CampaignParams(rounds=rounds), 0, affordable=3)[0]
    assert searched == [60 * 20]
    assert (0 < len(found.selection) <= 3) == (rounds > 0)
    assert found.closing.startswith("rounds:") == (rounds == 0)


@every_strategy
def test_a_committee_is_asked_once_and_only_where_it_is_needed(strategy):
    calls = []

    def committee():
        calls.append(strategy)
        return toy_committee()

    selection = pick(SIMULATED, TRAINING, strategy=strategy, committee=committee)
    assert len(calls) == (strategy in COMMITTEES)
    assert (selection.calibration is not None) == (strategy in COMMITTEES)
    assert ("committee of 3" in selection.note) == (strategy in COMMITTEES)
    assert ("committee_spearman" in selection.summary()) == (strategy in COMMITTEES)


@pytest.mark.parametrize("strategy", COMMITTEES)
def test_a_missing_committee_is_named(strategy):
    with pytest.raises(BadParams, match="pass `committee`"):
        pick(SIMULATED, TRAINING, strategy=strategy, committee=None)


@every_strategy
def test_uncovered_fraction_does_not_depend_on_the_strategy(strategy):
    selection = pick(SIMULATED, TRAINING, strategy=strategy, novel_nm=0.2)
    assert selection.uncovered_fraction == np.mean(selection.candidates.nearest_nm > 0.2)
    assert selection.uncovered_fraction == pick(SIMULATED, TRAINING, novel_nm=0.2).uncovered_fraction
    assert f"{selection.uncovered_fraction:.1%} of the candidates are more than 0.2 nm" in selection.note
    assert selection.summary()["uncovered_fraction"] == selection.uncovered_fraction


def test_no_physical_frame_is_an_error_that_counts_the_reasons():
    with pytest.raises(EmptyTrajectory, match=r"none of 60 .*'unphysical bond': 60"):
        pick(SIMULATED * np.float32(2), TRAINING)
    with pytest.raises(EmptyTrajectory, match="no frame at all"):
        pick(SIMULATED[:0], TRAINING)


def test_dropped_frames_count_as_uncovered_where_a_campaign_may_stop():
    """96 of 100 frames exploded, the others lie in the training set: nothing to label, but not covered either."""
    frames = np.concatenate([np.repeat(TRAINING[:1], 4, axis=0), np.repeat(TRAINING[:1] * 2, 96, axis=0)])
    pool = measure_pool(trajectory_of(frames), TRAINING, TRAINING[0], SelectionParams(strategy="coverage"))
    w1 = {"value": 1.0, "low": 0.9, "high": 1.1}
    found = acquire([Finding(pool, w1, [], 1)], CampaignParams(rounds=5), 0, affordable=3)[0]
    assert found.selection.uncovered_fraction == 0.0
    assert found.outcome.uncovered_fraction == pytest.approx(0.96)
    assert found.closing.startswith("dropped: 96.0% of the simulated frames")
    sound = measure_pool(trajectory_of(frames[:4]), TRAINING, TRAINING[0], SelectionParams(strategy="coverage"))
    found = acquire([Finding(sound, w1, [], 1)], CampaignParams(rounds=5), 0, affordable=3)[0]
    assert found.closing == "covered: no simulated frame is worth a label"


@pytest.mark.parametrize("beads", [10, 20, 35])
def test_coils_are_within_the_cutoff_of_an_extended_chain(beads):
    """Freely rotating chains with the angles of a protein; for 20 beads, most are beyond the 1.0 nm of ten."""
    generator = np.random.default_rng(0)
    bonds = np.tile([1.0, 0.0, 0.0], (200, beads - 1, 1))
    for bond in range(1, beads - 1):
        turn = generator.uniform(np.radians(30), np.radians(95), (200, 1))
        across = np.cross(bonds[:, bond - 1], generator.normal(size=(200, 3)))
        across /= np.linalg.norm(across, axis=1, keepdims=True)
        bonds[:, bond] = np.cos(turn) * bonds[:, bond - 1] + np.sin(turn) * across
    coils = (0.38 * np.cumsum(bonds, axis=1)).astype(np.float32)
    coils = np.concatenate([np.zeros((200, 1, 3), dtype=np.float32), coils], axis=1)
    extended = np.column_stack([0.36 * np.arange(beads), 0.12 * (np.arange(beads) % 2), np.zeros(beads)])
    away_nm = rmsd_nm(coils, extended.astype(np.float32))
    assert away_nm.max() < chain_cutoff_nm(beads)
    assert (away_nm > 1.0).mean() > (0.5 if beads > 10 else -1)


def test_training_frames_beyond_the_cutoff_are_counted_too():
    selection = pick(SIMULATED, hairpins([1.5] * 20), cutoff_nm=0.1)
    assert selection.coverage.edges[-1] > 0.1
    assert selection.coverage.training.sum() == pytest.approx(1.0)


@every_strategy
@pytest.mark.parametrize("count", [0, 7])
def test_selection_survives_saving_and_same_content_gives_same_bytes(tmp_path, strategy, count):
    selection = pick(SIMULATED, TRAINING, strategy=strategy, count=count)
    selection.save(tmp_path / "a.h5")
    loaded = Selection.load(tmp_path / "a.h5")
    loaded.save(tmp_path / "b.h5")
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    assert loaded.positions.tobytes() == selection.positions.tobytes()
    assert (loaded.note, loaded.sequence, loaded.summary()) == (selection.note, SEQUENCE, selection.summary())


def test_damaged_file_is_named(tmp_path):
    path = tmp_path / "selection.h5"
    pick(SIMULATED, TRAINING).save(path)
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(BadFile, match=r"selection\.h5"):
        Selection.load(path)


@pytest.mark.parametrize("strategy", ["coverage", "committee"])
@pytest.mark.parametrize("count", [0, 7])
def test_figure_is_drawn_the_same_each_time(tmp_path, strategy, count):
    selection = pick(SIMULATED, TRAINING, strategy=strategy, count=count)
    [first], [second] = (plot_selection(selection, tmp_path / name) for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    height = 1260 if selection.calibration else 840
    assert matplotlib.image.imread(first).shape == (height, 1500, 4)


def test_committee_of_a_round_is_calibrated_on_what_all_members_held_out(make_project):
    """The same one each time, of members that differ."""
    workspace = Workspace(make_project(selection={"committee": 2}, training={"epochs": 3}))
    prepare(workspace.data, workspace.params)
    manifest, shards = load_manifest(workspace.data), load_shards(workspace.data)
    committee, again = (_calibrated(workspace, manifest, _committee_members(workspace, silent)) for _ in range(2))
    held_out = np.concatenate(
        [
            shard.positions[mask]
            for shard, mask in zip(shards, held_out_masks(shards, workspace.params.training), strict=True)
        ]
    )
    assert committee.calibration.members == 2
    assert committee.disagreement(held_out) == pytest.approx(committee.calibration.scale * committee.calibration.spread)
    assert committee.calibration.spread.min() > 0
    assert committee.disagreement(held_out).tobytes() == again.disagreement(held_out).tobytes()
