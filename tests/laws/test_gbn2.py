"""Laws of the compiled GBn2 solvation: it is the force of OpenMM's `implicit/gbn2.xml`, on three proteins."""

from functools import cache
from pathlib import Path

import numpy as np
import openmm
import pytest
from openmm import app, unit
from openmm.app.internal.customgbforces import GBSAGBn2Force
from scipy.spatial.transform import Rotation

from cgal.all_atom.born import Born, with_compiled_born
from cgal.all_atom.dynamics import AtomRun
from cgal.all_atom.force_field import build_system, load_forcefield, read_structure
from cgal.all_atom.structures import structure_from_sequence
from cgal.frames import AtomFrames
from cgal.params import ForceFieldParams

CHIGNOLIN = AtomFrames.load(Path(__file__).parents[1] / "data" / "chignolin_small.h5")
PHYSICS = ForceFieldParams(name="ff14SB", solvent="gbn2", platform="CPU")
PROTEINS = ("chignolin", "RDMKCWHFG", "AAQEAKNIVCPS")
"""Between them all elements and radii of proteins: arginine's hydrogens, carboxylates, and sulfur, whose scale is
negative; the second is extended, the third a helix."""


@cache
def protein(name: str) -> tuple[app.Topology, np.ndarray]:
    """Topology and three frames [nm]: of the fixture, or a picosecond apart after relaxation, all shaken by 0.01 nm."""
    if name == "chignolin":
        frames = CHIGNOLIN.positions[[0, 20, 39]].astype(np.float64)
        topology = read_structure(CHIGNOLIN.pdb)[0]
    else:
        torsions = {"phi_degrees": -60.0, "psi_degrees": -45.0} if name.startswith("AAQ") else {}
        pdb = structure_from_sequence(name, PHYSICS, temperature_K=300.0, seed=1, relax_ps=0.5, **torsions)
        topology, start = read_structure(pdb)
        frames = dynamics(topology, start)
    return topology, frames + np.random.default_rng(2).normal(0, 0.01, frames.shape)


def dynamics(topology: app.Topology, start: np.ndarray) -> np.ndarray:
    run = AtomRun(build_system(topology, PHYSICS), PHYSICS, temperature_K=400.0, timestep_ps=0.002, seed=1)
    run.place(start, constrain=True)
    run.draw_velocities()
    frames = []
    for _ in range(3):
        run.advance(500)
        frames.append(run.positions())
    return np.array(frames)


def xml_force(topology: app.Topology) -> openmm.CustomGBForce:
    system = load_forcefield("ff14SB", "gbn2").createSystem(topology, removeCMMotion=False)  # its forces die with it
    return openmm.XmlSerializer.clone(next(f for f in system.getForces() if isinstance(f, openmm.CustomGBForce)))


def openmm_context(force: openmm.CustomGBForce) -> openmm.Context:
    """Of the force alone, in double precision."""
    system = openmm.System()
    for _ in range(force.getNumParticles()):
        system.addParticle(1.0)
    system.addForce(force)
    return openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))


def openmm_forces(context: openmm.Context, positions: np.ndarray) -> tuple[float, np.ndarray]:
    context.setPositions(positions)
    state = context.getState(energy=True, forces=True)
    return state.getPotentialEnergy()._value, np.array(state.getForces(asNumpy=True)._value)


@pytest.mark.parametrize("name", PROTEINS)
def test_compiled_gbn2_is_the_xml_force_in_double_precision(name: str) -> None:
    """Single precision: 3e-6 of the largest force, 1e-6 of the energy; the neck correction is more than a tenth."""
    topology, frames = protein(name)
    born, context = Born.of_gbn2(xml_force(topology)), openmm_context(xml_force(topology))
    for positions in frames:
        expected, forces = openmm_forces(context, positions)
        found, compiled = born.evaluate(positions)
        assert found == pytest.approx(expected, rel=1e-6)
        assert np.abs(compiled - forces).max() < 3e-6 * np.abs(forces).max()


