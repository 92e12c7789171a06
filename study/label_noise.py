"""What a label costs in all-atom steps for the noise it has: force maps, strides, windows and control variates.

`python -m study.label_noise` makes two sets of runs of the bundled chignolin, some minutes on one core, and writes the
page, figure and tables in `docs/results`. Free runs show which maps are biased (`cgal.projection.virial`) and what
averages over short windows do; runs with held C-alpha, of which the mean force is known, show noise and how fast it
forgets itself. Noise is that across the CA-CA bonds, as a network sees it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float64
from matplotlib.figure import Figure

from cgal.all_atom.dynamics import AtomRun
from cgal.all_atom.force_field import build_system, read_structure
from cgal.files import write_text
from cgal.frames import AtomFrames, alpha_carbons, beads_of_residues
from cgal.params import ForceFieldParams, MappingParams
from cgal.projection.bonds import along_bonds
from cgal.projection.clusters import constrained_clusters
from cgal.projection.mapping import coordinate_map, fit_force_map
from cgal.projection.virial import virial_ratios

__all__ = ["HELD_LOOK_STEPS", "across", "dynamics", "noise", "noise_times_steps"]

RESULTS = Path("docs", "results")
TEMPERATURE_K = 450.0
FREE_RUNS, FREE_LOOKS, FREE_STRIDE = 10, 4000, 5
HELD_RUNS, HELD_LOOKS, HELD_STRIDE, HELD_STEP_ps = 16, 2560, 4, 0.003
HELD_LOOK_STEPS = 3
"""Steps of a free run, of 4 fs, in the time between two looks at a held one."""

BLOCK_LOOKS = 128
STRIDES = (1, 2, 4, 8, 16)
TODAY_STEPS = 48
WINDOWS = (1, 2, 3, 5, 10)
LAGS = 24
type Kind = Literal["slice", "constraint_aware", "optimal", "local_frames"]

KINDS: tuple[Kind, ...] = ("slice", "constraint_aware", "optimal", "local_frames")
RIDGES = (0.01, 0.1, 1.0, 10.0)

type Noise = Float64[np.ndarray, "runs looks components"]


def main() -> None:
    """Run, measure and write."""
    seed = AtomFrames.load(Path("data", "chignolin", "seed.h5"))
    free = dynamics(seed.take(np.arange(FREE_RUNS) * 19), FREE_LOOKS, FREE_STRIDE)
    held = dynamics(seed.take(5 + np.arange(HELD_RUNS) * 12), HELD_LOOKS, HELD_STRIDE, held=True)
    maps, windows = map_table(seed, free), window_table(seed, free)
    costs, memory = cost_table(seed, held)
    variates = variate_table(seed, free, mean_square=mean_square_of_means(seed, held))
    lags = pd.DataFrame({"time_fs": np.arange(LAGS) * HELD_STRIDE * HELD_STEP_ps * 1000} | memory)
    tables = {"force_maps": maps, "windows": windows, "costs": costs, "autocorrelation": lags, "variates": variates}
    for name, table in tables.items():
        write_text(RESULTS / f"label_noise_{name}.csv", table.to_csv(index=False, float_format="%.5g"))
    plot(memory, costs).savefig(RESULTS / "label_noise.png", dpi=120, metadata={"Software": None})
    write_text(RESULTS / "label-noise.md", page(maps, windows, costs, variates))


def dynamics(starts: AtomFrames, looks: int, stride: int, *, held: bool = False) -> AtomFrames:
    """All-atom frames of a run from each start, with C-alpha free or held, after an equilibration of 2,500 steps."""
    topology, _ = read_structure(starts.pdb)
    force_field = ForceFieldParams()
    system = build_system(topology, force_field, hold_alpha_carbons=held)
    timestep_ps = HELD_STEP_ps if held else force_field.timestep_ps
    positions, forces = (np.empty((len(starts), looks, *starts.positions.shape[1:]), np.float32) for _ in range(2))
    for number, start in enumerate(starts.positions):
        run = AtomRun(system, force_field, temperature_K=TEMPERATURE_K, timestep_ps=timestep_ps, seed=number + 1)
        run.place(start, constrain=True)
        run.draw_velocities()
        run.advance(2500)
        for look, moment in enumerate(run.moments(looks, stride)):
            positions[number, look], forces[number, look] = moment.positions, moment.forces
    return AtomFrames(
        starts.pdb,
        positions.reshape(-1, *positions.shape[2:]),
        forces.reshape(-1, *forces.shape[2:]),
        np.repeat(np.arange(len(starts), dtype=np.int32), looks),
        np.tile(np.arange(1, looks + 1) * (stride * timestep_ps), len(starts)),
        {"forces": "instantaneous"},
    )


def across(
    positions: Float[np.ndarray, "frames beads 3"], forces: Float[np.ndarray, "frames beads 3"]
) -> Float64[np.ndarray, "frames beads 3"]:
    """Part of the forces that changes no bond."""
    beads, pull = torch.from_numpy(positions.astype(np.float64)), torch.from_numpy(forces.astype(np.float64))
    return np.asarray(pull - along_bonds(beads, pull))


def noise(seed: AtomFrames, held: AtomFrames, kind: Kind) -> Noise:
    """Forces across the bonds at held C-alpha less their mean of each run, under a map fitted on the seed."""
    found = projected(seed, held, kind)
    return found - found.mean(axis=1, keepdims=True)


def projected(seed: AtomFrames, held: AtomFrames, kind: Kind) -> Noise:
    """Forces across the bonds in each run."""
    beads = coordinate_map(held.topology)(held.positions)
    forces = across(beads, fit_force_map(seed, MappingParams(force_map=kind))(held))
    return forces.reshape(held.trajectory.max() + 1, -1, 3 * beads.shape[1])


def noise_times_steps(residuals: Noise, stride: int) -> float:
    """Variance of the mean force that labels every `stride` looks give, times the all-atom steps they take.

    From blocks of 1.5 ps, averaged over where the first look is. It is the variance of one label times the steps
    between two where these are independent, and more where they are not [kJ^2/mol^2/nm^2 steps of 4 fs].
    """
    runs, looks, components = residuals.shape
    blocks = residuals[:, : looks // BLOCK_LOOKS * BLOCK_LOOKS].reshape(runs, -1, BLOCK_LOOKS, components)
    variance = np.mean([np.mean(blocks[:, :, first::stride].mean(axis=2) ** 2) for first in range(stride)])
    return float(variance * BLOCK_LOOKS * HELD_LOOK_STEPS)


def cost_table(seed: AtomFrames, held: AtomFrames) -> tuple[pd.DataFrame, dict[str, Float64[np.ndarray, " lags"]]]:
    """Cost at each stride and map, beside that of `local_frames` every 48 steps, and autocorrelations of the noise."""
    rows = []
    memory: dict[str, Float64[np.ndarray, " lags"]] = {}
    for kind in KINDS:
        residuals = noise(seed, held, kind)
        variance = float(np.mean(residuals**2))
        looks = residuals.shape[1]
        memory[kind] = np.array(
            [np.mean(residuals[:, : looks - lag] * residuals[:, lag:]) / variance for lag in range(LAGS)]
        )
        for stride in STRIDES:
            cost = noise_times_steps(residuals, stride)
            rows.append((kind, stride * HELD_LOOK_STEPS, variance**0.5, cost))
    table = pd.DataFrame(rows, columns=["map", "stride_steps", "noise_kJ_per_mol_nm", "noise_times_steps"])
    today = table.query("map == 'local_frames' and stride_steps == @TODAY_STEPS")["noise_times_steps"].item()
    return table.assign(times_better_than_today=today / table["noise_times_steps"]), memory


def map_table(seed: AtomFrames, free: AtomFrames) -> pd.DataFrame:
    """Virial ratios of each map."""
    beads, rows = coordinate_map(free.topology)(free.positions), []
    for kind in KINDS:
        forces = fit_force_map(seed, MappingParams(force_map=kind))(free)
        for name, ratio in virial_ratios(beads, forces, TEMPERATURE_K).items():
            rows.append((kind, name, ratio.value, ratio.error))
    return pd.DataFrame(rows, columns=["map", "distance", "ratio", "error"])


def window_table(seed: AtomFrames, free: AtomFrames) -> pd.DataFrame:
    """Virial ratios when beads and `local_frames` forces are averaged over windows of a free run."""
    beads = coordinate_map(free.topology)(free.positions)
    forces = fit_force_map(seed, MappingParams(force_map="local_frames"))(free)
    rows = []
    for looks in WINDOWS:
        at, pull = (each[: len(each) // looks * looks].reshape(-1, looks, *each.shape[1:]) for each in (beads, forces))
        found = virial_ratios(at.mean(axis=1), pull.mean(axis=1), TEMPERATURE_K)
        rows += [(looks, FREE_STRIDE * looks, name, ratio.value, ratio.error) for name, ratio in found.items()]
    return pd.DataFrame(rows, columns=["looks", "steps", "distance", "ratio", "error"])


def mean_square_of_means(seed: AtomFrames, held: AtomFrames) -> float:
    """Mean square of the mean force at fixed beads, which is no noise [kJ^2/mol^2/nm^2]."""
    return float(np.mean(projected(seed, held, "local_frames").mean(axis=1) ** 2))


def variate_table(seed: AtomFrames, free: AtomFrames, mean_square: float) -> pd.DataFrame:
    """Held-out noise variance of `local_frames` with control variates, by the frames that coefficients are fitted on.

    The vector fields move one heavy atom with its hydrogens along an axis of the bead's own frame, which has no
    divergence and moves no bead, so the force on these atoms has mean zero at fixed beads. For each bead: the atoms of
    its residue and both neighbours; coefficients by least squares with a ridge (Kramer et al. 2023).
    """
    half = FREE_RUNS // 2
    fit = free.take(np.flatnonzero(free.trajectory < half)[::10])
    held_out = free.take(np.flatnonzero(free.trajectory >= half)[::5])
    beads = coordinate_map(free.topology)(held_out.positions)

    def variance(forces: Float[np.ndarray, "frames beads 3"]) -> float:
        return float(np.mean(across(beads, forces) ** 2)) - mean_square

    plain = variance(fit_force_map(seed, MappingParams(force_map="local_frames"))(held_out))
    rows = [("none", 0, 0.0, plain, 1.0)]
    for name, frames in (("seed", seed), ("dense run", fit)):
        for ridge in RIDGES:
            left = variance(with_variates(seed, frames, held_out, ridge))
            rows.append((name, len(frames), ridge, left, plain / left))
    return pd.DataFrame(rows, columns=["fitted_on", "frames", "ridge", "noise_variance", "times_less"])


def with_variates(
    seed: AtomFrames, training: AtomFrames, held_out: AtomFrames, ridge: float
) -> Float64[np.ndarray, "frames beads 3"]:
    """Forces in local frames of held-out frames, less control variates fitted on the training frames."""
    force_map = fit_force_map(seed, MappingParams(force_map="local_frames"))
    known, result = force_map(training), force_map(held_out).astype(np.float64)
    for bead in range(result.shape[1]):
        axes, variates = _variates(training, bead)
        scale = variates.std(axis=0)
        variates /= scale
        target = np.einsum("fab,fb->fa", axes, known[:, bead])
        gram = variates.T @ variates + ridge * len(variates) * np.eye(len(scale))
        coefficients = np.linalg.solve(gram, variates.T @ target)
        axes, variates = _variates(held_out, bead)
        result[:, bead] -= np.einsum("fab,fa->fb", axes, variates / scale @ coefficients)
    return result


def _variates(
    frames: AtomFrames, bead: int
) -> tuple[Float64[np.ndarray, "frames 3 3"], Float64[np.ndarray, "frames variates"]]:
    """Axes of a bead's frame, as rows, and along them the forces on the groups of atoms near it."""
    atoms, carbons = list(frames.topology.atoms), alpha_carbons(frames.topology)
    numbers = beads_of_residues(frames.topology)
    near = [
        members
        for members in constrained_clusters(frames.topology)
        if not set(members) & set(carbons) and abs(numbers[atoms[members[0]].residue.index] - bead) <= 1
    ]
    middle = min(max(bead, 1), len(carbons) - 2)
    before, at, after = (frames.positions[:, carbons[middle + step]].astype(np.float64) for step in (-1, 0, 1))
    first = _unit(after - before)
    third = _unit(np.cross(first, at - before))
    axes = np.stack([first, np.cross(third, first), third], axis=1)
    forces = np.stack([frames.forces[:, members].sum(axis=1, dtype=np.float64) for members in near], axis=1)
    return axes, np.einsum("fab,fkb->fka", axes, forces).reshape(len(frames), -1)


