"""Figures of the prior."""

import math
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cgal.figures import MODEL, REFERENCE, TRAINING, save_figure
from cgal.params import PriorParams
from cgal.potential.geometry import dihedral_angles, in_batches, internal_coordinates, pair_distances
from cgal.potential.prior import Prior, inverted_dihedrals
from cgal.units import thermal_energy_kJ_per_mol

__all__ = ["plot_prior"]

PANELS = 30
"""Terms drawn in a figure, at most."""


type Weights = Float64[np.ndarray, " frames"]


def plot_prior(
    prior: Prior,
    positions: Float32[np.ndarray, "frames beads 3"],
    folder: Path,
    params: PriorParams,
    weights: Weights | None = None,
) -> list[Path]:
    """Draw each term's inverted histogram over `positions` [nm] beside the curve that was fitted with these `params`.

    Frames count by `weights`, if there are any. Writes prior_bonds.png, prior_angles.png, prior_dihedrals.png and
    prior_repulsion.png into `folder`.
    """
    prior = Prior(prior.sequence, prior.temperature_K, prior.state_dict())
    weights = np.ones(len(positions)) if weights is None else weights / weights.mean()
    coordinates = internal_coordinates(torch.from_numpy(positions.astype(np.float64)))
    figures = {
        "prior_bonds.png": _plot_bonds(prior, coordinates.bonds_nm.numpy(), weights),
        "prior_angles.png": _plot_angles(prior, coordinates.angles_rad.numpy(), weights),
        "prior_dihedrals.png": _plot_dihedrals(prior, dihedral_angles(coordinates), params, weights),
        "prior_repulsion.png": _plot_repulsion(prior, positions),
    }
    return [save_figure(figure, folder / name) for name, figure in figures.items()]


def _plot_bonds(prior: Prior, bonds_nm: Float64[np.ndarray, "frames bonds"], weights: Weights) -> Figure:
    figure, axes = _panels(bonds_nm.shape[1], "CA-CA distance [nm]")
    for term, axis in enumerate(axes):
        length, stiffness = float(prior.bond_length_nm[term]), float(prior.bond_stiffness_kJ_per_mol_nm2[term])
        _inverted_points(axis, bonds_nm[:, term], weights / bonds_nm[:, term] ** 2, prior.temperature_K)
        grid = np.linspace(bonds_nm[:, term].min() - 0.005, bonds_nm[:, term].max() + 0.005, 200)
        _curve(axis, grid, stiffness / 2 * (grid - length) ** 2)
        _name(axis, prior.sequence, term, 2)
    return figure


def _plot_angles(prior: Prior, angles_rad: Float64[np.ndarray, "frames angles"], weights: Weights) -> Figure:
    figure, axes = _panels(angles_rad.shape[1], "angle [degree]")
    for term, axis in enumerate(axes):
        angle, stiffness = float(prior.angle_rad[term]), float(prior.angle_stiffness_kJ_per_mol_rad2[term])
        values = angles_rad[:, term]
        _inverted_points(axis, values, weights / np.maximum(np.sin(values), 1e-3), prior.temperature_K, math.degrees(1))
        grid = np.linspace(values.min() - 0.1, values.max() + 0.1, 200)
        _curve(axis, np.degrees(grid), stiffness / 2 * (grid - angle) ** 2)
        _name(axis, prior.sequence, term, 3)
    return figure


def _plot_dihedrals(
    prior: Prior, dihedrals_rad: Float64[np.ndarray, "frames dihedrals"], params: PriorParams, weights: Weights
) -> Figure:
    figure, axes = _panels(dihedrals_rad.shape[1], "dihedral [degree]", ", level where no frame was")
    grid = np.linspace(-np.pi, np.pi, 361)
    energy_kJ_per_mol = thermal_energy_kJ_per_mol(prior.temperature_K)
    centres, inverted = inverted_dihedrals(
        dihedrals_rad, energy_kJ_per_mol, params.bins, params.dihedral_floor, weights
    )
    curves = prior._dihedral_energies(
        torch.from_numpy(np.cos(grid))[:, None].expand(-1, dihedrals_rad.shape[1]),
        torch.from_numpy(np.sin(grid))[:, None].expand(-1, dihedrals_rad.shape[1]),
    ).numpy()
    for term, axis in enumerate(axes):
        axis.plot(np.degrees(centres), inverted[term] - inverted[term].min(), ".", color=TRAINING, markersize=3)
        _curve(axis, np.degrees(grid), curves[:, term] - curves[:, term].min())
        axis.set_xticks([-180, -90, 0, 90, 180])
        _name(axis, prior.sequence, term, 4)
    return figure


