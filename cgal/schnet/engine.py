"""The same dynamics in compiled loops on a CPU: a thread takes a batch of replicas from one saved frame to the next."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from cgal.params import DynamicsParams
from cgal.schnet import kernels
from cgal.schnet.fused import FusedEvaluator, batches, in_threads
from cgal.simulation.langevin import BAOAB, Snapshot, diagnose

__all__ = ["FusedEngine"]

NOISE_STEPS = 64
"""Steps whose noise is drawn at once."""


class Batch(NamedTuple):
    """Which replicas, and the generator of their noise."""

    replicas: slice
    generator: np.random.Generator


class FusedEngine:
    """BAOAB and quarantine as `TorchEngine` has them, for a `FusedEvaluator`.

    Each batch draws its noise from a generator of its own, so that threads share nothing and their number changes
    nothing.
    """

    def __init__(
        self, integrator: BAOAB, home: Float32[Tensor, "replicas beads 3"], params: DynamicsParams, seed: int
    ) -> None:
        model = integrator.model
        assert isinstance(model, FusedEvaluator)
        self.model, self.home, self.step = model, home.numpy(), 0
        self.langevin = _constants(integrator, params)
        self.batches = [
            Batch(replicas, np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, index]))))
            for index, replicas in enumerate(batches(*home.shape[:2]))
        ]
        self.cause = diagnose(home, params).numpy()
        self.lost_at = np.zeros(len(home), dtype=np.int64)
        self.positions = self.home.copy()
        self.velocities = np.concatenate([_noise(batch, 1, home.shape[1])[0] for batch in self.batches])
        self.velocities *= np.float32(integrator.thermal_speed_nm_per_ps)
        self.forces = model.energy_and_forces(home)[1].numpy()

    def advance(self, steps: int) -> None:
        """Take some steps."""
        in_threads(lambda batch: self._advance(batch, steps), self.batches)
        self.step += steps

    def snapshot(self) -> Snapshot:
        """Copy what it has come to."""
        return Snapshot(self.positions.copy(), self.velocities.copy(), self.cause.copy(), self.lost_at.copy())

    def go_on(self, end: Snapshot, step: int) -> None:
        """Take the place of another run of the same replicas that came to `end` after so many steps."""
        self.positions, self.velocities, self.cause, self.lost_at = (array.copy() for array in end)
        self.forces = self.model.energy_and_forces(torch.from_numpy(self.positions))[1].numpy()
        self.step = step

    def _advance(self, batch: Batch, steps: int) -> None:
        replicas = batch.replicas
        for done in range(0, steps, NOISE_STEPS):
            kernels.advance(
                self.positions[replicas],
                self.velocities[replicas],
                self.forces[replicas],
                self.home[replicas],
                self.cause[replicas],
                self.lost_at[replicas],
                self.step + done,
                _noise(batch, min(NOISE_STEPS, steps - done), self.home.shape[1]),
                self.langevin,
                self.model.chain,
                self.model.committee,
            )


def _noise(batch: Batch, steps: int, beads: int) -> Float32[np.ndarray, "steps replicas beads 3"]:
    """For all replicas, lost ones too: what the others get must not depend on them."""
    replicas = batch.replicas.stop - batch.replicas.start
    return batch.generator.standard_normal((steps, replicas, beads, 3), dtype=np.float32)


def _constants(integrator: BAOAB, params: DynamicsParams) -> kernels.Langevin:
    return kernels.Langevin(
        kick_ps_per_amu=np.float32(integrator.kick_ps_per_amu),
        drift_ps=np.float32(integrator.drift_ps),
        memory=np.float32(integrator.memory),
        scatter_nm_per_ps=np.float32(integrator.scatter_nm_per_ps),
        maximum_bond_nm=np.float32(params.maximum_bond_nm),
        minimum_distance_nm=np.float32(params.minimum_distance_nm),
    )
