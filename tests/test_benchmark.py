"""The benchmark of a synthetic protein that flips slowly between two shapes."""

import json
from dataclasses import replace

import mdtraj
import numpy as np
import pytest
from rich.console import Console

from cgal.benchmark.figures import plot_benchmark, plot_rmsd_rounds, plot_rounds
from cgal.benchmark.lag import frame_spacing_ps, lag_frames
from cgal.benchmark.observables import OBSERVABLES, Observable, reaction_coordinate
from cgal.benchmark.suite import benchmark
from cgal.benchmark.tica import fit_tica, project
from cgal.errors import BadParams, BadTrajectory, EmptyTrajectory
from cgal.files import write_json
from cgal.frames import CGTrajectory, ReplicaFate
from cgal.params import BenchmarkParams
from flows.campaign.records import differing_halves
from flows.terminal import campaign_table

SEQUENCE = "YYDPETGTWY"
SPACING_PS = 2.0
PARAMS = BenchmarkParams(tica_lag_ps=20.0, bootstrap=4, maximum_frames=150)


def two_shapes() -> np.ndarray:
    """A zigzag chain (open), and the same chain bent back on itself (folded): nm, shapes x beads x 3."""
    index = np.arange(10)
    zigzag = np.stack([0.33 * index, 0.19 * (index % 2), np.zeros(10)], axis=1)
    folded = zigzag.copy()
    folded[5:, 0] = zigzag[4, 0] - (zigzag[5:, 0] - zigzag[5, 0])
    folded[5:, 2] = 0.45
    return np.stack([zigzag, folded])


COSTS = {
    "frames": 1,
    "oracle_steps": 0,
    "acquisition_steps": 0,
    "failed_steps": None,
    "seed_steps": None,
    "lost_replicas": 0,
    "replicas": 1,
    "oracle_failed": 0,
    "wall_s": 1.0,
    "overhead_s": 0.5,
}
NATIVE = two_shapes()[1].astype(np.float32)


def chain_trajectory(
    seed: int, trajectories: int = 4, frames: int = 120, flip: float = 0.03, noise_nm: float = 0.02
) -> tuple[CGTrajectory, np.ndarray]:
    """Trajectories of a two-state process with noise on every bead, and the state (0 open, 1 folded) of each frame."""
    generator = np.random.default_rng(seed)
    flips = generator.random((trajectories, frames)) < flip
    flips[:, 0] = generator.random(trajectories) < 0.5
    state = (np.cumsum(flips, axis=1) % 2).reshape(-1)
    positions = two_shapes()[state] + generator.normal(0, noise_nm, size=(len(state), 10, 3))
    time_ps = np.tile(np.arange(frames) * SPACING_PS, trajectories)
    return CGTrajectory.from_positions(SEQUENCE, positions, time_ps, np.repeat(np.arange(trajectories), frames)), state


@pytest.fixture(scope="module")
def reference():
    return chain_trajectory(1)[0]


@pytest.fixture(scope="module")
def simulation():
    trajectory = chain_trajectory(2, trajectories=6, frames=50)[0]
    causes = ["completed", "exploded", "imploded", "not finite", "completed", "exploded"]
    return replace(trajectory, fates=tuple(ReplicaFate(index, 49, cause) for index, cause in enumerate(causes)))


def run(simulation, reference, params=PARAMS, seed=1, **overrides):
    positions = {"native": NATIVE, "training_positions": reference.positions[:30]} | overrides
    return benchmark(simulation, reference, params, seed=seed, **positions)


@pytest.fixture(scope="module")
def result(simulation, reference):
    return run(simulation, reference)


# TICA


def test_first_tica_component_is_the_slow_state():
    trajectory, state = chain_trajectory(3, frames=1500, flip=0.01)
    components = project(fit_tica(trajectory, 20.0), trajectory)
    assert components.shape == (len(trajectory), 2)
    assert abs(np.corrcoef(components[:, 0], state)[0, 1]) > 0.98


def test_lag_pairs_never_cross_from_one_trajectory_into_the_next(reference):
    """Trajectories in reversed order share every pair within one, and no pair across two."""
    backwards = np.concatenate([np.flatnonzero(reference.replica == replica) for replica in (3, 2, 1, 0)])
    shuffled = reference.take(backwards)
    one, other = (project(fit_tica(each, 20.0), reference) for each in (reference, shuffled))
    assert np.abs(one) == pytest.approx(np.abs(other), rel=1e-5, abs=1e-6)


