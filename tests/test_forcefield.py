"""What the force-field module takes and refuses."""

from pathlib import Path

import numpy as np
import openmm
import pytest
from pydantic import ValidationError

from cgal.all_atom.force_field import (
    build_system,
    choose_platform,
    forces_of,
    make_context,
    positions_of,
    read_structure,
    recompute_forces,
)
from cgal.errors import BadParams, BadStructure
from cgal.frames import AtomFrames
from cgal.params import ForceFieldParams, WaterParams

FRAMES = AtomFrames.load(Path(__file__).parent / "data" / "chignolin_small.h5")
TOPOLOGY, POSITIONS = read_structure(FRAMES.pdb)


def without(*names: str, residue: int) -> str:
    """The structure's PDB text without some atoms of one residue."""
    return "\n".join(
        line
        for line in FRAMES.pdb.splitlines()
        if not (line.startswith("ATOM") and int(line[22:26]) == residue and line[12:16].strip() in names)
    )


@pytest.mark.parametrize("name", ["ff96", "ff14SB", "amber14"])
@pytest.mark.parametrize("solvent", ["obc2", "gbn2"])
def test_every_implicit_force_field_builds_with_heavy_hydrogens_and_no_box(name: str, solvent: str) -> None:
    system = build_system(TOPOLOGY, ForceFieldParams(name=name, solvent=solvent))
    assert system.getNumParticles() == 166
    assert not system.usesPeriodicBoundaryConditions()
    hydrogens = [atom.index for atom in TOPOLOGY.atoms() if atom.element.symbol == "H"]
    assert system.getNumConstraints() == len(hydrogens)
    assert {system.getParticleMass(index)._value for index in hydrogens} == {4.0}


def test_obc2_is_the_native_force() -> None:
    kinds = {type(force) for force in build_system(TOPOLOGY, ForceFieldParams()).getForces()}
    assert openmm.GBSAOBCForce in kinds
    assert openmm.CustomGBForce not in kinds


@pytest.mark.parametrize("name", ["ff14SB", "amber14"])
def test_explicit_solvent_comes_with_its_box_of_neutral_water(name: str) -> None:
    params = ForceFieldParams(name=name, solvent="tip3pfb", water=WaterParams(box_nm=2.7))
    system = build_system(TOPOLOGY, params)
    assert system.usesPeriodicBoundaryConditions()
    (force,) = (force for force in system.getForces() if isinstance(force, openmm.NonbondedForce))
    assert force.getNonbondedMethod() == openmm.NonbondedForce.PME
    charges = [force.getParticleParameters(index)[0]._value for index in range(system.getNumParticles())]
    assert sum(charges) == pytest.approx(0.0, abs=1e-4)
    waters = (system.getNumParticles() - 166) // 3
    assert 30 < waters / (2.7**3 - 1.4) < 34, "molecules in a cubic nanometre of water"


def test_what_explicit_solvent_cannot_do_is_refused() -> None:
    params = ForceFieldParams(name="amber14", solvent="tip3pfb")
    with pytest.raises(BadParams, match="cannot be recomputed"):
        recompute_forces(FRAMES.pdb, FRAMES.positions[:1], params)
    with pytest.raises(ValidationError, match="ff14SB or amber14, not with ff96"):
        ForceFieldParams(solvent="tip3pfb")


def test_water_is_no_part_of_an_implicit_solvent() -> None:
    """What was sampled or labelled before there was a box is what it was."""
    assert "water" not in ForceFieldParams().model_dump()
    assert "water" in ForceFieldParams(name="amber14", solvent="tip3pfb").model_dump()


@pytest.mark.parametrize(
    ("pdb", "message"),
    [
        (FRAMES.pdb.replace("THR A   6", "XYZ A   6"), r"residue XYZ 6 is none of the twenty"),
        (without("CB", residue=5), r"residue GLU 5.*missing"),
        (without("HH", residue=1), r"residue TYR 1.*missing 1 H"),
    ],
)
def test_what_the_force_field_cannot_take_is_named(pdb: str, message: str) -> None:
    topology, _ = read_structure(pdb)
    with pytest.raises(BadStructure, match=message):
        build_system(topology, ForceFieldParams())


@pytest.mark.parametrize("text", ["", "no PDB at all", "END\n"])
def test_text_that_is_no_pdb_is_refused(text: str) -> None:
    with pytest.raises(BadStructure, match="PDB"):
        read_structure(text)


def test_frames_of_another_molecule_are_refused() -> None:
    with pytest.raises(BadStructure, match="165 atoms and the structure 166"):
        recompute_forces(FRAMES.pdb, FRAMES.positions[:1, :165], ForceFieldParams())


def test_forces_are_float32_and_progress_is_told() -> None:
    told: list[int] = []
    forces = recompute_forces(
        FRAMES.pdb, FRAMES.positions[:2], ForceFieldParams(), progress=lambda done, total, note="": told.append(done)
    )
    assert forces.dtype == np.float32
    assert told == [1, 2]


def test_automatic_platform_works_and_an_absent_one_is_refused() -> None:
    name, properties = choose_platform("auto")
    assert openmm.Platform.getPlatformByName(name)
    assert choose_platform("CPU")[1] == {"Threads": "1", "DeterministicForces": "true"}
    if name != "CUDA":
        with pytest.raises(BadParams, match=r"CUDA does not work here \(CUDA: OpenMM's plugin .*set it to auto"):
            choose_platform("CUDA")
    assert set(properties) <= {"Threads", "DeterministicForces", "Precision"}


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["CUDA", "OpenCL"])
def test_a_gpu_works_in_mixed_precision_and_agrees_with_the_reference_platform(name: str) -> None:
    """Forces are summed in single precision there: 1e-4 of the largest one."""
    try:
        assert choose_platform(name)[1]["Precision"] == "mixed"
    except BadParams as error:
        pytest.skip(str(error))
    forces = []
    for platform in (name, "Reference"):
        params = ForceFieldParams(platform=platform)
        context = make_context(
            build_system(TOPOLOGY, params, hold_alpha_carbons=True),
            params,
            temperature_K=350.0,
            timestep_ps=0.003,
            seed=1,
        )
        context.setPositions(FRAMES.positions[0].astype(np.float64))
        forces.append(forces_of(context))
        if platform == name:
            assert context.getPlatform().getPropertyValue(context, "Precision") == "mixed"
            context.setVelocitiesToTemperature(350.0, 1)
            context.getIntegrator().step(100)
            assert np.isfinite(positions_of(context)).all()
    assert np.abs(forces[0] - forces[1]).max() < 1e-4 * np.abs(forces[1]).max()


def test_same_seed_same_run() -> None:
    """Bit for bit: one thread, forces summed in a fixed order."""
    params = ForceFieldParams(platform="CPU")
    ends = []
    for seed in (1, 1, 2):
        context = make_context(
            build_system(TOPOLOGY, params), params, temperature_K=350.0, timestep_ps=0.004, seed=seed
        )
        context.setPositions(FRAMES.positions[0].astype(np.float64))
        context.setVelocitiesToTemperature(350.0, seed)
        context.getIntegrator().step(50)
        ends.append(positions_of(context))
    assert np.array_equal(ends[0], ends[1])
    assert not np.array_equal(ends[0], ends[2])
