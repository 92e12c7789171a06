"""The seed of a protein: short all-atom runs from its structure, and the labels that open its dataset."""

from dataclasses import dataclass, replace

import numpy as np

from cgal.all_atom.oracle import check_quorum, relabel, run_md
from cgal.dataset import prepare, reset
from cgal.errors import BadParams
from cgal.frames import AtomFrames, read_pdb_text
from cgal.importing import confine
from cgal.params import ForceFieldParams
from cgal.projection.mapping import coordinate_map
from cgal.randomness import derive_seed
from flows.terminal import console, stage_bar
from flows.workspace import Workspace

__all__ = ["SeedRuns", "make_seed", "save_seed"]


@dataclass(frozen=True)
class SeedRuns:
    """Short all-atom runs from the structure: how many, their length, what each leaves out first, between frames."""

    runs: int
    length_ps: float
    equilibration_ps: float
    spacing_ps: float
    confine_nm: float | None

    def require_fit(self, force_field: ForceFieldParams) -> None:
        """Raise BadParams unless a timestep fits between two frames, and these into a run."""
        if not force_field.timestep_ps <= self.spacing_ps <= self.length_ps:
            raise BadParams(
                f"runs of {self.length_ps} ps with a frame every {self.spacing_ps} ps: the spacing must lie between "
                f"force_field.timestep_ps ({force_field.timestep_ps} ps) and the length"
            )


def make_seed(workspace: Workspace, plan: SeedRuns, mean_force: bool | None = None) -> None:
    """Write the seed of `data/<protein>/` from runs in the force field and at the temperature of params.yaml.

    The frames, at most `confine_nm` from the structure in C-alpha RMSD, become `seed.h5`; what follows, and what is
    lost, is as with `import_protein`. `mean_force` left out is as `oracle.mode` has it. The reference, if there is one,
    stays. Raises BadStructure or BadParams.
    """
    params, timestep_ps = workspace.params, workspace.params.force_field.timestep_ps
    plan.require_fit(params.force_field)
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
    seed = result.labelled
    if plan.confine_nm is not None:
        seed = confine(seed, coordinate_map(seed.topology)(start)[0], plan.confine_nm)
    reset(workspace.data)
    save_seed(workspace, seed, mean_force=params.oracle.mode == "mean_force" if mean_force is None else mean_force)
    console.print(f"{workspace.data}: {len(seed)} seed frames of {len(result.labelled)}, {result.steps:,} steps")


def save_seed(workspace: Workspace, seed: AtomFrames, *, mean_force: bool) -> None:
    """Write `seed.h5`, force map and shard 0; with `mean_force` after the oracle has labelled the frames again."""
    seed.save(workspace.data / "seed.h5")
    (workspace.data / "seed_labels.h5").unlink(missing_ok=True)
    if mean_force:
        _label(workspace, seed)
    prepare(workspace.data, workspace.params)


def _label(workspace: Workspace, seed: AtomFrames) -> None:
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
    cost = result.labelled.provenance | {"oracle_steps": result.steps}
    replace(result.labelled, provenance=cost).save(workspace.data / "seed_labels.h5")
    console.print(f"labelled {len(result.labelled)} of {len(seed)} seed frames in {result.steps:,} all-atom steps")
    for failure in result.failures:
        console.print(f"  frame {failure.pick}: {failure.stage}: {failure.reason} (kept in {failure.folder})")