def test_tica_frames_weigh_as_much_as_their_weights_say(reference):
    """A trajectory of weight zero is as good as absent."""
    kept = reference.replica > 0
    weighted = replace(reference, weights=np.where(kept, 1 / kept.sum(), 0.0))
    one, other = (project(fit_tica(each, 20.0), reference) for each in (weighted, reference.take(kept)))
    assert np.abs(one) == pytest.approx(np.abs(other), rel=1e-5, abs=1e-6)


def test_metrics_tell_the_lag_that_was_used(simulation, reference):
    """Frames are 2 ps apart: 21 ps are not a whole number of them."""
    found = run(simulation, reference, PARAMS.model_copy(update={"tica_lag_ps": 21.0}))
    assert found.metrics["tica_lag_ps"] == 20.0
    assert found.metrics == run(simulation, reference).metrics
    entry = found.metrics | {"round": 0} | COSTS
    assert "at a lag of 20 ps" in str(campaign_table("demo", [entry]).caption)
    assert "lag" not in str(campaign_table("demo", [entry | {"tica_lag_ps": None}]).caption)


def test_steps_are_told_by_what_they_were_for_and_a_dash_where_that_is_unknown(result):
    spent = {"acquisition_steps": 70_000, "failed_steps": 8_000, "seed_steps": 25_000}
    entries = [result.metrics | COSTS | {"round": 0}, result.metrics | COSTS | spent | {"round": 1}]
    table = campaign_table("demo", entries)
    shown = {str(column.header): list(column.cells)[:2] for column in table.columns}
    assert shown["label steps"] == ["0k", "62k"]
    assert shown["failed steps"] == ["–", "8k"]
    assert shown["seed steps"] == ["–", "25k"]


def test_reference_of_other_physics_is_told_by_every_table(simulation, reference):
    foreign = run(simulation, replace(reference, physics="CHARMM36m with TIP3P"))
    assert foreign.metrics == run(simulation, reference).metrics | {"reference_physics": "CHARMM36m with TIP3P"}
    told = "reference and oracle differ in physics: the reference is of CHARMM36m with TIP3P"
    entries = [found.metrics | {"round": 0} | COSTS for found in (run(simulation, reference), foreign)]
    assert told in str(campaign_table("demo", entries).caption)
    assert "physics" not in str(campaign_table("demo", entries[:1]).caption)


def test_lag_is_counted_in_frames_of_the_reference(reference):
    assert frame_spacing_ps(reference) == pytest.approx(SPACING_PS)
    assert lag_frames(reference, 20.0) == 10
    assert [lag_frames(reference, lag_ps) for lag_ps in (4.9, 5.0, 5.1, 7.0)] == [2, 2, 3, 3], "never the longer of two"


def test_reference_no_longer_than_the_lag_says_so(reference):
    with pytest.raises(BadTrajectory, match=r"longest trajectory has 120 frames .* lag of 120 frames"):
        fit_tica(reference, 240.0)


def test_lag_below_the_frame_spacing_says_so(reference):
    with pytest.raises(BadParams, match="tica_lag_ps"):
        fit_tica(reference, 0.5)


def test_unevenly_spaced_reference_says_so(reference):
    gap = replace(reference, time_ps=np.where(np.arange(len(reference)) == 7, 0.5, 0.0) + reference.time_ps)
    with pytest.raises(BadTrajectory, match="evenly spaced"):
        fit_tica(gap, 20.0)


def test_reference_of_single_frames_says_so(reference):
    with pytest.raises(BadTrajectory, match="time series"):
        fit_tica(reference.take(np.array([0, 120, 240])), 20.0)


def test_reference_that_does_not_move_says_so(reference):
    still = replace(reference, positions=np.repeat(reference.positions[:1], len(reference), axis=0))
    with pytest.raises(BadTrajectory, match="in 0 direction"):
        fit_tica(still, 20.0)


# The suite


