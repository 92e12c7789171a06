"""The model of a published round in other programs: python use_a_model.py demo/round-002, in the project's folder."""

import argparse
import subprocess
from pathlib import Path

import mdtraj
import numpy as np
import openmm
from ase import units as ase_units
from ase.md.langevin import Langevin
from openmm import unit
from openmm.app import Simulation

import cgal

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("round", help="tag of a published round")
parser.add_argument("--replicas", default="8")
parser.add_argument("--ns", default="1")
options = parser.parse_args()

# A long simulation of the round, with a benchmark of its own. Stop it as you like: the same line goes on.
command = ["cgal", "production", options.round, "--replicas", options.replicas, "--ns", options.ns]
subprocess.run(command, check=True)
folder = Path("production") / options.round / "round"

# Its frames for other programs: run-000.xtc, run-001.xtc, ... and run.pdb with the bonds of the chain.
command = ["cgal", "export", "run.xtc", "--trajectory", str(folder / "trajectory.h5"), "--overwrite"]
subprocess.run(command, check=True)
first = mdtraj.load("run-000.xtc", top="run.pdb")
print(f"replica 0: {first.n_frames} frames of {first.n_atoms} beads, {first.time[0]:g} to {first.time[-1]:g} ps")

# The model on numpy arrays: nm in, kJ/mol and kJ/mol/nm out, for one frame or for many.
model = cgal.load(options.round)
energies, forces = model.energy_and_forces(first.xyz)
positions = first.xyz[0].astype(np.float64)
energy, force = model.energy_and_forces(positions)
print(f"{model.sequence} at {model.temperature_K:g} K: {len(energies)} energies, the first {energy:.2f} kJ/mol")

# ASE, in Angstrom and eV: 500 steps of its Langevin dynamics.
atoms = model.ase_atoms(positions)
in_kJ_per_mol = ase_units.mol / ase_units.kJ
print(f"ASE: {atoms.get_potential_energy() * in_kJ_per_mol:.2f} kJ/mol")
np.testing.assert_allclose(atoms.get_potential_energy() * in_kJ_per_mol, energy, atol=1e-2)
dynamics = Langevin(
    atoms,
    timestep=5 * ase_units.fs,
    temperature_K=model.temperature_K,
    friction=0.001 / ase_units.fs,
    rng=np.random.default_rng(1),
)
dynamics.run(500)
print(f"ASE, 500 steps later: {atoms.get_potential_energy() * in_kJ_per_mol:.2f} kJ/mol")

# OpenMM: the model is a force, the integrator is OpenMM's own. Other forces can be added to the system.
integrator = openmm.LangevinMiddleIntegrator(model.temperature_K, 1.0, 0.005)
simulation = Simulation(first.topology.to_openmm(), model.openmm_system(), integrator)
simulation.context.setPositions(positions)
state = simulation.context.getState(energy=True)
print(f"OpenMM: {state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole):.2f} kJ/mol")
np.testing.assert_allclose(state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole), energy, atol=1e-2)
simulation.step(500)
state = simulation.context.getState(energy=True)
print(f"OpenMM, 500 steps later: {state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole):.2f} kJ/mol")
