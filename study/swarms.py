"""Swarms that outlive a clean checkout: thinned C-alpha frames with forces, and where each trajectory stands.

    python -m study.swarms pack PROTEIN study/swarms/NAME.h5      # from .cgal/reference/PROTEIN, as params.yaml has it
    python -m study.swarms unpack study/swarms/NAME.h5 FOLDER     # starts of a swarm that goes on where this one stood
    python -m study.swarms grow NEW.h5 MINUTES COPIES SPACING_ps TEMPERATURE_K FORCE_FIELD START...   # copies at once

What is packed is for learning curves and references; what is unpacked are the starts of new trajectories. A START is a
PDB file, or a packed swarm whose ends are gone on from; copies take the starts in turn, with velocities of their own.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from cgal.all_atom.copies import Lattice, side_by_side
from cgal.all_atom.dynamics import AtomRun
from cgal.all_atom.force_field import build_system, read_structure
from cgal.errors import Diverged
from cgal.files import read_json
from cgal.frames import AtomFrames, LabelledFrames, alpha_carbons, read_pdb_text, sequence_of
from cgal.params import ForceFieldParams, ReferenceParams
from cgal.projection.clusters import constrained_clusters
from cgal.projection.local_frames import project_in_local_frames
from cgal.reference.sampling import PhasePoint, Start, SwarmRecipe, load_swarm_labels, trajectory_ends
from study.beds import Swarm

__all__ = ["grow", "pack", "unpack"]

LOOKS = 10
"""Frames between two times that the copies are put back on their sites."""

THIN_PS = 2.0
"""Least time between the frames that are kept."""

POSITION_STEP_nm, FORCE_STEP_kJ_per_mol_nm = 2.0**-12, 2.0
"""What is rounded to: far finer than thermal motion and than the noise of a force, and a fraction of the bytes."""


def pack(recipe: SwarmRecipe) -> Swarm:
    """Thin and round a swarm; raises SamplingError when it has no frame with forces."""
    labels = load_swarm_labels(recipe)
    stride = max(1, round(THIN_PS / recipe.params.spacing_ps))
    kept = labels.take(np.flatnonzero(np.round(labels.time_ps / recipe.params.spacing_ps).astype(int) % stride == 0))
    rounded = LabelledFrames(
        kept.sequence,
        _rounded(kept.positions, POSITION_STEP_nm),
        _rounded(kept.forces, FORCE_STEP_kJ_per_mol_nm),
        kept.trajectory,
        kept.time_ps,
        kept.provenance | {"total_ns": len(labels) * recipe.params.spacing_ps / 1000},
    )
    ends = trajectory_ends(recipe)
    return Swarm(
        rounded,
        np.array([end.positions for end in ends]),
        np.array([end.velocities for end in ends]),
        recipe.structure,
        recipe.pieces(),
    )


def grow(
    starts: Float64[np.ndarray, "starts atoms 3"],
    structure: str,
    force_field: ForceFieldParams,
    *,
    temperature_K: float,
    copies: int,
    spacing_ps: float,
    minutes: float,
    seed: int = 1,
) -> Swarm:
    """Sample that long (wall time), all copies in one context, a frame with bead forces every `spacing_ps`.

    Copy i starts at `starts[i % len(starts)]` [nm]. Where a copy diverges, what was sampled before is given.
    """
    topology, _ = read_structure(structure)
    system = side_by_side(build_system(topology, force_field), copies)
    run = AtomRun(system, force_field, temperature_K=temperature_K, timestep_ps=force_field.timestep_ps, seed=seed)
    lattice, stride = Lattice(copies), round(spacing_ps / force_field.timestep_ps)
    run.place(lattice.spread(starts[np.arange(copies) % len(starts)]), constrain=True)
    run.draw_velocities()
    blocks: list[list[tuple[Any, Any]]] = []
    last, until = run.moment(), time.monotonic() + 60 * minutes
    try:
        while time.monotonic() < until or not blocks:
            run.place(lattice.spread(lattice.gather(last.positions)), last.velocities)
            moments = list(run.moments(LOOKS, stride))
            blocks.append([(lattice.gather(moment.positions), lattice.gather(moment.forces)) for moment in moments])
            last = moments[-1]
    except Diverged as error:
        print(f"stopped after {len(blocks) * LOOKS * spacing_ps / 1000:.1f} ns a copy: {error}")
    provenance = {"origin": "side by side", "temperature_K": temperature_K, "spacing_ps": spacing_ps}
    recipe = {
        "temperature_K": temperature_K,
        "seed": seed,
        **{f"force_field.{key}": v for key, v in force_field.model_dump().items()},
    }
    return Swarm(
        _bead_frames(blocks, structure, spacing_ps, provenance),
        lattice.gather(last.positions),
        lattice.gather(last.velocities),
        structure,
        recipe,
    )


def _bead_frames(
    blocks: list[list[tuple[Any, Any]]], structure: str, spacing_ps: float, provenance: dict[str, Any]
) -> LabelledFrames:
    """Beads and bead forces, trajectory by trajectory."""
    topology = read_pdb_text(structure).topology
    carbons, clusters = alpha_carbons(topology), constrained_clusters(topology)
    beads, forces = [], []
    for block in blocks:
        for positions, pushes in block:
            count = len(positions)
            frames = AtomFrames(
                structure,
                positions.astype(np.float32),
                pushes.astype(np.float32),
                np.zeros(count, dtype=np.int32),
                np.zeros(count),
                {"forces": "instantaneous"},
            )
            beads.append(_rounded(frames.positions[:, carbons], POSITION_STEP_nm))
            forces.append(_rounded(project_in_local_frames(frames, clusters), FORCE_STEP_kJ_per_mol_nm))
    looks, copies = len(beads), len(beads[0])
    return LabelledFrames(
        sequence_of(topology),
        np.swapaxes(np.array(beads), 0, 1).reshape(looks * copies, -1, 3),
        np.swapaxes(np.array(forces), 0, 1).reshape(looks * copies, -1, 3),
        np.repeat(np.arange(copies, dtype=np.int32), looks),
        np.tile(spacing_ps * np.arange(1, looks + 1), copies),
        provenance | {"force_map": "local_frames", "total_ns": looks * copies * spacing_ps / 1000},
    )


def _starts(path: Path) -> tuple[str, Float64[np.ndarray, "starts atoms 3"]]:
    """Structure, and all-atom positions to start from."""
    if path.suffix == ".h5":
        swarm = Swarm.load(path)
        return swarm.structure, swarm.end_positions
    text = path.read_text()
    return text, read_structure(text)[1][np.newaxis]


def _rounded(values: Float32[np.ndarray, "frames beads 3"], step: float) -> Float32[np.ndarray, "frames beads 3"]:
    return np.asarray(np.round(values / step) * step, dtype=np.float32)


def unpack(swarm: Swarm, folder: Path) -> None:
    """Write the ends as starts of a new swarm's trajectories, where a folder has none."""
    for index, state in enumerate(zip(swarm.end_positions, swarm.end_velocities, strict=True)):
        path = folder / "starts" / f"{index:03d}.h5"
        if not path.is_file():
            Start(PhasePoint(*state)).save(path)


