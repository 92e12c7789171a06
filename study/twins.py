"""Each round of a comparison beside its twins, from common starts: rows of docs/results/NAME_twins.csv.

    python -m study.twins NAME [--processes 2] [--until SECONDS]

For every published round of every complete campaign: `model` is the round's model, `linear` its prior and linear rung
without the network (no rows where the rung was moved beneath the network in the end, since without it the moved rung is
of no use), `prior` the prior alone, all of the same frames, `raw` the all-atom frames of its training set
themselves, equally weighted, and `weighted` a thousand of them drawn by the weights of `training.frame_weights: markov`
(no rows where no run is as long as its lag). Potentials are simulated from the folded structure and from a stretched
chain, for as long as in `study.learning_curves` and whatever starts the campaign took, so that all arms are measured
alike. Rows that are there are not made again; the command goes on after a kill.
"""

import time
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, NamedTuple

import numpy as np
import torch
import typer
from jaxtyping import Float32

from cgal.benchmark.observables import OBSERVABLES
from cgal.benchmark.suite import benchmark
from cgal.benchmark.wasserstein import MODES
from cgal.dataset import Manifest, load_manifest, load_shards
from cgal.errors import SamplingError
from cgal.frames import CGTrajectory, LabelledFrames, alpha_carbons, read_pdb_text
from cgal.params import DynamicsParams, Params, TrainingParams, load_params
from cgal.potential.architectures import without_network
from cgal.potential.checkpoint import load_checkpoint
from cgal.potential.potential import Potential
from cgal.randomness import derive_seed
from cgal.simulation.run import run_from, to_trajectory
from cgal.training.frame_weights import weigh_shards
from study.frame_weights import drawn
from study.in_processes import append_rows, measure_all, rows_of
from study.learning_curves import LENGTH_ps, benchmark_params, stretched
from study.statistics import read_records

__all__ = ["KINDS", "REPLICAS", "Round", "measure", "rounds_of", "steps_by_kind"]

KINDS = ("model", "linear", "prior", "raw", "weighted")
REPLICAS = 16
"""From each of the two starts: half of those of the learning curves, as seeds scatter more than simulations do."""

SAVES = 100
LEFT = ("seed.h5", "seed_labels.h5", "force_map.h5", "warm_start.pt")
"""Files of a protein's data that are not read."""

type Row = dict[str, str | int | float]


class Round(NamedTuple):
    """A published round of a comparison's campaign; `budget_steps` are those that the campaign might spend."""

    root: Path
    arm: str
    seed: int
    seed_set: int
    budget_steps: int
    number: int
    tag: str


class _Found(NamedTuple):
    """What DVC holds of a round, whether its rung was moved beneath its network, and the seed of its simulations."""

    params: Params
    manifest: Manifest
    shards: tuple[LabelledFrames, ...]
    model: Potential
    moved: bool
    native: Float32[np.ndarray, "beads 3"]
    truth: CGTrajectory
    seed: int


def measure(task: Round) -> list[Row]:
    """W1 of all metrics in both modes of the round and its twins, and what its labels cost so far."""
    torch.set_num_threads(1)
    found = _read(task)
    common: Row = {
        "arm": task.arm,
        "seed": task.seed,
        "seed_set": task.seed_set,
        "budget_steps": task.budget_steps,
        "round": task.number,
        "frames": sum(map(len, found.shards)),
        **steps_by_kind(found.manifest, found.params),
        "tag": task.tag,
    }
    return [common | row for kind in KINDS for row in _rows(kind, found)]


def _trajectory(kind: str, found: _Found) -> CGTrajectory | None:
    """The frames of a kind, none of them left out if they are all-atom ones; None where a round has no such kind."""
    match kind:
        case "raw":
            return _raw(found.shards)
        case "weighted":
            markov = TrainingParams(frame_weights="markov", markov=found.params.training.markov)
            try:
                shards = weigh_shards(found.shards, markov)
            except SamplingError:
                return None
            weights = np.concatenate([shard.weights for shard in shards if shard.weights is not None])
            return drawn(_raw(found.shards), weights, found.seed)
        case "linear" if found.moved:
            return None
        case "linear":
            return _simulate(without_network(found.model.prior), found)
        case "prior":
            return _simulate(without_network(found.model.prior.with_rung({})), found)
    return _simulate(found.model, found)


def _read(task: Round) -> _Found:
    from flows.versioning import Repository
    from flows.versioning.published_files import bring_files

    repository = Repository(task.root)
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "params.yaml").write_bytes(repository.read_round_file(task.tag, "params.yaml"))
        params = load_params(folder / "params.yaml")
        bring_files(repository, task.tag, folder, lambda path: Path(path).name not in LEFT)
        data = folder / "data" / str(params.protein)
        manifest = load_manifest(data)
        structure = read_pdb_text((data / "structure.pdb").read_text())
        model, metadata = load_checkpoint(folder / "round" / "model.pt", sequence=manifest.sequence)
        return _Found(
            params,
            manifest,
            load_shards(data),
            model,
            bool(metadata.get("refit_moved")),
            np.asarray(structure.xyz[0, alpha_carbons(structure.topology)], dtype=np.float32),
            CGTrajectory.load(data / "reference.h5"),
            derive_seed(task.seed, task.number, "twins"),
        )


