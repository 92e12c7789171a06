"""Langevin dynamics of the coarse-grained model: many replicas in one batch, each on its own when it breaks.

A model that has not seen a region of conformations can tear the chain apart or let it collapse there. Such a replica
is quarantined: its step and cause are recorded, the frames saved before are kept, and the others go on, to the
bit as if nothing had happened.
"""

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int8, Int64
from torch import Tensor

from cgal.errors import BadFile, EmptyTrajectory
from cgal.files import atomic_write
from cgal.frames import CGTrajectory, ReplicaFate
from cgal.params import SimulationParams
from cgal.potential.checkpoint import Potential
from cgal.potential.evaluator import Evaluator
from cgal.progress import Progress, silent
from cgal.units import thermal_energy_kJ_per_mol

__all__ = ["EnergyModel", "export_trajectory", "simulate"]

CAUSES = ("completed", "exploded", "imploded", "not finite")
"""What `ReplicaFate.cause` may say; a tensor of causes holds the index."""


@runtime_checkable
class EnergyModel(Protocol):
    """What can be simulated: energies [kJ/mol] and forces [kJ/mol/nm] of a batch of chains, each on its own."""

    sequence: str

    def to(self, device: str, /) -> Any:
        """Move parameters to a device, and give the model."""

    def energy_and_forces(self, positions: Tensor, /) -> tuple[Tensor, Tensor]:
        """Energies [replicas] and forces [replicas beads 3] at positions [replicas beads 3] in nm."""


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

    def forces(self, positions: Float32[Tensor, "replicas beads 3"]) -> Float32[Tensor, "replicas beads 3"]:
        """Give the forces of the model [kJ/mol/nm]."""
        return self.model.energy_and_forces(positions)[1].detach()

    def step(self, state: State, noise: Float32[Tensor, "replicas beads 3"]) -> State:
        """Advance by one time step, with standard normal `noise`."""
        kick_per_force = 0.5 * self.timestep_ps / self.mass_amu
        drift_ps = 0.5 * self.timestep_ps
        memory = math.exp(-self.friction_per_ps * self.timestep_ps)
        scatter_nm_per_ps = self.thermal_speed_nm_per_ps * math.sqrt(
            -math.expm1(-2 * self.friction_per_ps * self.timestep_ps)
        )
        velocities = state.velocities + kick_per_force * state.forces  # B
        positions = state.positions + drift_ps * velocities  # A
        velocities = memory * velocities + scatter_nm_per_ps * noise  # O
        positions = positions + drift_ps * velocities  # A
        forces = self.forces(positions)
        return State(positions, velocities + kick_per_force * forces, forces)  # B


@dataclass(frozen=True, eq=False)
class Quarantine:
    """Which replicas are lost, why and since which step; index into `CAUSES`, 0 while sound. Stays on the device."""

    cause: Int8[Tensor, " replicas"]
    step: Int64[Tensor, " replicas"]

    @property
    def lost(self) -> Bool[Tensor, " replicas"]:
        """Replicas that are held."""
        return self.cause != 0

    def extend(self, found: Int8[Tensor, " replicas"], step: int) -> "Quarantine":
        """Add what was found at `step`; a replica already held keeps its first cause."""
        newly = (self.cause == 0) & (found != 0)
        return Quarantine(torch.where(newly, found, self.cause), self.step.masked_fill(newly, step))


@dataclass(frozen=True, eq=False)
class Record:
    """Saved frames of all replicas, and which of them were sound when saved."""

    positions: Float32[np.ndarray, "saves replicas beads 3"]
    sound: Bool[np.ndarray, "saves replicas"]
    quarantine: Quarantine


def simulate(
    potential: EnergyModel,
    starts: Float32[np.ndarray, "starts beads 3"],
    params: SimulationParams,
    *,
    temperature_K: float,
    seed: int,
    device: str = "cpu",
    progress: Progress = silent,
) -> CGTrajectory:
    """Run `params.replicas` replicas of Langevin dynamics from frames drawn from `starts`.

    Frames are saved after every `params.stride` steps (never the start frame itself) and come back ordered by replica,
    then time. A replica with a bond over `maximum_bond_nm` ("exploded"), two beads closer than `minimum_distance_nm`
    ("imploded") or a coordinate that is no number ("not finite") is quarantined at that very step. Every replica has
    its fate in `fates`. Start frames, velocities and noise depend on `seed` alone, so a lost replica changes nothing
    for the others. A `Potential` is frozen into its `Evaluator` first, which is several times as fast.

    Raises EmptyTrajectory when there is no start frame, or when every replica is lost before its first saved frame.
    """
    if len(starts) == 0:
        raise EmptyTrajectory("simulation: no start frame was given; give at least one frame of the training set")
    model = Evaluator(potential) if isinstance(potential, Potential) else potential
    integrator = BAOAB(
        model.to(device),
        params.timestep_ps,
        params.bead_mass_amu,
        params.friction_per_ps,
        thermal_energy_kJ_per_mol(temperature_K),
    )
    home = torch.from_numpy(_draw_starts(starts, params.replicas, seed)).to(device)
    record = _run(integrator, home, params, seed, progress)
    fates = _fates(record.quarantine, params.steps)
    if not record.sound.any():
        raise EmptyTrajectory(_explain_loss(fates, params))
    return _trajectory(potential.sequence, record, fates, params)


