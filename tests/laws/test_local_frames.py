"""Laws of bead forces in local frames, on real chignolin frames (40 of them, 166 atoms, H-bond constraints)."""

from dataclasses import replace
from pathlib import Path

import mdtraj
import numpy as np
import pytest
import torch

from cgal.all_atom.force_field import build_system, forces_of, make_context, positions_of, read_structure
from cgal.all_atom.oracle import relabel
from cgal.errors import BadStructure, BadTrajectory
from cgal.frames import AtomFrames, alpha_carbons
from cgal.params import ForceFieldParams, MappingParams, OracleParams
from cgal.projection.bonds import along_bonds
from cgal.projection.clusters import constrained_clusters
from cgal.projection.local_frames import RigidGroup, project_in_local_frames, rigid_groups
from cgal.projection.mapping import fit_force_map

SMALL = AtomFrames.load(Path(__file__).parents[1] / "data" / "chignolin_small.h5")
CARBONS = alpha_carbons(SMALL.topology)
CLUSTERS = constrained_clusters(SMALL.topology)


def bead_forces(forces: np.ndarray, frames: AtomFrames = SMALL) -> np.ndarray:
    return project_in_local_frames(replace(frames, forces=forces.astype(np.float32)), CLUSTERS).astype(np.float64)


def axes(group: RigidGroup, beads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Origin and axes of a group, by the definition."""
    start, end = group.axis
    first = torch.nn.functional.normalize(beads[end] - beads[start], dim=0)
    third = torch.nn.functional.normalize(torch.linalg.cross(first, beads[group.towards] - beads[start]), dim=0)
    return beads[list(group.origin)].mean(0), torch.stack([first, torch.linalg.cross(third, first), third], dim=1)


def placement(groups: list[RigidGroup], atoms: torch.Tensor) -> torch.Tensor:
    """Coordinates in local frames, beads themselves, of all atoms (flat), as places of the atoms (flat)."""
    local = atoms.view(-1, 3)
    places = local.clone()
    for group in groups:
        origin, turned = axes(group, local[CARBONS])
        places[group.atoms] = origin + local[group.atoms] @ turned.T
    return places.flatten()


def localised(groups: list[RigidGroup], positions: np.ndarray) -> torch.Tensor:
    atoms = torch.from_numpy(positions.astype(np.float64))
    local = atoms.clone()
    for group in groups:
        origin, turned = axes(group, atoms[CARBONS])
        local[group.atoms] = (atoms[group.atoms] - origin) @ turned
    return local.flatten()


@pytest.fixture(params=[False, True])
def groups(request: pytest.FixtureRequest) -> list[RigidGroup]:
    return rigid_groups(SMALL.topology, CLUSTERS, follows_next=request.param)


def test_every_atom_but_the_c_alpha_is_in_one_group(groups: list[RigidGroup]) -> None:
    members = np.sort(np.concatenate([group.atoms for group in groups]))
    np.testing.assert_array_equal(members, np.setdiff1d(np.arange(SMALL.topology.n_atoms), CARBONS))


def test_local_coordinates_have_the_volume_of_cartesian_ones(groups: list[RigidGroup]) -> None:
    """|dr / d(R, s)| = 1 wherever the molecule is, so that no divergence is missing from the forces."""
    for frame in (0, 17):
        local = localised(groups, SMALL.positions[frame])
        np.testing.assert_allclose(placement(groups, local), SMALL.positions[frame].flatten(), atol=1e-6)
        jacobian = torch.autograd.functional.jacobian(lambda at: placement(groups, at), local)
        assert float(torch.linalg.slogdet(jacobian).logabsdet) == pytest.approx(0.0, abs=1e-9)


def test_bead_forces_are_the_work_of_moving_beads_with_all_else_in_its_frame() -> None:
    frame = SMALL.take(np.array([5]))
    expected = np.zeros((10, 3))
    for follows_next in (False, True):
        groups = rigid_groups(SMALL.topology, CLUSTERS, follows_next=follows_next)
        local = localised(groups, frame.positions[0]).requires_grad_()
        work = placement(groups, local) @ torch.from_numpy(frame.forces[0].astype(np.float64)).flatten()
        (gradient,) = torch.autograd.grad(work, local)
        expected += 0.5 * gradient.view(-1, 3)[CARBONS].numpy()
    np.testing.assert_allclose(bead_forces(frame.forces, frame)[0], expected, atol=1e-2)


def test_forces_on_beads_alone_come_through_as_they_are() -> None:
    forces = np.zeros_like(SMALL.forces)
    forces[:, CARBONS] = SMALL.forces[:, CARBONS]
    np.testing.assert_array_equal(bead_forces(forces), SMALL.forces[:, CARBONS])


def test_total_force_and_torque_are_those_of_the_atoms() -> None:
    """Beads that move as one body carry all atoms along; float32 of sums of some 1e3 kJ/mol/nm."""
    found, atoms = bead_forces(SMALL.forces), SMALL.positions.astype(np.float64)
    np.testing.assert_allclose(found.sum(1), SMALL.forces.astype(np.float64).sum(1), atol=0.01)
    torque = np.cross(atoms, SMALL.forces).sum(1)
    np.testing.assert_allclose(np.cross(atoms[:, CARBONS], found).sum(1), torque, atol=0.02)


def test_constraint_forces_cancel() -> None:
    """Opposite forces along each rigid X-H bond, of any size, leave no trace."""
    forces, generator = np.zeros(SMALL.forces.shape), np.random.default_rng(0)
    for first, second in SMALL.topology.bonds:
        if "H" in (first.element.symbol, second.element.symbol):
            bond = SMALL.positions[:, second.index] - SMALL.positions[:, first.index]
            pull = 3000.0 * generator.standard_normal((len(SMALL), 1)) * bond
            forces[:, first.index] += pull
            forces[:, second.index] -= pull
    assert np.abs(forces).max() > 500
    assert np.abs(bead_forces(forces)).max() < 0.01


def test_projected_forces_turn_with_the_molecule() -> None:
    rotation = np.linalg.qr(np.random.default_rng(1).standard_normal((3, 3)))[0]
    rotation *= np.sign(np.linalg.det(rotation))
    turned = replace(SMALL, positions=(SMALL.positions @ rotation).astype(np.float32))
    np.testing.assert_allclose(
        bead_forces(SMALL.forces @ rotation, turned), bead_forces(SMALL.forces) @ rotation, atol=0.05
    )


def test_mean_force_is_that_of_the_linear_map_with_less_noise() -> None:
    """Held C-alpha, 12000 steps: both maps are unbiased, so their means agree within what 30 blocks leave open."""
    topology, _ = read_structure(SMALL.pdb)
    force_field = ForceFieldParams()
    system = build_system(topology, force_field, hold_alpha_carbons=True)
    context = make_context(system, force_field, temperature_K=350.0, timestep_ps=0.002, seed=1)
    context.setPositions(SMALL.positions[8])
    context.setVelocitiesToTemperature(350.0, 1)
    context.getIntegrator().step(1000)
    positions, forces = [], []
    for _ in range(1200):
        context.getIntegrator().step(10)
        positions.append(positions_of(context))
        forces.append(forces_of(context))
    steps = np.arange(1200)
    run = AtomFrames(
        SMALL.pdb,
        np.array(positions, dtype=np.float32),
        np.array(forces, dtype=np.float32),
        np.zeros(1200, dtype=np.int32),
        steps * 0.02,
        {"forces": "instantaneous"},
    )
    linear = fit_force_map(SMALL, MappingParams(force_map="optimal"))(run).astype(np.float64)
    framed = fit_force_map(SMALL, MappingParams(force_map="local_frames"))(run).astype(np.float64)
    blocks = (framed - linear).reshape(30, 40, 10, 3).mean(1)
    error = blocks.std(0, ddof=1) / np.sqrt(30)
    assert np.abs(blocks.mean(0) / error).max() < 4.5, "of 30 components, each with a t distribution of 29"
    assert framed.std(0).mean() < 0.9 * linear.std(0).mean()


def test_mean_forces_of_before_are_refused() -> None:
    with pytest.raises(BadTrajectory, match="label the frames again"):
        fit_force_map(SMALL, MappingParams(force_map="local_frames"))(replace(SMALL, provenance={"forces": "mean"}))


def test_mean_labels_carry_forces_averaged_in_local_frames(tmp_path: Path) -> None:
    """Held C-alpha: two labels of a frame, of 120 looks each, agree better in local frames than in the linear map, and
    the mean over 8 frames of both maps is the same within its error.
    """
    twice = SMALL.take(np.repeat(np.arange(0, 40, 5), 2))
    numbered = replace(twice, trajectory=np.arange(16, dtype=np.int32))
    labels = relabel(
        numbered,
        force_field=ForceFieldParams(),
        oracle=OracleParams(),
        temperature_K=350.0,
        seeds=range(1, 17),
        workers=1,
        scratch=tmp_path,
    ).labelled
    labels.save(tmp_path / "labels.h5")
    labels = AtomFrames.load(tmp_path / "labels.h5")
    framed = fit_force_map(SMALL, MappingParams(force_map="local_frames"))(labels).astype(np.float64)
    linear = fit_force_map(SMALL, MappingParams(force_map="optimal"))(labels).astype(np.float64)
    beads = torch.from_numpy(labels.positions[::2, CARBONS].astype(np.float64))
    noise = {}
    for name, forces in (("framed", framed), ("linear", linear)):
        apart = torch.from_numpy(forces[::2] - forces[1::2])
        noise[name] = float((apart - along_bonds(beads, apart)).square().mean())
    assert noise["framed"] < noise["linear"]
    off = (framed - linear)[::2] + (framed - linear)[1::2]
    between = (framed - linear)[::2] - (framed - linear)[1::2]
    assert np.mean(off**2) < 2.0 * np.mean(between**2), "240 numbers each, equal in the mean for unbiased maps"


def test_a_chain_of_two_is_refused() -> None:
    pair: mdtraj.Topology = SMALL.topology.subset([a.index for a in SMALL.topology.atoms if a.residue.index < 2])
    with pytest.raises(BadStructure, match="at least three residues"):
        rigid_groups(pair, constrained_clusters(pair), follows_next=False)
