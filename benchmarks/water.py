"""The all-atom oracle in explicit water: steps of three proteins, each in a box that it just fits into."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import openmm
from jaxtyping import Float64
from openmm import app, unit
from scipy.spatial.distance import pdist

from benchmarks.harness import Result, interleave
from benchmarks.oracle import SEQUENCES, TEMPERATURE_K
from cgal.all_atom.dynamics import AtomRun
from cgal.all_atom.force_field import build_system, choose_platform, forces_of, read_structure, with_solvent
from cgal.all_atom.solvation import solvated
from cgal.all_atom.structures import structure_from_sequence
from cgal.all_atom.water import IMAGE_GAP_nm
from cgal.params import ForceFieldParams, WaterParams

DRY = ForceFieldParams(name="ff14SB", platform="CPU")
STRIDE = 24
LOOKS = 2
REPETITIONS = 5


def results() -> Iterator[Result]:
    """Everything on the CPU platform with one thread per process, as the oracle runs."""
    yield from map(_against_openmm, SEQUENCES)


def _against_openmm(sequence: str) -> Result:
    """Runs of free labels from a helix, whose box is small, against the same box as a user of OpenMM builds it."""
    pdb = structure_from_sequence(
        sequence, DRY, temperature_K=TEMPERATURE_K, seed=1, phi_degrees=-57.0, psi_degrees=-47.0
    )
    topology, positions = read_structure(pdb)
    edge_nm = round(float(pdist(positions).max()) + IMAGE_GAP_nm + 0.1, 1)
    water = WaterParams(box_nm=edge_nm, settling_steps=0)
    physics = DRY.model_copy(update={"solvent": "tip3pfb", "water": water})
    whole = with_solvent(topology, physics)
    start = solvated(positions, pdb, physics, temperature_K=TEMPERATURE_K, seed=1).positions
    run = AtomRun(
        build_system(topology, physics),
        physics,
        temperature_K=TEMPERATURE_K,
        timestep_ps=physics.timestep_ps,
        seed=1,
        atoms=len(positions),
    )
    run.place(start, constrain=True)
    run.draw_velocities()
    timing = interleave(
        lambda: list(run.moments(LOOKS, STRIDE)), partial(_steps, _ordinary(whole, start)), repetitions=REPETITIONS
    )
    note = (
        f"{len(sequence)} residues in a cube of {edge_nm:g} nm, {whole.getNumAtoms()} atoms with water, ff14SB and "
        f"TIP3P-FB, PME, {1000 * physics.timestep_ps:g} fs, one thread, forces read every {STRIDE} steps; peer: the "
        "same box by openmm.app alone"
    )
    return timing.rates(f"oracle_tip3pfb_{len(sequence)}", LOOKS * STRIDE, "AA steps/s", note)


def _ordinary(whole: app.Topology, start: Float64[np.ndarray, "particles 3"]) -> openmm.Context:
    system = app.ForceField("amber14/protein.ff14SB.xml", "amber14/tip3pfb.xml").createSystem(
        whole,
        nonbondedMethod=app.PME,
        nonbondedCutoff=1.0 * unit.nanometer,
        constraints=app.HBonds,
        hydrogenMass=DRY.hydrogen_mass_amu,
    )
    integrator = openmm.LangevinMiddleIntegrator(TEMPERATURE_K, DRY.friction_per_ps, DRY.timestep_ps)
    name, properties = choose_platform(DRY.platform)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName(name), properties)
    context.setPositions(start)
    context.applyConstraints(1e-6)
    context.setVelocitiesToTemperature(TEMPERATURE_K, 1)
    return context


def _steps(context: openmm.Context) -> None:
    for _ in range(LOOKS):
        context.getIntegrator().step(STRIDE)
        forces_of(context)