def _draw_starts(
    starts: Float32[np.ndarray, "starts beads 3"], replicas: int, seed: int
) -> Float32[np.ndarray, "replicas beads 3"]:
    """Draw a start frame for each replica, none twice while there are enough."""
    drawn = np.random.default_rng(seed).choice(len(starts), replicas, replace=len(starts) < replicas)
    return starts[drawn]


def _run(
    integrator: BAOAB,
    home: Float32[Tensor, "replicas beads 3"],
    params: SimulationParams,
    seed: int,
    progress: Progress,
) -> Record:
    """Integrate and watch; the host waits for the device only when a frame is saved."""
    generator = torch.Generator(home.device).manual_seed(seed)

    def noise() -> Tensor:  # for all replicas, lost ones too: what the others get must not depend on them
        return torch.randn(home.shape, generator=generator, device=home.device)

    quarantine = _nothing_lost(home).extend(_diagnose(home, params), 0)
    state = State(home, integrator.thermal_speed_nm_per_ps * noise(), integrator.forces(home))
    state = state.hold(quarantine.lost, home)
    saves, (replicas, beads) = params.steps // params.stride, home.shape[:2]
    frames = np.zeros((saves, replicas, beads, 3), dtype=np.float32)
    sound = np.zeros((saves, replicas), dtype=bool)
    for step in range(1, params.steps + 1):
        state = integrator.step(state, noise())
        quarantine = quarantine.extend(_diagnose(state.positions, params), step)
        state = state.hold(quarantine.lost, home)
        if step % params.stride == 0:
            save = step // params.stride - 1
            frames[save] = state.positions.cpu().numpy()
            sound[save] = ~quarantine.lost.cpu().numpy()
            progress(step, params.steps, f"{sound[save].sum()} of {replicas} replicas sound")
            if not sound[save].any():
                break
    return Record(frames, sound, quarantine)


def _nothing_lost(home: Float32[Tensor, "replicas beads 3"]) -> Quarantine:
    replicas, device = len(home), home.device
    return Quarantine(
        torch.zeros(replicas, dtype=torch.int8, device=device), torch.zeros(replicas, dtype=torch.int64, device=device)
    )


def _diagnose(positions: Float32[Tensor, "replicas beads 3"], params: SimulationParams) -> Int8[Tensor, " replicas"]:
    """Give the index into `CAUSES` for each replica: 0 where the chain is sound."""
    bonds = torch.linalg.vector_norm(positions[:, 1:] - positions[:, :-1], dim=-1)
    distances = torch.cdist(positions, positions, compute_mode="donot_use_mm_for_euclid_dist")
    distances.diagonal(dim1=1, dim2=2).fill_(math.inf)
    finite = positions.isfinite().all(dim=2).all(dim=1)
    cause = (distances.amin(dim=(1, 2)) < params.minimum_distance_nm).to(torch.int8) * CAUSES.index("imploded")
    cause = cause.masked_fill(bonds.amax(dim=1) > params.maximum_bond_nm, CAUSES.index("exploded"))
    return cause.masked_fill(~finite, CAUSES.index("not finite"))


def _fates(quarantine: Quarantine, steps: int) -> tuple[ReplicaFate, ...]:
    causes, lost_at = quarantine.cause.tolist(), quarantine.step.tolist()
    return tuple(
        ReplicaFate(replica, step if cause else steps, CAUSES[cause])
        for replica, (cause, step) in enumerate(zip(causes, lost_at, strict=True))
    )


def _explain_loss(fates: tuple[ReplicaFate, ...], params: SimulationParams) -> str:
    causes = ", ".join(f"{number} {cause}" for cause, number in sorted(Counter(fate.cause for fate in fates).items()))
    return (
        f"simulation: no sound frame was saved (the first is due at step {params.stride} of {params.steps}); "
        f"{len(fates)} replicas: {causes}, the last at step {max(fate.last_step for fate in fates)}; "
        "lower simulation.timestep_ps, or train a better model"
    )


def _trajectory(
    sequence: str, record: Record, fates: tuple[ReplicaFate, ...], params: SimulationParams
) -> CGTrajectory:
    """Put the sound frames in order of replica, then time."""
    replica, save = np.nonzero(record.sound.T)
    time_ps = (save + 1) * params.stride * params.timestep_ps
    return CGTrajectory.from_positions(sequence, record.positions[save, replica], time_ps, replica, fates)


def export_trajectory(trajectory: CGTrajectory, path: Path) -> Path:
    """Write frames as `.xtc` or `.dcd` and their topology as `.pdb` beside; give the path of the PDB.

    Replicas follow one another; the time of each frame is kept in XTC (DCD has none). Raises BadFile for another
    extension, and EmptyTrajectory when there is no frame.
    """
    if path.suffix not in (".xtc", ".dcd"):
        raise BadFile(f"{path}: can export to .xtc or .dcd only; change the extension")
    if len(trajectory) == 0:
        raise EmptyTrajectory(f"{path}: the trajectory has no frame to export")
    frames = trajectory.to_mdtraj()
    topology = path.with_suffix(".pdb")
    with atomic_write(topology) as temporary:
        frames[0].save_pdb(str(temporary))
    with atomic_write(path) as temporary:
        write = frames.save_xtc if path.suffix == ".xtc" else frames.save_dcd
        write(str(temporary))
    return topology