@pytest.mark.parametrize("atoms", [1, 2, 9, 64])
@pytest.mark.parametrize("spread_nm", [0.05, 0.3, 20.0])
def test_compiled_gbn2_holds_for_buried_overlapping_and_distant_atoms(atoms: int, spread_nm: float) -> None:
    """Atoms within, across and outside one another's spheres and necks, of positive and negative scales.

    Of atoms within one another large terms cancel: 1e-4 of the largest force, as for OBC2.
    """
    generator = np.random.default_rng(atoms)

    def force() -> GBSAGBn2Force:
        force = GBSAGBn2Force(SA="ACE")
        for row in rows:
            force.addParticle(row)
        force.finalize()
        return force

    shapes = list(GBSAGBn2Force._atom_params.values())
    rows = [
        [generator.normal(0, 0.5), generator.uniform(0.1, 0.2), generator.choice([-0.7, 0.7, 1.4])]
        + shapes[generator.integers(len(shapes))]
        for _ in range(atoms)
    ]
    positions = generator.normal(0, spread_nm, (atoms, 3))
    expected, forces = openmm_forces(openmm_context(force()), positions)
    found, compiled = Born.of_gbn2(force()).evaluate(positions)
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-4)
    assert np.abs(compiled - forces).max() < 1e-4 * max(np.abs(forces).max(), 1.0)


@pytest.mark.parametrize("name", PROTEINS)
def test_compiled_gbn2_forces_are_minus_the_gradient(name: str) -> None:
    """Along the forces themselves the energy changes most: over 2e-3 nm in all its rounding (1e-4 kJ/mol) is small."""
    topology, frames = protein(name)
    born = Born.of_gbn2(xml_force(topology))
    for positions in frames:
        _, forces = born.evaluate(positions)
        size = np.linalg.norm(forces)
        step_nm = 1e-3 * forces / size
        change = born.evaluate(positions + step_nm)[0] - born.evaluate(positions - step_nm)[0]
        assert change == pytest.approx(-2e-3 * size, rel=1e-3)


@pytest.mark.parametrize("name", PROTEINS)
def test_compiled_gbn2_turns_and_moves_with_the_molecule(name: str) -> None:
    """Energy stays, forces turn; rounding in single precision is of 3e-6 of the largest force."""
    topology, frames = protein(name)
    born = Born.of_gbn2(xml_force(topology))
    turn = Rotation.random(random_state=3).as_matrix()
    for positions in frames:
        energy, forces = born.evaluate(positions)
        turned, turned_forces = born.evaluate(positions @ turn.T + [3.0, -5.0, 7.0])
        assert turned == pytest.approx(energy, rel=1e-6)
        assert np.abs(turned_forces - forces @ turn.T).max() < 3e-6 * np.abs(forces).max()
        assert np.abs(forces.sum(axis=0)).max() < 1e-5 * np.abs(forces).max()


def changed(force: GBSAGBn2Force, how: str) -> openmm.Force:
    if how == "cutoff":
        force.setNonbondedMethod(openmm.CustomGBForce.CutoffNonPeriodic)
        force.setCutoffDistance(1.0 * unit.nanometer)
    if how == "formula":
        name, formula, kind = force.getComputedValueParameters(0)
        force.setComputedValueParameters(0, name, formula.replace("neckScale=0.826836", "neckScale=0.8"), kind)
    if how == "solvent":
        formula, kind = force.getEnergyTermParameters(0)
        force.setEnergyTermParameters(0, formula.replace("78.5", "80"), kind)
    return force


@pytest.mark.parametrize("how", ["as it is", "cutoff", "formula", "solvent"])
def test_only_the_very_model_of_the_xml_file_is_compiled(how: str) -> None:
    topology, _ = protein("chignolin")
    system = openmm.System()
    for _ in range(topology.getNumAtoms()):
        system.addParticle(1.0)
    system.addForce(changed(xml_force(topology), how))
    kinds = [type(force) for force in with_compiled_born(system).getForces()]
    assert kinds == [openmm.PythonForce if how == "as it is" else openmm.CustomGBForce]