def _plot_repulsion(prior: Prior, positions: Float32[np.ndarray, "frames beads 3"]) -> Figure:
    edges = np.linspace(0.25, 1.2, 81).tolist()
    batches = in_batches(torch.from_numpy(positions))
    counts = np.sum([np.histogram(pair_distances(batch, 3).double().numpy(), edges)[0] for batch in batches], axis=0)
    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axis = figure.subplots()
    grid = np.linspace(0.25, 1.2, 300)
    axis.hist(
        edges[:-1],
        bins=edges,
        weights=counts,
        density=True,
        color=TRAINING,
        alpha=0.6,
        label="training frames, |i-j| >= 3",
    )
    axis.axvline(float(prior.repulsion_radius_nm), color=REFERENCE, linestyle=":", label="repulsion radius")
    axis.set(xlabel="CA-CA distance [nm]", ylabel="density [1/nm]", xlim=(0.25, 1.2))
    energy_axis = axis.twinx()
    energies = prior._repulsion_energies(torch.from_numpy(grid)).numpy()
    energy_axis.plot(grid, energies, color=MODEL, label="prior")
    energy_axis.set(ylabel="prior energy of a pair [kJ/mol]", ylim=(0, 20))
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return figure


def _panels(terms: int, label: str, remark: str = "") -> tuple[Figure, list[Axes]]:
    """Give a grid of panels, one a term (the first `PANELS` of a long chain, which the title then says)."""
    shown = min(terms, PANELS)
    columns = min(shown, 5)
    rows = -(-shown // columns)
    width, height = 2.2 * columns + 0.6, 1.9 * rows + 0.8
    figure = Figure(figsize=(width, height))
    figure.subplots_adjust(0.8 / width, 0.5 / height, 1 - 0.1 / width, 1 - 0.5 / height, wspace=0.15, hspace=0.4)
    axes = list(figure.subplots(rows, columns, sharey=True, squeeze=False).ravel())
    for axis in axes[shown:]:
        axis.remove()
    figure.supxlabel(label, fontsize=10)
    figure.supylabel("energy [kJ/mol]", fontsize=10, x=0.01)
    note = "" if shown == terms else f" (first {shown} of {terms} terms)"
    figure.suptitle(f"points: training frames, inverted{remark}   line: prior{note}", fontsize=10)
    return figure, axes[:shown]


def _inverted_points(
    axis: Axes,
    values: Float64[np.ndarray, " frames"],
    weights: Weights,
    temperature_K: float,
    scale: float = 1.0,
) -> None:
    """Plot -k_B T ln(p/J) where the histogram has counts, least energy zero; `weights` have the 1/J."""
    counts, edges = np.histogram(values, bins=30, weights=weights)
    seen = counts > 0
    energies = -thermal_energy_kJ_per_mol(temperature_K) * np.log(counts[seen] / counts.max())
    centres = (edges[1:] + edges[:-1])[seen] / 2
    axis.plot(scale * centres, energies, ".", color=TRAINING, markersize=3)


def _curve(axis: Axes, grid: Float64[np.ndarray, " points"], energies: Float64[np.ndarray, " points"]) -> None:
    axis.plot(grid, energies, color=MODEL, linewidth=1.2)
    axis.set_ylim(-1, 16)
    axis.tick_params(labelsize=7)


def _name(axis: Axes, sequence: str, term: int, beads: int) -> None:
    names = [f"{sequence[index]}{index + 1}" for index in range(term, term + beads)]
    axis.set_title("-".join(names), fontsize=8)
