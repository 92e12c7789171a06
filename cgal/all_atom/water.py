"""A cube of explicit water about a protein, of the same molecules whatever the protein's shape.

How many there are follows from the density of water and the protein's partial specific volume, so that all frames of a
protein have one topology: the protein's atoms, ions that make it neutral, water. Molecules come from OpenMM's
equilibrated water, laid out a little too densely: those that the protein overlaps make room for it, nearest first, and
then any others until the number is right.
"""

from functools import lru_cache

import numpy as np
import openmm
from jaxtyping import Float64, Shaped
from openmm import app, unit
from scipy.spatial import KDTree
from scipy.spatial.distance import pdist

from cgal.errors import BadStructure

__all__ = ["fill", "require_room", "with_water"]

DENSITY_per_nm3 = 33.3
"""Molecules of water at 300 K and 1 bar, 0.996 g/cm3, to which TIP3P-FB was fitted (Wang, Martinez and Pande 2014)."""

SOLUTE_nm3_per_amu = 1.21e-3
"""The usual partial specific volume of proteins, 0.73 cm3/g."""

COMPRESSION = 1.03
"""By how much the layout is denser along each axis: water that is cut to a box loses molecules at its faces."""

CONTACT_nm = 0.28
"""Least distance of an oxygen from a heavy atom of the protein, if the number of molecules allows it."""

IONS = {"NA": app.element.sodium, "CL": app.element.chlorine}

IMAGE_GAP_nm = 1.0
"""Least distance of a protein from its periodic images: the cutoff of direct interactions."""


def with_water(topology: app.Topology, forcefield: app.ForceField, edge_nm: float) -> app.Topology:
    """The topology with a periodic cube of water, after its own atoms: sodium or chloride to neutrality, then water.

    Raises BadStructure when the protein has no room in it, ValueError when the force field cannot take it.
    """
    dry = forcefield.createSystem(topology)
    charge = round(sum(_charges(dry)))
    mass_amu = sum(atom.element.mass.value_in_unit(unit.dalton) for atom in topology.atoms())
    waters = round(DENSITY_per_nm3 * (edge_nm**3 - SOLUTE_nm3_per_amu * mass_amu)) - abs(charge)
    if waters <= 0:
        raise BadStructure(f"the protein fills a cube of {edge_nm:g} nm; raise force_field.water.box_nm")
    modeller = app.Modeller(topology, np.zeros((topology.getNumAtoms(), 3)) * unit.nanometer)
    modeller.add(solvent := _solvent(waters, charge), np.zeros((solvent.getNumAtoms(), 3)) * unit.nanometer)
    modeller.topology.setPeriodicBoxVectors(edge_nm * np.eye(3) * unit.nanometer)
    return modeller.topology


def _charges(system: openmm.System) -> list[float]:
    force = next(force for force in system.getForces() if isinstance(force, openmm.NonbondedForce))
    return [
        force.getParticleParameters(index)[0].value_in_unit(unit.elementary_charge)
        for index in range(force.getNumParticles())
    ]


def _solvent(waters: int, charge: int) -> app.Topology:
    """Ions against a charge, then water."""
    topology = app.Topology()
    chain = topology.addChain()
    name = "CL" if charge > 0 else "NA"
    for _ in range(abs(charge)):
        topology.addAtom(name, IONS[name], topology.addResidue(name, chain))
    for _ in range(waters):
        residue = topology.addResidue("HOH", chain)
        oxygen = topology.addAtom("O", app.element.oxygen, residue)
        for hydrogen in ("H1", "H2"):
            topology.addBond(oxygen, topology.addAtom(hydrogen, app.element.hydrogen, residue))
    return topology


def fill(
    positions: Shaped[np.ndarray, "atoms 3"], topology: app.Topology, *, seed: int
) -> Float64[np.ndarray, "particles 3"]:
    """Positions [nm] of all atoms of a topology with water: the protein's, left where they are, and others about them.

    Raises BadStructure as `require_room`.
    """
    edge_nm = float(topology.getUnitCellDimensions().value_in_unit(unit.nanometer)[0])
    require_room(positions, edge_nm)
    atoms = list(topology.atoms())
    heavy = [atom.index for atom in atoms[: len(positions)] if atom.element != app.element.hydrogen]
    needed = len({atom.residue.index for atom in atoms[len(positions) :]})
    ions = sum(atom.residue.name in IONS for atom in atoms[len(positions) :])
    middle = 0.5 * (positions.min(axis=0) + positions.max(axis=0))
    waters = _layout(edge_nm) + middle
    occupied = KDTree(_wrapped(positions[heavy], edge_nm), boxsize=np.full(3, edge_nm))
    distance_nm, _ = occupied.query(_wrapped(waters[:, 0], edge_nm))
    chance = np.random.default_rng(seed).random(len(waters))
    order = np.lexsort((chance, np.minimum(distance_nm, CONTACT_nm)))[::-1][:needed]
    return np.concatenate([positions, waters[order[:ions], 0], waters[order[ions:]].reshape(-1, 3)], dtype=np.float64)


def require_room(positions: Shaped[np.ndarray, "atoms 3"], edge_nm: float) -> None:
    """Raise BadStructure, for good, when a protein could come too near to its images in a cube by turning.

    Says which edge would do.
    """
    length_nm = pdist(positions).max()
    if length_nm + IMAGE_GAP_nm > edge_nm:
        enough_nm = np.ceil(10 * (length_nm + IMAGE_GAP_nm)) / 10
        error = BadStructure(
            f"the chain is {length_nm:.2f} nm long, and in a cube of {edge_nm:g} nm it can come within "
            f"{IMAGE_GAP_nm:g} nm of its own image as it turns; raise force_field.water.box_nm "
            f"({enough_nm:g} would hold it)"
        )
        error.permanent = True
        raise error


@lru_cache(maxsize=2)
def _layout(edge_nm: float) -> Float64[np.ndarray, "waters 3 3"]:
    """Oxygen and hydrogens [nm] of the molecules in a cube about the origin, moved together from a larger one."""
    modeller = app.Modeller(app.Topology(), [] * unit.nanometer)
    box = openmm.Vec3(1, 1, 1) * (COMPRESSION * edge_nm) * unit.nanometer
    modeller.addSolvent(app.ForceField("amber14/tip3pfb.xml"), model="tip3p", boxSize=box, neutralize=False)
    atoms = np.array(modeller.positions.value_in_unit(unit.nanometer)).reshape(-1, 3, 3)
    moved: Float64[np.ndarray, "waters 3 3"] = atoms + atoms[:, :1] * (1 / COMPRESSION - 1)
    return moved


def _wrapped(positions: Shaped[np.ndarray, "points 3"], edge_nm: float) -> Shaped[np.ndarray, "points 3"]:
    return positions % edge_nm % edge_nm  # the remainder of -1e-20 is the edge itself