def _recipe(folder: Path, structure: str) -> SwarmRecipe:
    """Recipe of a swarm from the folder that it lies in."""
    said = read_json(folder / "recipe.json")
    sections: dict[str, dict[str, Any]] = {"force_field": {}, "reference": {}}
    for key, value in said.items():
        section, _, name = key.partition(".")
        if name:
            sections[section][name] = value
    count = len(list((folder / "starts").glob("*.h5")))
    params = ReferenceParams(**sections["reference"], trajectories=count, trajectory_ns=1e6)
    force_field = ForceFieldParams(**sections["force_field"], platform="CPU")
    return SwarmRecipe(structure, force_field, params, said["temperature_K"], said["seed"], folder)


def main(arguments: list[str]) -> None:
    """Pack or unpack; see the module."""
    match arguments:
        case ["pack", protein, path]:
            structure = Path("data", protein, "structure.pdb").read_text()
            swarm = pack(_recipe(Path(".cgal", "reference", protein), structure))
            swarm.save(Path(path))
            print(f"{path}: {len(swarm.frames)} frames of {len(swarm.end_positions)} trajectories")
            print(json.dumps(swarm.frames.provenance))
        case ["unpack", path, folder]:
            unpack(Swarm.load(Path(path)), Path(folder))
        case ["grow", path, minutes, copies, spacing_ps, temperature_K, name, *sources] if sources:
            found = [_starts(Path(source)) for source in sources]
            began = time.monotonic()
            swarm = grow(
                np.concatenate([positions for _, positions in found]),
                found[0][0],
                ForceFieldParams.model_validate({"name": name}),
                temperature_K=float(temperature_K),
                copies=int(copies),
                spacing_ps=float(spacing_ps),
                minutes=float(minutes),
            )
            swarm.save(Path(path))
            print(f"{path}: {json.dumps(swarm.frames.provenance)} in {time.monotonic() - began:.0f} s")
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
