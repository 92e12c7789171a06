"""Swarms that outlive a clean checkout: thinned C-alpha frames with forces, and where each trajectory stands.

    python -m study.swarms pack PROTEIN study/swarms/NAME.h5      # from .cgal/reference/PROTEIN, as params.yaml has it
    python -m study.swarms unpack study/swarms/NAME.h5 FOLDER     # starts of a swarm that goes on where this one stood

What is packed is for learning curves and references; what is unpacked are the starts of new trajectories.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from cgal.files import read_json
from cgal.frames import LabelledFrames
from cgal.hdf5 import Hdf5Record, stored
from cgal.params import ForceFieldParams, ReferenceParams, load_params
from cgal.reference.sampling import PhasePoint, Start, SwarmRecipe, load_swarm_labels, trajectory_ends

__all__ = ["Swarm", "pack", "unpack"]

THIN_PS = 2.0
"""Least time between the frames that are kept."""

POSITION_STEP_nm, FORCE_STEP_kJ_per_mol_nm = 2.0**-12, 2.0
"""What is rounded to: far finer than thermal motion and than the noise of a force, and a fraction of the bytes."""


@dataclass(frozen=True, eq=False)
class Swarm(Hdf5Record):
    """Frames of a swarm, and positions [nm] and velocities [nm/ps] of all atoms at the end of each trajectory."""

    KIND = "swarm"

    frames: LabelledFrames
    end_positions: Float64[np.ndarray, "trajectories atoms 3"]
    end_velocities: Float64[np.ndarray, "trajectories atoms 3"]
    structure: str = field(metadata=stored(text=True))
    recipe: dict[str, Any] = field(default_factory=dict)


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
            params = load_params(Path("params.yaml"))
            structure = Path("data", params.protein, "structure.pdb").read_text()
            swarm = pack(_recipe(Path(".cgal", "reference", protein), structure))
            swarm.save(Path(path))
            print(f"{path}: {len(swarm.frames)} frames of {len(swarm.end_positions)} trajectories")
            print(json.dumps(swarm.frames.provenance))
        case ["unpack", path, folder]:
            unpack(Swarm.load(Path(path)), Path(folder))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
