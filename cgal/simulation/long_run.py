"""A simulation that may take days: kept piece by piece, so that a run that was killed goes on, to the same bytes.

Each piece is a run of its own, whose replicas go on from the positions and velocities that the piece before ended with,
and whose noise is drawn from a seed of its own. So a piece is what it is whether or not the process that made the one
before still lives, and a finished run may be made longer.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int8, Int64

from cgal.errors import BadFile, EmptyTrajectory
from cgal.frames import CGTrajectory
from cgal.hdf5 import Hdf5Record
from cgal.params import DynamicsParams
from cgal.potential.potential import Potential
from cgal.progress import Progress, silent
from cgal.randomness import derive_seed
from cgal.simulation.langevin import Engine, Snapshot
from cgal.simulation.run import Record, draw_starts, run_engine, start_engine, to_trajectory, with_spread

__all__ = ["simulate_long"]

PIECE_STEPS = 50_000
"""Steps in a piece: what a kill costs at most; to begin one takes as long as a few hundred."""


@dataclass(frozen=True, eq=False)
class Piece(Hdf5Record):
    """Frames of all replicas from one piece of a run, and what else the next one needs.

    `run` is a hash of all that the run depends on but its length. The last frame is where the piece ended.
    """

    KIND = "simulation-piece"

    run: str
    positions: Float32[np.ndarray, "saves replicas beads 3"]
    velocities: Float32[np.ndarray, "replicas beads 3"]
    cause: Int8[np.ndarray, " replicas"]
    lost_at: Int64[np.ndarray, " replicas"]

    @property
    def end(self) -> Snapshot:
        """What it came to."""
        return Snapshot(self.positions[-1], self.velocities, self.cause, self.lost_at)


def simulate_long(
    potential: Potential,
    starts: Float32[np.ndarray, "starts beads 3"],
    params: DynamicsParams,
    *,
    temperature_K: float,
    seed: int,
    folder: Path,
    device: str = "cpu",
    progress: Progress = silent,
) -> CGTrajectory:
    """Run what `simulate` runs, of any length, and keep its pieces in `folder`: those that are there are not run again.

    More `params.steps` go on from the last piece; steps after the last saved frame are not taken. Raises what
    `simulate` does, and BadFile when the folder holds pieces of a run that differs in anything but its length, or a
    piece cannot be written.
    """
    if len(starts) == 0:
        raise EmptyTrajectory("simulation: no start frame was given; give at least one frame of the training set")
    home = draw_starts(starts, params.replicas, seed)
    run = _fingerprint(potential, home, params, temperature_K, seed, device)
    saves = params.steps // params.stride
    params = params.model_copy(update={"steps": saves * params.stride})
    pieces: list[Piece] = []
    length = max(1, PIECE_STEPS // params.stride)
    for index, first in enumerate(range(0, saves, length)):
        wanted, path = min(length, saves - first), folder / f"{index:05d}.h5"
        piece = _kept(path, run, wanted)
        if piece is None:
            engine = start_engine(
                potential, home, params, temperature_K, derive_seed(seed, 0, "long run", index), device
            )
            if pieces:
                engine.go_on(pieces[-1].end, first * params.stride)
            piece = _run_piece(engine, params, first, wanted, run, progress)
            piece.save(path)
        pieces.append(piece)
        if piece.cause.all():
            break
    return with_spread(to_trajectory(potential.sequence, _join(pieces, params), params, device), potential, params)


def _fingerprint(
    potential: Potential,
    home: Float32[np.ndarray, "replicas beads 3"],
    params: DynamicsParams,
    temperature_K: float,
    seed: int,
    device: str,
) -> str:
    """Hash of all that a run depends on but its length."""
    digest = hashlib.sha256(home.tobytes())
    for tensor in potential.state_dict().values():
        digest.update(tensor.detach().cpu().numpy().tobytes())
    words = (potential.sequence, params.model_dump_json(exclude={"steps", "device"}), temperature_K, seed)
    digest.update(repr((*words, torch.device(device).type)).encode())
    return digest.hexdigest()


def _kept(path: Path, run: str, wanted: int) -> Piece | None:
    """Piece of this run, if it is there in full: one that was cut short, as the last of a shorter run, is made anew."""
    try:
        piece = Piece.load(path)
    except BadFile:  # not there, or damaged: made again
        return None
    if piece.run != run:
        raise BadFile(
            f"{path}: a piece of another run (model, starts, parameters, temperature, seed or kind of device differ); "
            "name another folder, or remove this one"
        )
    return piece if len(piece.positions) >= wanted or piece.cause.all() else None


def _run_piece(engine: Engine, params: DynamicsParams, first: int, saves: int, run: str, progress: Progress) -> Piece:
    def show(done: int, total: int, note: str = "") -> None:
        progress(first * params.stride + done, params.steps, note)

    record = run_engine(engine, params.model_copy(update={"steps": saves * params.stride}), show)
    end = record.end
    return Piece(run, record.positions, end.velocities, end.cause, end.lost_at)


def _join(pieces: list[Piece], params: DynamicsParams) -> Record:
    """Pieces as one run of `params.steps`; what came later than that does not count."""
    saves = params.steps // params.stride
    positions = np.concatenate([piece.positions for piece in pieces])[:saves]
    end = pieces[-1].end
    lost = (end.cause != 0) & (end.lost_at <= params.steps)
    saved_at = params.stride * (1 + np.arange(len(positions)))[:, None]
    sound: Bool[np.ndarray, "saves replicas"] = ~lost | (end.lost_at > saved_at)
    return Record(positions, sound, end._replace(cause=np.where(lost, end.cause, 0).astype(np.int8)))
