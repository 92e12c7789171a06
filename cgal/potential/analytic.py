"""The prior and its gradient written out by hand, for simulation; `Prior` is the definition, and the tests compare."""

from typing import NamedTuple

import torch
from jaxtyping import Complex64, Float32
from torch import Tensor, nn

from cgal.potential.dihedral_couplings import coupling_energies
from cgal.potential.geometry import COLLINEAR_nm2, pairs
from cgal.potential.pair_splines import spline_energies
from cgal.potential.prior import Prior

__all__ = ["BendTerms", "PairTerms"]


class PairTerms(nn.Module):
    """Terms of the prior that depend on one distance each: bonds, repulsion and, where it has them, splines.

    Every pair of beads has all parameters, zero where a term does not apply.
    """

    stiffness_kJ_per_mol_nm2: Tensor
    length_nm: Tensor
    repulsion_kJ_nm6_per_mol: Tensor
    splines_kJ_per_mol: Tensor | None

    def __init__(self, prior: Prior) -> None:
        super().__init__()
        first, second = pairs(len(prior.sequence), 1, torch.device("cpu"))
        bonded = second - first == 1
        stiffness, length = torch.zeros(2, len(first))
        stiffness[bonded] = prior.bond_stiffness_kJ_per_mol_nm2.float().cpu()
        length[bonded] = prior.bond_length_nm.float().cpu()
        strength = (prior.repulsion_kJ_per_mol.double() * prior.repulsion_radius_nm.double().pow(6)).float().cpu()
        self.register_buffer("stiffness_kJ_per_mol_nm2", stiffness)
        self.register_buffer("length_nm", length)
        self.register_buffer("repulsion_kJ_nm6_per_mol", (second - first >= 3) * strength)
        splines = prior.pair_splines_kJ_per_mol
        if splines is not None:
            coefficients = torch.zeros(len(first), splines.shape[1])
            coefficients[second - first >= 3] = splines.float().cpu()
            splines = coefficients
        self.register_buffer("splines_kJ_per_mol", splines)

    def forward(
        self, distances: Float32[Tensor, "frames pairs"]
    ) -> tuple[Float32[Tensor, " frames"], Float32[Tensor, "frames pairs"]]:
        """Energies [kJ/mol] and their slopes along each distance [kJ/mol/nm]."""
        stretch = distances - self.length_nm
        tension = self.stiffness_kJ_per_mol_nm2 * stretch
        cube = distances * distances * distances
        repulsion = self.repulsion_kJ_nm6_per_mol / (cube * cube)
        slopes = torch.addcdiv(tension, repulsion, distances, value=-6.0)
        energies = repulsion.addcmul_(tension, stretch, value=0.5)
        if self.splines_kJ_per_mol is not None:
            spline, along = spline_energies(distances, self.splines_kJ_per_mol)
            energies += spline
            slopes += along
        return energies.sum(1), slopes


class Dihedrals(NamedTuple):
    """Energies of the dihedral terms, and their gradients along what `BendTerms` computes anyway."""

    energies: Float32[Tensor, " frames"]
    along_sines: Float32[Tensor, "frames angles"]
    along_normals: Float32[Tensor, "frames 3 angles"]
    along_bonds: Float32[Tensor, "frames 3 bonds"]


