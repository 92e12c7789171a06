"""Several proteins, one network: each protein's potential is its own prior plus that network, whoever comes first."""

from pathlib import Path

import numpy as np
import pytest
import torch

import cgal
from cgal.errors import BadCheckpoint, BadParams, EmptyTrajectory
from cgal.frames import LabelledFrames
from cgal.params import PriorParams, TrainingParams
from cgal.potential.architectures import initial_potential
from cgal.potential.checkpoint import load_checkpoint, save_checkpoint
from cgal.potential.network import bead_types
from cgal.potential.prior import Prior, fit_prior
from cgal.training.force_matching import Run, prepare
from cgal.training.held_out import held_out_masks
from cgal.training.train import train
from tests.beads import SEQUENCE, SMALL_NETWORK, TEMPERATURE_K, labelled, real_beads, real_prior, shaken_beads

FRAGMENT = SEQUENCE[:7]
PARAMS = TrainingParams(epochs=3, batch_size=16, learning_rate=3e-3, validation_block_frames=10)


def fragment_beads(frames: int = 60) -> np.ndarray:
    return np.ascontiguousarray(shaken_beads(frames, seed=5)[:, :7])


PRIORS: dict[str, Prior] = {
    SEQUENCE: real_prior(),
    FRAGMENT: fit_prior(np.ascontiguousarray(real_beads()[:, :7]), FRAGMENT, TEMPERATURE_K, PriorParams()),
}
SHARDS = [labelled(shaken_beads(60), PRIORS[SEQUENCE]), labelled(fragment_beads(), PRIORS[FRAGMENT])]


def trained(shards: list[LabelledFrames], first: str, folder: Path) -> Path:
    """Train from the potential of `first`, and save it with the priors of all."""
    initial = initial_potential(PRIORS[first], SMALL_NETWORK, 3)
    result = train(shards, initial, PARAMS, seed=11, priors=PRIORS)
    path = folder / "model.pt"
    save_checkpoint(path, result.potential, result.summary(), priors=PRIORS.values())
    return path


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(SHARDS, SEQUENCE, tmp_path_factory.mktemp("both"))


def test_energies_and_forces_of_each_are_its_prior_and_the_same_network(together: Path) -> None:
    """To the rounding of float32: prior energies reach some 1000 kJ/mol, forces some 10,000 kJ/mol/nm."""
    both = {sequence: load_checkpoint(together, sequence=sequence)[0] for sequence in PRIORS}
    for name, tensor in both[SEQUENCE].network.state_dict().items():
        assert torch.equal(tensor, both[FRAGMENT].network.state_dict()[name])
    for shard in SHARDS:
        potential = both[shard.sequence]
        at = torch.from_numpy(shard.positions).requires_grad_()
        network = both[SEQUENCE].network(at, potential.types)
        pull = -torch.autograd.grad(network.sum(), at)[0]
        prior = PRIORS[shard.sequence]
        energies, forces = potential.energy_and_forces(at.detach())
        assert network.abs().max() > 0.01
        precise = at.detach().double()
        torch.testing.assert_close(energies, (prior.energy(precise) + network).float().detach(), atol=5e-3, rtol=1e-5)
        torch.testing.assert_close(forces, (prior.forces(precise) + pull).float(), atol=5e-2, rtol=1e-4)


def test_an_unseen_protein_has_a_prior_of_its_own_and_the_same_network(together: Path) -> None:
    unseen, model = SEQUENCE[2:8], cgal.load(together)
    beads = np.ascontiguousarray(real_beads()[:, 2:8])
    energies, _ = model.transfer(unseen, beads).energy_and_forces(beads)
    at = torch.from_numpy(beads)
    network = model.potential.network(at, bead_types(unseen)).detach()
    prior = fit_prior(beads, unseen, TEMPERATURE_K, PriorParams()).energy(at.double())
    assert network.abs().max() > 0.01
    np.testing.assert_allclose(energies, (prior + network).numpy(), atol=5e-3, rtol=1e-5)


def test_same_seed_same_bytes(together: Path, tmp_path: Path) -> None:
    assert trained(SHARDS, SEQUENCE, tmp_path).read_bytes() == together.read_bytes()


