"""The integrator and the quarantine on torch's arrays: for any model, on any device."""

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int8, Int64
from torch import Tensor

from cgal.params import DynamicsParams
from cgal.potential.energy_model import EnergyModel

__all__ = ["BAOAB", "CAUSES", "Engine", "GraphEngine", "Snapshot", "State", "TorchEngine", "diagnose"]

CAUSES = ("completed", "exploded", "imploded", "not finite")
"""What `ReplicaFate.cause` may say; arrays of causes hold the index."""

WARM_UP_STEPS = 3
"""Steps taken and thrown away before a step is captured: libraries choose and allocate in their first calls."""


class Snapshot(NamedTuple):
    """All replicas at one time: positions [nm], velocities [nm/ps], index into `CAUSES` (0: sound), step when lost."""

    positions: Float32[np.ndarray, "replicas beads 3"]
    velocities: Float32[np.ndarray, "replicas beads 3"]
    cause: Int8[np.ndarray, " replicas"]
    lost_at: Int64[np.ndarray, " replicas"]


@runtime_checkable
class Engine(Protocol):
    """A running simulation."""

    def advance(self, steps: int) -> None:
        """Take some steps."""

    def snapshot(self) -> Snapshot:
        """Wait for the device, and copy what it has come to."""

    def go_on(self, end: Snapshot, step: int) -> None:
        """Take the place of another run of the same replicas that came to `end` after so many steps."""


@dataclass(frozen=True, eq=False)
class State:
    """Positions [nm], velocities [nm/ps] and forces [kJ/mol/nm] of all replicas at one time."""

    positions: Float32[Tensor, "replicas beads 3"]
    velocities: Float32[Tensor, "replicas beads 3"]
    forces: Float32[Tensor, "replicas beads 3"]

    def hold(self, held: Bool[Tensor, " replicas"], home: Float32[Tensor, "replicas beads 3"]) -> "State":
        """Put the held replicas back to `home`, at rest and without force, so that nothing there can grow."""
        mask = held[:, None, None]
        return State(
            torch.where(mask, home, self.positions),
            self.velocities.masked_fill(mask, 0.0),
            self.forces.masked_fill(mask, 0.0),
        )


@dataclass(frozen=True, eq=False)
class BAOAB:
    """Langevin integrator in the splitting B A O A B (Leimkuhler and Matthews 2013, J. Chem. Phys. 138, 174102).

    B kicks with the force, A drifts, O mixes the velocity with noise; one force evaluation a step. Positions of a
    harmonic oscillator are sampled without error at any stable step.
    """

    model: EnergyModel
    timestep_ps: float
    mass_amu: float
    friction_per_ps: float
    thermal_energy_kJ_per_mol: float

    @property
    def thermal_speed_nm_per_ps(self) -> float:
        """Standard deviation of one velocity component (Maxwell-Boltzmann)."""
        return math.sqrt(self.thermal_energy_kJ_per_mol / self.mass_amu)

    @property
    def kick_ps_per_amu(self) -> float:
        """Velocity per force of half a step."""
        return 0.5 * self.timestep_ps / self.mass_amu

    @property
    def drift_ps(self) -> float:
        """Half a step."""
        return 0.5 * self.timestep_ps

    @property
    def memory(self) -> float:
        """Share of the velocity that the thermostat leaves."""
        return math.exp(-self.friction_per_ps * self.timestep_ps)

    @property
    def scatter_nm_per_ps(self) -> float:
        """Velocity that it adds, times a standard normal number."""
        return self.thermal_speed_nm_per_ps * math.sqrt(-math.expm1(-2 * self.friction_per_ps * self.timestep_ps))

    def forces(self, positions: Float32[Tensor, "replicas beads 3"]) -> Float32[Tensor, "replicas beads 3"]:
        """Give the forces of the model [kJ/mol/nm]."""
        return self.model.energy_and_forces(positions)[1].detach()

    def step(self, state: State, noise: Float32[Tensor, "replicas beads 3"]) -> State:
        """Advance by one time step, with standard normal `noise`."""
        velocities = state.velocities + self.kick_ps_per_amu * state.forces  # B
        positions = state.positions + self.drift_ps * velocities  # A
        velocities = self.memory * velocities + self.scatter_nm_per_ps * noise  # O
        positions = positions + self.drift_ps * velocities  # A
        forces = self.forces(positions)
        return State(positions, velocities + self.kick_ps_per_amu * forces, forces)  # B


@dataclass(frozen=True, eq=False)
class Quarantine:
    """Which replicas are lost, why and since which step; index into `CAUSES`, 0 while sound. Stays on the device."""

    cause: Int8[Tensor, " replicas"]
    step: Int64[Tensor, " replicas"]

    @property
    def lost(self) -> Bool[Tensor, " replicas"]:
        """Replicas that are held."""
        return self.cause != 0

    def extend(self, found: Int8[Tensor, " replicas"], step: Int64[Tensor, ""]) -> "Quarantine":
        """Add what was found at `step`; a replica already held keeps its first cause."""
        newly = (self.cause == 0) & (found != 0)
        return Quarantine(torch.where(newly, found, self.cause), torch.where(newly, step, self.step))