class BendTerms(nn.Module):
    """Terms of the prior that depend on the directions of bonds: angles and dihedrals.

    The coordinates are those of `internal_coordinates`, rounded off near collinear bonds in the same way. A dihedral
    series is the real part of sum_n (a_n - i b_n) z^n with z = cos phi + i sin phi; neighbouring dihedrals may be
    coupled (`cgal.potential.dihedral_couplings`).
    """

    angle_rad: Tensor
    angle_stiffness_kJ_per_mol_rad2: Tensor
    series_kJ_per_mol: Tensor
    couplings_kJ_per_mol: Tensor | None

    def __init__(self, prior: Prior) -> None:
        super().__init__()
        cosine, sine = prior.dihedral_series()
        series = torch.complex(cosine.float(), -sine.float())
        couplings = prior.dihedral_couplings_kJ_per_mol
        self.register_buffer("angle_rad", prior.angle_rad.float().clone())
        self.register_buffer("angle_stiffness_kJ_per_mol_rad2", prior.angle_stiffness_kJ_per_mol_rad2.float().clone())
        self.register_buffer("series_kJ_per_mol", series)
        self.register_buffer("couplings_kJ_per_mol", None if couplings is None else couplings.float().clone())

    def forward(
        self, bonds: Float32[Tensor, "frames 3 bonds"], lengths: Float32[Tensor, "frames bonds"]
    ) -> tuple[Float32[Tensor, " frames"], Float32[Tensor, "frames 3 bonds"]]:
        """Energies [kJ/mol] and their gradients along each bond vector [kJ/mol/nm]."""
        before, after = bonds[:, :, :-1], bonds[:, :, 1:]
        normals = torch.linalg.cross(before, after, dim=1)
        squares = normals.square().sum(1) + COLLINEAR_nm2**2
        sines, cosines = squares.sqrt(), -(before * after).sum(1)

        bend = torch.atan2(sines, cosines) - self.angle_rad
        torque = self.angle_stiffness_kJ_per_mol_rad2 * bend
        energies, along_sines, along_normals, along_bonds = self._dihedrals(bonds, lengths, normals, sines)
        energies += (torque * bend).sum(1) / 2

        torque /= squares + cosines.square()
        along_sines += torque * cosines
        along_normals += (along_sines / sines)[:, None] * normals
        along_product = (torque * sines)[:, None]
        along_bonds[:, :, :-1] += torch.linalg.cross(after, along_normals, dim=1).addcmul_(along_product, after)
        along_bonds[:, :, 1:] += torch.linalg.cross(along_normals, before, dim=1).addcmul_(along_product, before)
        return energies, along_bonds

    def _dihedrals(self, bonds: Tensor, lengths: Tensor, normals: Tensor, sines: Tensor) -> Dihedrals:
        """Chain rule through z = (left . right + i |middle| start . right) / (|left| |right|)."""
        start, middle_length = bonds[:, :, :-2], lengths[:, 1:-1]
        left, right = normals[:, :, :-1], normals[:, :, 1:]
        norm = sines[:, :-1] * sines[:, 1:]
        triple_product = (start * right).sum(1)
        z = torch.complex((left * right).sum(1) / norm, triple_product * middle_length / norm)
        energies, slopes = self._series(z)
        if self.couplings_kJ_per_mol is not None:
            coupled, along = coupling_energies(z, self.couplings_kJ_per_mol)
            energies, slopes = energies + coupled, slopes + along

        radial_slope = (slopes * z).real
        along_real, along_imaginary = slopes.real / norm, -slopes.imag / norm
        along_triple_product = (along_imaginary * middle_length)[:, None]
        gradient = Dihedrals(energies, torch.zeros_like(sines), torch.zeros_like(normals), torch.zeros_like(bonds))
        gradient.along_sines[:, :-1] -= radial_slope / sines[:, :-1]
        gradient.along_sines[:, 1:] -= radial_slope / sines[:, 1:]
        gradient.along_normals[:, :, :-1] += along_real[:, None] * right
        gradient.along_normals[:, :, 1:] += (along_real[:, None] * left).addcmul_(along_triple_product, start)
        gradient.along_bonds[:, :, :-2] += along_triple_product * right
        gradient.along_bonds[:, :, 1:-1] += (along_imaginary * triple_product / middle_length)[:, None] * bonds[
            :, :, 1:-1
        ]
        return gradient

    def _series(
        self, z: Complex64[Tensor, "frames dihedrals"]
    ) -> tuple[Float32[Tensor, " frames"], Complex64[Tensor, "frames dihedrals"]]:
        """Energies [kJ/mol] of each frame, and the complex slope of the series at each z (Horner's scheme)."""
        value, slope = torch.zeros_like(z), torch.zeros_like(z)
        for order in reversed(range(self.series_kJ_per_mol.shape[1])):
            value = value + self.series_kJ_per_mol[:, order]
            slope = slope * z + value
            value = value * z
        return value.real.sum(1), slope