def _unit(vectors: Float64[np.ndarray, "frames 3"]) -> Float64[np.ndarray, "frames 3"]:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def plot(memory: dict[str, Float64[np.ndarray, " lags"]], costs: pd.DataFrame) -> Figure:
    """Autocorrelation of the noise of each map, and what a label costs against the stride."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for kind, values in memory.items():
        left.plot(np.arange(LAGS) * HELD_STRIDE * HELD_STEP_ps * 1000, values, ".-", label=kind)
        rows = costs.query("map == @kind")
        right.loglog(rows["stride_steps"], rows["noise_times_steps"], ".-", label=kind)
    left.axhline(0, color="grey", linewidth=0.5)
    left.set(xlabel="time, fs", ylabel="autocorrelation of the noise")
    right.set_xticks(list(costs["stride_steps"].unique()), [str(steps) for steps in costs["stride_steps"].unique()])
    right.minorticks_off()
    right.set(xlabel="stride, steps of 4 fs", ylabel="noise variance x steps, (kJ/mol/nm)$^2$")
    left.legend()
    return figure


def page(maps: pd.DataFrame, windows: pd.DataFrame, costs: pd.DataFrame, variates: pd.DataFrame) -> str:
    """The page in the documentation."""
    by_map = maps.assign(cell=_with_error(maps)).pivot(index="map", columns="distance", values="cell").loc[list(KINDS)]
    by_steps = windows.assign(cell=_with_error(windows)).pivot(index="steps", columns="distance", values="cell")
    names = ["virial", "bonds", "1-3", "1-6"]
    dear = costs.pivot(index="map", columns="stride_steps", values="times_better_than_today").loc[list(KINDS)]
    rms = costs.groupby("map", sort=False)["noise_kJ_per_mol_nm"].first()
    parts = [
        "# Noise of labels, and what it costs",
        f"Written by `python -m study.label_noise` from runs of chignolin at {TEMPERATURE_K:g} K (ff96 with OBC2): "
        f"{FREE_RUNS} free ones of {FREE_LOOKS * FREE_STRIDE * 4 / 1000:.0f} ps, {HELD_RUNS} with held C-alpha of "
        f"{HELD_LOOKS * HELD_STRIDE * HELD_STEP_ps:.0f} ps. Noise is that across the CA-CA bonds.",
        "## Which force maps are unbiased",
        "The table gives `<F . grad q> / (k_B T <div grad q>)`, which must be -1 whatever the noise "
        "(`cgal.projection.virial`), with standard errors:",
        _table(["map", *names], [[f"`{kind}`", *row] for kind, row in by_map[names].iterrows()]),
        _unexcluded(maps),
        "## Averages over windows of a free run are biased",
        "The same ratio, with beads and `local_frames` forces averaged over windows of a few steps of 4 fs. Beads "
        "respond to the noise of one moment within the next few, so an average of the noise over a window no longer "
        f"has mean zero at the mean beads (a window of {FREE_STRIDE} steps is one look):",
        _table(["window, steps", *names], [[str(steps), *row] for steps, row in by_steps[names].iterrows()]),
        "## Which stride gives most for the all-atom steps",
        "![noise](label_noise.png)",
        "Noise variance times all-atom steps, as the factor by which it is better than `local_frames` every "
        f"{TODAY_STEPS} steps; the correlation between labels is included:",
        _table(
            ["map", "noise, kJ/mol/nm", *(f"every {stride} steps" for stride in dear.columns)],
            [[f"`{kind}`", f"{rms[kind]:.0f}", *(f"{value:.2f}" for value in row)] for kind, row in dear.iterrows()],
        ),
        "## Control variates",
        "Forces on groups of atoms near a bead have mean zero at fixed beads, so they can be subtracted with any "
        "coefficients. The table gives the noise variance that is left on runs not used in the fit:",
        _table(
            ["fitted on", "frames", "ridge", "noise variance", "times less"],
            [
                [row.fitted_on, str(row.frames), f"{row.ridge:g}", f"{row.noise_variance:.0f}", f"{row.times_less:.2f}"]
                for row in variates.itertuples()
            ],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _unexcluded(maps: pd.DataFrame) -> str:
    rows = maps.query("map == 'local_frames'").assign(off=lambda row: (row["ratio"] + 1) / row["error"])
    worst = rows.loc[rows["off"].abs().idxmax()]
    return (
        f"`local_frames`, the default, is off by at most {abs(worst['off']):.1f} standard errors "
        f"({worst['distance']}): a bias of {abs(worst['ratio'] + 1):.0%} along this distance is not excluded."
    )


def _with_error(table: pd.DataFrame) -> list[str]:
    return [f"{value:.2f} ± {error:.2f}" for value, error in zip(table["ratio"], table["error"], strict=True)]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


if __name__ == "__main__":
    main()
