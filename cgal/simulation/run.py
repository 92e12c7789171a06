"""From start frames to a trajectory: run the replicas, keep the sound frames, say what became of each replica."""

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float32

from cgal.errors import EmptyTrajectory
from cgal.frames import CGTrajectory, ReplicaFate
from cgal.params import DynamicsParams
from cgal.potential.architectures import architecture_of, freeze
from cgal.potential.energy_model import EnergyModel
from cgal.potential.ensemble import force_spread, members_of
from cgal.potential.potential import Potential
from cgal.progress import Progress, silent
from cgal.simulation.langevin import BAOAB, CAUSES, Engine, Snapshot, TorchEngine
from cgal.units import thermal_energy_kJ_per_mol

__all__ = [
    "Record",
    "draw_starts",
    "run_engine",
    "run_from",
    "simulate",
    "start_engine",
    "to_trajectory",
    "with_spread",
]


SPREAD_BATCH = 4096
"""Frames whose forces are found at once."""


@dataclass(frozen=True, eq=False)
class Record:
    """Saved frames of all replicas, which of them were sound when saved, and how it ended."""

    positions: Float32[np.ndarray, "saves replicas beads 3"]
    sound: Bool[np.ndarray, "saves replicas"]
    end: Snapshot


def simulate(
    potential: EnergyModel,
    starts: Float32[np.ndarray, "starts beads 3"],
    params: DynamicsParams,
    *,
    temperature_K: float,
    seed: int,
    device: str = "cpu",
    progress: Progress = silent,
) -> CGTrajectory:
    """Run `params.replicas` replicas of Langevin dynamics from frames drawn from `starts`.

    Frames are saved after every `params.stride` steps (never the start frame itself) and come back ordered by replica,
    then time. A replica with a bond over `maximum_bond_nm` ("exploded"), two beads closer than `minimum_distance_nm`
    ("imploded") or a NaN or infinite coordinate ("not finite") is quarantined at that very step. Every replica has
    its fate in `fates`. Start frames, velocities and noise depend on `seed` alone, so a lost replica changes nothing
    for the others, nor does the number of threads. A `Potential` is run by the accelerators of its
    architecture, where it has some; with a committee of networks by their mean force, and the trajectory tells how far
    they differ.

    Raises EmptyTrajectory when there is no start frame, or when every replica is lost before its first saved frame.
    """
    if len(starts) == 0:
        raise EmptyTrajectory("simulation: no start frame was given; give at least one frame of the training set")
    home = draw_starts(starts, params.replicas, seed)
    record = run_from(potential, home, params, temperature_K=temperature_K, seed=seed, device=device, progress=progress)
    return with_spread(to_trajectory(potential.sequence, record, params, device), potential, params)


def run_from(
    potential: EnergyModel,
    home: Float32[np.ndarray, "replicas beads 3"],
    params: DynamicsParams,
    *,
    temperature_K: float,
    seed: int,
    device: str = "cpu",
    progress: Progress = silent,
) -> Record:
    """Run one replica from each frame of `home`, with new velocities; a lost one is back there, at rest."""
    return run_engine(start_engine(potential, home, params, temperature_K, seed, device), params, progress)


def to_trajectory(sequence: str, record: Record, params: DynamicsParams, device: str) -> CGTrajectory:
    """Sound frames and fates of a run; raises EmptyTrajectory, with the causes, when there is no sound frame."""
    fates = _fates(record.end, params.steps)
    if not record.sound.any():
        raise EmptyTrajectory(_explain_loss(fates, params))
    return replace(_trajectory(sequence, record, fates, params), device=torch.device(device).type)


def with_spread(trajectory: CGTrajectory, potential: EnergyModel, params: DynamicsParams) -> CGTrajectory:
    """Note how far the members' forces differ in each frame, where the potential has a committee of networks."""
    if not isinstance(potential, Potential) or len(members := members_of(potential.network)) == 1:
        return trajectory
    device, frames = str(potential.types.device), torch.from_numpy(trajectory.positions)
    forces = []
    for member in members:
        model = freeze(Potential(potential.prior, member).to(device), device, params.filter_intervals)
        batches = [model.energy_and_forces(batch.to(device))[1].cpu() for batch in frames.split(SPREAD_BATCH)]
        forces.append(torch.cat(batches).double().numpy())
    return replace(trajectory, spread_of_forces=force_spread(np.stack(forces)))


def draw_starts(
    starts: Float32[np.ndarray, "starts beads 3"], replicas: int, seed: int
) -> Float32[np.ndarray, "replicas beads 3"]:
    """Draw a start frame for each replica, none twice while there are enough."""
    drawn = np.random.default_rng(seed).choice(len(starts), replicas, replace=len(starts) < replicas)
    return starts[drawn]


def start_engine(
    potential: EnergyModel,
    home: Float32[np.ndarray, "replicas beads 3"],
    params: DynamicsParams,
    temperature_K: float,
    seed: int,
    device: str,
) -> Engine:
    """Start replicas on a device by the fastest way that the potential's architecture has."""
    make = TorchEngine
    if isinstance(potential, Potential):
        accelerated = architecture_of(potential.network.params).engine
        make = accelerated(torch.device(device).type) if accelerated else TorchEngine
        potential = freeze(potential, device, params.filter_intervals)
    integrator = BAOAB(
        potential.to(device),
        params.timestep_ps,
        params.bead_mass_amu,
        params.friction_per_ps,
        thermal_energy_kJ_per_mol(temperature_K),
    )
    engine: Engine = make(integrator, torch.from_numpy(home).to(device), params, seed)
    return engine


def run_engine(engine: Engine, params: DynamicsParams, progress: Progress) -> Record:
    """Run and watch; stop early when no replica is left."""
    frames, sound = [], []
    for step in range(params.stride, params.steps + 1, params.stride):
        engine.advance(params.stride)
        now = engine.snapshot()
        frames.append(now.positions)
        sound.append(now.cause == 0)
        progress(step, params.steps, f"{sound[-1].sum()} of {len(sound[-1])} replicas sound")
        if not sound[-1].any():
            break
    else:
        engine.advance(params.steps % params.stride)
    return Record(np.stack(frames), np.stack(sound), engine.snapshot())


def _fates(end: Snapshot, steps: int) -> tuple[ReplicaFate, ...]:
    return tuple(
        ReplicaFate(replica, step if cause else steps, CAUSES[cause])
        for replica, (cause, step) in enumerate(zip(end.cause.tolist(), end.lost_at.tolist(), strict=True))
    )


def _explain_loss(fates: tuple[ReplicaFate, ...], params: DynamicsParams) -> str:
    causes = ", ".join(f"{number} {cause}" for cause, number in sorted(Counter(fate.cause for fate in fates).items()))
    return (
        f"simulation: no sound frame was saved (the first is due at step {params.stride} of {params.steps}); "
        f"{len(fates)} replicas: {causes}, the last at step {max(fate.last_step for fate in fates)}; "
        "lower simulation.timestep_ps, or train a better model"
    )


def _trajectory(sequence: str, record: Record, fates: tuple[ReplicaFate, ...], params: DynamicsParams) -> CGTrajectory:
    """Put the sound frames in order of replica, then time."""
    replica, save = np.nonzero(record.sound.T)
    time_ps = (save + 1) * params.stride * params.timestep_ps
    return CGTrajectory.from_positions(sequence, record.positions[save, replica], time_ps, replica, fates)
