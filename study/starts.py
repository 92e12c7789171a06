"""Which start of a label is the best? Frames whose own atoms are known, rebuilt in each way and labelled.

    python -m study.starts [FRAMES]      # of each; prints a table and writes docs/results/starts.csv

The frames are the last ones of the trajectories of both ground truths, in equilibrium with all their atoms, far apart
in time. Each is rebuilt from its C-alpha; the steered ones start from the nearest of the other trajectories' last
frames. Then the oracle labels it with a mean force, and the label is compared with a long average from its own atoms.
"""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mdtraj
import numpy as np
import pandas as pd
from jaxtyping import Bool, Float32, Float64, Int

from cgal.all_atom.backmapping.backmap import backmap
from cgal.all_atom.backmapping.remembered import nearest_stored
from cgal.all_atom.force_field import recompute_forces
from cgal.all_atom.oracle import relabel
from cgal.errors import BackmappingError
from cgal.files import write_text
from cgal.frames import AtomFrames, alpha_carbons, rmsd_nm
from cgal.params import BackmappingParams, ForceFieldParams, MappingParams, OracleParams
from cgal.projection.mapping import ForceMap, fit_force_map
from cgal.randomness import derive_generator, derive_seed
from study.beds import GROUND_TRUTHS, GroundTruth

__all__ = ["measure"]

RECORDS = Path("docs", "results", "starts.csv")
LABEL = OracleParams(burn_in_steps=150, average_steps=600)
LONG = OracleParams(burn_in_steps=600, average_steps=2400)
"""Of the average from a frame's own atoms that labels are measured against."""

OWN = "own atoms"
CLOSE_nm = 0.1


@dataclass(frozen=True)
class Way:
    """How frames are rebuilt; steered from a frame that is between so far and so far away [nm], if that is not None.

    With `alone` what steering cannot reach, or has no such frame, fails; else PULCHRA rebuilds it.
    """

    params: BackmappingParams
    between_nm: tuple[float, float] | None = None
    alone: bool = False


STARTS = {
    "PULCHRA": Way(BackmappingParams()),
    "CGBack": Way(BackmappingParams(method="cgback")),
    "steered 500 steps within 0.1 nm, else PULCHRA": Way(BackmappingParams(steer_steps=500), (0.0, CLOSE_nm)),
    "steered 500 steps from the nearest": Way(BackmappingParams(steer_steps=500), (0.0, np.inf), alone=True),
    "steered 2000 steps from 0.15 nm or more": Way(BackmappingParams(steer_steps=2000), (0.15, np.inf), alone=True),
}
"""0.15 nm is `selection.novel_nm` in params.yaml: a campaign's pick is further than that from every training frame."""

SELF_nm = 1e-3
FLIPPED_degrees = 90.0
RESAMPLES = 1000

type Atoms = Float32[np.ndarray, "frames atoms 3"]


@dataclass(frozen=True, eq=False)
class Bed:
    """Frames of one ground truth whose own atoms are known, all of them, and those that are labelled."""

    truth: GroundTruth
    frames: AtomFrames
    picked: Int[np.ndarray, " picks"]
    force_field: ForceFieldParams
    force_map: ForceMap

    @property
    def alpha_carbons(self) -> Int[np.ndarray, " beads"]:
        """Indices of the C-alpha."""
        return alpha_carbons(self.frames.topology)

    def labels(self, positions: Atoms, oracle: OracleParams) -> tuple[Float64[np.ndarray, "frames beads 3"], int]:
        """Mean forces on the beads at all-atom positions, NaN where there is none, and the steps of all."""
        frames = self._frames(positions)
        with TemporaryDirectory() as scratch:
            result = relabel(
                frames,
                force_field=self.force_field,
                oracle=oracle,
                temperature_K=self.truth.temperature_K,
                seeds=[derive_seed(1, number, "starts") for number in range(len(frames))],
                workers=1,
                scratch=Path(scratch),
            )
        forces = np.full((len(frames), len(self.alpha_carbons), 3), np.nan)
        forces[result.labelled.trajectory] = self.force_map(result.labelled)
        return forces, result.steps

    def _frames(self, positions: Atoms) -> AtomFrames:
        count = len(positions)
        nothing = np.zeros_like(positions)
        return AtomFrames(self.frames.pdb, positions, nothing, np.arange(count, dtype=np.int32), np.zeros(count), {})


