"""The stages of a round as plain functions: load, call cgal, save; each imports what it alone needs.

Both `cgal stage NAME` (the commands of `dvc.yaml`) and the Prefect tasks of `flows.campaign.steps` run these. Each
returns a few numbers that say how it went. Of several proteins `train` and `select` get all, the others one.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cgal.benchmark.halves import verdict
from cgal.benchmark.observables import HEADLINE
from cgal.dataset import Manifest, load_atoms, load_manifest, load_shards, physics_of, round_index
from cgal.errors import BadParams, DatasetChanged
from cgal.files import read_json, write_json
from cgal.frames import CGTrajectory, alpha_carbons, native_beads, read_pdb_text
from cgal.potential.architectures import initial_potential
from cgal.potential.checkpoint import load_checkpoint, save_checkpoint
from cgal.potential.potential import Potential
from cgal.progress import Progress
from cgal.randomness import derive_seed
from cgal.simulation import simulate as run_simulation
from cgal.simulation.starts import read_starts
from cgal.training.held_out import held_out_masks
from cgal.training.proteins import TrainingSet, load_training_set
from cgal.training.runs import write_curves_csv
from cgal.training.train import train as run_training
from flows.serving.task_runners import fanning_out
from flows.workspace import Summary, Workspace

if TYPE_CHECKING:
    from cgal.selection import Acquisition, Committee, Finding

__all__ = ["PRODUCTION", "STAGES", "run_stage"]


def train(workspace: Workspace, progress: Progress) -> Summary:
    """Shards 0..k -> `round/model.pt`."""
    from cgal.potential.figures import plot_prior
    from cgal.training.figures import plot_training

    params, manifests = workspace.params, _manifests(workspace)
    training_set, k = _training_set(workspace), round_index(next(iter(manifests.values())))
    result = run_training(
        training_set.shards,
        _initial(workspace, training_set, k),
        params.training,
        seed=derive_seed(params.seed, k, "train"),
        scratch=workspace.scratch("train"),
        priors=training_set.priors,
        progress=progress,
    )
    summary: Summary = dict(result.summary() | training_set.summary())
    shards = {
        part.named(shard.name, "/"): shard.sha256 for part, manifest in manifests.items() for shard in manifest.shards
    }
    provenance = {"round": k, "seed": params.seed, "shards": shards}
    save_checkpoint(workspace.model, result.potential, provenance | summary, priors=training_set.priors.values())
    write_curves_csv(result, workspace.round / "training.csv")
    figures = workspace.round / "plots" / "training"
    plot_training(result, figures)
    for part, manifest in manifests.items():
        of = manifest.sequence
        prior = result.potential.with_prior(training_set.priors[of]).prior
        plot_prior(prior, training_set.positions(of), figures / part.named(""), params.prior, training_set.weights(of))
    return summary


def simulate(workspace: Workspace, progress: Progress) -> Summary:
    """`round/model.pt` -> `round/trajectory.h5`."""
    manifest, params = load_manifest(workspace.data), workspace.params
    potential, _ = load_checkpoint(workspace.model, sequence=manifest.sequence)
    trajectory = run_simulation(
        potential,
        _starts(workspace),
        params.simulation,
        temperature_K=params.temperature_K,
        seed=derive_seed(params.seed, round_index(manifest), workspace.named("simulate")),
        device=_device(workspace),
        progress=progress,
    )
    trajectory.save(workspace.round / "trajectory.h5")
    return _simulated(trajectory)


def produce(workspace: Workspace, progress: Progress) -> Summary:
    """`round/model.pt` -> `round/trajectory.h5`, as `simulate`, but in `pieces/` that a kill leaves whole."""
    from cgal.simulation.long_run import simulate_long

    manifest, params = load_manifest(workspace.data), workspace.params
    potential, _ = load_checkpoint(workspace.model, sequence=manifest.sequence)
    trajectory = simulate_long(
        potential,
        _starts(workspace),
        params.simulation,
        temperature_K=params.temperature_K,
        seed=derive_seed(params.seed, round_index(manifest), workspace.named("production")),
        folder=workspace.root / "pieces",
        device=_device(workspace),
        progress=progress,
    )
    trajectory.save(workspace.round / "trajectory.h5")
    return _simulated(trajectory)


def _simulated(trajectory: CGTrajectory) -> Summary:
    lost = sum(fate.lost for fate in trajectory.fates)
    summary: Summary = {"frames": len(trajectory), "lost_replicas": lost, "device": trajectory.device}
    if trajectory.spread_of_forces is not None:
        summary["spread_of_forces"] = float(trajectory.spread_of_forces.mean())
    return summary


def benchmark(workspace: Workspace, progress: Progress) -> Summary:
    """`round/trajectory.h5` against `reference.h5` -> `round/metrics.json`, figures."""
    from cgal.benchmark.figures import plot_benchmark
    from cgal.benchmark.suite import benchmark as run_benchmark

    manifest, params = load_manifest(workspace.data), workspace.params
    k = round_index(manifest)
    result = run_benchmark(
        CGTrajectory.load(workspace.round / "trajectory.h5"),
        _reference(workspace, manifest),
        params.benchmark,
        native=native_beads(workspace.structure),
        training_positions=_training_positions(workspace),
        seed=derive_seed(params.seed, k, workspace.named("benchmark")),
        progress=progress,
    )
    dataset = {
        "frames": sum(shard.frames for shard in manifest.shards),
        "oracle_steps": sum(shard.oracle_steps for shard in manifest.shards),
        "acquisition_steps": sum(shard.oracle_steps for shard in manifest.shards[1:]),
        "oracle_failed": sum(shard.oracle_failed for shard in manifest.shards),
        **_known_steps(manifest),
    }
    write_json(workspace.round / "metrics.json", result.metrics | {"round": k, "dataset": dataset})
    write_json(workspace.round / "histograms.json", result.histograms | {"round": k})
    plot_benchmark(result, workspace.round / "plots" / "benchmark")
    values: Summary = {f"w1_{name}": score["value"] for name, score in result.metrics["w1"].items()}
    return values | {"halves": verdict(result.metrics["halves"])}


def _reference(workspace: Workspace, manifest: Manifest) -> CGTrajectory:
    """The reference, its physics named where `cgal reference` has made it with another force field than the labels'."""
    reference, said = CGTrajectory.load(workspace.data / "reference.h5"), workspace.data / "reference.json"
    made = physics_of(read_json(said)) if said.is_file() else None
    other = made if manifest.prepared_from.force_field not in (None, made) else None
    return replace(reference, physics=reference.physics or other)


