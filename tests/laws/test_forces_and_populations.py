"""The sum of relative entropy and force matching: its gradient is that of what is looked at, and it learns forces."""

import numpy as np
import pytest
import torch
from torch.nn.utils import parameters_to_vector

from cgal.params import ForcesAndPopulationsParams, TrainingParams
from cgal.potential.architectures import initial_potential
from cgal.training.forces_and_populations import Forces
from cgal.training.train import train
from tests.beads import SEQUENCE, SMALL_NETWORK, labelled, real_prior, shaken_beads
from tests.test_relative_entropy import SHORT

SHARD = labelled(shaken_beads(180), real_prior(), 20.0)
PARAMS = TrainingParams(
    objective="forces_and_populations", relative_entropy=SHORT, bond_weight=0.1, preflight=False, warm_start=False
)


def fresh():
    return initial_potential(real_prior(), SMALL_NETWORK, 3)


def weights_of(params: TrainingParams) -> torch.Tensor:
    return parameters_to_vector(train([SHARD], fresh(), params, seed=1).potential.network.parameters())


def test_the_gradient_is_that_of_the_mean_over_frames():
    """All training frames are drawn and looked at; the step is a thousandth of the weights, whose third derivatives
    are all that a central difference errs by."""
    every = PARAMS.model_copy(update={"forces_and_populations": ForcesAndPopulationsParams(frames=180)})
    term = Forces([SHARD], fresh(), every, np.arange(36))
    term.looked_at = term.training
    weights = parameters_to_vector(fresh().network.parameters()).detach()
    weights += 0.1 * torch.randn(weights.shape, generator=torch.Generator().manual_seed(0))
    gradient = term.gradient(weights, np.random.default_rng(0))
    step = 1e-3 * gradient / gradient.norm()
    rise = term.held_out(weights + step).mean() - term.held_out(weights - step).mean()
    assert rise == pytest.approx(2 * float(gradient @ step), rel=2e-3)


def test_a_silent_network_has_half_a_unit_a_component_of_unexplained_force():
    """chi^2 / s^2 is one there, so that the term is 3 n / 2 on the frames that it is scaled by."""
    term = Forces([SHARD], fresh(), PARAMS, np.arange(36))
    term.looked_at = term.training
    silent = torch.zeros_like(parameters_to_vector(fresh().network.parameters()))
    assert term.held_out(silent).mean() == pytest.approx(3 * len(SEQUENCE) / 2, rel=1e-4)


def test_without_weight_on_the_forces_it_is_relative_entropy():
    free = PARAMS.model_copy(update={"forces_and_populations": ForcesAndPopulationsParams(force_weight=0.0)})
    assert torch.equal(weights_of(free), weights_of(PARAMS.model_copy(update={"objective": "relative_entropy"})))
    assert not torch.equal(weights_of(free), weights_of(PARAMS))


def test_forces_are_learned_and_their_share_is_logged():
    entropy = SHORT.model_copy(update={"updates": 60, "look_updates": 20, "learning_rate": 5e-3, "average_updates": 10})
    result = train([SHARD], fresh(), PARAMS.model_copy(update={"relative_entropy": entropy}), seed=1)
    assert result.history[0].of_term == 0.0
    assert result.history[-1].of_term < -0.5