def test_the_network_does_not_depend_on_which_protein_comes_first(together: Path, tmp_path: Path) -> None:
    other = trained(SHARDS[::-1], FRAGMENT, tmp_path)
    for sequence in PRIORS:
        one, two = (load_checkpoint(path, sequence=sequence)[0].state_dict() for path in (together, other))
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_one_protein_ends_with_the_bytes_that_it_had_without_others(tmp_path: Path) -> None:
    """Priors of proteins without frames change no weight, and a checkpoint of one protein says nothing of others."""
    initial = initial_potential(PRIORS[SEQUENCE], SMALL_NETWORK, 3)
    alone = train(SHARDS[:1], initial, PARAMS, seed=11)
    beside = train(SHARDS[:1], initial, PARAMS, seed=11, priors=PRIORS)
    save_checkpoint(tmp_path / "alone.pt", alone.potential, alone.summary())
    save_checkpoint(tmp_path / "beside.pt", beside.potential, beside.summary(), priors=[PRIORS[SEQUENCE]])
    assert (tmp_path / "alone.pt").read_bytes() == (tmp_path / "beside.pt").read_bytes()
    assert "other_priors" not in torch.load(tmp_path / "alone.pt", weights_only=True)
    assert not any("/" in name for name in alone.summary())


def test_the_network_learns_from_each(together: Path) -> None:
    """Noiseless labels of one pair potential: each protein's own held-out error falls, and is that of its potential."""
    _, metadata = load_checkpoint(together)
    for shard in SHARDS:
        potential, _ = load_checkpoint(together, sequence=shard.sequence)
        held_out = shard.take(held_out_masks([shard], PARAMS)[0])
        at = torch.from_numpy(held_out.positions)
        squares = [
            float(((forces.float().numpy() - held_out.forces) ** 2).mean())
            for forces in (potential.prior.forces(at), potential.forces(at))
        ]
        explained = metadata[f"explained_fraction/{shard.sequence}"]
        assert 0.02 < explained == pytest.approx(1 - squares[1] / squares[0], abs=1e-3)


def test_steps_follow_the_error_over_the_beads_of_all() -> None:
    """One batch of each: the mean of their gradients is that of the mean square that held-out frames are judged by."""
    params = PARAMS.model_copy(update={"batch_size": 60, "gradient_clip": 1e9, "learning_rate": 1e-12})
    network = initial_potential(PRIORS[SEQUENCE], SMALL_NETWORK, 3).network
    training, held_out = prepare(SHARDS, PRIORS, params)
    run = Run(network, training, held_out, params, 11, map)
    total, gradients, expected = sum(frames.residuals.numel() for frames in training), [], 0.0
    for frames in training:
        _, gradient = run.matching.gradient(frames.types, frames.positions, frames.residuals)
        expected += gradient * (frames.residuals.numel() / total / run.scale)
        run.step(frames)
        gradients.append(run.weights.grad.clone())
    torch.testing.assert_close(
        torch.stack(gradients).mean(0), expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max())
    )


def test_each_protein_holds_out_its_own_blocks_whatever_others_there_are() -> None:
    alone = [held_out_masks([shard], PARAMS)[0] for shard in SHARDS]
    for mask, expected in zip(held_out_masks(SHARDS, PARAMS), alone, strict=True):
        np.testing.assert_array_equal(mask, expected)
    few = SHARDS[1].take(np.arange(5))
    initial = initial_potential(PRIORS[SEQUENCE], SMALL_NETWORK, 3)
    with pytest.raises(EmptyTrajectory, match="5 labelled frames of YYDPETG leave 5 to train on and 0 to hold out"):
        train([SHARDS[0], few], initial, PARAMS, seed=1, priors=PRIORS)


def test_what_cannot_share_a_network_is_refused(together: Path, tmp_path: Path) -> None:
    initial = initial_potential(PRIORS[SEQUENCE], SMALL_NETWORK, 3)
    with pytest.raises(BadParams, match=r"trains on one protein, but YYDPETG came beside YYDPETGTWY"):
        train(SHARDS, initial, PARAMS.model_copy(update={"objective": "relative_entropy"}), seed=1, priors=PRIORS)
    with pytest.raises(BadCheckpoint, match=r"trained for YYDPETGTWY, YYDPETG, not for GYDPETGTWG.*Model\.transfer"):
        load_checkpoint(together, sequence="GYDPETGTWG")
    hot = fit_prior(fragment_beads(), FRAGMENT, 450.0, PriorParams())
    with pytest.raises(BadCheckpoint, match="YYDPETG is of 450 K, that of YYDPETGTWY of 350 K"):
        save_checkpoint(tmp_path / "model.pt", initial, {}, priors=[hot])
