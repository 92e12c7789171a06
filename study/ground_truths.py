"""Can a packed swarm be trusted as a ground truth? A row each, printed and written to docs/results/ground_truths.csv.

    python -m study.ground_truths

The first `SETTLE_ns` of every trajectory are left out. A swarm is trusted when trajectories from one half of the starts
and from the other agree on the folded share within their errors, and when it is long against its slowest process.
"""

import csv
from pathlib import Path

import numpy as np
from deeptime.decomposition import TICA
from jaxtyping import Bool, Float, Float32, Float64
from rich.console import Console
from rich.progress import track
from rich.table import Table

from cgal.benchmark.observables import OBSERVABLES
from cgal.benchmark.suite import observe
from cgal.benchmark.tica import fit_tica
from cgal.benchmark.wasserstein import estimators
from cgal.frames import CGTrajectory
from cgal.reference.sampling import bead_distances
from study.beds import GROUND_TRUTHS, GroundTruth, HELIX_degrees, SETTLE_ns, Swarm, dihedrals_degrees

__all__ = ["left_handed_share", "measure"]

LAG_ps = 200.0
SPLITS = 8
FRAMES = 10_000


def left_handed_share(swarm: Swarm) -> float:
    """Share of all C-alpha dihedrals in the left-handed helix, -80 to -30 degrees; the first `SETTLE_ns` left out."""
    settled = swarm.frames.time_ps > 1000 * SETTLE_ns
    degrees = dihedrals_degrees(swarm.frames.positions[settled], swarm.structure)
    return float(((degrees < -HELIX_degrees[0]) & (degrees > -HELIX_degrees[1])).mean())


def measure(bed: GroundTruth) -> dict[str, str | float]:
    """Length, slowest process, folded share of both halves of the starts, and the floor of TICA W1, of one of them."""
    swarm = bed.load()
    spacing_ps = float(swarm.frames.provenance["spacing_ps"])
    count = int(swarm.frames.trajectory.max()) + 1
    settled = swarm.frames.time_ps.reshape(count, -1)[0] > 1000 * SETTLE_ns
    folded = bed.folded(swarm.frames.positions, swarm.structure).reshape(count, -1)[:, settled].mean(axis=1)
    positions = swarm.frames.positions.reshape(count, -1, *swarm.frames.positions.shape[1:])[:, settled]
    lag = round(LAG_ps / spacing_ps)
    features = [bead_distances(trajectory) for trajectory in positions]
    slowest_ps = float(TICA(lagtime=lag).fit_fetch(features).timescales()[0] * spacing_ps)
    sampled_ns = positions.shape[0] * positions.shape[1] * spacing_ps / 1000
    row: dict[str, str | float] = {
        "system": bed.name,
        "trajectories": count,
        "sampled_ns": sampled_ns,
        "slowest_ps": slowest_ps,
        "slowest_times": 1000 * sampled_ns / slowest_ps,
        "left_handed": left_handed_share(swarm),
    }
    for name, half in (("all", folded), ("even_starts", folded[::2]), ("odd_starts", folded[1::2])):
        row[f"folded_{name}"] = float(half.mean())
        row[f"folded_{name}_error"] = float(half.std(ddof=1) / np.sqrt(len(half)))
    floors = _floors(swarm, positions, spacing_ps)
    return row | {"tica_floor": float(floors.mean()), "tica_floor_high": float(floors.max())}


def _floors(
    swarm: Swarm, positions: Float32[np.ndarray, "trajectories frames beads 3"], spacing_ps: float
) -> Float64[np.ndarray, " splits"]:
    """TICA W1 (exact) between random halves of the trajectories, equally weighted frames, TICA of them all."""
    count, length = positions.shape[:2]

    def pooled(chosen: Bool[np.ndarray, " trajectories"]) -> CGTrajectory:
        picked = positions[chosen].reshape(-1, *positions.shape[2:])
        replica = np.repeat(np.flatnonzero(chosen), length)
        time_ps = np.tile(spacing_ps * np.arange(1.0, length + 1), int(chosen.sum()))
        return CGTrajectory.from_positions(swarm.frames.sequence, picked, time_ps, replica)

    tica = fit_tica(pooled(np.ones(count, dtype=bool)), LAG_ps)
    metric = estimators(FRAMES)["exact"][OBSERVABLES["tica"].geometry]
    found: list[Float[np.ndarray, ""] | float] = []
    for split in range(SPLITS):
        chosen = np.isin(np.arange(count), np.random.default_rng(split).permutation(count)[: count // 2])
        mine, theirs = (_thinned(pooled(half)) for half in (chosen, ~chosen))
        values = [observe(side, tica, np.zeros(len(side), dtype=np.int64))["tica"] for side in (mine, theirs)]
        found.append(metric.value(*values))
    return np.array(found)


def _thinned(frames: CGTrajectory) -> CGTrajectory:
    return frames.take(np.arange(0, len(frames), max(1, len(frames) // FRAMES)))


def main() -> None:
    """Measure all of them."""
    rows = [measure(bed) for bed in track(GROUND_TRUTHS, "ground truths")]
    path = Path("docs", "results", "ground_truths.csv")
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: round(v, 4) if isinstance(v, float) else v for key, v in row.items()} for row in rows)
    table = Table("", *(str(row["system"]) for row in rows))
    for key in list(rows[0])[1:]:
        table.add_row(key, *(f"{row[key]:.3g}" for row in rows))
    Console().print(table)


if __name__ == "__main__":
    main()