def steps_by_kind(manifest: Manifest, params: Params) -> dict[str, int]:
    """All-atom steps of a dataset by what they were spent on; `oracle_steps` are all but the seed's.

    A label's run has as many as `oracle` asks for; what its frame took before is minimisation (with warm-up and
    annealing), or steering where `backmapping.steer_within_nm` asks for that.
    """
    seed, *added = manifest.shards
    spent, failed = sum(shard.oracle_steps for shard in added), sum(shard.failed_steps or 0 for shard in added)
    if params.campaign.continued_md_steps:
        label = spent - failed
    else:
        label = params.oracle.steps * sum(shard.frames for shard in added) // _frames_of_a_label(params)
    before = spent - failed - label
    steered = params.backmapping.steer_within_nm > 0
    return {
        "oracle_steps": spent,
        "label_steps": label,
        "failed_steps": failed,
        "minimisation_steps": 0 if steered else before,
        "steering_steps": before if steered else 0,
        "seed_steps": seed.oracle_steps,
    }


def _frames_of_a_label(params: Params) -> int:
    return params.oracle.average_steps // params.oracle.free_stride if params.oracle.mode == "free" else 1


def _rows(kind: str, found: _Found) -> list[Row]:
    began = time.monotonic()
    settings = benchmark_params().model_copy(update={"tica_lag_ps": found.params.benchmark.tica_lag_ps})
    if kind in ("raw", "weighted"):
        settings = settings.model_copy(update={"discard_fraction": 0.0})
    trajectory = _trajectory(kind, found)
    if trajectory is None:
        return []
    positions = np.concatenate([shard.positions for shard in found.shards])
    metrics = benchmark(
        trajectory, found.truth, settings, native=found.native, training_positions=positions, seed=found.seed
    ).metrics
    both: Row = {
        "kind": kind,
        "exploded_fraction": metrics["simulation"]["exploded_fraction"],
        "wall_s": time.monotonic() - began,
    }
    return [
        {
            **both,
            "metric": metric,
            "mode": mode,
            "w1": metrics[f"w1_{mode}"][metric]["value"],
            "floor": metrics[f"floor_{mode}"][metric],
        }
        for mode, metric in product(MODES, OBSERVABLES)
    ]


def _raw(shards: tuple[LabelledFrames, ...]) -> CGTrajectory:
    """All frames of all shards; trajectories of different shards are different ones."""
    numbers = [(index, trajectory) for index, shard in enumerate(shards) for trajectory in shard.trajectory.tolist()]
    replica = np.unique(np.array(numbers), axis=0, return_inverse=True)[1].reshape(-1)
    positions = np.concatenate([shard.positions for shard in shards])
    times = np.concatenate([shard.time_ps for shard in shards])
    return CGTrajectory.from_positions(shards[0].sequence, positions, times, replica)


def _simulate(model: Potential, found: _Found) -> CGTrajectory:
    """Half of the replicas from the folded structure, half from a stretched chain."""
    timestep_ps = found.params.simulation.timestep_ps
    steps = round(LENGTH_ps / timestep_ps)
    dynamics = DynamicsParams(replicas=2 * REPLICAS, steps=steps, stride=steps // SAVES, timestep_ps=timestep_ps)
    home = np.repeat(np.stack([found.native, stretched(len(model.sequence))]), REPLICAS, axis=0)
    record = run_from(model, home, dynamics, temperature_K=found.params.temperature_K, seed=found.seed)
    return to_trajectory(model.sequence, record, dynamics, "cpu")


def rounds_of(root: Path, name: str) -> list[Round]:
    """Published rounds of a comparison's complete campaigns, by its records; raises BadFile when there are none."""
    path = root / "docs" / "results" / f"{name}.csv"
    columns = ["arm", "seed", "seed_set", "budget_steps", "round", "tag"]
    found = read_records(path, columns)[columns].drop_duplicates()
    return [Round(root, *row) for row in found.itertuples(index=False)]


def main(
    name: Annotated[str, typer.Argument(help="Of the comparison.")],
    root: Annotated[Path, typer.Option(help="The project's folder.")] = Path(),
    processes: Annotated[int, typer.Option(help="Rounds at a time, of one thread each.")] = 1,
    until: Annotated[float, typer.Option(help="Seconds after which nothing is waited for any more.")] = float("inf"),
) -> None:
    """Measure all rounds of complete campaigns whose rows are not there."""
    path = root.resolve() / "docs" / "results" / f"{name}_twins.csv"
    known = {row["tag"] for row in rows_of(path)}
    waiting = [task for task in rounds_of(root.resolve(), name) if task.tag not in known]
    measure_all(measure, waiting, partial(append_rows, path), what="rounds", processes=processes, until_s=until)


if __name__ == "__main__":
    typer.run(main)
