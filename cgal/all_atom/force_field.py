"""The all-atom physics that reference and oracle share: OpenMM systems, platforms and forces.

Units are those of OpenMM: nm, ps, kJ/mol, amu, K.
"""

import os
from functools import lru_cache
from io import StringIO

import numpy as np
import openmm
from jaxtyping import Float32, Float64, Shaped
from openmm import app, unit

from cgal.all_atom.born import with_compiled_born
from cgal.all_atom.water import with_water
from cgal.errors import BadParams, BadStructure
from cgal.params import ForceFieldParams
from cgal.progress import Progress, silent
from cgal.residues import RESIDUE_NAMES

__all__ = [
    "FORCE_UNIT",
    "build_system",
    "choose_platform",
    "forces_of",
    "hold_alpha_carbons_of",
    "make_context",
    "positions_of",
    "read_structure",
    "recompute_forces",
    "require_implicit",
    "with_solvent",
    "write_structure",
]

PROTEIN_FILES = {"ff96": "amber96.xml", "ff14SB": "amber14/protein.ff14SB.xml", "amber14": "amber14-all.xml"}
SOLVENT_FILES = {"obc2": "implicit/obc2.xml", "gbn2": "implicit/gbn2.xml", "tip3pfb": "amber14/tip3pfb.xml"}
OBC_OFFSET_nm = 0.009
WATER_DIELECTRIC = 78.5
PME_CUTOFF_nm = 1.0
FASTEST_FIRST = ("CUDA", "OpenCL", "CPU", "Reference")
PLATFORM_PROPERTIES = {
    "CUDA": {"Precision": "mixed", "DeterministicForces": "true"},
    "OpenCL": {"Precision": "mixed"},
    "CPU": {"Threads": "1", "DeterministicForces": "true"},
    "Reference": {},
}
FORCE_UNIT = unit.kilojoule_per_mole / unit.nanometer


def read_structure(pdb: str) -> tuple[app.Topology, Float64[np.ndarray, "atoms 3"]]:
    """Topology and positions [nm] of PDB text; raises BadStructure when it is no PDB or holds no atom."""
    try:
        structure = app.PDBFile(StringIO(pdb))
    except Exception as error:  # OpenMM's parser fails in many ways on a file that is no PDB
        raise BadStructure(f"the structure is no readable PDB ({error}); give a PDB file of the protein") from error
    if structure.topology.getNumAtoms() == 0:
        raise BadStructure("the structure holds no atom; give a PDB file of the protein")
    return structure.topology, structure.getPositions(asNumpy=True).value_in_unit(unit.nanometer)


def write_structure(topology: app.Topology, positions: Shaped[np.ndarray, "atoms 3"]) -> str:
    """PDB text of a structure, positions in nm."""
    stream = StringIO()
    app.PDBFile.writeModel(topology, np.asarray(positions, dtype=np.float64) * unit.nanometer, stream, keepIds=True)
    stream.write("END\n")
    return stream.getvalue()


def build_system(
    topology: app.Topology, params: ForceFieldParams, *, hold_alpha_carbons: bool = False
) -> openmm.System:
    """OpenMM system of a protein: H-bond constraints, heavy hydrogens, no thermostat or barostat in it.

    Implicit solvents have no cutoff and no box. `obc2` (Onufriev, Bashford and Case 2004) is the native
    GBSAOBCForce, which agrees with OpenMM's XML form of the same model; `gbn2` (Nguyen, Roe and Simmerling 2013) is
    OpenMM's XML form. `make_context` makes both several times as fast on a CPU.
    `tip3pfb` (Wang, Martinez and Pande 2014) is explicit water with particle-mesh Ewald: the system has the protein's
    atoms first, then the ions and water of `cgal.all_atom.water`, whose number depends on the topology alone.

    `hold_alpha_carbons` makes every C-alpha massless, so that it stays where it is. A massless atom cannot be
    constrained: its C-H constraints become the force field's own harmonic bonds, and such a system needs a shorter
    time step.

    Raises BadStructure, naming the residue, when the force field has no parameters for the structure.
    """
    forcefield = load_forcefield(params.name, params.solvent)
    try:
        whole = with_solvent(topology, params)
        system = _create_system(forcefield, whole, params, app.HBonds)
    except ValueError as error:
        raise BadStructure(_explain(forcefield, topology, params, str(error))) from error
    if params.solvent == "obc2":
        use_native_obc2(system)
    if hold_alpha_carbons:
        unconstrained = _create_system(forcefield, whole, params, None)
        hold_alpha_carbons_of(system, topology, unconstrained)
    return system


