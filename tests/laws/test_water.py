"""Laws of explicit solvent on chignolin: one topology for all shapes, and bead forces that leave the water out."""

import os
import subprocess
import sys
from functools import cache
from hashlib import sha256
from pathlib import Path

import numpy as np
import openmm
import pytest
import torch
from scipy.spatial import KDTree

from cgal.all_atom.dynamics import AtomRun
from cgal.all_atom.force_field import build_system, forces_of, make_context, read_structure, with_solvent
from cgal.all_atom.oracle import relabel, run_md
from cgal.all_atom.solvation import solvated
from cgal.all_atom.water import fill, require_room
from cgal.errors import BadStructure
from cgal.frames import AtomFrames, alpha_carbons
from cgal.params import ForceFieldParams, MappingParams, OracleParams, WaterParams
from cgal.projection.clusters import constrained_clusters
from cgal.projection.local_frames import rigid_groups
from cgal.projection.mapping import ForceMap, fit_force_map
from tests.laws.test_local_frames import localised, placement

ROOT = Path(__file__).parents[2]
SMALL = AtomFrames.load(ROOT / "tests" / "data" / "chignolin_small.h5")
TOPOLOGY, _ = read_structure(SMALL.pdb)
ATOMS, EDGE_nm = 166, 3.1
COMPACT = [8, 28, 33]
"""Frames that so small a cube has room for."""

PARAMS = ForceFieldParams(
    name="ff14SB", solvent="tip3pfb", platform="CPU", water=WaterParams(box_nm=EDGE_nm, settling_steps=10)
)
WHOLE = with_solvent(TOPOLOGY, PARAMS)
STEP_nm = 5e-7
KINDS = ("slice", "constraint_aware", "optimal", "local_frames")
CARBONS = alpha_carbons(SMALL.topology)


def force_map(kind: str) -> ForceMap:
    return fit_force_map(SMALL, MappingParams(force_map=kind))


def frames(positions: np.ndarray, forces: np.ndarray) -> AtomFrames:
    """All-atom frames of forces on every particle of the box, as a label keeps them: the protein's alone."""
    count = len(positions)
    return AtomFrames(
        SMALL.pdb,
        positions[:, :ATOMS].astype(np.float32),
        forces[:, :ATOMS].astype(np.float32),
        np.zeros(count, dtype=np.int32),
        np.zeros(count),
        {"forces": "instantaneous"},
    )


@cache
def box() -> tuple[openmm.Context, np.ndarray]:
    """A context in double precision, and where its particles are at first."""
    params = PARAMS.model_copy(update={"platform": "Reference"})
    context = make_context(build_system(TOPOLOGY, params), params, temperature_K=300.0, timestep_ps=0.001, seed=1)
    return context, fill(SMALL.positions[COMPACT[0]], WHOLE, seed=1)


def energy(context: openmm.Context, positions: np.ndarray) -> float:
    context.setPositions(positions)
    return float(context.getState(energy=True).getPotentialEnergy()._value)


def moved(kind: str, start: np.ndarray, move: np.ndarray) -> list[np.ndarray]:
    """All particles after the beads moved, the protein as the map has it follow, and water where it is.

    Atoms follow by their weights in a linear map, in their local frames else: two sets of groups, which share the work.
    """
    atoms, linear = start[:ATOMS], force_map(kind).linear
    if linear is not None:
        return [np.concatenate([atoms + linear.matrix.T @ move, start[ATOMS:]])]
    found = []
    for follows_next in (False, True):
        groups = rigid_groups(SMALL.topology, constrained_clusters(SMALL.topology), follows_next=follows_next)
        local = localised(groups, atoms)
        local.view(-1, 3)[CARBONS] += torch.from_numpy(move)
        found.append(np.concatenate([placement(groups, local).view(-1, 3).numpy(), start[ATOMS:]]))
    return found


@pytest.mark.parametrize("frame", COMPACT)
def test_every_frame_has_the_same_molecules_and_none_overlaps_the_protein(frame: int) -> None:
    positions = fill(SMALL.positions[frame], WHOLE, seed=1)
    assert positions.shape == (WHOLE.getNumAtoms(), 3)
    np.testing.assert_array_equal(positions[:ATOMS], SMALL.positions[frame])
    others = positions[ATOMS:] % EDGE_nm % EDGE_nm
    inside = positions[:ATOMS] % EDGE_nm % EDGE_nm
    assert KDTree(inside, boxsize=np.full(3, EDGE_nm)).query(others)[0].min() > 0.08, "minimisation is to mend the rest"


@pytest.mark.parametrize("axis", [(1.0, 0.0, 0.0), (1.0, 1.0, 1.0)])
def test_a_chain_that_could_meet_its_own_image_is_refused_however_it_lies(axis: tuple[float, ...]) -> None:
    """A rod of 2 nm: along an axis its images are as near as they ever are, along the diagonal far away."""
    rod = np.linspace(0.0, 2.0, 21)[:, None] * np.array(axis) / np.linalg.norm(axis)
    with pytest.raises(BadStructure, match=r"raise force_field\.water\.box_nm \(3 would hold it\)") as caught:
        require_room(rod, 2.9)
    assert caught.value.permanent
    require_room(rod, 3.01)


def water_forces() -> str:
    """Hash of the forces on all particles of a box on the CPU platform."""
    context = make_context(build_system(TOPOLOGY, PARAMS), PARAMS, temperature_K=300.0, timestep_ps=0.001, seed=1)
    context.setPositions(fill(SMALL.positions[COMPACT[0]], WHOLE, seed=1))
    return sha256(forces_of(context).tobytes()).hexdigest()


