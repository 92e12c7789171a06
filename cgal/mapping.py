"""Linear maps from atoms to C-alpha beads: Xi for coordinates, Xi_F for forces.

A force map gives unbiased bead forces only if Xi Xi_F^T = I and if atoms tied by rigid constraints share one weight:
only then do the constraint forces, which OpenMM does not report, cancel (Ciccotti, Kapral and Vanden-Eijnden 2005;
Kramer et al., J. Phys. Chem. Lett. 2023). Among such maps the one of least variance carries the same mean force with
the least noise.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import mdtraj
import numpy as np
from jaxtyping import Float, Float32, Float64, Int
from scipy.linalg import lstsq

from cgal.errors import BadStructure, BadTrajectory, EmptyTrajectory
from cgal.files import decode, read_hdf5, write_hdf5
from cgal.frames import alpha_carbons
from cgal.params import MappingParams

__all__ = ["LinearMap", "constrained_clusters", "coordinate_map", "fit_force_map", "noise_figures"]

HELD_OUT_SHARE = 4
"""The last 1/4 of the frames is held out for the figures of a fit."""


@dataclass(frozen=True, eq=False)
class LinearMap:
    """One row of atom weights for each bead.

    `kind` is "coordinates", "slice", "constraint_aware" or "optimal"; `figures` are the noise figures of a force map
    [kJ/mol/nm], by kind of map (see `fit_force_map`).
    """

    kind: str
    matrix: Float64[np.ndarray, "beads atoms"]
    figures: dict[str, float] = field(default_factory=dict)

    def __call__(self, values: Float[np.ndarray, "frames atoms 3"]) -> Float32[np.ndarray, "frames beads 3"]:
        """Map atoms to beads (summed in double precision); raises BadTrajectory when the atom counts differ."""
        if values.shape[1] != self.matrix.shape[1]:
            raise BadTrajectory(
                f"the {self.kind} map is for {self.matrix.shape[1]} atoms, the frames have {values.shape[1]}; "
                "use frames of the topology that the map was made from"
            )
        return (self.matrix @ values.astype(np.float64)).astype(np.float32)

    def save(self, path: Path) -> None:
        """Write HDF5, the noise figures as attributes."""
        figures = {f"rms_kJ_per_mol_nm_{kind}": rms for kind, rms in self.figures.items()}
        write_hdf5(path, {"matrix": self.matrix}, {"cgal_kind": "force-map", "map": self.kind, **figures})

    @classmethod
    def load(cls, path: Path) -> "LinearMap":
        """Read what `save` wrote; raises BadFile."""
        prefix = "rms_kJ_per_mol_nm_"
        with read_hdf5(path, "force-map") as handle:
            figures = {key.removeprefix(prefix): float(rms) for key, rms in handle.attrs.items() if prefix in key}
            return cls(decode(handle.attrs["map"]), handle["matrix"][:], figures)


def coordinate_map(topology: mdtraj.Topology) -> LinearMap:
    """Xi: each bead is its residue's C-alpha; raises BadStructure when a residue has none."""
    return LinearMap("coordinates", _slice(topology))


def constrained_clusters(topology: mdtraj.Topology) -> tuple[Int[np.ndarray, " members"], ...]:
    """Atoms that H-bond constraints tie together: each heavy atom with its hydrogens, in order of the heavy atoms.

    Every atom is in exactly one cluster. Raises BadStructure for a hydrogen that is bonded to no heavy atom.
    """
    members = {atom.index: [atom.index] for atom in topology.atoms if not _is_hydrogen(atom)}
    for bond in topology.bonds:
        heavy, hydrogen = sorted(bond, key=_is_hydrogen)
        if _is_hydrogen(hydrogen) and not _is_hydrogen(heavy):
            members[heavy.index].append(hydrogen.index)
    tied = {index for cluster in members.values() for index in cluster}
    for atom in topology.atoms:
        if atom.index not in tied:
            raise BadStructure(f"hydrogen {atom} has no bond to a heavy atom; give a topology with standard atom names")
    return tuple(np.sort(cluster) for cluster in members.values())


def fit_force_map(
    topology: mdtraj.Topology, forces: Float[np.ndarray, "frames atoms 3"], params: MappingParams
) -> LinearMap:
    """Xi_F of the kind that `params.force_map` names.

    `slice` takes the C-alpha forces alone (not valid under constraints, kept for comparison with the paper);
    `constraint_aware` sums each C-alpha with its hydrogens; `optimal` minimises the mean squared bead force
    over the instantaneous `forces` [kJ/mol/nm] of equilibrium frames.

    The figures of the result are rms bead forces of all three kinds on the last quarter of the frames, `optimal` being
    fitted on the others for that purpose. Raises EmptyTrajectory when there are fewer than two frames.
    """
    if len(forces) < 2:
        raise EmptyTrajectory(f"a force map needs at least 2 frames with forces, got {len(forces)}")
    split = len(forces) - max(1, len(forces) // HELD_OUT_SHARE)
    trial = [_fit(kind, topology, forces[:split], params.ridge) for kind in ("slice", "constraint_aware", "optimal")]
    fitted = _fit(params.force_map, topology, forces, params.ridge)
    return LinearMap(fitted.kind, fitted.matrix, noise_figures(trial, forces[split:]))


def noise_figures(maps: Sequence[LinearMap], forces: Float[np.ndarray, "frames atoms 3"]) -> dict[str, float]:
    """Root mean square bead force component under each map [kJ/mol/nm], by kind of map.

    All valid maps agree in the mean force at fixed beads, so what one has more than another is noise.
    """
    return {each.kind: float(np.sqrt(np.mean(each(forces).astype(np.float64) ** 2))) for each in maps}


def _fit(kind: str, topology: mdtraj.Topology, forces: Float[np.ndarray, "frames atoms 3"], ridge: float) -> LinearMap:
    if kind == "slice":
        return LinearMap(kind, _slice(topology))
    clusters = _cluster_sums(topology)
    weights = _slice(topology) @ clusters.T
    if kind == "optimal":
        weights = _least_squares(weights, _residue_sums(topology, clusters), clusters @ forces, ridge)
    return LinearMap(kind, weights @ clusters)


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
) -> Float64[np.ndarray, "residues clusters"]:
    """One where the cluster lies in the residue: the whole residue's force is the guess for its bead's."""
    residues = np.array([atom.residue.index for atom in topology.atoms])
    of_cluster = residues[clusters.argmax(axis=1)]
    matrix = np.zeros((topology.n_residues, len(clusters)))
    matrix[of_cluster, np.arange(len(clusters))] = 1.0
    return matrix


def _is_hydrogen(atom: mdtraj.core.topology.Atom) -> bool:
    return bool(atom.element.symbol == "H")
