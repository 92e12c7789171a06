"""Laws of the all-atom physics, on real chignolin frames."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import openmm
import pytest
from openmm import app

from cgal.all_atom.born import Born
from cgal.all_atom.force_field import (
    build_system,
    forces_of,
    load_forcefield,
    make_context,
    positions_of,
    read_structure,
    recompute_forces,
)
from cgal.frames import AtomFrames
from cgal.params import ForceFieldParams

FRAMES = AtomFrames.load(Path(__file__).parents[1] / "data" / "chignolin_small.h5")
TOPOLOGY, _ = read_structure(FRAMES.pdb)
CPU = ForceFieldParams(platform="CPU")
REFERENCE = ForceFieldParams(platform="Reference")


def energy(context: openmm.Context, positions: np.ndarray) -> float:
    context.setPositions(positions)
    return context.getState(energy=True).getPotentialEnergy()._value


def context_of(system: openmm.System, params: ForceFieldParams) -> openmm.Context:
    return make_context(system, params, temperature_K=350.0, timestep_ps=0.001, seed=1)


@pytest.mark.parametrize("name", ["ff96", "ff14SB"])
def test_native_and_xml_obc2_forces_agree(name: str) -> None:
    """The CPU platform computes in single precision: 1e-3 of the largest force is its error, not a model's."""
    native = context_of(build_system(TOPOLOGY, CPU.model_copy(update={"name": name})), CPU)
    xml = load_forcefield(name, "obc2").createSystem(TOPOLOGY, constraints=app.HBonds, removeCMMotion=False)
    reference = context_of(xml, CPU)
    for frame in FRAMES.positions[:3].astype(np.float64):
        native.setPositions(frame)
        reference.setPositions(frame)
        expected = forces_of(reference)
        assert np.abs(forces_of(native) - expected).max() < 1e-3 * np.abs(expected).max()


def born_force(charge: np.ndarray, radius: np.ndarray, scale: np.ndarray) -> openmm.GBSAOBCForce:
    force = openmm.GBSAOBCForce()
    force.setNonbondedMethod(openmm.GBSAOBCForce.NoCutoff)
    for row in zip(charge, radius, scale, strict=True):
        force.addParticle(*row)
    return force


def on_reference_platform(force: openmm.Force, positions: np.ndarray) -> tuple[float, np.ndarray]:
    system = openmm.System()
    for _ in range(force.getNumParticles()):
        system.addParticle(1.0)
    system.addForce(openmm.XmlSerializer.clone(force))  # the system owns it, and ends with this function
    context = context_of(system, REFERENCE)
    return energy(context, positions), forces_of(context)


def native_born() -> openmm.GBSAOBCForce:
    system = build_system(TOPOLOGY, CPU)  # its forces die with it
    force = next(force for force in system.getForces() if isinstance(force, openmm.GBSAOBCForce))
    return openmm.XmlSerializer.clone(force)


@pytest.mark.parametrize("frame", [0, 20, 39])
def test_compiled_born_forces_are_openmms_in_double_precision(frame: int) -> None:
    """Single precision: 1e-5 of the largest force, and of the energy."""
    positions = FRAMES.positions[frame].astype(np.float64)
    expected, forces = on_reference_platform(native_born(), positions)
    found, compiled = Born.of(native_born()).evaluate(positions)
    assert found == pytest.approx(expected, rel=1e-5)
    assert np.abs(compiled - forces).max() < 1e-5 * np.abs(forces).max()


@pytest.mark.parametrize("atoms", [1, 2, 7, 8, 9, 64])
@pytest.mark.parametrize("spread_nm", [0.05, 0.3, 20.0])
def test_compiled_born_forces_hold_for_buried_overlapping_and_distant_atoms(atoms: int, spread_nm: float) -> None:
    """Every branch of the descreening: atoms within, across and outside one another's spheres."""
    generator = np.random.default_rng(atoms)
    force = born_force(
        generator.normal(0, 0.5, atoms), generator.uniform(0.1, 0.25, atoms), generator.uniform(0.7, 1.0, atoms)
    )
    positions = generator.normal(0, spread_nm, (atoms, 3))
    expected, forces = on_reference_platform(force, positions)
    found, compiled = Born.of(force).evaluate(positions)
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert np.abs(compiled - forces).max() < 1e-4 * max(np.abs(forces).max(), 1.0)