def with_solvent(topology: app.Topology, params: ForceFieldParams) -> app.Topology:
    """The topology of all particles of a protein's system: in explicit solvent its own atoms, then ions and water.

    Raises BadStructure when the protein fills its box, ValueError when the force field has no parameters for it.
    """
    if not params.explicit:
        return topology
    return with_water(topology, load_forcefield(params.name, params.solvent), params.water.box_nm)


@lru_cache
def load_forcefield(name: str, solvent: str) -> app.ForceField:
    """OpenMM force field of a protein force field and a solvent, by their names in the params."""
    return app.ForceField(PROTEIN_FILES[name], SOLVENT_FILES[solvent])


def _create_system(
    forcefield: app.ForceField, topology: app.Topology, params: ForceFieldParams, constraints: object
) -> openmm.System:
    return forcefield.createSystem(
        topology,
        nonbondedMethod=app.PME if params.explicit else app.NoCutoff,
        nonbondedCutoff=PME_CUTOFF_nm * unit.nanometer,
        constraints=constraints,
        rigidWater=True,
        hydrogenMass=params.hydrogen_mass_amu * unit.amu,
        removeCMMotion=False,
    )


def use_native_obc2(system: openmm.System) -> None:
    """Replace the CustomGBForce of `implicit/obc2.xml` in a system by a GBSAOBCForce of the same parameters."""
    index, custom = next(
        (index, force) for index, force in enumerate(system.getForces()) if isinstance(force, openmm.CustomGBForce)
    )
    native = openmm.GBSAOBCForce()
    native.setSolventDielectric(WATER_DIELECTRIC)
    native.setSoluteDielectric(1.0)
    native.setNonbondedMethod(openmm.GBSAOBCForce.NoCutoff)
    for particle in range(custom.getNumParticles()):
        charge, offset_radius, scaled_radius = custom.getParticleParameters(particle)
        native.addParticle(charge, offset_radius + OBC_OFFSET_nm, scaled_radius / offset_radius)
    system.removeForce(index)
    system.addForce(native)


def hold_alpha_carbons_of(system: openmm.System, topology: app.Topology, unconstrained: openmm.System) -> None:
    """Make every C-alpha massless; its constraints become the bonds that the unconstrained system has instead."""
    held = {atom.index for atom in topology.atoms() if atom.name == "CA"}
    freed = set()
    for index in reversed(range(system.getNumConstraints())):
        first, second, _ = system.getConstraintParameters(index)
        if first in held or second in held:
            freed.add(frozenset((first, second)))
            system.removeConstraint(index)
    bonds = _bond_force(system)
    source = _bond_force(unconstrained)
    for index in range(source.getNumBonds()):
        bond = source.getBondParameters(index)
        if frozenset(bond[:2]) in freed:
            bonds.addBond(*bond)
    for atom in sorted(held):
        system.setParticleMass(atom, 0.0)


def _bond_force(system: openmm.System) -> openmm.HarmonicBondForce:
    return next(force for force in system.getForces() if isinstance(force, openmm.HarmonicBondForce))


def _explain(forcefield: app.ForceField, topology: app.Topology, params: ForceFieldParams, reason: str) -> str:
    unmatched = forcefield.getUnmatchedResidues(topology)
    if not unmatched:
        return f"{params.name} with {params.solvent} cannot take the structure: {reason}"
    unknown = [residue for residue in unmatched if residue.name not in RESIDUE_NAMES.values()]
    if unknown:
        return (
            f"residue {unknown[0].name} {unknown[0].id} is none of the twenty amino acids, and {params.name} with "
            f"{params.solvent} has no parameters for it; strip it or replace it"
        )
    residue = unmatched[0]
    others = f" (and {len(unmatched) - 1} more)" if len(unmatched) > 1 else ""
    detail = reason.split(".  ")[1].rstrip(".") if ".  " in reason else reason.rstrip(".")
    return (
        f"residue {residue.name} {residue.id}{others}: {params.name} has no parameters for it: {detail}; strip what is "
        "no protein, and let 'cgal structure' add missing atoms and hydrogens"
    )


