"""Parallel tempering: the populations of the states, where unbiased trajectories are too slow to give them.

An ensemble is a set of replicas at temperatures from the target to the hot one. Each runs for `exchange_ps`, then
neighbours may swap their temperatures by Metropolis' rule on their potential energies, velocities scaled along
(Sugita and Okamoto, Chem. Phys. Lett. 314, 141 (1999)): a frame that is stuck in the cold gets out through the heat,
and what is seen at the target temperature is in equilibrium there. Ensembles are independent of one another and run
as chains of segments, like the swarm's trajectories:

    tempering/recipe.json
    tempering/000/0000.h5 ...   C-alpha frames at the target temperature, states at the end, who was where
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openmm
from jaxtyping import Float64, Int64
from openmm import unit

from cgal.files import read_hdf5, read_json, write_hdf5
from cgal.frames import CGTrajectory, alpha_carbons, read_pdb_text, sequence_of
from cgal.progress import Progress, silent
from cgal.randomness import derive_generator, derive_seed
from cgal.reference.sampling import (
    Loss,
    Recipe,
    Segment,
    State,
    chain_of,
    context_of,
    frames_of,
    grow,
    join,
    load_segment,
    load_start,
    state_of,
)
from cgal.units import BOLTZMANN_kJ_per_mol_K
from cgal.workers import Announce, FanOut, run_in_processes

__all__ = [
    "Exchanges",
    "exchange",
    "ladder_K",
    "load_tempering",
    "memory",
    "round_trips",
    "temper",
    "tempered_ns",
    "visits",
]


@dataclass(frozen=True, eq=False)
class Exchanges:
    """How well replicas wander: acceptance between neighbours, and how often one went to the top and came back.

    `sampled_ns` is the time of all replicas together. `visits` says of each frame which visit to the target temperature
    it belongs to: the ensemble, the walker, and how often that one had been at the hottest rung before.
    """

    sampled_ns: float
    acceptance: Float64[np.ndarray, " pairs"]
    round_trips: int
    visits: Int64[np.ndarray, "frames 3"]


def temper(
    recipe: Recipe, *, workers: int, progress: Progress = silent, fan_out: FanOut = run_in_processes
) -> tuple[Loss, ...]:
    """Run the segments of the ensembles that are not there yet, one of every ensemble at a time.

    Raises BadParams when the folder belongs to another recipe.
    """
    recipe.claim()
    params = recipe.params
    if not params.tempering_ensembles:
        return ()
    made = ("tempering_replicas", "tempering_hot_temperature_K", "tempering_segment_ps", "exchange_ps")
    recipe.claim_folder(
        recipe.folder / "tempering",
        recipe.pieces() | {f"reference.{key}": getattr(params, key) for key in made} | {"starts": _starts(recipe)},
    )
    lengths = {ensemble: len(_chain(recipe, ensemble)) for ensemble in range(params.tempering_ensembles)}
    crew = partial(fan_out, workers=workers)
    return grow(
        lengths, _segments(recipe), partial(_run_segment, recipe=recipe), partial(_path, recipe), crew, progress
    )


def load_tempering(recipe: Recipe) -> tuple[CGTrajectory, Exchanges] | None:
    """C-alpha frames at the target temperature, a replica an ensemble, its beginning left out; None without any.

    Frames of one ensemble are no trajectory: replicas come and go.
    """
    params = recipe.params
    chains = [_chain(recipe, ensemble) for ensemble in range(params.tempering_ensembles)]
    pieces = [join(chain) for chain in chains]
    first = [round(params.tempering_discard_fraction * len(piece)) for piece in pieces]
    lengths = [len(piece) - start for piece, start in zip(pieces, first, strict=True)]
    if not any(lengths):
        return None
    frames = CGTrajectory.from_positions(
        sequence_of(read_pdb_text(recipe.structure).topology),
        np.concatenate([piece[start:] for piece, start in zip(pieces, first, strict=True) if len(piece)]),
        np.concatenate([params.exchange_ps * np.arange(1, length + 1) for length in lengths]),
        np.repeat(np.arange(len(pieces)), lengths),
    )
    return frames, _exchanges(recipe, [len(chain) for chain in chains], first)


def tempered_ns(recipe: Recipe) -> float:
    """Time of all replicas of all ensembles that is there."""
    params = recipe.params
    segments = sum(len(_chain(recipe, ensemble)) for ensemble in range(params.tempering_ensembles))
    return segments * params.tempering_segment_ps * params.tempering_replicas / 1000


def ladder_K(recipe: Recipe) -> Float64[np.ndarray, " replicas"]:
    """Temperatures of an ensemble, coldest first, geometrically spaced."""
    params = recipe.params
    return np.geomspace(recipe.temperature_K, params.tempering_hot_temperature_K, params.tempering_replicas)


def exchange(
    energies_kJ_per_mol: Float64[np.ndarray, " replicas"],
    temperatures_K: Float64[np.ndarray, " replicas"],
    generator: np.random.Generator,
    *,
    odd: bool,
) -> Int64[np.ndarray, " replicas"]:
    """Which replica goes to each temperature: neighbours (0, 1), (2, 3) ... or, if `odd`, (1, 2), (3, 4) ... may swap.

    Metropolis' rule: with probability min(1, exp((b_i - b_j)(U_i - U_j))), b = 1 / kT.
    """
    beta = 1.0 / (BOLTZMANN_kJ_per_mol_K * temperatures_K)
    order = np.arange(len(temperatures_K))
    for low in range(int(odd), len(order) - 1, 2):
        gain = (beta[low] - beta[low + 1]) * (energies_kJ_per_mol[low] - energies_kJ_per_mol[low + 1])
        if np.log(generator.random()) < gain:
            order[[low, low + 1]] = order[[low + 1, low]]
    return order


def round_trips(walkers: Int64[np.ndarray, "exchanges replicas"]) -> int:
    """How often any walker went from the lowest rung to the highest and back; `walkers` says who is on which rung."""
    total = 0
    for walker in range(walkers.shape[1]):
        rung = np.argmax(walkers == walker, axis=1)
        ends = rung[(rung == 0) | (rung == walkers.shape[1] - 1)]
        turns = int(np.count_nonzero(np.diff(ends)))
        total += turns // 2
    return total


def visits(walkers: Int64[np.ndarray, "exchanges replicas"]) -> Int64[np.ndarray, "exchanges 2"]:
    """Walker on the lowest rung after each exchange, and how often it had come to the highest before."""
    hot = walkers[:, -1]
    arrived = (walkers == hot[:, None]) & np.append(True, hot[1:] != hot[:-1])[:, None]
    been = np.zeros(walkers.shape, dtype=np.int64)  # a column a walker
    np.put_along_axis(been, walkers, arrived.astype(np.int64), axis=1)
    cold = walkers[:, 0]
    return np.stack([cold, np.cumsum(been, axis=0)[np.arange(len(cold)), cold]], axis=1)


def memory(visits: Int64[np.ndarray, "frames 3"], coordinate: Float64[np.ndarray, " frames"]) -> float | None:
    """Correlation between a walker's mean coordinate in one visit and in the next, the hottest rung between them.

    Near 0 where walkers forget in the heat what they were, so that each visit is a new draw; near 1 where tempering is
    no help and its hottest rung must be hotter. None with fewer than three pairs.
    """
    names, which = np.unique(visits, axis=0, return_inverse=True)
    means = np.bincount(which.ravel(), weights=coordinate) / np.bincount(which.ravel())
    follows = (names[1:, :2] == names[:-1, :2]).all(axis=1)
    if follows.sum() < 3:
        return None
    return float(np.corrcoef(means[:-1][follows], means[1:][follows])[0, 1])


def _segments(recipe: Recipe) -> int:
    return max(1, round(recipe.params.tempering_ns * 1000 / recipe.params.tempering_segment_ps))


def _path(recipe: Recipe, ensemble: int, index: int) -> Path:
    return recipe.folder / "tempering" / f"{ensemble:03d}" / f"{index:04d}.h5"


def _chain(recipe: Recipe, ensemble: int) -> list[Segment]:
    return chain_of(partial(_path, recipe, ensemble), partial(_start, recipe, ensemble))


def _starts(recipe: Recipe) -> int:
    """How many starts there were when the first ensemble began: more of them later change no ensemble."""
    path = recipe.folder / "tempering" / "recipe.json"
    return int(read_json(path)["starts"]) if path.is_file() else recipe.params.trajectories


def _start(recipe: Recipe, ensemble: int) -> State:
    """Starts of the swarm on all rungs, other ones for each ensemble while there are enough."""
    count, replicas = _starts(recipe), recipe.params.tempering_replicas
    starts = [load_start(recipe, (ensemble * replicas + rung) % count) for rung in range(replicas)]
    scale = np.sqrt(ladder_K(recipe) / recipe.temperature_K)[:, None, None]
    return State(
        np.stack([start.positions for start in starts]), np.stack([start.velocities for start in starts]) * scale
    )


def _exchanges(recipe: Recipe, lengths: Sequence[int], first: Sequence[int]) -> Exchanges:
    """`lengths` are those of the chains, `first` the frames that each loses at its beginning."""
    accepted = np.zeros(recipe.params.tempering_replicas - 1)
    tried, trips, seen = 0.0, 0, []
    for ensemble, length in enumerate(lengths):
        walkers = [np.arange(recipe.params.tempering_replicas)[None]]
        for index in range(length):
            with read_hdf5(_path(recipe, ensemble, index), "reference-segment") as handle:
                orders = handle["orders"][:]
            accepted += (orders[:, :-1] > orders[:, 1:]).sum(axis=0)
            tried += len(orders) / 2
            for order in orders:
                walkers.append(walkers[-1][:, order])
        trips += round_trips(np.concatenate(walkers))
        visited = visits(np.concatenate(walkers))[1 + first[ensemble] :]
        seen.append(np.insert(visited, 0, ensemble, axis=1))
    params = recipe.params
    sampled_ns = sum(lengths) * params.tempering_segment_ps * params.tempering_replicas / 1000
    return Exchanges(sampled_ns, accepted / max(tried, 1.0), trips, np.concatenate(seen))


def _run_segment(task: tuple[int, int], attempt: int, announce: Announce, *, recipe: Recipe) -> None:
    """One segment of an ensemble, from where the one before ended."""
    ensemble, index = task
    begin = load_segment(_path(recipe, ensemble, index - 1)).end if index else _start(recipe, ensemble)
    name = f"reference tempering {index}"
    generator = derive_generator(recipe.seed, ensemble, name, attempt)
    context = context_of(recipe, recipe.temperature_K, derive_seed(recipe.seed, ensemble, name, attempt))
    announce("tempering")
    beads = alpha_carbons(read_pdb_text(recipe.structure).topology)
    temperatures_K, state = ladder_K(recipe), begin
    frames, orders = [], []
    cycles = round(recipe.params.tempering_segment_ps / recipe.params.exchange_ps)
    for cycle in range(cycles):
        state, energies = _advance(context, state, temperatures_K, recipe)
        order = exchange(energies, temperatures_K, generator, odd=bool((index * cycles + cycle) % 2))
        scale = np.sqrt(temperatures_K / temperatures_K[order])[:, None, None]
        state = State(state.positions[order], state.velocities[order] * scale)
        frames.append(state.positions[0][beads])
        orders.append(order)
    content: dict[str, Any] = {
        "positions": np.array(frames, dtype=np.float32),
        "orders": np.array(orders, dtype=np.int32),
        "end_positions": state.positions,
        "end_velocities": state.velocities,
    }
    write_hdf5(_path(recipe, ensemble, index), content, {"cgal_kind": "reference-segment", "begin": begin.digest})


def _advance(
    context: openmm.Context, state: State, temperatures_K: Float64[np.ndarray, " replicas"], recipe: Recipe
) -> tuple[State, Float64[np.ndarray, " replicas"]]:
    """Run every replica at its temperature until the next exchange; their states, and potential energies [kJ/mol]."""
    after, energies = [], []
    for temperature_K, positions, velocities in zip(temperatures_K, state.positions, state.velocities, strict=True):
        context.getIntegrator().setTemperature(temperature_K)
        context.setPositions(positions)
        context.setVelocities(velocities)
        list(frames_of(context, 1, recipe.steps(recipe.params.exchange_ps)))
        after.append(state_of(context))
        energy = context.getState(energy=True).getPotentialEnergy()
        energies.append(float(energy.value_in_unit(unit.kilojoule_per_mole)))
    return State(np.stack([s.positions for s in after]), np.stack([s.velocities for s in after])), np.array(energies)
