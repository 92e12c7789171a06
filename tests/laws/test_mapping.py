"""Laws of the maps from atoms to beads, on real chignolin frames (40 of them, 166 atoms, H-bond constraints)."""

from pathlib import Path

import numpy as np
import pytest

from cgal.frames import AtomFrames, alpha_carbons
from cgal.params import MappingParams
from cgal.projection.clusters import constrained_clusters
from cgal.projection.mapping import (
    ForceMap,
    LinearMap,
    coordinate_map,
    fit_force_map,
    noise_figures,
)

SMALL = AtomFrames.load(Path(__file__).parents[1] / "data" / "chignolin_small.h5")
KINDS = ("slice", "constraint_aware", "optimal")


def fitted(kind: str, frames: AtomFrames = SMALL) -> ForceMap:
    return fit_force_map(frames, MappingParams(force_map=kind))


def force_map(kind: str, ridge: float = MappingParams().ridge) -> LinearMap:
    linear = fit_force_map(SMALL, MappingParams(force_map=kind, ridge=ridge)).linear
    assert linear is not None
    return linear


@pytest.mark.parametrize("ridge", [0.0, 1e-3, 0.1])
@pytest.mark.parametrize("kind", KINDS)
def test_force_map_is_right_inverse_of_coordinate_map(kind: str, ridge: float) -> None:
    """Xi Xi_F^T = I: weights of C-alpha are set, not solved for, so the product is exact."""
    product = coordinate_map(SMALL.topology).matrix @ force_map(kind, ridge=ridge).matrix.T
    np.testing.assert_allclose(product, np.eye(10), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["constraint_aware", "optimal"])
def test_constrained_atoms_share_one_weight(kind: str) -> None:
    matrix = force_map(kind).matrix
    clusters = constrained_clusters(SMALL.topology)
    assert sum(len(cluster) for cluster in clusters) == SMALL.topology.n_atoms
    for cluster in clusters:
        assert np.ptp(matrix[:, cluster], axis=1).max() == 0.0


def test_constraint_forces_cancel_unless_the_c_alpha_is_sliced() -> None:
    """A rigid CA-HA bond pulls both atoms with opposite forces: only a map that sums the two is blind to it."""
    names = [(atom.residue.index, atom.name) for atom in SMALL.topology.atoms]
    pair = np.zeros((1, len(names), 3), dtype=np.float32)
    pair[0, names.index((1, "CA"))] = [300.0, -200.0, 100.0]
    pair[0, names.index((1, "HA"))] = [-300.0, 200.0, -100.0]
    assert np.abs(force_map("constraint_aware")(pair)).max() == 0.0
    assert np.abs(force_map("optimal")(pair)).max() < 1e-3, "float32 of a 300 kJ/mol/nm force"
    assert np.abs(force_map("slice")(pair)).max() == 300.0


@pytest.mark.parametrize("ridge", [0.0, 1e-3, 0.1])
def test_optimal_bead_forces_add_up_to_the_total_force(ridge: float) -> None:
    """Every atom's weights sum to one over the beads: those of the ridge's target do, and internal forces add to zero.

    The stored forces are float32: of 166 atoms with rms 844 kJ/mol/nm they add to zero within some 1e-3, so the
    unregularised weights sum to one within 1e-5.
    """
    column_sums = force_map("optimal", ridge=ridge).matrix.sum(axis=0)
    np.testing.assert_allclose(column_sums, 1.0, atol=1e-5)


def test_uniform_push_reaches_the_beads_whole() -> None:
    """One and the same force on every atom is felt by all beads together as that force times the number of atoms."""
    push = np.broadcast_to(np.array([1.0, 2.0, -3.0]), (1, SMALL.topology.n_atoms, 3))
    total = force_map("optimal")(push).sum(axis=1)
    np.testing.assert_allclose(total, 166 * push[:, 0], rtol=1e-4)


def test_optimal_map_is_the_least_noisy_on_held_out_frames() -> None:
    """Fitted on the first 30 frames (90 equations for 83 weights a bead), measured on the last 10.

    A variance of 300 numbers is uncertain by sqrt(2/300) = 8 %, so an rms by 4 %: the optimal map must win by more.
    With 3000 frames it reaches half of the constraint-aware rms.
    """
    maps = [fitted(kind, SMALL.take(np.arange(30))) for kind in KINDS]
    rms = noise_figures(maps, SMALL.take(np.arange(30, 40)))
    assert rms["optimal"] < 0.95 * rms["constraint_aware"]
    assert rms["constraint_aware"] < rms["slice"]


def test_no_shared_weight_map_beats_the_optimal_one_on_its_own_frames() -> None:
    """Without a ridge it is the minimum: any step to other valid weights raises the mean square."""
    best = force_map("optimal", ridge=0.0)
    others = constrained_clusters(SMALL.topology)
    carbons = set(alpha_carbons(SMALL.topology))
    generator = np.random.default_rng(0)
    lowest = np.mean(best(SMALL.forces).astype(np.float64) ** 2)
    for _ in range(20):
        matrix = best.matrix.copy()
        for cluster in others:
            if carbons.isdisjoint(cluster):
                matrix[:, cluster] += 0.01 * generator.standard_normal((10, 1))
        step = LinearMap(matrix)
        assert np.mean(step(SMALL.forces).astype(np.float64) ** 2) > lowest


def test_coordinate_map_takes_the_c_alpha_unchanged() -> None:
    np.testing.assert_array_equal(
        coordinate_map(SMALL.topology)(SMALL.positions), SMALL.positions[:, SMALL.topology.select("name CA")]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_projected_forces_turn_with_the_molecule(kind: str) -> None:
    """The map acts on atoms and not on axes, so it commutes with a rotation (float32: 1e-6 of some 1e3)."""
    rotation = np.linalg.qr(np.random.default_rng(1).standard_normal((3, 3)))[0]
    mapped = force_map(kind)
    np.testing.assert_allclose(mapped(SMALL.forces @ rotation), mapped(SMALL.forces) @ rotation, atol=0.02)
