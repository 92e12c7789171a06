"""The physical prior: harmonic bonds and angles, periodic dihedrals and a soft repulsion along one chain of beads.

It keeps a simulation near the training frames where none of them tells the network what to do, it is all the network
need not learn, and it alone tells a chain from its mirror image: SchNet sees distances only. Every term is fitted by
Boltzmann inversion, U(q) = -k_B T ln(p(q) / J(q)) with J the Jacobian of the coordinate, from the frames of all
shards, anew each round. They are no equilibrium, so the fit errs on the soft side: no bond or angle is believed
narrower than a bound, only a share of the dihedral potential is taken, and one repulsion radius, pooled over all pairs
and bounded, serves them all.

Husic et al., J. Chem. Phys. 153, 194101 (2020), section II.D; Majewski et al., Nat. Commun. 14, 5739 (2023).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor, nn

from cgal.errors import BadCheckpoint, EmptyTrajectory
from cgal.frames import check_sequence
from cgal.params import PriorParams
from cgal.potential.dihedral_couplings import coupling_energies
from cgal.potential.geometry import dihedral_angles, in_batches, internal_coordinates, pair_distances
from cgal.potential.pair_splines import spline_energies
from cgal.units import thermal_energy_kJ_per_mol

__all__ = ["RUNG", "Prior", "fit_prior", "inverted_dihedrals"]

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

RUNG = ("pair_splines_kJ_per_mol", "dihedral_series_kJ_per_mol", "dihedral_couplings_kJ_per_mol")
"""Those of a linear rung (`cgal.training.linear`), which a prior may have: all or none of them."""


class Prior(nn.Module):
    """U = sum k/2 (r - r0)^2 + sum k/2 (theta - theta0)^2 + sum_n (a_n cos n phi + b_n sin n phi) + sum e (s/r)^6.

    The last sum runs over the pairs |i-j| >= 3. A linear rung on top has the splines of `cgal.potential.pair_splines`
    for the same pairs, further coefficients of the dihedral series (dihedrals x order x cosine or sine) and the
    couplings of `cgal.potential.dihedral_couplings`. Terms are buffers, one entry per term (dihedrals: terms x order),
    in float64 as fitted; `Potential` casts a copy to float32. `temperature_K` is that of the fit.
    """

    bond_length_nm: Tensor
    bond_stiffness_kJ_per_mol_nm2: Tensor
    angle_rad: Tensor
    angle_stiffness_kJ_per_mol_rad2: Tensor
    dihedral_cosine_kJ_per_mol: Tensor
    dihedral_sine_kJ_per_mol: Tensor
    repulsion_radius_nm: Tensor
    repulsion_kJ_per_mol: Tensor
    pair_splines_kJ_per_mol: Tensor | None
    dihedral_series_kJ_per_mol: Tensor | None
    dihedral_couplings_kJ_per_mol: Tensor | None

    def __init__(self, sequence: str, temperature_K: float, terms: Mapping[str, Any]) -> None:
        super().__init__()
        self.sequence = check_sequence(sequence)
        self.temperature_K = temperature_K
        for name in TERMS:
            self.register_buffer(name, torch.as_tensor(terms[name], dtype=torch.float64))
        for name in RUNG:
            part = terms.get(name)
            self.register_buffer(name, None if part is None else torch.as_tensor(part, dtype=torch.float64))
        if len(self.bond_length_nm) != len(sequence) - 1:
            raise BadCheckpoint(f"prior of {len(self.bond_length_nm)} bonds does not fit the sequence {sequence}")

    def energy(self, positions: Float[Tensor, "frames beads 3"]) -> Float[Tensor, " frames"]:
        """Energy [kJ/mol] of each frame; positions in nm."""
        coordinates, distances = internal_coordinates(positions), pair_distances(positions, 3)
        energies = (
            (self.bond_stiffness_kJ_per_mol_nm2 * (coordinates.bonds_nm - self.bond_length_nm).square()).sum(1) / 2
            + (self.angle_stiffness_kJ_per_mol_rad2 * (coordinates.angles_rad - self.angle_rad).square()).sum(1) / 2
            + self._dihedral_energies(coordinates.dihedral_cosines, coordinates.dihedral_sines).sum(1)
            + self._repulsion_energies(distances).sum(1)
        )
        if self.pair_splines_kJ_per_mol is not None:
            energies = energies + spline_energies(distances, self.pair_splines_kJ_per_mol)[0].sum(1)
        if self.dihedral_couplings_kJ_per_mol is not None:
            turns = torch.complex(coordinates.dihedral_cosines, coordinates.dihedral_sines)
            energies = energies + coupling_energies(turns, self.dihedral_couplings_kJ_per_mol)[0]
        return energies

    def with_rung(self, parts_kJ_per_mol: Mapping[str, Tensor]) -> "Prior":
        """Give the same prior with another linear rung (parts by the names in `RUNG`), or with none of it."""
        terms = {name: getattr(self, name) for name in TERMS}
        return Prior(self.sequence, self.temperature_K, terms | dict(parts_kJ_per_mol))

    def with_terms(self, **terms: Tensor) -> "Prior":
        """Give the same prior, linear rung included, with these buffers in place of its own."""
        return Prior(self.sequence, self.temperature_K, dict(self.named_buffers()) | terms)

    def dihedral_series(self) -> tuple[Float[Tensor, "dihedrals order"], Float[Tensor, "dihedrals order"]]:
        """Cosine and sine coefficients [kJ/mol] of the dihedrals, those of the linear rung included."""
        cosine, sine = self.dihedral_cosine_kJ_per_mol, self.dihedral_sine_kJ_per_mol
        if self.dihedral_series_kJ_per_mol is None:
            return cosine, sine
        return cosine + self.dihedral_series_kJ_per_mol[..., 0], sine + self.dihedral_series_kJ_per_mol[..., 1]

    def forces(self, positions: Float[Tensor, "frames beads 3"]) -> Float[Tensor, "frames beads 3"]:
        """Give the forces [kJ/mol/nm], minus the gradient of the energy."""
        return torch.cat([self._forces(batch) for batch in in_batches(positions)])

    def _forces(self, positions: Tensor) -> Tensor:
        with torch.enable_grad():
            at = positions.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.energy(at).sum(), at)
        return -gradient

    def _dihedral_energies(self, cosines: Tensor, sines: Tensor) -> Tensor:
        """Fourier series by repeated complex multiplication: no inverse trigonometry, hence no singular gradient."""
        real, imaginary = cosines, sines
        energies = torch.zeros_like(cosines)
        even, odd = self.dihedral_series()
        for order in range(even.shape[1]):
            if order:
                real, imaginary = real * cosines - imaginary * sines, real * sines + imaginary * cosines
            energies = energies + even[:, order] * real + odd[:, order] * imaginary
        return energies

    def _repulsion_energies(self, distances_nm: Tensor) -> Tensor:
        return self.repulsion_kJ_per_mol * (self.repulsion_radius_nm / distances_nm).pow(6)


def fit_prior(
    positions: Float32[np.ndarray, "frames beads 3"],
    sequence: str,
    temperature_K: float,
    params: PriorParams,
    *,
    weights: Float64[np.ndarray, " frames"] | None = None,
) -> Prior:
    """Fit every term of the prior to training frames by Boltzmann inversion, term by term.

    Bonds and angles: mean and variance under weights 1/J (J = r^2 and sin theta), k = k_B T / variance. Dihedrals:
    Fourier series, up to `params.dihedral_order`, of -k_B T ln p of a histogram with `params.dihedral_floor` added to
    each bin (so that an unseen angle is unlikely, not forbidden, and no more so for more frames), times
    `params.dihedral_scale`. Repulsion: the radius is a low quantile of all distances |i-j| >= 3, pooled since a pair
    that never met in training may well meet elsewhere, and never above `params.maximum_repulsion_radius_nm`. With
    `weights` each frame counts by its own; but not in the radius, where it is enough that it was seen.

    Raises EmptyTrajectory for fewer than two frames.
    """
    if len(positions) < 2:
        raise EmptyTrajectory(
            f"a prior of {sequence} needs at least 2 frames to fit, got {len(positions)}; import a longer seed"
        )
    energy_kJ_per_mol = thermal_energy_kJ_per_mol(temperature_K)
    coordinates = internal_coordinates(torch.from_numpy(positions.astype(np.float64)))
    bonds, angles = coordinates.bonds_nm.numpy(), coordinates.angles_rad.numpy()
    weights = np.ones(len(positions)) if weights is None else weights / weights.mean()
    bond_mean, bond_variance = _moments(bonds, weights[:, None] / bonds**2)
    angle_mean, angle_variance = _moments(angles, weights[:, None] / np.maximum(np.sin(angles), 1e-3))
    cosine, sine = _fit_dihedrals(dihedral_angles(coordinates), weights, energy_kJ_per_mol, params)
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
    dihedrals_rad: Float64[np.ndarray, "frames dihedrals"],
    weights: Float64[np.ndarray, " frames"],
    energy_kJ_per_mol: float,
    params: PriorParams,
) -> tuple[Float64[np.ndarray, "dihedrals order"], Float64[np.ndarray, "dihedrals order"]]:
    """Cosine and sine coefficients [kJ/mol]; on evenly spaced bins least squares is the discrete Fourier transform."""
    centres, inverted = inverted_dihedrals(
        dihedrals_rad, energy_kJ_per_mol, params.bins, params.dihedral_floor, weights
    )
    phases = centres[:, None] * np.arange(1, params.dihedral_order + 1)
    return 2 / params.bins * inverted @ np.cos(phases), 2 / params.bins * inverted @ np.sin(phases)


def inverted_dihedrals(
    dihedrals_rad: Float64[np.ndarray, "frames dihedrals"],
    energy_kJ_per_mol: float,
    bins: int,
    floor: float,
    weights: Float64[np.ndarray, " frames"] | None,
) -> tuple[Float64[np.ndarray, " bins"], Float64[np.ndarray, "dihedrals bins"]]:
    """Bin centres [rad] and -k_B T ln p [kJ/mol] of each dihedral, `floor` added to the probability of each bin.

    `weights`, if there are any, have a mean of one.
    """
    edges = np.linspace(-np.pi, np.pi, bins + 1)
    counts = np.stack([np.histogram(column, edges, weights=weights)[0] for column in dihedrals_rad.T])
    inverted = -energy_kJ_per_mol * np.log((counts / len(dihedrals_rad) + floor) / (1.0 + bins * floor))
    return (edges[1:] + edges[:-1]) / 2, inverted


def _repulsion_radius(positions: Float32[np.ndarray, "frames beads 3"], params: PriorParams) -> float:
    """Least of the bound and the quantile; of all distances the shortest alone are kept, as many as it needs."""
    beads = positions.shape[1]
    rank = params.repulsion_quantile * (len(positions) * (beads - 3) * (beads - 2) // 2 - 1)
    below, shortest = int(rank), np.zeros(0, dtype=np.float32)
    for batch in in_batches(torch.from_numpy(positions)):
        shortest = np.sort(np.append(shortest, pair_distances(batch, 3).numpy()))[: below + 2]
    quantile = float(np.quantile(shortest[below:].astype(np.float64), rank - below))
    return min(quantile, params.maximum_repulsion_radius_nm)