def test_forces_do_not_depend_on_the_cores_of_the_machine() -> None:
    """Particle-mesh Ewald takes this number of threads, or one for each core, when a process first needs it."""
    found = []
    for threads in ("1", "3"):
        command = [sys.executable, "-c", "from tests.laws.test_water import water_forces; print(water_forces())"]
        environment = os.environ | {"OPENMM_CPU_THREADS": threads}
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
        found.append(done.stdout)
    assert found[0] == found[1]


@pytest.mark.parametrize("kind", KINDS)
def test_bead_forces_are_minus_the_gradient_at_fixed_water(kind: str) -> None:
    """Beads move, the protein follows as the map has it, water stays: the work is that of the mapped forces.

    Water has weight zero, and its coordinates are their own: the volume of all coordinates is that of the protein's
    (`test_local_frames`), so no other term is in the mean force. In double precision, with steps so short that hardly
    a pair crosses the cutoff, where the energy jumps.
    """
    context, start = box()
    context.setPositions(start)
    forces = forces_of(context)
    found = force_map(kind)(frames(start[None], forces[None])).astype(np.float64)[0]
    move = np.random.default_rng(1).standard_normal((10, 3))
    work = []
    for there, back in zip(moved(kind, start, STEP_nm * move), moved(kind, start, -STEP_nm * move), strict=True):
        np.testing.assert_allclose(there[CARBONS] - start[CARBONS], STEP_nm * move, rtol=1e-6, atol=1e-14)
        work.append((energy(context, back) - energy(context, there)) / (2 * STEP_nm))
    assert np.mean(work) == pytest.approx(float((found * move).sum()), rel=2e-3)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_constraint_forces_of_the_whole_box_cancel(kind: str) -> None:
    """Opposite forces along each rigid bond, of the protein and of water, of any size, leave no trace on the beads.

    `slice` is left out: it is biased by the C-alpha's own bonds to hydrogen (`tests/laws/test_mapping.py`).
    """
    system, generator = build_system(TOPOLOGY, PARAMS), np.random.default_rng(0)
    start, forces = fill(SMALL.positions[COMPACT[0]], WHOLE, seed=1), np.zeros((WHOLE.getNumAtoms(), 3))
    assert system.getNumConstraints() > 3 * 400, "water is rigid"
    for index in range(system.getNumConstraints()):
        first, second, _ = system.getConstraintParameters(index)
        pull = 3000.0 * generator.standard_normal() * (start[second] - start[first])
        forces[first] += pull
        forces[second] -= pull
    assert np.abs(forces[:ATOMS]).max() > 500
    assert np.abs(force_map(kind)(frames(start[None], forces[None]))).max() < 0.01


@cache
def settled() -> tuple[np.ndarray, int]:
    return solvated(SMALL.positions[COMPACT[0]], SMALL.pdb, PARAMS, temperature_K=300.0, seed=1)


@pytest.mark.slow
def test_all_maps_have_one_mean_force_in_water() -> None:
    """Held C-alpha in settled water, where no map is biased, `slice` neither: its C-alpha has no rigid bond then.

    Means agree within what 20 blocks leave open, and local frames have the least noise.
    """
    start, _ = settled()
    system = build_system(TOPOLOGY, PARAMS, hold_alpha_carbons=True)
    run = AtomRun(system, PARAMS, temperature_K=300.0, timestep_ps=0.003, seed=1, atoms=ATOMS)
    run.place(start, constrain=True)
    run.draw_velocities()
    run.advance(300)
    moments = list(run.moments(400, 8))
    label = frames(*(np.array([getattr(each, what) for each in moments]) for what in ("positions", "forces")))
    found = {kind: force_map(kind)(label).astype(np.float64) for kind in KINDS}
    for kind in KINDS[:-1]:
        blocks = (found["local_frames"] - found[kind]).reshape(20, 20, 10, 3).mean(1)
        error = blocks.std(0, ddof=1) / np.sqrt(20)
        assert np.abs(blocks.mean(0) / error).max() < 5.0, "of 30 components, each with a t distribution of 19"
        assert found["local_frames"].std(0).mean() < found[kind].std(0).mean()


@pytest.mark.slow
def test_c_alpha_stay_while_water_settles_and_runs_show_the_protein_alone(tmp_path: Path) -> None:
    start, spent = settled()
    np.testing.assert_allclose(start[CARBONS], SMALL.positions[COMPACT[0], CARBONS], atol=1e-6)
    result = run_md(
        SMALL.pdb, SMALL.positions[COMPACT[:1]], steps=20, stride=10, force_field=PARAMS, temperature_K=300.0,
        seeds=[1], workers=1, scratch=tmp_path,
    )  # fmt: skip
    assert not result.failures
    assert result.labelled.positions.shape == result.labelled.forces.shape == (2, ATOMS, 3)
    assert spent > 100 + 10, "minimisation and settling; the minimiser looks once more than it may"
    assert result.steps == spent + 20, "and the run"


@pytest.mark.slow
def test_mean_forces_in_water_are_of_the_protein_alone_at_held_c_alpha(tmp_path: Path) -> None:
    oracle = OracleParams(burn_in_steps=5, average_steps=10)
    result = relabel(
        SMALL.take(np.array(COMPACT[:1])), force_field=PARAMS, oracle=oracle, temperature_K=300.0, seeds=[1], workers=1,
        scratch=tmp_path,
    )  # fmt: skip
    assert not result.failures
    found = result.labelled
    assert (found.positions.shape, found.forces.shape) == ((1, ATOMS, 3), (1, ATOMS, 3))
    assert found.bead_forces is not None
    assert found.bead_forces.shape == (1, 10, 3)
    np.testing.assert_allclose(found.positions[:, CARBONS], SMALL.positions[COMPACT[:1]][:, CARBONS], atol=1e-6)
    assert result.steps > PARAMS.water.minimise_steps + PARAMS.water.settling_steps + oracle.steps
