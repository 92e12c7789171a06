"""The seed of a protein: short all-atom runs from its structure, and the labels that open its dataset."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cgal.all_atom.oracle import OracleResult, check_quorum, relabel, run_md
from cgal.dataset import prepare, reset
from cgal.errors import BadParams, Refusals
from cgal.files import made_aside
from cgal.frames import AtomFrames, read_pdb_text
from cgal.importing import confine
from cgal.params import ForceFieldParams
from cgal.projection.mapping import coordinate_map
from cgal.randomness import derive_seed
from cgal.training.held_out import require_enough
from flows.campaign.preflight import (
    require_replaceable,
    require_repository,
    require_sound_structure,
    tell_undo,
)
from flows.terminal import console, stage_bar
from flows.workspace import Workspace

__all__ = ["SeedRuns", "make_seed", "save_seed"]


@dataclass(frozen=True)
class SeedRuns:
    """Short all-atom runs from the structure: how many, their length, what each leaves out first, between frames."""

    runs: int = 10
    length_ps: float = 25.0
    equilibration_ps: float = 5.0
    spacing_ps: float = 1.0
    confine_nm: float | None = None

    def frames(self, force_field: ForceFieldParams) -> int:
        """Frames of each run."""
        stride = round(self.spacing_ps / force_field.timestep_ps)
        return round(self.length_ps / force_field.timestep_ps) // stride

    def require_fit(self, force_field: ForceFieldParams) -> None:
        """Raise BadParams unless a timestep fits between two frames, and these into a run."""
        if not force_field.timestep_ps <= self.spacing_ps <= self.length_ps:
            raise BadParams(
                f"runs of {self.length_ps} ps with a frame every {self.spacing_ps} ps: the spacing must lie between "
                f"force_field.timestep_ps ({force_field.timestep_ps} ps) and the length"
            )


def make_seed(workspace: Workspace, plan: SeedRuns, mean_force: bool | None = None, *, replacing: bool = False) -> None:
    """Write the seed of `data/<protein>/` from runs in the force field and at the temperature of params.yaml.

    The frames, at most `confine_nm` from the structure in C-alpha RMSD, become `seed.h5`; what follows, and what is
    lost, is as with `import_protein`. `mean_force` left out is as `oracle.mode` has it. The reference, if there is one,
    stays. What can be known before is refused before the runs, all at once.
    """
    params, timestep_ps = workspace.params, workspace.params.force_field.timestep_ps
    mean_force = params.oracle.mode == "mean_force" if mean_force is None else mean_force
    undo = _require_ready(workspace, plan, replacing)
    start = np.asarray(read_pdb_text(workspace.structure).xyz, dtype=np.float32)
    with stage_bar("seed runs") as progress:
        result = run_md(
            workspace.structure,
            np.repeat(start, plan.runs, axis=0),
            steps=round(plan.length_ps / timestep_ps),
            stride=round(plan.spacing_ps / timestep_ps),
            equilibration_steps=round(plan.equilibration_ps / timestep_ps),
            force_field=params.force_field,
            temperature_K=params.temperature_K,
            seeds=[derive_seed(params.seed, 0, "seed run", run) for run in range(plan.runs)],
            workers=params.execution.oracle_workers,
            scratch=workspace.scratch("seed-runs"),
            progress=progress,
        )
    check_quorum(result, plan.runs, params.oracle)
    seed = replace(result.labelled, provenance=result.labelled.provenance | {"run_steps": result.steps})
    if plan.confine_nm is not None:
        seed = confine(seed, coordinate_map(seed.topology)(start)[0], plan.confine_nm)
    require_enough([seed.trajectory], params.training)
    with made_aside(workspace.data) as folder:
        reset(folder)
        save_seed(workspace, folder, seed, mean_force=mean_force)
    console.print(f"{workspace.data}: {len(seed)} seed frames of {len(result.labelled)}, {result.steps:,} steps")
    _tell_failures(result, "run")
    tell_undo(undo)


def _require_ready(workspace: Workspace, plan: SeedRuns, replacing: bool) -> str:
    """How to undo what follows, or ""; raises the one thing that is to be mended, or Refused with all of them."""
    params, refusals = workspace.params, Refusals()
    with refusals.gathered():
        undo = require_replaceable(workspace, require_repository(workspace), replacing)
    with refusals.gathered():
        require_sound_structure(workspace)
    with refusals.gathered():
        plan.require_fit(params.force_field)
        require_enough([np.repeat(np.arange(plan.runs), plan.frames(params.force_field))], params.training)
    refusals.tell()
    return undo


def save_seed(workspace: Workspace, folder: Path, seed: AtomFrames, *, mean_force: bool) -> None:
    """Write `seed.h5`, force map and shard 0; with `mean_force` after the oracle has labelled the frames again."""
    seed.save(folder / "seed.h5")
    (folder / "seed_labels.h5").unlink(missing_ok=True)
    if mean_force:
        _label(workspace, folder, seed)
    prepare(folder, workspace.params, beside=workspace.beside)


def _label(workspace: Workspace, folder: Path, seed: AtomFrames) -> None:
    params = workspace.params
    with stage_bar("label seed") as progress:
        result = relabel(
            seed,
            force_field=params.force_field,
            oracle=params.oracle,
            temperature_K=params.temperature_K,
            seeds=[derive_seed(params.seed, 0, "label seed", index) for index in range(len(seed))],
            workers=params.execution.oracle_workers,
            scratch=workspace.scratch("seed"),
            progress=progress,
        )
    cost = result.labelled.provenance | {"oracle_steps": result.steps, "failed_steps": result.failed_steps}
    replace(result.labelled, provenance=cost).save(folder / "seed_labels.h5")
    console.print(f"labelled {len(result.labelled)} of {len(seed)} seed frames in {result.steps:,} all-atom steps")
    _tell_failures(result, "frame")


def _tell_failures(result: OracleResult, what: str) -> None:
    for failure in result.failures:
        console.print(f"  {what} {failure.pick}: {failure.stage}: {failure.reason} (kept in {failure.folder})")