def _known_steps(manifest: Manifest) -> dict[str, int]:
    """Steps of the seed, its runs and its labels, and of failed tries since; those that were not recorded are left out.

    Both are in the sums over shards, too.
    """
    seed, *later = manifest.shards
    failed = [shard.failed_steps for shard in later]
    known = {
        "seed_steps": None if seed.run_steps is None else seed.oracle_steps,
        "failed_steps": None if None in failed else sum(steps or 0 for steps in failed),
    }
    return {name: steps for name, steps in known.items() if steps is not None}


def select(workspace: Workspace, progress: Progress) -> Summary:
    """`round/trajectory.h5` -> `round/selection.h5`; the closing round picks no frame, and says why it closes.

    Several proteins share the picks of a round, and decide together whether it closes.
    """
    from cgal.selection import acquire

    params, manifests = workspace.params, _manifests(workspace)
    members = cache(partial(_committee_members, workspace, progress))
    found = acquire(
        [_finding(part, manifest, members) for part, manifest in manifests.items()],
        params.campaign,
        round_index(next(iter(manifests.values()))),
        affordable=_affordable_picks(workspace, manifests.values()),
    )
    for part, each in zip(manifests, found, strict=True):
        _save_selection(part, each)
    if len(found) > 1:
        write_json(workspace.round / "selection.json", _all_selections(manifests, found))
    picked = sum(len(each.selection) for each in found)
    progress(1, 1, f"{picked} frames picked")
    return {
        "picked": picked,
        "dropped": sum(sum(each.selection.dropped.values()) for each in found),
        "uncovered": float(np.mean([each.outcome.uncovered_fraction for each in found])),
    }