def open_bed(truth: GroundTruth, count: int) -> Bed:
    """Last frames of a swarm's trajectories, `count` of them to be labelled, evenly spread."""
    swarm = truth.load()
    physics = {key.removeprefix("force_field."): value for key, value in swarm.recipe.items() if "force_field" in key}
    force_field = ForceFieldParams(**physics | {"platform": "CPU"})
    positions = swarm.end_positions.astype(np.float32)
    forces = recompute_forces(swarm.structure, positions, force_field)
    numbers = np.arange(len(positions), dtype=np.int32)
    frames = AtomFrames(
        swarm.structure, positions, forces, numbers, np.zeros(len(numbers)), {"forces": "instantaneous"}
    )
    picked = numbers[: count * (len(numbers) // count) : len(numbers) // count].astype(np.int64)
    return Bed(truth, frames, picked, force_field, fit_force_map(frames, MappingParams(force_map="optimal")))


def measure(bed: Bed, told: Callable[[str], None] = print) -> Iterator[dict[str, Any]]:
    """A row for each start.

    `error` is the root mean square [kJ/mol/nm] over frames and components of a label's difference from the long average
    from own atoms, with a 95 % interval over frames (`_low`, `_high`), and `close` is that of the `close_frames` that
    have another trajectory's within 0.1 nm; `steps` and `seconds` are those of a frame's rebuilding, by one core,
    failed ones included. `planes`, `turned` and `pro_psi` count for a frame the peptide planes that point the other way
    than its own, the residues whose phi or psi is off by more than 90 degrees, and the prolines whose psi is.
    """
    own = bed.frames.positions[bed.picked]
    long, _ = bed.labels(own, LONG)
    told(f"{bed.truth.name}: signal {_rms(long):.0f} kJ/mol/nm")
    yield _row(bed, OWN, own, np.zeros(len(own)), np.zeros(len(own)), long=long)
    for start, way in STARTS.items():
        row = _row(bed, start, *_rebuilt(bed, way), long=long)
        told(str(row))
        yield row


def _nearest(bed: Bed, least_nm: float, most_nm: float) -> list[Float32[np.ndarray, "atoms 3"] | None]:
    """For each pick the nearest frame of another trajectory that is so far away [nm], superposed."""
    alpha, positions = bed.alpha_carbons, bed.frames.positions
    found = []
    for pick in bed.picked:
        others = positions[rmsd_nm(positions[:, alpha], positions[pick, alpha]) >= max(least_nm, SELF_nm)]
        found += nearest_stored(positions[[pick]][:, alpha], others, alpha, most_nm)
    return found


def _rebuilt(bed: Bed, way: Way) -> tuple[Atoms, Float64[np.ndarray, " picks"], Float64[np.ndarray, " picks"]]:
    """Positions of each pick, NaN where it cannot be rebuilt, with steps and seconds."""
    near = [None] * len(bed.picked) if way.between_nm is None else _nearest(bed, *way.between_nm)
    own = bed.frames.positions[bed.picked]
    rebuild = partial(
        backmap,
        structure=bed.frames.pdb,
        params=way.params.model_copy(update={"method": "none"} if way.alone else {}),
        force_field=bed.force_field,
        temperature_K=bed.truth.temperature_K,
        seed=1,
    )
    backmap(own[0, bed.alpha_carbons], near=near[0], **(rebuild.keywords | {"params": BackmappingParams()}))  # compiles
    positions, steps, seconds = np.full_like(own, np.nan), np.zeros(len(own)), np.zeros(len(own))
    for number, frame in enumerate(own):
        began = time.perf_counter()
        try:
            positions[number], steps[number] = rebuild(frame[bed.alpha_carbons], near=near[number])
        except BackmappingError as error:
            steps[number] = error.steps
        seconds[number] = time.perf_counter() - began
    return positions, steps, seconds


def _row(
    bed: Bed,
    start: str,
    positions: Atoms,
    steps: Float64[np.ndarray, " picks"],
    seconds: Float64[np.ndarray, " picks"],
    *,
    long: Float64[np.ndarray, "picks beads 3"],
) -> dict[str, Any]:
    sound = np.isfinite(positions).all(axis=(1, 2))
    labels, _ = bed.labels(positions[sound], LABEL)
    differences = labels - long[sound]
    close = np.array([frame is not None for frame in _nearest(bed, 0.0, CLOSE_nm)])
    labelled = np.isfinite(differences).all(axis=(1, 2))
    own = bed.frames.positions[bed.picked][sound]
    turned, prolines = _turned(bed.frames.topology, positions[sound], own)
    return {
        "bed": bed.truth.name,
        "start": start,
        "frames": len(positions),
        "failed": len(positions) - int(labelled.sum()),
        **_spread("error", differences[labelled]),
        **_spread("close", differences[labelled & close[sound]]),
        "close_frames": int(close.sum()),
        "signal": _rms(long),
        "steps": steps.mean(),
        "seconds": seconds.mean(),
        "planes": _flipped_planes(bed.frames.topology, positions[sound], own).sum(axis=1).mean(),
        "turned": turned.sum(axis=1).mean(),
        "pro_psi": prolines.sum(axis=1).mean() if prolines.shape[1] else np.nan,
    }


def _flipped_planes(topology: mdtraj.Topology, positions: Atoms, own: Atoms) -> Bool[np.ndarray, "frames planes"]:
    """Peptide planes whose oxygen points away from where it points in the own frame, seen along the C-alpha trace."""
    index = {(atom.residue.index, atom.name): atom.index for atom in topology.atoms}
    inner = [number for number in range(topology.n_residues - 1) if (number, "CA") in index]
    carbon, oxygen, before, after = (
        [index[number + shift, name] for number in inner] for name, shift in (("C", 0), ("O", 0), ("CA", 0), ("CA", 1))
    )

    def across(frames: Atoms) -> Float64[np.ndarray, "frames planes 3"]:
        bond = (frames[:, oxygen] - frames[:, carbon]).astype(np.float64)
        axis = (frames[:, after] - frames[:, before]).astype(np.float64)
        axis /= np.linalg.norm(axis, axis=-1, keepdims=True)
        return np.asarray(bond - (bond * axis).sum(axis=-1, keepdims=True) * axis)

    return np.asarray((across(positions) * across(own)).sum(axis=-1) < 0)


def _turned(
    topology: mdtraj.Topology, positions: Atoms, own: Atoms
) -> tuple[Bool[np.ndarray, "frames residues"], Bool[np.ndarray, "frames prolines"]]:
    """Residues whose phi or psi is off by more than 90 degrees, of those that have both; prolines whose psi is."""
    off = {}
    for name, angles in (("phi", mdtraj.compute_phi), ("psi", mdtraj.compute_psi)):
        atoms, ours = angles(mdtraj.Trajectory(positions, topology), periodic=False)
        _, theirs = angles(mdtraj.Trajectory(own, topology), periodic=False)
        difference = np.abs(np.degrees(np.angle(np.exp(1j * (ours - theirs)))))
        residues = [topology.atom(quadruple[1 if name == "psi" else 2]).residue.index for quadruple in atoms]
        off[name] = dict(zip(residues, (difference > FLIPPED_degrees).T, strict=True))
    both = sorted(off["phi"].keys() & off["psi"].keys())
    prolines = [residue for residue in both if topology.residue(residue).name == "PRO"]
    nothing = np.zeros((len(positions), 0), dtype=bool)
    return (
        np.array([off["phi"][residue] | off["psi"][residue] for residue in both]).T,
        np.array([off["psi"][residue] for residue in prolines]).T if prolines else nothing,
    )


def _rms(forces: Float64[np.ndarray, "frames beads 3"]) -> float:
    return float(np.sqrt((forces**2).mean()))


def _spread(name: str, differences: Float64[np.ndarray, "frames beads 3"]) -> dict[str, float]:
    drawn = derive_generator(1, 0, "starts").integers(len(differences), size=(RESAMPLES, len(differences)))
    low, high = np.percentile([_rms(differences[frames]) for frames in drawn], (2.5, 97.5))
    return {name: _rms(differences), f"{name}_low": float(low), f"{name}_high": float(high)}


if __name__ == "__main__":
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 25
    rows: list[dict[str, Any]] = []
    for truth in GROUND_TRUTHS:
        rows += measure(open_bed(truth, wanted))
        write_text(RECORDS, pd.DataFrame(rows).to_csv(index=False, float_format="%.4g"))
    print(pd.DataFrame(rows).to_string(float_format="%.3g"))
