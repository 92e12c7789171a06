"""Does burn-in suffice? Labels of frames whose equilibrated atoms are known, against the length of the burn-in.

Force matching takes frames from anywhere, provided that all that is no C-alpha is in equilibrium around them. The
seed's frames are, being taken from dynamics; rebuilt from their C-alpha alone they are not until burn-in has made them
so. So each frame is labelled twice, independently, from its own atoms, from rebuilt, and from annealed ones.
Two labels of a frame should differ by the noise of their averages alone, and lie as near to the frame's long average
whatever they started from.
"""

from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64

from cgal.all_atom import oracle
from cgal.all_atom.backmapping.backmap import backmap
from cgal.files import write_text
from cgal.frames import AtomFrames, alpha_carbons
from cgal.params import MappingParams, Params
from cgal.progress import Progress, silent
from cgal.projection.mapping import ForceMap, coordinate_map, fit_force_map
from cgal.randomness import derive_generator, derive_seed

__all__ = ["RECORDS", "measure", "write_burn_in"]

RECORDS = "burn_in.csv"
BURN_IN_STEPS = (0, 150, 600, 2400)
LONG_STEPS = 6000
"""Burn-in, and average, of the labels that the others are measured against."""

AVERAGE_STEPS = 600
"""Of the labels that are measured."""

RESAMPLES = 1000
OWN = "own atoms"
ANNEAL_STEPS = {"rebuilt": 0, "annealed 500 steps": 500, "annealed 2000 steps": 2000}
"""Other starts than a frame's own atoms, with the steps that each is annealed for after it was rebuilt."""

type Pairs = Float64[np.ndarray, "frames 2 beads 3"]


def write_burn_in(
    path: Path, seed: AtomFrames, frames: int, params: Params, *, scratch: Path, progress: Progress = silent
) -> pd.DataFrame:
    """Measure on `frames` frames of a protein's seed, evenly spread, and write the table as CSV; see `measure`."""
    chosen = seed.take(np.arange(frames) * len(seed) // frames) if frames < len(seed) else seed
    force_map = fit_force_map(seed, MappingParams(force_map="optimal"))
    found = measure(chosen, force_map, params, scratch=scratch, progress=progress)
    write_text(path, found.to_csv(index=False, float_format="%.6g"))
    return found


def measure(
    frames: AtomFrames, force_map: ForceMap, params: Params, *, scratch: Path, progress: Progress = silent
) -> pd.DataFrame:
    """Label the frames from each start with each burn-in, twice; a row for each start and burn-in.

    `between` is the root mean square difference [kJ/mol/nm] of a frame's two labels, over frames and components, and
    `error` that of a label from the frame's long average, which itself has an error; both with a 95 % interval over
    frames (`_low`, `_high`). `steps` are those that a label took, `failed` frames have none from that start. Labels
    found in `scratch` are taken, so that a run that was stopped goes on.
    """
    labels = partial(_labels, frames, force_map, params, scratch)
    starts = (OWN, *ANNEAL_STEPS)
    parts = 1 + len(starts) * len(BURN_IN_STEPS)
    long = labels(OWN, LONG_STEPS, LONG_STEPS, _part(progress, 0, parts))[0].mean(axis=1, keepdims=True)
    rows: list[dict[str, Any]] = []
    for start, burn_in in product(starts, BURN_IN_STEPS):
        pairs, steps = labels(start, burn_in, AVERAGE_STEPS, _part(progress, 1 + len(rows), parts))
        rows.append(
            {"start": start, "burn_in_steps": burn_in, "average_steps": AVERAGE_STEPS, "steps": steps}
            | {"frames": len(frames)}
            | {"failed": int(np.isnan(pairs).any(axis=(1, 2, 3)).sum()), "signal": _rms(long)}
            | _spread("between", pairs[:, :1] - pairs[:, 1:], params.seed)
            | _spread("error", pairs - long, params.seed)
        )
    return pd.DataFrame(rows)


def _labels(
    frames: AtomFrames,
    force_map: ForceMap,
    params: Params,
    scratch: Path,
    start: str,
    burn_in: int,
    average: int,
    progress: Progress,
) -> tuple[Pairs, int]:
    """Two labels of each frame, NaN where there is none, and the steps that one takes."""
    name, twice = f"burn-in {start} {burn_in} {average}", frames.take(np.repeat(np.arange(len(frames)), 2))
    settings: dict[str, Any] = {
        "force_field": params.force_field,
        "oracle": params.oracle.model_copy(
            update={"mode": "mean_force", "burn_in_steps": burn_in, "average_steps": average}
        ),
        "temperature_K": params.temperature_K,
        "seeds": [derive_seed(params.seed, frame, name) for frame in range(len(twice))],
        "workers": params.execution.oracle_workers,
        "scratch": scratch / name.replace(" ", "-"),
        "progress": progress,
    }
    if start == OWN:
        numbered = replace(twice, trajectory=np.arange(len(twice), dtype=np.int32))
        result = oracle.relabel(numbered, **settings)
    else:
        chosen = params.backmapping.model_copy(update={"anneal_steps": ANNEAL_STEPS[start]})
        rebuild = partial(
            backmap,
            structure=frames.pdb,
            params=chosen,
            force_field=params.force_field,
            temperature_K=params.temperature_K,
        )
        beads = np.asarray(coordinate_map(frames.topology)(twice.positions), dtype=np.float32)
        result = oracle.label(beads, frames.pdb, rebuild=rebuild, **settings)
    forces = np.full((len(twice), len(alpha_carbons(frames.topology)), 3), np.nan)
    forces[result.labelled.trajectory] = force_map(result.labelled)
    return forces.reshape(len(frames), 2, -1, 3), round(result.steps / len(twice))


def _part(whole: Progress, index: int, parts: int) -> Progress:
    """Progress of one of several parts of the same length."""

    def progress(done: int, total: int, note: str = "") -> None:
        whole(index * total + done, parts * total, note)

    return progress


def _rms(differences: Float64[np.ndarray, "frames labels beads 3"]) -> float:
    return float(np.sqrt(np.nanmean(differences**2)))


def _spread(name: str, differences: Float64[np.ndarray, "frames labels beads 3"], seed: int) -> dict[str, float]:
    generator = derive_generator(seed, 0, "burn-in intervals")
    drawn = generator.integers(len(differences), size=(RESAMPLES, len(differences)))
    low, high = np.percentile([_rms(differences[frames]) for frames in drawn], (2.5, 97.5))
    return {name: _rms(differences), f"{name}_low": float(low), f"{name}_high": float(high)}
