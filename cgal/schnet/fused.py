"""The evaluator in compiled loops: what a simulation on a CPU runs on."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from threadpoolctl import ThreadpoolController
from torch import Tensor

from cgal.potential.analytic import BendTerms, PairTerms
from cgal.potential.dihedral_couplings import ORDER
from cgal.potential.potential import Potential
from cgal.schnet import kernels
from cgal.schnet.evaluator import Evaluator
from cgal.schnet.tabulated import INTERVALS

__all__ = ["FusedEvaluator", "batches", "in_threads"]

ROWS = 160
"""Beads of a batch of replicas, at most: few enough that a batch stays in cache."""

FEWEST_ROWS = 40
"""With fewer beads a matrix product loses more than another thread brings."""

BATCHES = 4
"""Batches that a few replicas are shared out among, so that as many threads have work."""


class FusedEvaluator:
    """An `Evaluator` on the CPU whose arrays never leave the cache: the same numbers in a fraction of the time.

    Batches of replicas are shared out among `torch.get_num_threads()` threads. What is in a batch does not depend on
    their number, so that results do not either, to the bit.
    """

    def __init__(self, potential: Potential, filter_intervals: int = INTERVALS) -> None:
        evaluator = Evaluator(potential, filter_intervals).to("cpu")
        self.sequence = potential.sequence
        self.chain = _chain(evaluator)
        self.committee = _committee(evaluator)

    def to(self, device: str) -> "FusedEvaluator":
        """Stay where it is; raises ValueError for any device but the CPU, where `Evaluator` serves."""
        if torch.device(device).type != "cpu":
            raise ValueError(f"compiled loops run on the CPU, not on {device}; use cgal.schnet.evaluator.Evaluator")
        return self

    def energy_and_forces(
        self, positions: Float32[Tensor, "frames beads 3"]
    ) -> tuple[Float32[Tensor, " frames"], Float32[Tensor, "frames beads 3"]]:
        """Energies [kJ/mol] and forces [kJ/mol/nm], minus their gradient; positions in nm."""
        at = np.ascontiguousarray(positions.detach().numpy())
        energies, gradients = np.empty(len(at), dtype=np.float32), np.empty_like(at)

        def fill(batch: slice) -> None:
            kernels.evaluate(at[batch], self.chain, self.committee, energies[batch], gradients[batch])

        in_threads(fill, batches(len(at), at.shape[1]))
        return torch.from_numpy(energies), torch.from_numpy(-gradients)


def batches(replicas: int, beads: int) -> list[slice]:
    """Cut replicas into batches of `FEWEST_ROWS` to `ROWS` beads, `BATCHES` of them if need be."""
    fewest, most = (max(1, rows // beads) for rows in (FEWEST_ROWS, ROWS))
    size = min(most, max(fewest, -(-replicas // BATCHES)))
    return [slice(start, min(start + size, replicas)) for start in range(0, replicas, size)]


def in_threads[Item](call: Callable[[Item], None], items: Sequence[Item]) -> None:
    """Call with each item, on `torch.get_num_threads()` threads; a matrix product inside has one."""
    workers = min(torch.get_num_threads(), len(items))
    with _libraries().limit(limits=1, user_api="blas"), ThreadPoolExecutor(max(workers, 1)) as threads:
        for _ in threads.map(call, items) if workers > 1 else map(call, items):
            pass


@lru_cache(maxsize=1)
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()


def _chain(evaluator: Evaluator) -> kernels.Chain:
    pair_terms, bend_terms, bonded = evaluator.pair_terms, evaluator.bend_terms, evaluator.bonded
    return kernels.Chain(
        bond_length_nm=_array(pair_terms.length_nm[bonded]),
        bond_stiffness_kJ_per_mol_nm2=_array(pair_terms.stiffness_kJ_per_mol_nm2[bonded]),
        angle_rad=_array(bend_terms.angle_rad),
        angle_stiffness_kJ_per_mol_rad2=_array(bend_terms.angle_stiffness_kJ_per_mol_rad2),
        dihedral_cosine_kJ_per_mol=_array(bend_terms.series_kJ_per_mol.real),
        dihedral_sine_kJ_per_mol=_array(-bend_terms.series_kJ_per_mol.imag),
        repulsion_kJ_nm6_per_mol=np.float32(pair_terms.repulsion_kJ_nm6_per_mol.max()),
        pair_splines_kJ_per_mol=_splines(pair_terms),
        dihedral_couplings_kJ_per_mol=_couplings(bend_terms),
    )


def _splines(terms: PairTerms) -> Float32[np.ndarray, "pairs coefficients"]:
    if terms.splines_kJ_per_mol is None:
        return np.zeros((0, 0), np.float32)
    return _array(terms.splines_kJ_per_mol[terms.repulsion_kJ_nm6_per_mol > 0])


def _couplings(terms: BendTerms) -> Float32[np.ndarray, "neighbours 2 order order 2"]:
    if terms.couplings_kJ_per_mol is None:
        return np.zeros((0, 2, ORDER, ORDER, 2), np.float32)
    return _array(terms.couplings_kJ_per_mol)


def _committee(evaluator: Evaluator) -> kernels.Committee:
    """Its networks, with readouts divided by their number, so that the sum of the energies is the mean."""
    networks: Any = evaluator.networks
    members, blocks = len(networks), [list(network.blocks) for network in networks]

    def stack(name: str) -> Float32[np.ndarray, "members blocks ..."]:
        return np.stack([_stack(attrgetter(name)(block) for block in member) for member in blocks])

    return kernels.Committee(
        cutoff_nm=np.float32(networks[0].cutoff_nm),
        knots_per_nm=np.float32(networks[0].knots_per_nm),
        tables=stack("table"),
        embedding=_stack(network.embedding[0] for network in networks),
        first_sources=_stack(network.blocks[0].to_sources(network.embedding[0]) for network in networks),
        to_sources=stack("to_sources.weight"),
        to_hidden=stack("to_hidden.weight"),
        hidden_bias=stack("to_hidden.bias"),
        to_update=stack("to_update.weight"),
        update_bias=stack("to_update.bias"),
        to_last=_stack(network.to_hidden.weight for network in networks),
        last_bias=_stack(network.to_hidden.bias for network in networks),
        readout_kJ_per_mol=_stack(network.readout / members for network in networks),
        offset_kJ_per_mol=_stack(network.offset_kJ_per_mol / members for network in networks),
    )


def _array(tensor: Tensor) -> Float32[np.ndarray, "..."]:
    return np.array(tensor.numpy(), dtype=np.float32, order="C")


def _stack(tensors: Iterable[Tensor]) -> Float32[np.ndarray, "some ..."]:
    return np.stack([_array(tensor) for tensor in tensors])
