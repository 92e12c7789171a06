"""The physical prior: harmonic bonds and angles, periodic dihedrals and a soft repulsion along one chain of beads.

It keeps a simulation near the training frames where none of them tells the network what to do, it is all the network
need not learn, and it alone tells a chain from its mirror image: SchNet sees distances only. Every term is fitted by
Boltzmann inversion, U(q) = -k_B T ln(p(q) / J(q)) with J the Jacobian of the coordinate, from the frames of all
shards, anew each round. They are no equilibrium, so the fit errs on the soft side: no bond or angle is believed
narrower than a bound, only a share of the dihedral potential is taken, and one repulsion radius, pooled over all pairs
and bounded, serves them all.

Husic et al., J. Chem. Phys. 153, 194101 (2020), section II.D; Majewski et al., Nat. Commun. 14, 5739 (2023).
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from cgal.errors import BadCheckpoint, EmptyTrajectory
from cgal.files import atomic_write
from cgal.frames import check_sequence
from cgal.params import PriorParams
from cgal.potential.geometry import dihedral_angles, internal_coordinates, pair_distances
from cgal.units import thermal_energy_kJ_per_mol

__all__ = ["Prior", "fit_prior", "plot_prior"]

TERMS = (
    "bond_length_nm",
    "bond_stiffness_kJ_per_mol_nm2",
    "angle_rad",
    "angle_stiffness_kJ_per_mol_rad2",
    "dihedral_cosine_kJ_per_mol",
    "dihedral_sine_kJ_per_mol",
    "repulsion_radius_nm",
    "repulsion_kJ_per_mol",
)
"""Buffers of a `Prior`, in the order of its energy expression."""

PANELS = 30
"""Terms drawn in a figure, at most."""


class Prior(nn.Module):
    """U = sum k/2 (r - r0)^2 + sum k/2 (theta - theta0)^2 + sum_n (a_n cos n phi + b_n sin n phi) + sum e (s/r)^6.

    The last sum runs over the pairs |i-j| >= 3. Terms are buffers, one entry a term (dihedrals: terms x order), in
    float64 as fitted; `Potential` casts a copy to float32. `temperature_K` is that of the fit.
    """

    bond_length_nm: Tensor
    bond_stiffness_kJ_per_mol_nm2: Tensor
    angle_rad: Tensor
    angle_stiffness_kJ_per_mol_rad2: Tensor
    dihedral_cosine_kJ_per_mol: Tensor
    dihedral_sine_kJ_per_mol: Tensor
    repulsion_radius_nm: Tensor
    repulsion_kJ_per_mol: Tensor

    def __init__(self, sequence: str, temperature_K: float, terms: Mapping[str, Any]) -> None:
        super().__init__()
        self.sequence = check_sequence(sequence)
        self.temperature_K = temperature_K
        for name in TERMS:
            self.register_buffer(name, torch.as_tensor(terms[name], dtype=torch.float64))
        if len(self.bond_length_nm) != len(sequence) - 1:
            raise BadCheckpoint(f"prior of {len(self.bond_length_nm)} bonds does not fit the sequence {sequence}")

    def energy(self, positions: Float[Tensor, "frames beads 3"]) -> Float[Tensor, " frames"]:
        """Energy [kJ/mol] of each frame; positions in nm."""
        coordinates = internal_coordinates(positions)
        return (
            (self.bond_stiffness_kJ_per_mol_nm2 * (coordinates.bonds_nm - self.bond_length_nm).square()).sum(1) / 2
            + (self.angle_stiffness_kJ_per_mol_rad2 * (coordinates.angles_rad - self.angle_rad).square()).sum(1) / 2
            + self._dihedral_energies(coordinates.dihedral_cosines, coordinates.dihedral_sines).sum(1)
            + self._repulsion_energies(pair_distances(positions, 3)).sum(1)
        )

    def forces(self, positions: Float[Tensor, "frames beads 3"]) -> Float[Tensor, "frames beads 3"]:
        """Give the forces [kJ/mol/nm], minus the gradient of the energy."""
        with torch.enable_grad():
            at = positions.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.energy(at).sum(), at)
        return -gradient

    def _dihedral_energies(self, cosines: Tensor, sines: Tensor) -> Tensor:
        """Fourier series by repeated complex multiplication: no inverse trigonometry, hence no singular gradient."""
        real, imaginary = cosines, sines
        energies = torch.zeros_like(cosines)
        for order in range(self.dihedral_cosine_kJ_per_mol.shape[1]):
            if order:
                real, imaginary = real * cosines - imaginary * sines, real * sines + imaginary * cosines
            energies = (
                energies
                + self.dihedral_cosine_kJ_per_mol[:, order] * real
                + self.dihedral_sine_kJ_per_mol[:, order] * imaginary
            )
        return energies

    def _repulsion_energies(self, distances_nm: Tensor) -> Tensor:
        return self.repulsion_kJ_per_mol * (self.repulsion_radius_nm / distances_nm).pow(6)


def fit_prior(
    positions: Float32[np.ndarray, "frames beads 3"], sequence: str, temperature_K: float, params: PriorParams
) -> Prior:
    """Fit every term of the prior to training frames by Boltzmann inversion, term by term.

    Bonds and angles: mean and variance under weights 1/J (J = r^2 and sin theta), k = k_B T / variance. Dihedrals:
    Fourier series, up to `params.dihedral_order`, of -k_B T ln p of a histogram with one count added to each bin (so
    that an unseen angle is unlikely, not forbidden), times `params.dihedral_scale`. Repulsion: the radius is a low
    quantile of all distances |i-j| >= 3, pooled since a pair that never met in training may well meet elsewhere,
    and never above `params.maximum_repulsion_radius_nm`.

    Raises EmptyTrajectory for fewer than two frames.
    """
    if len(positions) < 2:
        raise EmptyTrajectory(f"a prior needs at least 2 frames to fit, got {len(positions)}; import a longer seed")
    energy_kJ_per_mol = thermal_energy_kJ_per_mol(temperature_K)
    coordinates = internal_coordinates(torch.from_numpy(positions.astype(np.float64)))
    bonds, angles = coordinates.bonds_nm.numpy(), coordinates.angles_rad.numpy()
    bond_mean, bond_variance = _moments(bonds, 1.0 / bonds**2)
    angle_mean, angle_variance = _moments(angles, 1.0 / np.maximum(np.sin(angles), 1e-3))
    cosine, sine = _fit_dihedrals(dihedral_angles(coordinates), energy_kJ_per_mol, params)
    return Prior(
        sequence,
        temperature_K,
        {
            "bond_length_nm": bond_mean,
            "bond_stiffness_kJ_per_mol_nm2": energy_kJ_per_mol
            / np.maximum(bond_variance, params.minimum_bond_sigma_nm**2),
            "angle_rad": angle_mean,
            "angle_stiffness_kJ_per_mol_rad2": energy_kJ_per_mol
            / np.maximum(angle_variance, params.minimum_angle_sigma_rad**2),
            "dihedral_cosine_kJ_per_mol": params.dihedral_scale * cosine,
            "dihedral_sine_kJ_per_mol": params.dihedral_scale * sine,
            "repulsion_radius_nm": _repulsion_radius(positions, params),
            "repulsion_kJ_per_mol": params.repulsion_kJ_per_mol,
        },
    )


def _moments(
    values: Float64[np.ndarray, "frames terms"], weights: Float64[np.ndarray, "frames terms"]
) -> tuple[Float64[np.ndarray, " terms"], Float64[np.ndarray, " terms"]]:
    """Weighted mean and variance of each term."""
    mean = np.average(values, axis=0, weights=weights)
    return mean, np.average((values - mean) ** 2, axis=0, weights=weights)


def _fit_dihedrals(
    dihedrals_rad: Float64[np.ndarray, "frames dihedrals"], energy_kJ_per_mol: float, params: PriorParams
) -> tuple[Float64[np.ndarray, "dihedrals order"], Float64[np.ndarray, "dihedrals order"]]:
    """Cosine and sine coefficients [kJ/mol]; on evenly spaced bins least squares is the discrete Fourier transform."""
    centres, inverted = _inverted_dihedrals(dihedrals_rad, energy_kJ_per_mol, params.bins)
    phases = centres[:, None] * np.arange(1, params.dihedral_order + 1)
    return 2 / params.bins * inverted @ np.cos(phases), 2 / params.bins * inverted @ np.sin(phases)


def _inverted_dihedrals(
    dihedrals_rad: Float64[np.ndarray, "frames dihedrals"], energy_kJ_per_mol: float, bins: int
) -> tuple[Float64[np.ndarray, " bins"], Float64[np.ndarray, "dihedrals bins"]]:
    """Bin centres [rad] and -k_B T ln p [kJ/mol] of each dihedral, one pseudo-count a bin."""
    edges = np.linspace(-np.pi, np.pi, bins + 1)
    counts = np.stack([np.histogram(column, edges)[0] for column in dihedrals_rad.T])
    inverted = -energy_kJ_per_mol * np.log((counts + 1.0) / (len(dihedrals_rad) + bins))
    return (edges[1:] + edges[:-1]) / 2, inverted


def _repulsion_radius(positions: Float32[np.ndarray, "frames beads 3"], params: PriorParams) -> float:
    distances = pair_distances(torch.from_numpy(positions), 3).double().numpy()
    return min(float(np.quantile(distances, params.repulsion_quantile)), params.maximum_repulsion_radius_nm)


def plot_prior(prior: Prior, positions: Float32[np.ndarray, "frames beads 3"], folder: Path) -> tuple[Path, ...]:
    """Draw each term's inverted histogram over `positions` [nm] beside the fitted curve.

    Writes prior_bonds.png, prior_angles.png, prior_dihedrals.png and prior_repulsion.png into `folder`; returns them.
    """
    prior = Prior(prior.sequence, prior.temperature_K, prior.state_dict())
    coordinates = internal_coordinates(torch.from_numpy(positions.astype(np.float64)))
    figures = {
        "prior_bonds.png": _plot_bonds(prior, coordinates.bonds_nm.numpy()),
        "prior_angles.png": _plot_angles(prior, coordinates.angles_rad.numpy()),
        "prior_dihedrals.png": _plot_dihedrals(prior, dihedral_angles(coordinates)),
        "prior_repulsion.png": _plot_repulsion(prior, positions),
    }
    for name, figure in figures.items():
        with atomic_write(folder / name) as temporary:
            figure.savefig(temporary, format="png", dpi=150)
    return tuple(folder / name for name in figures)


TRAINING_COLOUR = "#00798c"
PRIOR_COLOUR = "#d1495b"


def _plot_bonds(prior: Prior, bonds_nm: Float64[np.ndarray, "frames bonds"]) -> Figure:
    figure, axes = _panels(bonds_nm.shape[1], "CA-CA distance [nm]")
    for term, axis in enumerate(axes):
        length, stiffness = float(prior.bond_length_nm[term]), float(prior.bond_stiffness_kJ_per_mol_nm2[term])
        _inverted_points(axis, bonds_nm[:, term], bonds_nm[:, term] ** 2, prior.temperature_K)
        grid = np.linspace(bonds_nm[:, term].min() - 0.005, bonds_nm[:, term].max() + 0.005, 200)
        _curve(axis, grid, stiffness / 2 * (grid - length) ** 2)
        _name(axis, prior.sequence, term, 2)
    return figure


def _plot_angles(prior: Prior, angles_rad: Float64[np.ndarray, "frames angles"]) -> Figure:
    figure, axes = _panels(angles_rad.shape[1], "angle [degree]")
    for term, axis in enumerate(axes):
        angle, stiffness = float(prior.angle_rad[term]), float(prior.angle_stiffness_kJ_per_mol_rad2[term])
        values = angles_rad[:, term]
        _inverted_points(axis, values, np.sin(values), prior.temperature_K, math.degrees(1))
        grid = np.linspace(values.min() - 0.1, values.max() + 0.1, 200)
        _curve(axis, np.degrees(grid), stiffness / 2 * (grid - angle) ** 2)
        _name(axis, prior.sequence, term, 3)
    return figure


def _plot_dihedrals(prior: Prior, dihedrals_rad: Float64[np.ndarray, "frames dihedrals"]) -> Figure:
    figure, axes = _panels(dihedrals_rad.shape[1], "dihedral [degree]", ", level where no frame was")
    grid = np.linspace(-np.pi, np.pi, 361)
    centres, inverted = _inverted_dihedrals(dihedrals_rad, thermal_energy_kJ_per_mol(prior.temperature_K), 60)
    curves = prior._dihedral_energies(
        torch.from_numpy(np.cos(grid))[:, None].expand(-1, dihedrals_rad.shape[1]),
        torch.from_numpy(np.sin(grid))[:, None].expand(-1, dihedrals_rad.shape[1]),
    ).numpy()
    for term, axis in enumerate(axes):
        axis.plot(np.degrees(centres), inverted[term] - inverted[term].min(), ".", color=TRAINING_COLOUR, markersize=3)
        _curve(axis, np.degrees(grid), curves[:, term] - curves[:, term].min())
        axis.set_xticks([-180, -90, 0, 90, 180])
        _name(axis, prior.sequence, term, 4)
    return figure


def _plot_repulsion(prior: Prior, positions: Float32[np.ndarray, "frames beads 3"]) -> Figure:
    distances = pair_distances(torch.from_numpy(positions), 3).double().numpy().ravel()
    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axis = figure.subplots()
    grid = np.linspace(0.25, 1.2, 300)
    axis.hist(
        distances,
        bins=80,
        range=(0.25, 1.2),
        density=True,
        color=TRAINING_COLOUR,
        alpha=0.6,
        label="training frames, |i-j| >= 3",
    )
    axis.axvline(float(prior.repulsion_radius_nm), color="#222222", linestyle=":", label="repulsion radius")
    axis.set(xlabel="CA-CA distance [nm]", ylabel="density [1/nm]", xlim=(0.25, 1.2))
    energy_axis = axis.twinx()
    energies = prior._repulsion_energies(torch.from_numpy(grid)).numpy()
    energy_axis.plot(grid, energies, color=PRIOR_COLOUR, label="prior")
    energy_axis.set(ylabel="prior energy of a pair [kJ/mol]", ylim=(0, 20))
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return figure


def _panels(terms: int, label: str, remark: str = "") -> tuple[Figure, list[Axes]]:
    """Give a grid of panels, one a term (the first `PANELS` of a long chain, which the title then says)."""
    shown = min(terms, PANELS)
    columns = min(shown, 5)
    rows = -(-shown // columns)
    figure = Figure(figsize=(2.2 * columns + 0.6, 1.9 * rows + 0.8), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axis in axes[shown:]:
        axis.remove()
    figure.supxlabel(label, fontsize=10)
    figure.supylabel("energy [kJ/mol]", fontsize=10)
    note = "" if shown == terms else f" (first {shown} of {terms} terms)"
    figure.suptitle(f"points: training frames, inverted{remark}   line: prior{note}", fontsize=10)
    return figure, axes[:shown]


def _inverted_points(
    axis: Axes,
    values: Float64[np.ndarray, " frames"],
    jacobian: Float64[np.ndarray, " frames"],
    temperature_K: float,
    scale: float = 1.0,
) -> None:
    """Plot -k_B T ln(p/J) where the histogram has counts, least energy zero."""
    counts, edges = np.histogram(values, bins=30, weights=1.0 / np.maximum(jacobian, 1e-3))
    seen = counts > 0
    energies = -thermal_energy_kJ_per_mol(temperature_K) * np.log(counts[seen] / counts.max())
    centres = (edges[1:] + edges[:-1])[seen] / 2
    axis.plot(scale * centres, energies, ".", color=TRAINING_COLOUR, markersize=3)


def _curve(axis: Axes, grid: Float64[np.ndarray, " points"], energies: Float64[np.ndarray, " points"]) -> None:
    axis.plot(grid, energies, color=PRIOR_COLOUR, linewidth=1.2)
    axis.set_ylim(-1, 16)
    axis.tick_params(labelsize=7)


def _name(axis: Axes, sequence: str, term: int, beads: int) -> None:
    names = [f"{sequence[index]}{index + 1}" for index in range(term, term + beads)]
    axis.set_title("-".join(names), fontsize=8)
