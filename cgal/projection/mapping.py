"""Maps from atoms to C-alpha beads: Xi for coordinates, Xi_F for forces.

A linear force map gives unbiased bead forces only if Xi Xi_F^T = I and if atoms tied by rigid constraints share one
weight: only then do the constraint forces, which OpenMM does not report, cancel (Ciccotti, Kapral and Vanden-Eijnden
2005; Kramer et al., J. Phys. Chem. Lett. 2023). Among such maps the one of least variance carries the same mean force
with the least noise. `cgal.projection.local_frames` is a map that is not linear, and has less.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import mdtraj
import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from scipy.linalg import lstsq

from cgal.errors import BadTrajectory, EmptyTrajectory
from cgal.frames import AtomFrames, alpha_carbons, beads_of_residues
from cgal.hdf5 import Hdf5Record, stored
from cgal.params import MappingParams
from cgal.projection.bonds import along_bonds
from cgal.projection.clusters import constrained_clusters
from cgal.projection.local_frames import project_in_local_frames

__all__ = ["ForceMap", "LinearMap", "coordinate_map", "fit_force_map", "noise_figures"]

KINDS = ("slice", "constraint_aware", "optimal", "local_frames")

HELD_OUT_SHARE = 4
"""The last 1/4 of the frames is held out for the figures of a fit."""


@dataclass(frozen=True, eq=False)
class LinearMap:
    """One row of atom weights for each bead."""

    matrix: Float64[np.ndarray, "beads atoms"]

    def __call__(self, values: Float[np.ndarray, "frames atoms 3"]) -> Float32[np.ndarray, "frames beads 3"]:
        """Map atoms to beads (summed in double precision); raises BadTrajectory when the atom counts differ."""
        if values.shape[1] != self.matrix.shape[1]:
            raise BadTrajectory(
                f"the map is for {self.matrix.shape[1]} atoms, the frames have {values.shape[1]}; "
                "use frames of the topology that the map was made from"
            )
        return (self.matrix @ values.astype(np.float64)).astype(np.float32)


@dataclass(frozen=True, eq=False)
class ForceMap(Hdf5Record):
    """Xi_F: bead forces from all-atom frames.

    `kind` is that of `MappingParams.force_map`; `linear` has the weights of a linear kind, and is None for
    `local_frames`, which needs nothing but the frames. `figures` are noise figures [kJ/mol/nm] of all kinds (see
    `fit_force_map`).
    """

    KIND = "force-map"

    kind: str = field(metadata=stored(name="map"))
    linear: LinearMap | None
    figures: dict[str, float] = field(default_factory=dict)

    def __call__(self, frames: AtomFrames) -> Float32[np.ndarray, "frames beads 3"]:
        """Bead forces [kJ/mol/nm].

        Raises BadTrajectory when the frames have another number of atoms than the map, or carry mean forces that were
        not averaged on the beads and the map depends on where each atom was.
        """
        if self.linear is not None:
            return self.linear(frames.forces)
        if frames.bead_forces is not None:
            return frames.bead_forces
        if frames.provenance.get("forces") == "mean":
            raise BadTrajectory(
                "these mean forces are from before they were averaged on the beads too, as the force map local_frames "
                "needs them; label the frames again, or set mapping.force_map to optimal"
            )
        return project_in_local_frames(frames, constrained_clusters(frames.topology))

    @classmethod
    def _upgrade(cls, content: dict[str, Any]) -> dict[str, Any]:
        prefix = "rms_kJ_per_mol_nm_"
        figures = {name.removeprefix(prefix): rms for name, rms in content.items() if name.startswith(prefix)}
        return content | {"figures": json.dumps(figures)}


def coordinate_map(topology: mdtraj.Topology) -> LinearMap:
    """Xi: each bead is its residue's C-alpha; raises BadStructure when a residue has none."""
    return LinearMap(_slice(topology))


