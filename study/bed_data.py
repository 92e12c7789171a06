"""A test bed as a protein's data: structure, ground truth of its packed swarm, seeds drawn in the same physics.

    python -m study.bed_data SYSTEM FOLDER        # structure.pdb, reference.h5 and reference.json, as a campaign has it

SYSTEM is the name of a bed of `study.beds`. Frames of the ground truth count alike: the swarm's trajectories are
unbiased, and their first `SETTLE_ns` are left out.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from cgal.all_atom.oracle import check_quorum, run_md
from cgal.benchmark.lag import frame_spacing_ps
from cgal.errors import BadParams
from cgal.files import sha256, write_json, write_text
from cgal.frames import AtomFrames, CGTrajectory, read_pdb_text
from cgal.params import ForceFieldParams, OracleParams, Params
from cgal.randomness import derive_seed
from cgal.reference.msm import thin
from study.beds import GROUND_TRUTHS, GroundTruth, SETTLE_ns, Swarm
from study.design import SeedSets

__all__ = ["bed_of", "draw_seed", "ground_truth", "physics_of", "require_physics", "write_bed"]

FRAMES = 12_000
"""Of a ground truth, at most: so the benchmark's lag of 200 ps is a multiple of the spacing that both beds keep."""

SWARMS = Path(__file__).parent / "swarms"


def bed_of(system: str) -> GroundTruth:
    """Test bed of a name; raises BadParams when there is none."""
    for bed in GROUND_TRUTHS:
        if bed.name == system:
            return bed
    raise BadParams(f"no test bed {system!r}; study.beds has {'; '.join(bed.name for bed in GROUND_TRUTHS)}")


def physics_of(swarm: Swarm) -> ForceFieldParams:
    """Force field and solvent that a swarm was sampled in, by its recipe; on any platform."""
    named = {key.removeprefix("force_field."): value for key, value in swarm.recipe.items() if "force_field." in key}
    return ForceFieldParams.model_validate(named | {"platform": "auto"})


def require_physics(params: Params, bed: GroundTruth) -> None:
    """Raise BadParams unless labels by these params have the force field and the temperature of a bed."""
    theirs = physics_of(bed.load(SWARMS)).model_dump(exclude={"platform"}) | {"temperature_K": bed.temperature_K}
    mine = params.force_field.model_dump(exclude={"platform"}) | {"temperature_K": params.temperature_K}
    if wrong := [key for key, value in theirs.items() if mine[key] != value]:
        raise BadParams(
            f"{bed.name}: sampled with {', '.join(f'{key} {theirs[key]}' for key in wrong)}, but params.yaml and the "
            f"design's common have {', '.join(f'{key} {mine[key]}' for key in wrong)}: set them in common"
        )


def ground_truth(swarm: Swarm) -> CGTrajectory:
    """Settled frames of a swarm, thinned evenly, all of one weight."""
    frames = swarm.frames.take(np.flatnonzero(swarm.frames.time_ps > 1000 * SETTLE_ns))
    return thin(
        CGTrajectory.from_positions(frames.sequence, frames.positions, frames.time_ps, frames.trajectory), FRAMES
    )


def write_bed(bed: GroundTruth, folder: Path) -> None:
    """Write structure and ground truth, and what the latter was made of."""
    swarm = bed.load(SWARMS)
    truth = ground_truth(swarm)
    write_text(folder / "structure.pdb", swarm.structure)
    truth.save(folder / "reference.h5")
    made = {
        "system": bed.name,
        "swarm": bed.file,
        "temperature_K": bed.temperature_K,
        "force_field": physics_of(swarm).model_dump(exclude={"platform"}),
        "left_out_ns": SETTLE_ns,
        "trajectories": len(np.unique(truth.replica)),
        "frames": len(truth),
        "spacing_ps": frame_spacing_ps(truth),
        "folded": float(bed.folded(truth.positions, swarm.structure).mean()),
        "sha256": sha256(folder / "reference.h5"),
    }
    write_json(folder / "reference.json", made)


def draw_seed(structure: str, plan: SeedSets, params: Params, *, seed: int, scratch: Path) -> AtomFrames:
    """Frames, with forces, of short runs from the structure (PDB text), and in their provenance the steps of all.

    Raises QuorumMissed when a run fails.
    """
    timestep_ps = params.force_field.timestep_ps
    start = np.asarray(read_pdb_text(structure).xyz, dtype=np.float32)
    result = run_md(
        structure,
        np.repeat(start, plan.runs, axis=0),
        steps=round(plan.length_ps / timestep_ps),
        stride=round(plan.spacing_ps / timestep_ps),
        equilibration_steps=round(plan.equilibration_ps / timestep_ps),
        force_field=params.force_field,
        temperature_K=params.temperature_K,
        seeds=[derive_seed(seed, 0, "seed run", run) for run in range(plan.runs)],
        workers=1,
        scratch=scratch,
    )
    check_quorum(result, plan.runs, OracleParams(quorum=1.0))
    return replace(result.labelled, provenance=result.labelled.provenance | {"run_steps": result.steps})


def main(arguments: list[str]) -> None:
    """Write a bed; see the module."""
    if len(arguments) != 2:
        sys.exit(__doc__)
    system, folder = arguments
    try:
        write_bed(bed_of(system), Path(folder))
    except BadParams as error:
        sys.exit(f"error: {error}")
    print(Path(folder, "reference.json").read_text())


if __name__ == "__main__":
    main(sys.argv[1:])