@lru_cache
def choose_platform(name: str) -> tuple[str, dict[str, str]]:
    """Platform to run on and its properties; `auto` is the fastest that works here, tried in turn.

    A CPU platform gets one thread (a process per frame uses the cores better) and sums forces in a fixed order.
    Raises BadParams when the platform that was asked for does not work on this machine.
    """
    candidates = FASTEST_FIRST if name == "auto" else (name,)
    reasons = []
    for candidate in candidates:
        try:
            _try_platform(candidate)
        except openmm.OpenMMException as error:
            reasons.append(f"{candidate}: {_why_not_there(candidate) or error}")
        else:
            return candidate, PLATFORM_PROPERTIES[candidate]
    raise BadParams(f"force_field.platform {name} does not work here ({'; '.join(reasons)}); set it to auto")


def _why_not_there(name: str) -> str:
    """Why OpenMM does not know the platform: its plugin did not load, or is not installed; empty when it knows it."""
    if name in {openmm.Platform.getPlatform(index).getName() for index in range(openmm.Platform.getNumPlatforms())}:
        return ""
    failures = [text for text in openmm.Platform.getPluginLoadFailures() if f"libOpenMM{name}.so:" in text]
    if not failures:
        return "its plugin is not installed; 'make setup' in cgal's clone or pip install '/path/to/cgal[gpu]' brings it"
    missing = failures[0].split(": ", 1)[1]
    return f"OpenMM's plugin does not load, {missing}; that library comes with the GPU's driver"


def _try_platform(name: str) -> None:
    if name == "CPU":
        os.environ["OPENMM_CPU_THREADS"] = "1"  # particle-mesh Ewald goes by this alone, not by the platform's Threads
    system = openmm.System()
    system.addParticle(1.0)
    platform = openmm.Platform.getPlatformByName(name)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform, PLATFORM_PROPERTIES[name])
    context.setPositions(np.zeros((1, 3)))
    context.getIntegrator().step(1)


def make_context(
    system: openmm.System, params: ForceFieldParams, *, temperature_K: float, timestep_ps: float, seed: int
) -> openmm.Context:
    """OpenMM context with a LangevinMiddle integrator (Zhang et al. 2019); same seed, same run.

    `seed` is positive; set positions before use. On a CPU OBC2 and GBn2 are computed by `cgal.all_atom.born`.
    """
    integrator = openmm.LangevinMiddleIntegrator(temperature_K, params.friction_per_ps, timestep_ps)
    integrator.setRandomNumberSeed(seed)
    name, properties = choose_platform(params.platform)
    if name == "CPU":
        system = with_compiled_born(system)
    return openmm.Context(system, integrator, openmm.Platform.getPlatformByName(name), properties)


def positions_of(context: openmm.Context) -> Float64[np.ndarray, "atoms 3"]:
    """Give the positions of a context [nm]."""
    return np.asarray(context.getState(positions=True).getPositions(asNumpy=True).value_in_unit(unit.nanometer))


def forces_of(context: openmm.Context) -> Float64[np.ndarray, "atoms 3"]:
    """Give the forces of a context [kJ/mol/nm], without constraint forces."""
    return np.asarray(context.getState(forces=True).getForces(asNumpy=True).value_in_unit(FORCE_UNIT))


def require_implicit(params: ForceFieldParams) -> None:
    """Raise BadParams when forces at positions of the protein alone would depend on water that is not there."""
    if params.explicit:
        raise BadParams(
            "force_field.solvent tip3pfb: forces in explicit water cannot be recomputed from the protein's positions; "
            "take those that were stored (--forces stored), or make a seed with 'cgal seed'"
        )


def recompute_forces(
    pdb: str,
    positions: Shaped[np.ndarray, "frames atoms 3"],
    params: ForceFieldParams,
    *,
    progress: Progress = silent,
) -> Float32[np.ndarray, "frames atoms 3"]:
    """Compute the forces [kJ/mol/nm] at given all-atom positions [nm], in the atom order of the PDB text.

    Constraint forces are not in them, just as in the forces that OpenMM reports of a run. Raises BadStructure when
    the force field cannot take the structure, or when the number of atoms differs, BadParams in explicit solvent.
    """
    require_implicit(params)
    topology, _ = read_structure(pdb)
    if positions.shape[1] != topology.getNumAtoms():
        raise BadStructure(
            f"the frames have {positions.shape[1]} atoms and the structure {topology.getNumAtoms()}; "
            "give the topology that belongs to the trajectory"
        )
    system = build_system(topology, params)
    context = make_context(system, params, temperature_K=300.0, timestep_ps=0.001, seed=1)
    forces = np.empty(positions.shape, dtype=np.float32)
    for index, frame in enumerate(positions):
        context.setPositions(np.asarray(frame, dtype=np.float64))
        forces[index] = forces_of(context)
        progress(index + 1, len(positions), "forces")
    return forces