def test_metrics_hold_value_interval_and_floor_of_each_observable_in_both_modes(result):
    for mode in ("exact", "paper"):
        assert set(result.metrics[f"w1_{mode}"]) == set(result.metrics[f"floor_{mode}"]) == set(OBSERVABLES)
        for metric in OBSERVABLES:
            found = result.metrics[f"w1_{mode}"][metric]
            assert 0 <= found["low"] <= found["value"] <= found["high"]
            assert result.metrics[f"floor_{mode}"][metric] > 0


@pytest.mark.parametrize("mode", ["exact", "paper"])
def test_headline_is_the_mode_that_params_name(simulation, reference, mode):
    metrics = run(simulation, reference, PARAMS.model_copy(update={"mode": mode})).metrics
    assert metrics["w1"] == metrics[f"w1_{mode}"]
    assert metrics["floor"] == metrics[f"floor_{mode}"]


def test_metrics_and_histograms_are_json(result, tmp_path):
    write_json(tmp_path / "metrics.json", result.metrics)
    write_json(tmp_path / "histograms.json", result.histograms)
    assert json.loads((tmp_path / "metrics.json").read_text()) == result.metrics


def test_same_seed_gives_the_same_numbers(simulation, reference, result):
    again, other = run(simulation, reference), run(simulation, reference, seed=2)
    assert (again.metrics, again.histograms) == (result.metrics, result.histograms)
    assert other.metrics != result.metrics


def test_reference_against_itself_is_at_zero(reference):
    metrics = run(reference, reference, PARAMS.model_copy(update={"discard_fraction": 0.0})).metrics
    for mode in ("exact", "paper"):
        assert max(metrics[f"w1_{mode}"][metric]["value"] for metric in OBSERVABLES) == pytest.approx(0, abs=1e-9)


def test_model_stuck_in_one_state_is_further_off_than_a_fair_one(reference, result):
    frozen = run(replace(reference, positions=np.repeat(reference.positions[:1], len(reference), axis=0)), reference)
    for metric in ("tica", "reaction_coordinate", "angle", "dihedral"):
        assert frozen.metrics["w1"][metric]["value"] > result.metrics["w1"][metric]["value"], metric


def test_lost_replicas_are_counted_by_cause_and_their_sound_frames_used(result):
    assert result.metrics["simulation"] == {
        "replicas": 6,
        "exploded": 2,
        "imploded": 1,
        "not_finite": 1,
        "exploded_fraction": pytest.approx(4 / 6),
        "frames": 6 * 45,
        "frames_saved": 300,
        "frames_not_finite": 0,
    }


def test_a_replica_that_left_no_frame_is_still_counted(simulation, reference):
    metrics = run(simulation.take(simulation.replica != 1), reference).metrics["simulation"]
    assert (metrics["replicas"], metrics["exploded"], metrics["frames"]) == (6, 2, 5 * 45)


def test_first_share_of_each_replica_is_dropped(simulation, reference):
    """Garbage in the first tenth of each replica changes nothing."""
    spoiled = simulation.positions.copy()
    spoiled[np.isin(np.arange(len(simulation)) % 50, range(5))] += np.float32(7) * np.arange(10)[:, None]
    assert run(replace(simulation, positions=spoiled), reference).metrics == run(simulation, reference).metrics


def test_a_replica_that_exploded_within_the_first_share_of_the_run_adds_nothing(simulation, reference):
    """Of replica 1 four frames are left, all from the time that is dropped from the others."""
    short = simulation.take((simulation.replica != 1) | (np.arange(len(simulation)) % 50 < 4))
    without = simulation.take(simulation.replica != 1)
    found, expected = (run(each, reference).metrics for each in (short, without))
    assert found["simulation"] == expected["simulation"] | {"frames_saved": len(short)}
    for metric in OBSERVABLES:
        assert found["w1"][metric] == pytest.approx(expected["w1"][metric])


def test_no_frame_is_dropped_by_a_share_of_zero(reference):
    """Trajectories that begin and end when they like."""
    pieces = reference.take(np.r_[0:120, 200:240, 300:303])
    metrics = run(pieces, reference, PARAMS.model_copy(update={"discard_fraction": 0.0})).metrics
    assert metrics["simulation"]["frames"] == len(pieces)