def _finding(workspace: Workspace, manifest: Manifest, members: "Callable[[], Sequence[Potential]]") -> "Finding":
    from cgal.selection import Finding, measure_pool

    params, k = workspace.params, round_index(manifest)
    pool = measure_pool(
        CGTrajectory.load(workspace.round / "trajectory.h5"),
        _training_positions(workspace),
        native_beads(workspace.structure),
        params.selection,
        lambda: _calibrated(workspace, manifest, members()),
    )
    return Finding(
        pool,
        read_json(workspace.round / "metrics.json")["w1"][HEADLINE],
        earlier=[shard.outcome for shard in manifest.shards if shard.outcome],
        seed=derive_seed(params.seed, k, workspace.named("select")),
    )


def _save_selection(workspace: Workspace, found: "Acquisition") -> None:
    from cgal.selection import plot_selection

    selection = found.selection
    selection.save(workspace.round / "selection.h5")
    write_json(
        workspace.round / "selection.json",
        selection.summary() | {"closing": found.closing, "outcome": found.outcome.model_dump()},
    )
    plot_selection(selection, workspace.round / "plots" / "selection")


def _all_selections(parts: Iterable[Workspace], found: "Sequence[Acquisition]") -> dict[str, Any]:
    """What the selections of several proteins have in common, and the picks of each."""
    uncovered = float(np.mean([each.outcome.uncovered_fraction for each in found]))
    return {
        "closing": found[0].closing,
        "outcome": {"uncovered_fraction": uncovered},
        "picked": {part.data.name: len(each.selection) for part, each in zip(parts, found, strict=True)},
    }


def _committee_members(workspace: Workspace, progress: Progress) -> list[Potential]:
    """Potentials of the first protein, each with a network that was trained afresh on the shards of all."""
    params, training_set = workspace.params, _training_set(workspace)
    k, first = round_index(next(iter(_manifests(workspace).values()))), training_set.sequences[0]
    seeds = [derive_seed(params.seed, k, "committee", member) for member in range(params.selection.committee)]
    training = params.training.model_copy(update={"members": 1})
    return [
        run_training(
            training_set.shards,
            initial_potential(training_set.priors[first], params.network, seed),
            training,
            seed=seed,
            scratch=workspace.scratch(f"committee-{member}"),
            priors=training_set.priors,
            progress=progress,
        ).potential
        for member, seed in enumerate(seeds)
    ]


def _calibrated(workspace: Workspace, manifest: Manifest, members: "Sequence[Potential]") -> "Committee":
    """The committee for one protein, calibrated on what was held out of its frames."""
    from cgal.selection import Committee

    own = load_training_set([workspace.data], workspace.params.prior, workspace.params.training)
    prior = own.priors[manifest.sequence]
    potentials = [each if each.sequence == prior.sequence else each.with_prior(prior) for each in members]
    masks = held_out_masks(own.shards, workspace.params.training)
    held_out = [shard.take(mask) for shard, mask in zip(own.shards, masks, strict=True)]
    return Committee(
        potentials,
        np.concatenate([shard.positions for shard in held_out]),
        np.concatenate([shard.forces for shard in held_out]),
    )


def _affordable_picks(workspace: Workspace, manifests: Iterable[Manifest]) -> int:
    from cgal.selection.closing import affordable_picks

    params = workspace.params
    return affordable_picks(
        params.campaign,
        params.selection.frames,
        spent_steps=sum(shard.oracle_steps for manifest in manifests for shard in manifest.shards[1:]),
        steps_per_pick=params.label_steps,
    )


def label(workspace: Workspace, progress: Progress) -> Summary:
    """`round/selection.h5` -> backmapped and labelled all-atom frames, `round/oracle.h5`.

    Fewer picks than a round wants, as the rest of a budget pays for, are too few for a quorum: they may all fail.
    """
    from cgal.all_atom import oracle
    from cgal.all_atom.backmapping.backmap import backmap
    from cgal.selection import Selection

    manifest, params = load_manifest(workspace.data), workspace.params
    k = round_index(manifest)
    selection = Selection.load(workspace.round / "selection.h5")
    rebuild = partial(
        backmap,
        structure=workspace.structure,
        params=params.backmapping,
        force_field=params.force_field,
        temperature_K=params.temperature_K,
    )
    with fanning_out(workspace, params.execution.oracle_workers) as fan_out:
        result = oracle.label(
            selection.positions,
            workspace.structure,
            rebuild=rebuild,
            force_field=params.force_field,
            oracle=params.oracle,
            temperature_K=params.temperature_K,
            seeds=[
                derive_seed(params.seed, k, workspace.named("label"), pick) for pick in range(len(selection.positions))
            ],
            workers=params.execution.oracle_workers,
            scratch=workspace.scratch(f"label-r{k:03d}"),
            near=_near(workspace, selection.positions),
            progress=progress,
            fan_out=fan_out,
        )
    if len(selection) >= selection.wanted:
        oracle.check_quorum(result, len(selection.positions), params.oracle)
    result.save(workspace.round / "oracle.h5")
    return {"labelled": len(result.labelled), "failed": len(result.failures), "steps": result.steps}