def fit_force_map(frames: AtomFrames, params: MappingParams) -> ForceMap:
    """Xi_F of the kind that `params.force_map` names, from equilibrium frames with instantaneous forces [kJ/mol/nm].

    `slice` takes the C-alpha forces alone (not valid under constraints, kept for comparison with the paper);
    `constraint_aware` sums each C-alpha with its hydrogens; `optimal` minimises the mean squared bead force
    over the frames; `local_frames` moves other atoms with the beads as rigid groups (`cgal.projection.local_frames`).

    The figures of the result are noise figures of all four kinds on the last quarter of the frames, `optimal` being
    fitted on the others for that purpose. Raises EmptyTrajectory when there are fewer than two frames.
    """
    if len(frames) < 2:
        raise EmptyTrajectory(f"a force map needs at least 2 frames with forces, got {len(frames)}")
    split = len(frames) - max(1, len(frames) // HELD_OUT_SHARE)
    first, last = frames.take(np.arange(split)), frames.take(np.arange(split, len(frames)))
    trial = [_fit(kind, first, params.ridge) for kind in KINDS]
    fitted = _fit(params.force_map, frames, params.ridge)
    return ForceMap(fitted.kind, fitted.linear, noise_figures(trial, last))


def noise_figures(maps: Sequence[ForceMap], frames: AtomFrames) -> dict[str, float]:
    """Root mean square component of the bead forces across the CA-CA bonds under each map [kJ/mol/nm], by kind of map.

    All valid maps agree in the mean force at fixed beads, so what one has more than another is noise. Forces along the
    bonds are left out: the prior's stiff springs carry them, and they would hide what a network is to learn.
    """
    beads = torch.from_numpy(coordinate_map(frames.topology)(frames.positions))
    forces = {each.kind: torch.from_numpy(each(frames)) for each in maps}
    return {kind: float((found - along_bonds(beads, found)).square().mean().sqrt()) for kind, found in forces.items()}


def _fit(kind: str, frames: AtomFrames, ridge: float) -> ForceMap:
    if kind == "local_frames":
        return ForceMap(kind, None)
    if kind == "slice":
        return ForceMap(kind, LinearMap(_slice(frames.topology)))
    clusters = _cluster_sums(frames.topology)
    weights = _slice(frames.topology) @ clusters.T
    if kind == "optimal":
        weights = _least_squares(weights, _residue_sums(frames.topology, clusters), clusters @ frames.forces, ridge)
    return ForceMap(kind, LinearMap(weights @ clusters))


def _least_squares(
    weights: Float64[np.ndarray, "beads clusters"],
    guess: Float64[np.ndarray, "beads clusters"],
    forces: Float[np.ndarray, "frames clusters 3"],
    ridge: float,
) -> Float64[np.ndarray, "beads clusters"]:
    """Weights of least mean squared bead force, those of clusters with a C-alpha held at 0 or 1.

    The ridge draws them towards `guess`, relative to the mean squared force of a free cluster. Rows of `guess`
    sum, over beads, to one for each cluster, and so do the result's: bead forces add up to zero when atom forces do.
    """
    free = ~weights.any(axis=0)
    start = np.where(free, guess, weights)
    samples = np.moveaxis(forces, 1, 0).reshape(len(free), -1).astype(np.float64)
    gram = samples @ samples.T / samples.shape[1]
    damping = ridge * np.trace(gram[np.ix_(free, free)]) / free.sum()
    left = gram[np.ix_(free, free)] + damping * np.eye(free.sum())
    correction: Float64[np.ndarray, "free beads"] = lstsq(left, gram[free] @ start.T)[0]
    start[:, free] -= correction.T
    return start


def _slice(topology: mdtraj.Topology) -> Float64[np.ndarray, "beads atoms"]:
    carbons = alpha_carbons(topology)
    matrix = np.zeros((len(carbons), topology.n_atoms))
    matrix[np.arange(len(carbons)), carbons] = 1.0
    return matrix


def _cluster_sums(topology: mdtraj.Topology) -> Float64[np.ndarray, "clusters atoms"]:
    clusters = constrained_clusters(topology)
    matrix = np.zeros((len(clusters), topology.n_atoms))
    for row, members in zip(matrix, clusters, strict=True):
        row[members] = 1.0
    return matrix


def _residue_sums(
    topology: mdtraj.Topology, clusters: Float64[np.ndarray, "clusters atoms"]
) -> Float64[np.ndarray, "beads clusters"]:
    """One where the cluster lies in the bead's residue or its cap: their whole force is the guess for its bead's."""
    beads = beads_of_residues(topology)[[atom.residue.index for atom in topology.atoms]]
    of_cluster = beads[clusters.argmax(axis=1)]
    matrix = np.zeros((beads.max() + 1, len(clusters)))
    matrix[of_cluster, np.arange(len(clusters))] = 1.0
    return matrix