def test_frames_that_are_not_finite_are_left_out_and_show_in_the_count(simulation, reference):
    holed = simulation.positions.copy()
    holed[-3:] = np.nan
    metrics = run(replace(simulation, positions=holed), reference).metrics
    assert (metrics["simulation"]["frames"], metrics["simulation"]["frames_not_finite"]) == (6 * 45 - 3, 3)
    assert all(np.isfinite(metrics["w1"][metric]["value"]) for metric in OBSERVABLES)


def test_a_simulation_that_still_leaves_its_start_is_said_to(reference):
    """Fifty replicas that all open on the way, against fifty of an equilibrium."""
    leaving, _ = chain_trajectory(3, trajectories=50, frames=60, flip=0.03)
    state = np.tile(np.arange(60) < 30, 50).astype(int)
    noise = np.random.default_rng(0).normal(0, 0.02, size=(len(state), 10, 3))
    leaving = replace(leaving, positions=(two_shapes()[state] + noise).astype(np.float32))
    settled, _ = chain_trajectory(4, trajectories=50, frames=60, flip=0.03)
    found = [run(trajectory, reference).metrics["halves"] for trajectory in (leaving, settled)]
    assert [halves["agree"] for halves in found] == [False, True]
    assert abs(found[0]["drift"]) > 1.0


def test_rounds_whose_simulation_drifts_are_named():
    """Of a round of two proteins each is told of alone."""
    still = {"drift": 0.1, "drift_error": 0.1, "agree": True}
    drifts = {"drift": -0.5, "drift_error": 0.1, "agree": False}
    rounds = [
        {"round": 0, "halves": drifts},
        {"round": 1, "halves": still},
        {"round": 2, "halves": None},
        {"round": 3, "halves": None, "proteins": {"a": {"halves": still}, "b": {"halves": drifts}}},
    ]
    note = differing_halves(rounds)
    assert ": round 0 differ by -0.50 +- 0.10, round 3 (b) differ by -0.50 +- 0.10; " in note
    assert differing_halves(rounds[1:3]) == ""


def test_folded_fraction_is_the_share_near_the_native_frame():
    trajectory, state = chain_trajectory(5)
    metrics = run(trajectory, trajectory, PARAMS.model_copy(update={"discard_fraction": 0.0})).metrics
    assert metrics["folded_fraction"]["model"] == pytest.approx(state.mean())
    weights = np.where(state == 1, 3.0, 1.0)
    weighted = replace(trajectory, weights=weights / weights.sum())
    expected = 3 * state.sum() / (3 * state.sum() + (1 - state).sum())
    assert run(trajectory, weighted).metrics["folded_fraction"]["reference"] == pytest.approx(expected)


def test_a_reference_weighted_like_the_model_is_nearer_to_it():
    """The model sees the folded state far more often; weights that say the same bring the reference to it."""
    reference, state = chain_trajectory(6)
    folded = CGTrajectory.from_positions(
        SEQUENCE, reference.positions[state == 1], np.arange(state.sum()), np.arange(state.sum()) % 5
    )
    heavy = replace(reference, weights=np.where(state == 1, 1.0, 1e-3) / np.where(state == 1, 1.0, 1e-3).sum())
    plain, weighted = (run(folded, each).metrics for each in (reference, heavy))
    for mode in ("w1_exact", "w1_paper"):
        for metric in ("tica", "reaction_coordinate"):
            assert weighted[mode][metric]["value"] < 0.2 * plain[mode][metric]["value"]


def test_rmsd_histograms_sum_to_one(result):
    histogram = result.histograms["rmsd"]
    assert len(histogram["edges_nm"]) == PARAMS.rmsd_bins + 1
    for side in ("simulation", "training", "reference"):
        assert sum(histogram[side]) == pytest.approx(1)


def test_lone_reference_is_cut_into_blocks_and_contiguous_halves(simulation):
    lone = chain_trajectory(7, trajectories=1, frames=400)[0]
    found = run(simulation, lone)
    assert len(np.unique(found.reference["tica"].block)) == PARAMS.blocks
    assert found.metrics["floor"]["tica"] > 0


def test_simulation_without_usable_frames_says_so(simulation, reference):
    with pytest.raises(EmptyTrajectory, match=r"0 of 0 frames .* \(4 of 6 replicas were lost\)"):
        run(simulation.take(np.zeros(0, dtype=int)), reference)


def test_reference_of_another_protein_says_so(simulation, reference):
    with pytest.raises(BadTrajectory, match="same protein"):
        run(simulation, replace(reference, sequence="A" * 10))