EVALUATE = """
import numpy as np
from cgal.all_atom.born import Born, Necks

noise = np.random.default_rng(0)
charge, radius, scale = noise.normal(size=166), noise.uniform(0.12, 0.2, 166), noise.uniform(0.7, 0.9, 166)
peak, place = noise.uniform(0.1, 0.5, (2, 3, 166)).astype(np.float32)
necks = Necks(noise.integers(3, size=166, dtype=np.int32), peak, place)
born = Born(charge, radius, scale, -137.0, 28.0, 0.009, noise.uniform(0.2, 0.8, (166, 3)), necks)
energy, forces = born.evaluate(noise.normal(size=(166, 3)))
print(energy.hex(), forces.tobytes().hex())
"""


def test_the_process_that_compiles_finds_the_bytes_of_later_ones(tmp_path: Path) -> None:
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    command, root = [sys.executable, "-c", EVALUATE], Path(__file__).parents[2]
    first, second = (
        subprocess.run(command, env=environment, stdout=subprocess.PIPE, cwd=root, check=True).stdout for _ in range(2)
    )
    assert first == second


@pytest.mark.parametrize(("solvent", "kind"), [("obc2", "GBSAOBCForce"), ("gbn2", "CustomGBForce")])
def test_born_forces_of_a_context_are_compiled_on_a_cpu_and_openmms_elsewhere(solvent: str, kind: str) -> None:
    system = build_system(TOPOLOGY, CPU.model_copy(update={"solvent": solvent}))
    contexts = [context_of(system, params) for params in (CPU, REFERENCE)]
    kinds = [{type(force).__name__ for force in context.getSystem().getForces()} for context in contexts]
    assert [("PythonForce" in names, kind in names) for names in kinds] == [(True, False), (False, True)]


@pytest.mark.parametrize("hold", [False, True])
@pytest.mark.parametrize("solvent", ["obc2", "gbn2"])
def test_forces_are_minus_the_gradient(solvent: str, hold: bool) -> None:
    """Double precision (Reference platform), central differences of 1e-5 nm: 1e-5 of the largest force is ample."""
    params = REFERENCE.model_copy(update={"solvent": solvent})
    context = context_of(build_system(TOPOLOGY, params, hold_alpha_carbons=hold), params)
    positions = FRAMES.positions[0].astype(np.float64)
    context.setPositions(positions)
    forces = forces_of(context)
    step_nm = 1e-5
    for atom, axis in [(0, 0), (4, 1), (5, 2), (60, 0), (100, 1)]:
        shift = np.zeros_like(positions)
        shift[atom, axis] = step_nm
        gradient = (energy(context, positions + shift) - energy(context, positions - shift)) / (2 * step_nm)
        assert forces[atom, axis] == pytest.approx(-gradient, abs=1e-5 * np.abs(forces).max())


def test_recomputed_forces_are_those_that_the_run_stored() -> None:
    """The fixture's forces come from a single-precision CPU run whose positions were rounded to float32."""
    forces = recompute_forces(FRAMES.pdb, FRAMES.positions[:5], CPU)
    assert np.abs(forces - FRAMES.forces[:5]).max() < 5e-3 * np.abs(FRAMES.forces[:5]).max()


def test_held_alpha_carbons_do_not_move_and_the_rest_does() -> None:
    context = context_of(build_system(TOPOLOGY, CPU, hold_alpha_carbons=True), CPU)
    start = FRAMES.positions[0].astype(np.float64)
    context.setPositions(start)
    context.setVelocitiesToTemperature(350.0, 1)
    context.getIntegrator().step(200)
    moved = np.linalg.norm(positions_of(context) - start, axis=1)
    held = np.array([atom.name == "CA" for atom in TOPOLOGY.atoms()])
    assert moved[held].max() < 1e-6
    assert np.median(moved[~held]) > 0.01


def test_holding_alpha_carbons_adds_only_the_bonds_that_constraints_had_removed() -> None:
    """Forces differ only on C-alpha and its hydrogens, and these differences cancel in each such group."""
    free = context_of(build_system(TOPOLOGY, REFERENCE), REFERENCE)
    held = context_of(build_system(TOPOLOGY, REFERENCE, hold_alpha_carbons=True), REFERENCE)
    positions = FRAMES.positions[0].astype(np.float64)
    positions += np.random.default_rng(1).normal(0, 0.002, positions.shape)
    free.setPositions(positions)
    held.setPositions(positions)
    difference = forces_of(held) - forces_of(free)
    touched = np.array([atom.name in {"CA", "HA", "HA2", "HA3"} for atom in TOPOLOGY.atoms()])
    assert np.abs(difference[~touched]).max() < 1e-6
    assert np.linalg.norm(difference[touched], axis=1).min() > 1.0
    residues = np.array([atom.residue.index for atom in TOPOLOGY.atoms()])
    for residue in range(10):
        assert np.abs(difference[residues == residue].sum(axis=0)).max() < 1e-6
