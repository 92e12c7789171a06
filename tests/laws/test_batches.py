"""Forces of many frames are found in batches: memory does not grow with the frames, and no result changes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from cgal.params import PriorParams, SchNetParams
from cgal.potential import geometry
from cgal.potential.architectures import architecture_of, initial_potential
from cgal.potential.linear_rung import Basis
from cgal.potential.potential import Potential
from cgal.potential.prior import Prior, fit_prior
from tests.beads import SEQUENCE, TEMPERATURE_K, real_prior, shaken_beads

COPIES = 8
NETWORK = SchNetParams(features=2, blocks=1, radial_functions=2, cutoff_nm=1.2)


class Memory(TorchDispatchMode):
    """The most bytes that tensors made within have held at once."""

    def __init__(self) -> None:
        super().__init__()
        self.held, self.peak = WeakIdKeyDictionary(), 0

    def __torch_dispatch__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for each in tree_leaves(made):
            if isinstance(each, torch.Tensor):
                self.held[each.untyped_storage()] = each.untyped_storage().nbytes()
        self.peak = max(self.peak, sum(self.held.values()))
        return made


def long_chains(frames: int) -> np.ndarray:
    """Chains of 80 beads: chignolins beside one another."""
    beads = [shaken_beads(frames, seed=copy) + np.float32([2.0 * copy, 0.0, 0.0]) for copy in range(COPIES)]
    return np.concatenate(beads, axis=1)


def fitted(positions: np.ndarray, params: PriorParams | None = None) -> Prior:
    return fit_prior(positions, COPIES * SEQUENCE, TEMPERATURE_K, params or PriorParams())


def with_rung(prior: Prior) -> Prior:
    basis = Basis.of(prior)
    return prior.with_rung(basis.parts(np.random.default_rng(0).normal(size=sum(basis.sizes))))


TASKS = {
    "forces of the prior": lambda potential, at: potential.prior.forces(at.double()),
    "forces of the potential": lambda potential, at: potential.energy_and_forces(at),
    "fit of the prior": lambda potential, at: fitted(at.numpy()),
    "grid of the network": lambda potential, at: architecture_of(NETWORK).force_matching(potential.network, [at]),
}


def peak_bytes(task: Callable[[Potential, torch.Tensor], Any], frames: int) -> int:
    positions = long_chains(frames)
    potential = initial_potential(with_rung(fitted(positions)), NETWORK, 0)
    with Memory() as memory:
        task(potential, torch.from_numpy(positions))
    return memory.peak


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_memory_does_not_grow_with_the_number_of_frames(task):
    """But for the few numbers that each bead of a frame has."""
    few, many = (peak_bytes(task, frames) for frames in (64, 256))
    assert many < 1.5 * few


@pytest.mark.parametrize("quantile", [0.0, 0.001, 0.37, 1.0])
def test_the_repulsion_radius_is_the_quantile_of_all_distances(quantile):
    positions = long_chains(100)
    distances = geometry.pair_distances(torch.from_numpy(positions), 3).double().numpy()
    params = PriorParams(repulsion_quantile=quantile, maximum_repulsion_radius_nm=100.0)
    assert float(fitted(positions, params).repulsion_radius_nm) == np.quantile(distances, quantile)


def test_forces_found_in_batches_are_those_of_all_frames_at_once(monkeypatch):
    """To the bit on one thread; a matrix product of another size may round in another way."""
    positions = torch.from_numpy(shaken_beads(150))
    potential = initial_potential(with_rung(real_prior()), NETWORK, 0)
    with torch.no_grad():
        potential.network.readout[-1].weight.normal_(generator=torch.Generator().manual_seed(0))
    at_once = potential.prior.forces(positions), *potential.energy_and_forces(positions)
    monkeypatch.setattr(geometry, "PAIRS_AT_ONCE", 4000)
    assert [len(batch) for batch in geometry.in_batches(positions)] == [32, 32, 32, 32, 22]
    in_batches = potential.prior.forces(positions), *potential.energy_and_forces(positions)
    assert torch.equal(in_batches[0], at_once[0])
    for found, expected in zip(in_batches, at_once, strict=True):
        torch.testing.assert_close(found, expected)