def diagnose(positions: Float32[Tensor, "replicas beads 3"], params: DynamicsParams) -> Int8[Tensor, " replicas"]:
    """Give the index into `CAUSES` for each replica: 0 where the chain is sound."""
    bonds = torch.linalg.vector_norm(positions[:, 1:] - positions[:, :-1], dim=-1)
    distances = torch.cdist(positions, positions, compute_mode="donot_use_mm_for_euclid_dist")
    distances.diagonal(dim1=1, dim2=2).fill_(math.inf)
    finite = positions.isfinite().all(dim=2).all(dim=1)
    cause = (distances.amin(dim=(1, 2)) < params.minimum_distance_nm).to(torch.int8) * CAUSES.index("imploded")
    cause = cause.masked_fill(bonds.amax(dim=1) > params.maximum_bond_nm, CAUSES.index("exploded"))
    return cause.masked_fill(~finite, CAUSES.index("not finite"))


class TorchEngine:
    """Steps one by one, on the device of `home`; the host waits for the device at a snapshot only."""

    def __init__(
        self, integrator: BAOAB, home: Float32[Tensor, "replicas beads 3"], params: DynamicsParams, seed: int
    ) -> None:
        self.integrator, self.home, self.params = integrator, home, params
        self.generator = torch.Generator(home.device).manual_seed(seed)
        self.step = torch.zeros((), dtype=torch.int64, device=home.device)
        nothing = Quarantine(torch.zeros_like(home[:, 0, 0], dtype=torch.int8), self.step.repeat(len(home)))
        self.quarantine = nothing.extend(diagnose(home, params), self.step)
        velocities = integrator.thermal_speed_nm_per_ps * self._noise()
        self.state = State(home, velocities, integrator.forces(home)).hold(self.quarantine.lost, home)

    def advance(self, steps: int) -> None:
        """Take some steps."""
        for _ in range(steps):
            self.state, self.quarantine, self.step = self._next()

    def snapshot(self) -> Snapshot:
        """Wait for the device, and copy what it has come to."""
        on_device = (self.state.positions, self.state.velocities, self.quarantine.cause, self.quarantine.step)
        return Snapshot(*(np.array(tensor.cpu().numpy()) for tensor in on_device))

    def go_on(self, end: Snapshot, step: int) -> None:
        """Take the place of another run of the same replicas that came to `end` after so many steps."""
        positions, velocities, cause, lost_at = (torch.from_numpy(array).to(self.home.device) for array in end)
        forces = self.integrator.forces(positions)
        state = State(positions, velocities, forces).hold(cause != 0, self.home)
        for old, new in zip(self._tensors(), (*_tensors(state), cause, lost_at), strict=True):
            old.copy_(new)  # in place: a captured step finds them there
        self.step.fill_(step)

    def _tensors(self) -> tuple[Tensor, ...]:
        return (*_tensors(self.state), *_tensors(self.quarantine))

    def _next(self) -> tuple[State, Quarantine, Int64[Tensor, ""]]:
        step = self.step + 1
        state = self.integrator.step(self.state, self._noise())
        quarantine = self.quarantine.extend(diagnose(state.positions, self.params), step)
        return state.hold(quarantine.lost, self.home), quarantine, step

    def _noise(self) -> Float32[Tensor, "replicas beads 3"]:
        """For all replicas, lost ones too: what the others get must not depend on them."""
        return torch.randn(self.home.shape, generator=self.generator, device=self.home.device)


class GraphEngine(TorchEngine):
    """The same on CUDA, with the launches of a step captured once and replayed: the host only says "again".

    State, quarantine, step and the generator's offset stay in place in the device's memory from step to step. The
    model must wait for nothing and keep its shapes.
    """

    def __init__(
        self, integrator: BAOAB, home: Float32[Tensor, "replicas beads 3"], params: DynamicsParams, seed: int
    ) -> None:
        super().__init__(integrator, home, params, seed)
        self.state = State(*(tensor.clone() for tensor in _tensors(self.state)))  # `home` must not be written over
        self.graph = self._capture()

    def advance(self, steps: int) -> None:
        """Take some steps."""
        for _ in range(steps):
            self.graph.replay()

    def _capture(self) -> torch.cuda.CUDAGraph:
        """Capture a step that writes its results over its inputs; no step is taken yet."""
        start = self.generator.get_state()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_STEPS):
                self._next()
        torch.cuda.synchronize()
        self.generator.set_state(start)
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.generator)
        olds = (*self._tensors(), self.step)
        with torch.cuda.graph(graph):
            state, quarantine, step = self._next()
            for old, new in zip(olds, (*_tensors(state), *_tensors(quarantine), step), strict=True):
                old.copy_(new)
        return graph


def _tensors(record: State | Quarantine) -> tuple[Tensor, ...]:
    return tuple(vars(record).values())
