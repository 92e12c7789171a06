"""Compiled loops of a simulation step on a CPU: prior, tabulated SchNet and BAOAB for one batch of replicas at a time.

The arrays of a batch stay in a core's cache from one step to the next. A filter is interpolated where it is used and
never stored; the bead-wise layers are matrix products (numba's `np.dot` is SciPy's BLAS). Only pairs within the cutoff
cost anything: they are found anew at each step, in the loop over all pairs that the repulsion needs anyway.
"""

import numpy as np
import scipy.linalg.cython_blas  # noqa: F401  (numba finds BLAS there)
from jaxtyping import Float32, Int8, Int64

from cgal.compiled import compiled, inlined
from cgal.schnet.chain_kernels import bend_terms, pair_terms
from cgal.schnet.kernel_types import ZERO, Chain, Committee, Langevin, Layers, Near, Network
from cgal.schnet.network_kernels import backward, clear, copy, forward, push, transpose

__all__ = ["Chain", "Committee", "Langevin", "advance", "evaluate"]


@compiled
def evaluate(
    positions: Float32[np.ndarray, "replicas beads 3"],
    chain: Chain,
    committee: Committee,
    energies: Float32[np.ndarray, " replicas"],
    gradients: Float32[np.ndarray, "replicas beads 3"],
) -> None:
    """Fill energies [kJ/mol] and gradients [kJ/mol/nm] of a batch of replicas at positions in nm."""
    near, layers, closest = _workspace(positions.shape[0], positions.shape[1], committee)
    _energies_and_gradients(positions, chain, committee, near, layers, closest, energies, gradients)


@compiled
def advance(
    positions: Float32[np.ndarray, "replicas beads 3"],
    velocities: Float32[np.ndarray, "replicas beads 3"],
    forces: Float32[np.ndarray, "replicas beads 3"],
    home: Float32[np.ndarray, "replicas beads 3"],
    cause: Int8[np.ndarray, " replicas"],
    lost_at: Int64[np.ndarray, " replicas"],
    step: int,
    noise: Float32[np.ndarray, "steps replicas beads 3"],
    langevin: Langevin,
    chain: Chain,
    committee: Committee,
) -> None:
    """Take `len(noise)` steps of BAOAB after `step`, in place; a replica found unsound is put home and left there."""
    replicas = len(positions)
    energies, gradients = np.empty(replicas, np.float32), np.empty(positions.shape, np.float32)
    near, layers, closest = _workspace(positions.shape[0], positions.shape[1], committee)
    for index in range(len(noise)):
        for replica in range(replicas):
            if cause[replica] == 0:
                _kick_and_drift(
                    positions[replica], velocities[replica], forces[replica], noise[index, replica], langevin
                )
        _energies_and_gradients(positions, chain, committee, near, layers, closest, energies, gradients)
        for replica in range(replicas):
            if cause[replica] != 0:
                continue
            cause[replica] = _diagnose(positions[replica], closest[replica], langevin)
            if cause[replica] == 0:
                _take_forces(velocities[replica], forces[replica], gradients[replica], langevin)
            else:
                lost_at[replica] = step + index + 1
                copy(home[replica], positions[replica])


@inlined
def _workspace(
    replicas: int, beads: int, committee: Committee
) -> tuple[Near, Layers, Float32[np.ndarray, " replicas"]]:
    pairs = beads * (beads - 1) // 2
    near = Near(
        np.zeros(replicas, np.int64),
        np.empty((replicas, pairs, 2), np.int32),
        np.empty((replicas, pairs), np.int32),
        np.empty((replicas, pairs, 8), np.float32),
        np.empty((replicas, pairs, 3), np.float32),
        np.empty((replicas, pairs), np.float32),
        np.empty((4, beads), np.float32),
        np.empty((3, beads), np.float32),
    )
    blocks, features = committee.hidden_bias.shape[1:]
    rows = np.empty((4, replicas * beads, features), np.float32)
    layers = Layers(
        rows[0],
        rows[1],
        rows[2],
        rows[3],
        np.empty((blocks, replicas * beads, features), np.float32),
        np.empty((blocks, replicas * beads, features), np.float32),
    )
    return near, layers, np.empty(replicas, np.float32)


