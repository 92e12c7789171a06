"""Is an all-atom structure a sound molecule? Chirality, clashes, stretched bonds and cis peptide bonds.

Each function returns what it found as a tuple of short phrases that name the atoms, empty when all is well.
Positions in nm; topologies are OpenMM's.
"""

import numpy as np
import openmm
from jaxtyping import Bool, Float64, Int, Shaped
from openmm import app, unit
from scipy.spatial import KDTree

__all__ = [
    "are_cis",
    "chiral_centres",
    "cis_peptide_bonds",
    "clashes",
    "faults",
    "handedness_nm3",
    "heavy_atoms",
    "peptide_bonds",
    "stretched_bonds",
    "wrong_handed_centres",
]

STRETCH_nm = 0.03
"""A bond this much off its force-field length is broken or runs through a ring: seven standard deviations at 350 K."""

SIDE_CHAIN_CENTRES = {"THR": ("CB", "CA", "OG1", "CG2"), "ILE": ("CB", "CA", "CG1", "CG2")}


def faults(
    topology: app.Topology, system: openmm.System, positions: Shaped[np.ndarray, "atoms 3"], *, clash_nm: float
) -> tuple[str, ...]:
    """All faults of a structure: not finite, wrong handedness, clashes, stretched bonds."""
    if not np.isfinite(positions).all():
        return ("positions that are not finite",)
    return (
        wrong_handed_centres(topology, positions)
        + stretched_bonds(topology, system, positions)
        + clashes(topology, positions, clash_nm=clash_nm)
    )


def wrong_handed_centres(topology: app.Topology, positions: Shaped[np.ndarray, "atoms 3"]) -> tuple[str, ...]:
    """Residues that are not L at C-alpha, and threonines and isoleucines with the other epimer's C-beta.

    For L residues (N - CA) x (C - CA) . (CB - CA) is positive; for (2S,3R)-threonine and (2S,3S)-isoleucine
    the like product of the C-beta's neighbours, in the order of `SIDE_CHAIN_CENTRES`, is positive too.
    """
    labels, atoms = chiral_centres(topology)
    wrong = handedness_nm3(positions[None], atoms)[0] <= 0
    return tuple(f"wrong handedness at {label}" for label, is_wrong in zip(labels, wrong, strict=True) if is_wrong)


def chiral_centres(topology: app.Topology) -> tuple[tuple[str, ...], Int[np.ndarray, "centres 4"]]:
    """Where handedness is known, as phrases, and the atoms: the centre, then three of its neighbours."""
    labels, atoms = [], []
    for residue in topology.residues():
        index = {atom.name: atom.index for atom in residue.atoms()}
        for names in (("CA", "N", "C", "CB"), SIDE_CHAIN_CENTRES.get(residue.name, ())):
            if names and all(name in index for name in names):
                labels.append(f"{names[0]} of {_label(residue)}")
                atoms.append([index[name] for name in names])
    return tuple(labels), np.array(atoms, dtype=int).reshape(-1, 4)


def handedness_nm3(
    positions: Shaped[np.ndarray, "frames atoms 3"], centres: Int[np.ndarray, "centres 4"]
) -> Float64[np.ndarray, "frames centres"]:
    """Volume that three neighbours span around each centre: positive in the proteins of nature, negative mirrored."""
    corners = positions[:, centres].astype(np.float64)
    first, second, third = np.moveaxis(corners[:, :, 1:] - corners[:, :, :1], 2, 0)
    return np.asarray((np.cross(first, second) * third).sum(axis=-1))


def stretched_bonds(
    topology: app.Topology, system: openmm.System, positions: Shaped[np.ndarray, "atoms 3"]
) -> tuple[str, ...]:
    """Bonds between heavy atoms that are more than `STRETCH_nm` off their force-field length."""
    force = next(force for force in system.getForces() if isinstance(force, openmm.HarmonicBondForce))
    heavy = heavy_atoms(topology)
    atoms = list(topology.atoms())
    found = []
    for bond in range(force.getNumBonds()):
        first, second, length, _ = force.getBondParameters(bond)
        measured = float(np.linalg.norm(positions[first].astype(np.float64) - positions[second]))
        if heavy[first] and heavy[second] and abs(measured - length.value_in_unit(unit.nanometer)) > STRETCH_nm:
            found.append(f"stretched bond {_name(atoms[first])} to {_name(atoms[second])} of {measured:.3f} nm")
    return tuple(found)


def clashes(topology: app.Topology, positions: Shaped[np.ndarray, "atoms 3"], *, clash_nm: float) -> tuple[str, ...]:
    """Pairs of heavy atoms without a bond that are closer than `clash_nm`."""
    chosen = np.flatnonzero(heavy_atoms(topology))
    bonded = {frozenset((first.index, second.index)) for first, second in topology.bonds()}
    atoms = list(topology.atoms())
    pairs = chosen[KDTree(positions[chosen]).query_pairs(clash_nm, output_type="ndarray")]
    return tuple(
        f"clash of {_name(atoms[first])} with {_name(atoms[second])}"
        for first, second in sorted(map(tuple, pairs.tolist()))
        if frozenset((first, second)) not in bonded
    )


def cis_peptide_bonds(topology: app.Topology, positions: Shaped[np.ndarray, "atoms 3"]) -> tuple[str, ...]:
    """Peptide bonds whose omega is within 90 degrees of cis."""
    labels, atoms = peptide_bonds(topology)
    return tuple(
        f"cis peptide bond before {label}"
        for label, cis in zip(labels, are_cis(positions[None], atoms)[0], strict=True)
        if cis
    )


def peptide_bonds(topology: app.Topology) -> tuple[tuple[str, ...], Int[np.ndarray, "bonds 4"]]:
    """Residue after each peptide bond between amino acids, and the atoms CA, C, N, CA."""
    index = {(atom.residue.index, atom.name): atom.index for atom in topology.atoms()}
    labels, atoms = [], []
    for first, second in topology.bonds():
        carbon, nitrogen = (first, second) if first.name == "C" else (second, first)
        ends = (carbon.residue.index, "CA"), (nitrogen.residue.index, "CA")
        if (carbon.name, nitrogen.name) == ("C", "N") and all(end in index for end in ends):
            labels.append(_label(nitrogen.residue))
            atoms.append([index[ends[0]], carbon.index, nitrogen.index, index[ends[1]]])
    return tuple(labels), np.array(atoms, dtype=int).reshape(-1, 4)


def are_cis(
    positions: Shaped[np.ndarray, "frames atoms 3"], bonds: Int[np.ndarray, "bonds 4"]
) -> Bool[np.ndarray, "frames bonds"]:
    """Which peptide bonds are within 90 degrees of cis."""
    before, carbon, nitrogen, after = np.moveaxis(positions[:, bonds].astype(np.float64), 2, 0)
    axis = nitrogen - carbon
    return np.asarray((np.cross(before - carbon, axis) * np.cross(after - nitrogen, axis)).sum(axis=-1) > 0)


def heavy_atoms(topology: app.Topology) -> Bool[np.ndarray, " atoms"]:
    """Which atoms are no hydrogens."""
    return np.array([atom.element is not None and atom.element.symbol != "H" for atom in topology.atoms()], dtype=bool)


def _label(residue: app.topology.Residue) -> str:
    return f"{residue.name} {residue.id}"


def _name(atom: app.topology.Atom) -> str:
    return f"{atom.name} of {_label(atom.residue)}"
