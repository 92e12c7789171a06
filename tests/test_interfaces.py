"""A trained model in other programs: numpy, ASE and OpenMM give the energies and forces that a simulation runs on."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import openmm
import pytest
import torch
from ase import units as ase_units
from ase.md.verlet import VelocityVerlet
from openmm import unit

import cgal
from cgal.errors import BadCheckpoint, BadFile, BadPositions
from cgal.params import PaiNNParams
from cgal.potential.architectures import freeze, initial_potential
from cgal.potential.checkpoint import save_checkpoint
from tests.beads import SEQUENCE, SMALL_NETWORK, TEMPERATURE_K, real_beads, real_prior

NETWORKS = {"schnet": SMALL_NETWORK, "painn": PaiNNParams(features=8, blocks=1, radial_functions=6)}
BEADS = real_beads()


def save_model(path: Path, architecture: str = "schnet") -> Path:
    """A checkpoint whose network says something, as after training."""
    potential = initial_potential(real_prior(), NETWORKS[architecture], 3)
    with torch.no_grad():
        potential.network.readout[-1].weight.normal_(generator=torch.Generator().manual_seed(0))
    save_checkpoint(path, potential, {"round": 2})
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "model.pt")


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> cgal.Model:
    return cgal.load(checkpoint)


@pytest.mark.parametrize("architecture", NETWORKS)
def test_a_model_gives_what_a_simulation_runs_on(tmp_path: Path, architecture: str) -> None:
    """To the bit for all frames at once; one at a time, and in float64, to the rounding of float32."""
    model = cgal.load(save_model(tmp_path / "model.pt", architecture))
    expected = [each.numpy() for each in freeze(model.potential).energy_and_forces(torch.from_numpy(BEADS))]
    energies, forces = model.energy_and_forces(BEADS)
    assert (energies == expected[0]).all()
    assert (forces == expected[1]).all()
    assert (energies.shape, forces.shape, forces.dtype) == ((len(BEADS),), BEADS.shape, np.float32)
    energy, force = model.energy_and_forces(BEADS[3].astype(np.float64))
    assert (energy.shape, force.shape, energy.dtype, force.dtype) == ((), (10, 3), np.float64, np.float64)
    assert energy == pytest.approx(energies[3], abs=1e-3)
    assert force == pytest.approx(forces[3], abs=1e-2)
    assert (model.sequence, model.temperature_K, model.metadata) == (SEQUENCE, TEMPERATURE_K, {"round": 2})
    assert model.energy_and_forces(BEADS[:0])[1].shape == (0, 10, 3)


@pytest.mark.parametrize("architecture", NETWORKS)
def test_the_definition_stays_on_the_cpu(tmp_path: Path, architecture: str) -> None:
    """On a device that every machine has, and that computes nothing."""
    model = cgal.load(save_model(tmp_path / "model.pt", architecture), device="meta")
    assert {each.device.type for each in model.potential.parameters()} == {"cpu"}


REFUSED = {
    "frame 0: neighbouring beads are 3.*in Angstrom by 10": BEADS * np.float32(10),
    "frame 7: neighbouring beads are": np.concatenate([BEADS[:7], BEADS[:1] * np.float32(10)]),
    "0.00.* nm apart": BEADS * np.float32(1e-3),
    "frame 2: a coordinate is not finite": np.where(np.arange(40)[:, None, None] == 2, np.float32(np.nan), BEADS),
    "positions are int64": np.zeros((10, 3), dtype=int),
    r"shape \(40, 9, 3\); YYDPETGTWY has 10 beads": BEADS[:, 1:],
    r"shape \(300,\)": BEADS[:10].ravel(),
}


@pytest.mark.parametrize("said", REFUSED)
def test_positions_that_are_not_of_the_chain_in_nm_are_refused(model: cgal.Model, said: str) -> None:
    with pytest.raises(BadPositions, match=said):
        model.energy_and_forces(REFUSED[said])


def test_a_broken_chain_still_has_an_energy(model: cgal.Model) -> None:
    """One bond of 3 nm is a fault of a simulation, no unit."""
    torn = BEADS[0].copy()
    torn[5:] += 3.0
    assert model.energy_and_forces(torn)[0] > model.energy_and_forces(BEADS[0])[0]


def test_ase_gives_the_same_energy_in_its_units_and_conserves_it(model: cgal.Model) -> None:
    energy, forces = model.energy_and_forces(BEADS[0].astype(np.float64))
    atoms = model.ase_atoms(BEADS[0])
    assert atoms.get_potential_energy() * ase_units.mol / ase_units.kJ == pytest.approx(energy, abs=1e-3)
    in_nm = atoms.get_forces() * (ase_units.mol / ase_units.kJ * ase_units.nm)
    assert in_nm == pytest.approx(forces, abs=1e-2)
    before = atoms.get_total_energy()
    VelocityVerlet(atoms, timestep=2 * ase_units.fs).run(100)
    assert np.abs(atoms.positions / ase_units.nm - BEADS[0]).max() > 0.01, "it has moved"
    assert atoms.get_kinetic_energy() > 20 * abs(atoms.get_total_energy() - before)


def openmm_context(model: cgal.Model, integrator: openmm.Integrator) -> openmm.Context:
    context = openmm.Context(model.openmm_system(), integrator, openmm.Platform.getPlatformByName("CPU"))
    context.setPositions(BEADS[0].astype(np.float64))
    return context


def energies_of(context: openmm.Context) -> tuple[float, float]:
    state = context.getState(energy=True)
    found = (state.getPotentialEnergy(), state.getKineticEnergy())
    return tuple(each.value_in_unit(unit.kilojoule_per_mole) for each in found)


def test_openmm_gives_the_same_energy_and_conserves_it(model: cgal.Model) -> None:
    energy, forces = model.energy_and_forces(BEADS[0].astype(np.float64))
    context = openmm_context(model, openmm.VerletIntegrator(0.002))
    assert energies_of(context)[0] == pytest.approx(energy, abs=1e-3)
    found = context.getState(forces=True).getForces(asNumpy=True)
    assert found.value_in_unit(unit.kilojoule_per_mole / unit.nanometer) == pytest.approx(forces, abs=1e-2)
    before = sum(energies_of(context))
    context.getIntegrator().step(500)
    assert energies_of(context)[1] > 20 * abs(sum(energies_of(context)) - before)


def test_openmm_thermostats_a_model_to_its_temperature(model: cgal.Model) -> None:
    """Mean kinetic energy of 30 degrees of freedom over 50 samples: its standard error is below 4 %, six of them."""
    integrator = openmm.LangevinMiddleIntegrator(model.temperature_K, 20.0, 0.005)
    integrator.setRandomNumberSeed(1)
    context = openmm_context(model, integrator)
    kinetic = []
    for _ in range(50):
        integrator.step(40)
        kinetic.append(energies_of(context)[1])
    assert np.mean(kinetic) == pytest.approx(15 * 8.314e-3 * model.temperature_K, rel=0.24)


def test_openmm_tells_what_was_wrong_with_the_positions(model: cgal.Model) -> None:
    context = openmm_context(model, openmm.VerletIntegrator(0.002))
    context.setPositions(BEADS[0].astype(np.float64) * 10)
    with pytest.raises(openmm.OpenMMException, match="divide those in Angstrom by 10"):
        context.getState(energy=True)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(BadFile, match="no such file, and no round's tag such as demo/round-002"):
        cgal.load(tmp_path / "model.pt")
    (tmp_path / "model.pt").write_bytes(checkpoint.read_bytes()[:-1000])
    with pytest.raises(BadCheckpoint, match="damaged checkpoint"):
        cgal.load(tmp_path / "model.pt")


def test_the_package_itself_stays_light() -> None:
    code = (
        "import cgal, sys; print(cgal.__version__, *({'torch', 'numpy', 'openmm', 'ase', 'flows'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [cgal.__version__]