def test_empty_training_set_is_no_obstacle(simulation, reference):
    histogram = run(simulation, reference, training_positions=reference.positions[:0]).histograms["rmsd"]
    assert sum(histogram["training"]) == 0


def test_progress_counts_up_to_its_total(simulation, reference):
    calls = []
    run(simulation, reference, progress=lambda done, total, note="": calls.append((done, total)))
    count = 2 * len(OBSERVABLES)
    assert calls == [(done, count) for done in range(count + 1)]


# The figures


def is_png(path):
    return path.read_bytes().startswith(b"\x89PNG")


def test_figures_of_a_round_are_the_same_bytes_twice(result, tmp_path):
    first, second = (plot_benchmark(result, tmp_path / name) for name in ("first", "second"))
    assert [path.name for path in first] == ["tica.png", "densities.png"]
    assert all(is_png(path) for path in first)
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_figures_name_a_reference_of_other_physics_than_the_oracle_s(result, tmp_path):
    named = replace(result, metrics=result.metrics | {"reference_physics": "TIP3P, amber14"})
    plot_benchmark(result, tmp_path / "same")
    plot_benchmark(named, tmp_path / "other")
    plot_rounds([result.metrics], tmp_path / "same")
    plot_rounds([named.metrics], tmp_path / "other")
    for name in ("tica.png", "densities.png", "w1_rounds.png"):
        assert (tmp_path / "same" / name).read_bytes() != (tmp_path / "other" / name).read_bytes()


@pytest.mark.parametrize("count", [0, 1, 4])
def test_figures_over_rounds_take_any_number_of_rounds(result, tmp_path, count):
    paths = plot_rounds([result.metrics | {"round": index} for index in range(count)], tmp_path)
    paths += plot_rmsd_rounds([result.histograms] * count, tmp_path)
    assert [path.name for path in paths] == ["w1_rounds.png", "rmsd_rounds.png"]
    assert all(is_png(path) for path in paths)


# A sixth metric


def gyration(trajectory: CGTrajectory, tica: object) -> np.ndarray:
    return np.asarray(mdtraj.compute_rg(trajectory.to_mdtraj()), dtype=np.float64)[:, None]


def test_a_sixth_metric_is_one_record_and_rounds_from_before_it_still_show(
    simulation, reference, result, tmp_path, monkeypatch
):
    record = Observable("sixth", "Radius of gyration", "Rg [nm]", "nm", "radius of gyration", "line", gyration)
    monkeypatch.setitem(OBSERVABLES, record.name, record)
    now = run(simulation, reference)
    for mode in ("exact", "paper"):
        score = now.metrics[f"w1_{mode}"]["sixth"]
        assert 0 <= score["low"] <= score["value"] <= score["high"]
        assert now.metrics[f"floor_{mode}"]["sixth"] >= 0
    assert "sixth" not in result.metrics["w1"]
    plot_benchmark(now, tmp_path)
    plot_rounds([result.metrics, now.metrics], tmp_path)
    rounds = [metrics | {"round": number} | COSTS for number, metrics in enumerate((result.metrics, now.metrics))]
    text = Console(width=200)
    with text.capture() as shown:
        text.print(campaign_table("demo", rounds))
    before = next(line for line in shown.get().splitlines() if line.split()[:1] == ["0"])
    assert {"Rg", "[nm]", "[pm]"} <= set(shown.get().split())  # a heading may be broken over two lines
    assert "–" in before


def test_a_metric_in_a_plane_has_a_map_of_its_own(simulation, reference, tmp_path, monkeypatch):
    def size_and_ends(trajectory: CGTrajectory, tica: object) -> np.ndarray:
        return np.hstack([gyration(trajectory, tica), reaction_coordinate(trajectory.to_mdtraj())])

    record = Observable("size_and_ends", "Size and ends", "size [nm]", "nm", "size, ends", "plane", size_and_ends)
    monkeypatch.setitem(OBSERVABLES, record.name, record)
    found = run(simulation, reference)
    assert all(found.metrics[f"w1_{mode}"][record.name]["value"] > 0 for mode in ("exact", "paper"))
    assert [path.name for path in plot_benchmark(found, tmp_path)] == ["tica.png", "size_and_ends.png", "densities.png"]