@inlined
def _kick_and_drift(
    positions: Float32[np.ndarray, "beads 3"],
    velocities: Float32[np.ndarray, "beads 3"],
    forces: Float32[np.ndarray, "beads 3"],
    noise: Float32[np.ndarray, "beads 3"],
    langevin: Langevin,
) -> None:
    """B A O A: all of a step but the new forces and the last kick."""
    for bead in range(len(positions)):
        for axis in range(3):
            velocity = velocities[bead, axis] + langevin.kick_ps_per_amu * forces[bead, axis]
            half_way = positions[bead, axis] + langevin.drift_ps * velocity
            velocity = langevin.memory * velocity + langevin.scatter_nm_per_ps * noise[bead, axis]
            velocities[bead, axis] = velocity
            positions[bead, axis] = half_way + langevin.drift_ps * velocity


@inlined
def _take_forces(
    velocities: Float32[np.ndarray, "beads 3"],
    forces: Float32[np.ndarray, "beads 3"],
    gradients: Float32[np.ndarray, "beads 3"],
    langevin: Langevin,
) -> None:
    """B: the last kick."""
    for bead in range(len(forces)):
        for axis in range(3):
            forces[bead, axis] = -gradients[bead, axis]
            velocities[bead, axis] += langevin.kick_ps_per_amu * forces[bead, axis]


@inlined
def _diagnose(positions: Float32[np.ndarray, "beads 3"], closest_nm2: np.float32, langevin: Langevin) -> int:
    """Index into `cgal.simulation.langevin.CAUSES`, 0 for a sound chain."""
    found = 2 if closest_nm2 < langevin.minimum_distance_nm * langevin.minimum_distance_nm else 0
    for bead in range(len(positions)):
        square = ZERO
        for axis in range(3):
            if not np.isfinite(positions[bead, axis]):
                return 3
            step = positions[bead, axis] - positions[max(bead - 1, 0), axis]
            square += step * step
        if square > langevin.maximum_bond_nm * langevin.maximum_bond_nm:
            found = 1
    return found


@inlined
def _energies_and_gradients(
    positions: Float32[np.ndarray, "replicas beads 3"],
    chain: Chain,
    committee: Committee,
    near: Near,
    layers: Layers,
    closest_nm2: Float32[np.ndarray, " replicas"],
    energies: Float32[np.ndarray, " replicas"],
    gradients: Float32[np.ndarray, "replicas beads 3"],
) -> None:
    """Fill energies [kJ/mol], their gradients [kJ/mol/nm] and the square of the least distance of each replica."""
    network = _member(committee, 0)
    for replica in range(len(positions)):
        transpose(positions[replica], near.axes)
        clear(near.pulls)
        energies[replica], closest_nm2[replica] = pair_terms(near.axes, near.pulls, chain, network, near, replica)
        transpose(near.pulls, gradients[replica])
        energies[replica] += bend_terms(positions[replica], chain, gradients[replica])
    for index in range(len(committee.offset_kJ_per_mol)):
        network = _member(committee, index)
        forward(network, near, layers, energies)
        backward(network, near, layers)
    push(network, near, gradients)


@inlined
def _member(committee: Committee, index: int) -> Network:
    return Network(
        committee.cutoff_nm,
        committee.knots_per_nm,
        committee.tables[index],
        committee.embedding[index],
        committee.first_sources[index],
        committee.to_sources[index],
        committee.to_hidden[index],
        committee.hidden_bias[index],
        committee.to_update[index],
        committee.update_bias[index],
        committee.to_last[index],
        committee.last_bias[index],
        committee.readout_kJ_per_mol[index],
        committee.offset_kJ_per_mol[index],
    )
