"""Controls without active learning: all-atom dynamics that no coarse-grained model has steered, as one more shard."""

from dataclasses import replace

import numpy as np
from jaxtyping import Float32

from cgal.dataset import append, load_manifest
from cgal.frames import AtomFrames, alpha_carbons
from cgal.params import Params
from cgal.progress import Progress
from cgal.randomness import derive_seed
from flows.workspace import Workspace

__all__ = ["add_plain_md", "plan_of"]

ORIGIN = "continued all-atom MD"


def plan_of(params: Params) -> tuple[int, int, int]:
    """Epochs, runs of each, and steps of each run, for `campaign.continued_md_steps` as `campaign.plain_md` says."""
    steps, runs = params.campaign.continued_md_steps, params.selection.frames
    match params.campaign.plain_md:
        case "continued":
            epochs, runs = 1, 1
        case "parallel":
            epochs = 1
        case "least_counts":
            shortest = max(params.oracle.average_steps, params.oracle.free_stride)
            epochs = max(1, steps // (runs * shortest))
    return epochs, runs, steps // (epochs * runs)


def add_plain_md(workspace: Workspace, progress: Progress) -> int:
    """Append the dynamics that `campaign.plain_md` asks for as a shard, if that is not done; give its steps.

    A run keeps a frame with its forces every `oracle.free_stride` steps. Killed, it goes on with the runs that are
    missing, and ends with the same bytes.
    """
    from cgal.all_atom import oracle

    params = workspace.params
    known = {shard.origin: shard.oracle_steps for shard in load_manifest(workspace.data).shards}
    if ORIGIN in known:
        return known[ORIGIN]
    seed = AtomFrames.load(workspace.data / "seed.h5")
    epochs, runs, steps = plan_of(params)
    pieces: list[AtomFrames] = [seed]
    spent = failed = failed_steps = 0
    for epoch in range(epochs):
        result = oracle.run_md(
            seed.pdb,
            _starts(pieces, params, runs, epoch),
            steps=steps,
            stride=params.oracle.free_stride,
            force_field=params.force_field,
            temperature_K=params.temperature_K,
            seeds=[derive_seed(params.seed, epoch, workspace.named("continue"), run) for run in range(runs)],
            workers=params.execution.oracle_workers,
            scratch=workspace.scratch("continue") / f"epoch-{epoch:03d}",
            progress=lambda done, total, note="", epoch=epoch: progress(epoch * runs + done, epochs * total, note),
        )
        oracle.check_quorum(result, runs, params.oracle)
        trajectory = result.labelled.trajectory + np.int32(epoch * runs)
        pieces.append(replace(result.labelled, trajectory=trajectory))
        spent, failed = spent + result.steps, failed + len(result.failures)
        failed_steps += result.failed_steps or 0
    append(
        workspace.data,
        labelled=_joined(pieces[1:]),
        origin=ORIGIN,
        oracle_steps=spent,
        oracle_failed=failed,
        failed_steps=failed_steps,
        checkpoint=workspace.data / "warm_start.pt",
    )
    return spent


def _starts(pieces: list[AtomFrames], params: Params, runs: int, epoch: int) -> Float32[np.ndarray, "runs atoms 3"]:
    """All-atom frames [nm] that the runs of an epoch begin at."""
    seed = pieces[0]
    match params.campaign.plain_md:
        case "continued":
            return seed.positions[-1:]
        case "parallel":
            ends = np.flatnonzero(np.append(np.diff(seed.trajectory) != 0, True))
            return seed.positions[np.resize(ends[::-1], runs)]
        case "least_counts":
            from cgal.reference.least_counts import least_counts

            positions = np.concatenate([piece.positions for piece in pieces])
            beads = positions[:, alpha_carbons(seed.topology)]
            chosen = least_counts(beads, runs, seed=derive_seed(params.seed, epoch, "least counts"))
            return np.asarray(positions[chosen])


def _joined(pieces: list[AtomFrames]) -> AtomFrames:
    """All frames, with the provenance of the first."""
    return replace(
        pieces[0],
        positions=np.concatenate([piece.positions for piece in pieces]),
        forces=np.concatenate([piece.forces for piece in pieces]),
        trajectory=np.concatenate([piece.trajectory for piece in pieces]),
        time_ps=np.concatenate([piece.time_ps for piece in pieces]),
    )
