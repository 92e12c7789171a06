"""Training learns a known force, holds out blocks, and does not go on with what is of another training."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cgal.errors import BadTrajectory, EmptyTrajectory, PreflightFailed
from cgal.frames import LabelledFrames
from cgal.params import PriorParams, TrainingParams
from cgal.potential.architectures import initial_potential
from cgal.potential.checkpoint import save_checkpoint
from cgal.potential.prior import fit_prior
from cgal.training.figures import plot_training
from cgal.training.force_matching import Run, prepare, train
from cgal.training.held_out import held_out_masks
from cgal.training.runs import write_curves_csv
from tests.beads import SEQUENCE, SMALL_NETWORK, TEMPERATURE_K, labelled, real_beads, real_prior, shaken_beads

PARAMS = TrainingParams(
    epochs=12, batch_size=16, learning_rate=3e-3, checkpoint_epochs=5, validation_block_frames=10, average_epochs=0.5
)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def data(frames: int = 100) -> LabelledFrames:
    return labelled(shaken_beads(frames), real_prior())


def shrunk(frames: int) -> float:
    """Mean logarithm of what weights have shrunk by, of a network that has nothing to learn and so no gradient."""
    beads, initial = shaken_beads(frames), fresh()
    forces = initial.prior.forces(torch.from_numpy(beads).double()).float().numpy()
    params = PARAMS.model_copy(update={"epochs": 4, "weight_decay": 0.5})
    shards = [replace(labelled(beads, real_prior()), forces=forces)]
    run = Run(initial.network, *prepare(shards, {SEQUENCE: initial.prior}, params), params, 0, map)
    before = run.weights.clone()
    while not run.finished:
        run.epoch()
    return float((run.weights / before)[before != 0].log().mean())


def test_weight_decay_does_not_depend_on_the_number_of_frames():
    """A product of (1 - rate x decay) is the exponential of minus their sum, to a few hundredths in a dozen steps."""
    assert shrunk(50) == pytest.approx(-0.5, rel=0.05)
    assert shrunk(400) == pytest.approx(-0.5, rel=0.05)


def fresh():
    return initial_potential(real_prior(), SMALL_NETWORK, 3)


@pytest.fixture(scope="module")
def result():
    return train([data()], fresh(), PARAMS, seed=11)


def test_a_known_force_is_learned_and_generalises_to_held_out_blocks(result):
    """Noiseless labels of a smooth pair potential: 12 short epochs must take off most of the prior's squared error."""
    assert result.validation.explained_fraction > 0.5
    assert (result.validation.train_frames, result.validation.held_out_frames) == (80, 20)
    rmse = [record.validation_rmse_kJ_per_mol_nm for record in result.history]
    assert rmse[result.best_epoch] == min(rmse) == result.validation.model_rmse_kJ_per_mol_nm
    assert rmse[0] == pytest.approx(result.validation.prior_rmse_kJ_per_mol_nm, rel=1e-6)  # fresh network: prior alone


def test_reported_error_is_that_of_the_returned_potential(result):
    shard = data()
    held_out = shard.take(held_out_masks([shard], PARAMS)[0])
    error = result.potential.forces(torch.from_numpy(held_out.positions)).numpy() - held_out.forces
    # float32 forces of some 1000 kJ/mol/nm
    assert np.sqrt((error**2).mean()) == pytest.approx(result.validation.model_rmse_kJ_per_mol_nm, rel=1e-3)


