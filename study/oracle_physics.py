"""Which all-atom physics is the better model for the money: chignolin by ff96 + OBC2 and by ff14SB + GBn2.

    python -m study.oracle_physics FOLDER [TEMPERATURE_K ...]    # 350 K when none is given

Swarms of eight trajectories of 1 ns each from the same eight starts: four native and four open structures, taken from
the equilibrium of ff96 + OBC2. FOLDER keeps what was sampled, so a run that was killed goes on. Rows are printed and
written to docs/results/oracle_physics.csv: the share of frames within 0.2 nm of the native C-alpha in the second half
of the trajectories, from either kind of start, and how many of each end native. 1 ns is shorter than the slowest
process, so the two shares bracket the one at equilibrium, and no more.
"""

import csv
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from cgal.frames import alpha_carbons, read_pdb_text, rmsd_nm
from cgal.params import ForceFieldParams, ReferenceParams
from cgal.reference.sampling import PhasePoint, Start, SwarmRecipe, load_swarm, swarm
from flows.terminal import stage_bar
from study.beds import GROUND_TRUTHS, Swarm, native_share

__all__ = ["measure"]

PHYSICS = {
    "ff96 + OBC2": ForceFieldParams(name="ff96", solvent="obc2", platform="CPU"),
    "ff14SB + GBn2": ForceFieldParams(name="ff14SB", solvent="gbn2", platform="CPU"),
}
LENGTH_NS, EACH, OPEN_nm = 1.0, 4, 0.4
OUT = Path("docs", "results", "oracle_physics.csv")


def measure(folder: Path, temperature_K: float) -> Iterator[dict[str, str | float]]:
    """Sample what is missing, and give a row for each physics."""
    equilibrium = GROUND_TRUTHS[0].load()
    for name, force_field in PHYSICS.items():
        recipe = SwarmRecipe(
            equilibrium.structure,
            force_field,
            ReferenceParams(trajectories=2 * EACH, trajectory_ns=LENGTH_NS),
            temperature_K,
            1,
            folder / f"{force_field.name}-{temperature_K:g}K",
        )
        _write_starts(recipe, equilibrium)
        with stage_bar(f"{name}, {temperature_K:g} K") as progress:
            lost = swarm(recipe, workers=1, progress=progress)
        if lost:
            raise SystemExit(f"{name}: {lost[0].piece} was lost: {lost[0].reason}")
        yield {"physics": name, "temperature_K": temperature_K, **_shares(recipe)}


def _write_starts(recipe: SwarmRecipe, equilibrium: Swarm) -> None:
    """Ends of the reference's trajectories: the most native ones, then the first ones that are open."""
    carbons = alpha_carbons(read_pdb_text(equilibrium.structure).topology)
    rmsd = rmsd_nm(equilibrium.end_positions[:, carbons].astype(np.float32), equilibrium.native)
    chosen = [*np.argsort(rmsd)[:EACH], *np.flatnonzero(rmsd > OPEN_nm)[:EACH]]
    for index, end in enumerate(chosen):
        if not recipe.start(index).is_file():
            point = PhasePoint(equilibrium.end_positions[end], equilibrium.end_velocities[end])
            Start(point).save(recipe.start(index))


def _shares(recipe: SwarmRecipe) -> dict[str, float]:
    """Native share of the second halves by kind of start, and how many trajectories end native (their last tenth)."""
    frames = load_swarm(recipe)
    native = native_share(frames.positions, recipe.structure).reshape(2 * EACH, -1)
    late, end = native[:, native.shape[1] // 2 :].mean(axis=1), native[:, -native.shape[1] // 10 :].mean(axis=1) > 0.5
    found = {"sampled_ns": 2 * EACH * LENGTH_NS}
    for kind, rows in (("native", slice(EACH)), ("open", slice(EACH, None))):
        found |= {
            f"native_share_from_{kind}": float(late[rows].mean()),
            f"native_share_from_{kind}_error": float(late[rows].std(ddof=1) / np.sqrt(EACH)),
            f"native_ends_from_{kind}": float(end[rows].sum()),
        }
    return found


def main(arguments: list[str]) -> None:
    """Sample, print and write; see the module."""
    if not arguments:
        sys.exit(__doc__)
    folder, temperatures = Path(arguments[0]), [float(value) for value in arguments[1:]] or [350.0]
    rows = [row for temperature in temperatures for row in measure(folder, temperature)]
    table = Table("", *(f"{row['physics']}, {row['temperature_K']:g} K" for row in rows))
    for key in list(rows[0])[2:]:
        table.add_row(key, *(f"{row[key]:.3g}" for row in rows))
    Console().print(table)
    with OUT.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main(sys.argv[1:])
