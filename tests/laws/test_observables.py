"""Geometry of bead chains whose bonds, angles, torsions and RMSD are known beforehand."""

import mdtraj
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cgal.benchmark.observables import (
    OBSERVABLES,
    angles,
    bonds,
    dihedrals,
    reaction_coordinate,
)
from cgal.benchmark.tica import fit_tica, pair_distances_of
from cgal.frames import CGTrajectory, bead_topology, rmsd_nm

FLOAT32 = 1e-6
"""Coordinates of a few nm in float32 are good to about 2e-7 nm."""


def beads(*chains: list[list[float]]) -> mdtraj.Trajectory:
    xyz = np.array(chains, dtype=np.float32)
    return mdtraj.Trajectory(xyz, bead_topology("A" * xyz.shape[1]))


def test_square_corner_chain_has_known_bonds_angles_and_torsion():
    chain = beads([[0, 0, 0], [1, 0, 0], [1, 2, 0], [1, 2, 3]])
    assert bonds(chain) == pytest.approx(np.array([[1, 2, 3]]), abs=FLOAT32)
    assert angles(chain) == pytest.approx(np.full((1, 2), np.pi / 2), abs=1e-5)
    assert abs(dihedrals(chain)[0, 0]) == pytest.approx(np.pi / 2, abs=1e-5)


def test_mirror_image_keeps_bonds_and_angles_and_flips_the_torsion():
    chain = beads([[0, 0, 0], [1, 0, 0], [1, 2, 0], [1, 2, 3]])
    mirror = beads([[0, 0, 0], [1, 0, 0], [1, 2, 0], [1, 2, -3]])
    assert bonds(mirror) == pytest.approx(bonds(chain))
    assert angles(mirror) == pytest.approx(angles(chain))
    assert dihedrals(mirror) == pytest.approx(-dihedrals(chain))


def test_right_handed_turn_has_a_positive_torsion():
    """IUPAC: looking along the middle bond, the far bond is clockwise of the near one."""
    chain = beads([[1, 0, 0], [0, 0, 0], [0, 0, 1], [np.cos(1.0), np.sin(1.0), 1]])
    assert dihedrals(chain)[0, 0] == pytest.approx(1.0, abs=1e-5)


def test_straight_chain_has_angles_of_pi():
    chain = beads([[0, 0, 0], [1, 0, 0], [2, 0, 0], [3, 0, 0]])
    assert angles(chain) == pytest.approx(np.full((1, 2), np.pi), abs=1e-3)


def test_ten_beads_have_forty_five_pairs_and_the_reaction_coordinate_is_the_first_with_the_last():
    positions = np.random.default_rng(0).normal(size=(3, 10, 3))
    chain = beads(*positions.tolist())
    distances = pair_distances_of(CGTrajectory.from_positions("A" * 10, positions, np.arange(3), np.zeros(3)))
    assert distances.shape == (3, 45)
    assert reaction_coordinate(chain)[:, 0] == pytest.approx(distances[:, 8])
    by_hand = np.linalg.norm(positions[:, 0] - positions[:, 9], axis=1)
    assert reaction_coordinate(chain)[:, 0] == pytest.approx(by_hand, abs=FLOAT32)


def test_observables_ignore_a_periodic_box():
    chain = beads([[0, 0, 0], [0.9, 0, 0], [1.8, 0.1, 0], [2.7, 0, 0.1]])
    free = [function(chain) for function in (bonds, angles, dihedrals, reaction_coordinate)]
    chain.unitcell_lengths, chain.unitcell_angles = np.ones((1, 3)), np.full((1, 3), 90.0)
    boxed = [function(chain) for function in (bonds, angles, dihedrals, reaction_coordinate)]
    assert all(np.array_equal(one, other) for one, other in zip(free, boxed, strict=True))


def test_observables_have_one_column_a_term():
    positions = np.random.default_rng(0).normal(size=(50, 10, 3))
    trajectory = CGTrajectory.from_positions("YYDPETGTWY", positions, np.arange(50), np.zeros(50))
    tica = fit_tica(trajectory, 1.0)
    shapes = {name: each.values(trajectory, tica).shape for name, each in OBSERVABLES.items()}
    columns = {"tica": 2, "reaction_coordinate": 1, "bond": 9, "angle": 8, "dihedral": 7}
    assert shapes == {name: (50, count) for name, count in columns.items()}


@pytest.mark.parametrize("observable", OBSERVABLES.values(), ids=lambda observable: observable.name)
def test_the_record_of_an_observable_is_complete(observable):
    assert observable.title
    assert observable.heading
    assert observable.axis
    assert observable.periodic == (observable.geometry == "circle")
    assert not observable.periodic or observable.unit == "rad"


def test_rmsd_is_blind_to_rigid_motion_and_sees_mirror_images():
    generator = np.random.default_rng(1)
    native = generator.normal(size=(10, 3)).astype(np.float32)
    turned = np.stack([native @ turn.T + 1.5 for turn in Rotation.random(20, rng=2).as_matrix()]).astype(np.float32)
    assert rmsd_nm(turned, native).max() < 1e-3
    assert rmsd_nm(-native[None], native)[0] > 0.1


def test_rmsd_equals_the_least_squares_superposition():
    generator = np.random.default_rng(3)
    native, frame = generator.normal(size=(2, 10, 3)).astype(np.float32)
    centred, target = frame - frame.mean(axis=0), native - native.mean(axis=0)
    _, residual = Rotation.align_vectors(target, centred)
    assert rmsd_nm(frame[None], native)[0] == pytest.approx(residual / np.sqrt(10), rel=1e-4)


def test_rmsd_leaves_its_arguments_alone_and_takes_no_frames():
    native = np.random.default_rng(4).normal(size=(10, 3)).astype(np.float32)
    frames = native[None] + np.float32(3)
    before = frames.copy()
    rmsd_nm(frames, native)
    assert np.array_equal(frames, before)
    assert rmsd_nm(frames[:0], native).shape == (0,)