def _near(workspace: Workspace, picks: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any] | None]:
    """Stored all-atom frame near each pick, or None; no list when params.yaml wants none."""
    from cgal.all_atom.backmapping.remembered import nearest_stored

    within_nm = workspace.params.backmapping.steer_within_nm
    if not within_nm:
        return []
    beads = alpha_carbons(read_pdb_text(workspace.structure).topology)
    return nearest_stored(picks, load_atoms(workspace.data), beads, within_nm)


def run_stage(name: str, workspace: Workspace, progress: Progress) -> Summary:
    """Run one stage with the threads that `execution.torch_threads` allows."""
    torch.set_num_threads(workspace.params.execution.torch_threads or len(os.sched_getaffinity(0)))
    return (STAGES | PRODUCTION)[name](workspace, progress)


STAGES: dict[str, Callable[[Workspace, Progress], Summary]] = {
    "train": train,
    "simulate": simulate,
    "benchmark": benchmark,
    "select": select,
    "label": label,
}
"""The stages of a round, in the order in which data flows."""

PRODUCTION: dict[str, Callable[[Workspace, Progress], Summary]] = {"production": produce}
"""What runs on a published round (`flows.campaign.production`)."""


def _manifests(workspace: Workspace) -> dict[Workspace, Manifest]:
    """The manifest of each protein, by its view of the workspace.

    Raises DatasetChanged when they are of different rounds, as a kill between two appends leaves them.
    """
    manifests = {part: load_manifest(part.data) for part in workspace.parts}
    if len({round_index(manifest) for manifest in manifests.values()}) > 1:
        found = ", ".join(f"{part.data} of round {round_index(manifest)}" for part, manifest in manifests.items())
        raise DatasetChanged(f"{found}: one has grown alone; 'cgal run' lets the others follow")
    return manifests


def _training_set(workspace: Workspace) -> TrainingSet:
    """The datasets of all proteins; raises BadParams when they were prepared at another temperature."""
    params = workspace.params
    training_set = load_training_set([part.data for part in workspace.parts], params.prior, params.training)
    prepared_K = next(iter(training_set.priors.values())).temperature_K
    if prepared_K != params.temperature_K:
        raise BadParams(
            f"temperature_K is {params.temperature_K:g}, but the dataset was prepared at {prepared_K:g} K: "
            "set it back, or make ('cgal seed') or import a seed of this temperature"
        )
    return training_set


def _initial(workspace: Workspace, training_set: TrainingSet, k: int) -> Potential:
    """The round's prior (of the first protein), with the network of the round before, or a fresh one."""
    params, first = workspace.params, training_set.sequences[0]
    prior = training_set.priors[first]
    if params.training.warm_start:
        path = workspace.parts[0].data / "warm_start.pt"
        last, _ = load_checkpoint(path, sequence=first, architecture=params.network)
        return Potential(prior, last.network)
    return initial_potential(prior, params.network, derive_seed(params.seed, k, "initialise"))


def _training_positions(workspace: Workspace) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.concatenate([shard.positions for shard in load_shards(workspace.data)])


def _starts(workspace: Workspace) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Frames that replicas are drawn from."""
    params = workspace.params.simulation
    if params.starts == "native":
        return native_beads(workspace.structure)[np.newaxis]
    if params.starts == "given":
        return read_starts(workspace.data / params.starts_file, load_manifest(workspace.data).sequence, params)
    return _training_positions(workspace)


def _device(workspace: Workspace) -> str:
    wanted = workspace.params.simulation.device
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return wanted