def test_training_leaves_what_it_was_given_as_it_was(result):
    initial = fresh()
    before = {name: tensor.clone() for name, tensor in initial.state_dict().items()}
    state = torch.get_rng_state()
    train([data(50)], initial, PARAMS.model_copy(update={"epochs": 1}), seed=11)
    assert all(torch.equal(tensor, before[name]) for name, tensor in initial.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.are_deterministic_algorithms_enabled()


def checkpoint_bytes(result, folder: Path) -> bytes:
    save_checkpoint(folder / "model.pt", result.potential, result.summary())
    write_curves_csv(result, folder / "training.csv")
    return (folder / "model.pt").read_bytes() + (folder / "training.csv").read_bytes()


def test_same_seed_same_bytes_other_seed_other_bytes(result, tmp_path):
    expected = checkpoint_bytes(result, tmp_path)
    assert checkpoint_bytes(train([data()], fresh(), PARAMS, seed=11), tmp_path) == expected
    assert checkpoint_bytes(train([data()], fresh(), PARAMS, seed=12), tmp_path) != expected


def test_any_number_of_threads_ends_with_the_same_bytes(result, tmp_path):
    torch.set_num_threads(2)
    try:
        again = train([data()], fresh(), PARAMS, seed=11)
    finally:
        torch.set_num_threads(1)
    assert checkpoint_bytes(again, tmp_path) == checkpoint_bytes(result, tmp_path)


@pytest.mark.parametrize("change", ["seed", "data", "params", "damaged"])
def test_scratch_of_another_training_is_not_continued(tmp_path, change):
    params = PARAMS.model_copy(update={"epochs": 2, "checkpoint_epochs": 1})
    shard = data(50)
    train([shard], fresh(), params, seed=11, scratch=tmp_path)
    seed = 12 if change == "seed" else 11
    if change == "data":
        shard = replace(shard, forces=shard.forces * np.float32(1.01))
    if change == "params":
        params = params.model_copy(update={"learning_rate": 2e-3})
    if change == "damaged":
        (tmp_path / "training.pt").write_bytes(b"rubbish")
    epochs = []
    train([shard], fresh(), params, seed=seed, scratch=tmp_path, progress=lambda *args: epochs.append(args[0]))
    assert epochs == [1, 2]


def test_warm_start_begins_where_the_last_training_ended(result):
    warm = train([data()], result.potential, PARAMS.model_copy(update={"epochs": 1}), seed=1)
    best = result.validation.model_rmse_kJ_per_mol_nm
    assert warm.history[0].validation_rmse_kJ_per_mol_nm == pytest.approx(best, rel=1e-6)
    assert warm.validation.model_rmse_kJ_per_mol_nm <= best * (1 + 1e-6)


def test_training_stops_when_patience_is_spent():
    """Labels that are noise alone cannot be learned: the held-out error soon rises."""
    shard = data(50)
    noise = np.random.default_rng(0).normal(scale=300.0, size=shard.forces.shape).astype(np.float32)
    params = PARAMS.model_copy(update={"epochs": 60, "patience_epochs": 3, "preflight": False})
    result = train([replace(shard, forces=shard.forces + noise)], fresh(), params, seed=1)
    assert len(result.history) - 1 == result.best_epoch + 3 < 60


def test_preflight_stops_a_model_no_better_than_the_prior():
    shard = data(50)
    prior_alone = real_prior().float().forces(torch.from_numpy(shard.positions)).numpy()
    sign = np.where(held_out_masks([shard], PARAMS)[0], -1.0, 1.0)[:, None, None]
    opposite = (prior_alone + sign * (shard.forces - prior_alone)).astype(np.float32)
    adverse = replace(shard, forces=opposite)
    with pytest.raises(PreflightFailed, match=r"is not below \d+\.\d\d of the prior alone.*training\.preflight: false"):
        train([adverse], fresh(), PARAMS, seed=1)
    allowed = train([adverse], fresh(), PARAMS.model_copy(update={"preflight": False, "epochs": 2}), seed=1)
    assert allowed.best_epoch == 0


def test_proteins_of_different_length_share_a_dataset():
    """The 7 beads of a fragment have their own prior; one network serves both, and both are held out from."""
    fragment = SEQUENCE[:7]
    beads = shaken_beads(60, seed=5)[:, :7].copy()
    prior = fit_prior(np.ascontiguousarray(real_beads()[:, :7]), fragment, TEMPERATURE_K, PriorParams())
    params = PARAMS.model_copy(update={"epochs": 6})
    result = train([data(60), labelled(beads, prior)], fresh(), params, seed=2, priors={fragment: prior})
    assert result.validation.train_frames + result.validation.held_out_frames == 120
    assert result.validation.explained_fraction > 0.2
    with pytest.raises(BadTrajectory, match="shard 001 is of protein YYDPETG"):
        train([data(60), labelled(beads, prior)], fresh(), params, seed=2)


def test_blocks_are_whole_runs_of_a_trajectory_and_later_shards_change_nothing():
    shard = data(100)
    two = replace(shard, trajectory=(np.arange(100) >= 35).astype(np.int32))
    (mask,) = held_out_masks([two], PARAMS)
    starts = np.concatenate([np.arange(0, 35, 10), np.arange(35, 100, 10)])
    for start, stop in zip(starts, [*starts[1:], 100], strict=True):
        assert mask[start:stop].all() or not mask[start:stop].any()
    assert mask.mean() == pytest.approx(PARAMS.validation_fraction, abs=0.05)
    longer = held_out_masks([two, shard, two], PARAMS)
    np.testing.assert_array_equal(longer[0], mask)
    assert longer[1].any()


def test_picked_frames_of_a_round_are_single_blocks():
    """Each oracle frame may be a trajectory of its own: then a fifth of the frames is held out."""
    shard = replace(data(50), trajectory=np.arange(50, dtype=np.int32))
    assert held_out_masks([shard], PARAMS)[0].sum() == 10


def test_too_few_frames_to_hold_any_out_is_said():
    with pytest.raises(EmptyTrajectory, match=r"validation_block_frames \(10\)"):
        train([data(12)], fresh(), PARAMS, seed=1)


def test_a_label_that_is_not_finite_is_named():
    forces = data(50).forces.copy()
    forces[17, 3, 1] = np.nan
    with pytest.raises(BadTrajectory, match="shard 000, frame 17"):
        train([replace(data(50), forces=forces)], fresh(), PARAMS, seed=1)


def test_a_diverging_training_ends_with_the_best_weights_before():
    params = PARAMS.model_copy(update={"learning_rate": 1e12, "epochs": 5, "preflight": False})
    result = train([data(50)], fresh(), params, seed=1)
    assert result.best_epoch == 0
    found, before = result.potential.state_dict(), fresh().state_dict()
    assert all(torch.equal(found[name], before[name]) for name in before)


def test_history_and_figure_are_written(result, tmp_path):
    write_curves_csv(result, tmp_path / "training.csv")
    rows = (tmp_path / "training.csv").read_text().splitlines()
    assert rows[0] == "epoch,train_rmse_kJ_per_mol_nm,validation_rmse_kJ_per_mol_nm,learning_rate,part"
    assert len(rows) == len(result.history) + 1
    (figure,) = plot_training(result, tmp_path)
    assert figure.read_bytes().startswith(b"\x89PNG")
