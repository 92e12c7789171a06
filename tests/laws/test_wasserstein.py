"""Wasserstein-1 distances whose answer is known beforehand, and intervals that cover it."""

from itertools import product

import numpy as np
import ot
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import gaussian_kde

from cgal.benchmark import wasserstein
from cgal.benchmark.wasserstein import MODES, Resamples, Sample, estimate, estimators

GEOMETRIES = ("line", "circle", "plane")
FRAMES = 2000
SHIFT_ERROR = 4 * np.sqrt(2 / FRAMES)
"""Four standard errors of the difference of two means of unit Gaussians."""


def sample(values: np.ndarray, weights: np.ndarray | None = None, blocks: int = 10) -> Sample:
    values = values.astype(float).reshape(len(values), -1)
    frames = len(values)
    weights = np.full(frames, 1 / frames) if weights is None else weights
    return Sample(values, weights, np.arange(frames) * blocks // frames)


def shape_of(geometry: str) -> tuple[int, int]:
    return (FRAMES, {"plane": 2}.get(geometry, 3))


def w1(mode: str, geometry: str, model: Sample, reference: Sample) -> float:
    return estimators(FRAMES)[mode][geometry].value(model, reference)


every_estimator = pytest.mark.parametrize(("mode", "geometry"), list(product(MODES, GEOMETRIES)))


@every_estimator
def test_identical_samples_are_at_distance_zero(mode, geometry):
    side = sample(np.random.default_rng(0).normal(size=(400, shape_of(geometry)[1])))
    assert w1(mode, geometry, side, side) == pytest.approx(0, abs=1e-12)


@every_estimator
def test_shifted_gaussians_are_at_the_distance_of_the_shift(mode, geometry):
    """W1 of a distribution and its translate is the length of the translation; paper mode adds half a grid cell."""
    generator = np.random.default_rng(1)
    shape = (1000, shape_of(geometry)[1])
    shift = np.full(shape[1], 0.7) if geometry != "plane" else np.array([0.42, 0.56])
    model, reference = sample(generator.normal(size=shape) + shift), sample(generator.normal(size=shape))
    tolerance = 0.2 if geometry == "plane" else 1.5 * SHIFT_ERROR + 0.03 * (mode == "paper")
    assert w1(mode, geometry, model, reference) == pytest.approx(0.7, abs=tolerance)


def test_a_cloud_and_its_translate_are_exactly_the_translation_apart():
    cloud = np.random.default_rng(2).normal(size=(300, 2))
    assert w1("exact", "plane", sample(cloud + np.array([0.3, 0.4])), sample(cloud)) == pytest.approx(0.5, abs=1e-10)


@every_estimator
def test_distance_is_symmetric(mode, geometry):
    generator = np.random.default_rng(3)
    one, other = (sample(generator.normal(k, 1 + k, size=(150 + 50 * k, shape_of(geometry)[1]))) for k in range(2))
    assert w1(mode, geometry, one, other) == pytest.approx(w1(mode, geometry, other, one), rel=1e-9)


def test_angles_on_both_sides_of_pi_are_close_on_the_circle_and_far_on_the_line():
    """Means 0.2 rad apart through pi: W1 is 0.2 on the circle, but 2 pi - 0.2 for the paper's line."""
    generator = np.random.default_rng(4)
    below, above = (sample(generator.normal(mean, 0.02, size=FRAMES)) for mean in (np.pi - 0.1, -np.pi + 0.1))
    assert w1("exact", "circle", below, above) == pytest.approx(0.2, abs=0.005)
    assert w1("paper", "circle", below, above) == pytest.approx(2 * np.pi - 0.2, abs=0.07)


def test_circular_distance_is_blind_to_a_common_rotation_and_to_whole_turns():
    generator = np.random.default_rng(5)
    one, other = generator.vonmises(0.5, 2, size=500), generator.vonmises(-1, 4, size=400)
    plain = w1("exact", "circle", sample(one), sample(other))
    for turn in (1.0, 2.5, np.pi):
        assert w1("exact", "circle", sample(one + turn), sample(other + turn)) == pytest.approx(plain, rel=1e-6)
    assert w1("exact", "circle", sample(one + 2 * np.pi), sample(other)) == pytest.approx(plain, rel=1e-6)


def test_opposite_points_on_the_circle_are_half_a_turn_apart():
    assert w1("exact", "circle", sample(np.zeros(5)), sample(np.full(5, np.pi))) == pytest.approx(np.pi)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_an_integer_weight_equals_repetition(geometry):
    """In exact mode only: a kernel bandwidth depends on the number of frames that a weight stands for."""
    generator = np.random.default_rng(6)
    values, other = generator.normal(size=(2, 120, shape_of(geometry)[1]))
    counts = generator.integers(1, 4, size=120)
    weighted = sample(values, counts / counts.sum())
    repeated = sample(np.repeat(values, counts, axis=0))
    assert w1("exact", geometry, weighted, sample(other)) == pytest.approx(
        w1("exact", geometry, repeated, sample(other)), rel=1e-6
    )


@every_estimator
def test_a_frame_of_weight_zero_is_no_frame(mode, geometry):
    generator = np.random.default_rng(7)
    values, other = generator.normal(size=(2, 100, shape_of(geometry)[1]))
    duplicated = np.concatenate([values, values[::-1]])
    weights = np.concatenate([np.full(100, 0.01), np.zeros(100)])
    assert w1(mode, geometry, sample(duplicated, weights), sample(other)) == pytest.approx(
        w1(mode, geometry, sample(values), sample(other)), rel=1e-6
    )


def test_swapped_terms_show_in_exact_mode_and_hide_in_the_papers_pool():
    generator = np.random.default_rng(8)
    reference = generator.normal([0.0, 5.0], 0.1, size=(FRAMES, 2))
    swapped = reference[:, ::-1]
    assert w1("exact", "line", sample(swapped), sample(reference)) == pytest.approx(5, abs=0.05)
    assert w1("paper", "line", sample(swapped), sample(reference)) < 0.01


def test_paper_mode_counts_mass_outside_the_references_range():
    """A tenth of the model lies ten away: W1 is at least 1, though no reference frame is near."""
    generator = np.random.default_rng(9)
    reference = generator.normal(size=FRAMES)
    model = reference + 10 * (np.arange(FRAMES) % 10 == 0)
    assert w1("paper", "line", sample(model), sample(reference)) == pytest.approx(1.0, abs=0.15)


@every_estimator
def test_one_frame_far_out_leaves_the_distance_finite_and_small(mode, geometry):
    """Grid cells become far wider than a kernel; an unwidened kernel would fall between points and give 0 / 0."""
    values = np.random.default_rng(10).normal(0, 1e-3, size=shape_of(geometry))
    outlier = values.copy()
    outlier[0] = 100.0
    distance = w1(mode, geometry, sample(outlier), sample(values))
    assert 0 < distance < 1.0


@pytest.mark.parametrize("dims", [1, 2])
def test_grid_densities_are_those_of_scipys_kernel_density(dims):
    generator = np.random.default_rng(11)
    weights = generator.dirichlet(np.ones(200))
    model, reference = sample(generator.normal(size=(200, dims)), weights), sample(generator.normal(size=(300, dims)))
    masses = wasserstein._grid_masses(model, reference, 30, margin=0.1)
    for side, rows in ((model, masses.model), (reference, masses.reference)):
        density = gaussian_kde(side.values.T, weights=side.weights)(masses.points.T)
        assert rows.sum(axis=0) / rows.sum() == pytest.approx(density / density.sum(), rel=1e-8, abs=1e-15)


@pytest.fixture
def common_masses():
    """Sorted points on (0, 2 pi), and four rows of probabilities a side."""
    generator = np.random.default_rng(12)
    points = np.sort(generator.uniform(0, 2 * np.pi, size=60))
    return points, generator.dirichlet(np.ones(60), size=4), generator.dirichlet(np.ones(60), size=4)


def test_line_transport_of_all_rows_is_pots_one_by_one(common_masses):
    points, p, q = common_masses
    pot = [ot.wasserstein_1d(points, points, a, b) for a, b in zip(p, q, strict=True)]
    assert wasserstein.line_transport(points[:, None], p, q) == pytest.approx(pot)


def test_circle_transport_of_all_rows_is_pots_one_by_one(common_masses):
    points, p, q = common_masses
    turns = points[:, None] / (2 * np.pi)
    pot = [
        2 * np.pi * float(ot.wasserstein_circle(turns, turns, a[:, None], b[:, None])[0])
        for a, b in zip(p, q, strict=True)
    ]
    assert wasserstein.circle_transport(points[:, None], p, q) == pytest.approx(pot)


def test_circular_distance_of_samples_is_pots():
    """POT searches for the optimal cut of the circle, to 1e-6 of a turn."""
    generator = np.random.default_rng(20)
    model, reference = (sample(generator.vonmises(k, 1 + k, size=(300 + 100 * k, 2))) for k in range(2))
    turns = [(side.values / (2 * np.pi)) % 1 for side in (model, reference)]
    pot = 2 * np.pi * np.mean(ot.wasserstein_circle(*turns, p=1))
    assert w1("exact", "circle", model, reference) == pytest.approx(pot, abs=1e-5)


def lattice_masses(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whole masses on lattice points, many equal, many zero: all ties that a simplex can stumble over."""
    points = np.stack(np.meshgrid(np.arange(8.0), np.arange(8.0)), axis=-1).reshape(-1, 2)
    masses = generator.integers(0, 3, size=(2, 6, 64)).astype(float)
    masses[:, :, 0] += 1
    masses[1, 0] = masses[0, 0]
    return points, *(side / side.sum(axis=1, keepdims=True) for side in masses)


def test_plane_transport_copes_with_ties_and_with_nothing_to_carry():
    points, p, q = lattice_masses(np.random.default_rng(21))
    pot = [ot.emd2(a, b, cdist(points, points)) for a, b in zip(p, q, strict=True)]
    found = wasserstein.plane_transport(points, p, q)
    assert found == pytest.approx(pot, abs=1e-12)
    assert found[0] == 0
    assert wasserstein.plane_transport(points, p, p).tolist() == [0.0] * 6


def test_plane_transport_does_not_depend_on_the_rows_beside_it():
    """Each row starts from the first row's tree; where it ends is the same to rounding."""
    points, p, q = lattice_masses(np.random.default_rng(22))
    alone = np.concatenate([wasserstein.plane_transport(points, a[None], b[None]) for a, b in zip(p, q, strict=True)])
    assert wasserstein.plane_transport(points, p, q) == pytest.approx(alone, abs=1e-12)


def test_plane_transport_falls_back_on_pot_where_the_simplex_does_not_end(monkeypatch):
    points, p, q = lattice_masses(np.random.default_rng(23))
    expected = wasserstein.plane_transport(points, p, q)
    monkeypatch.setattr(wasserstein, "transport_costs", lambda costs, rows: np.full(len(rows), np.nan))
    assert wasserstein.plane_transport(points, p, q) == pytest.approx(expected, abs=1e-12)


def test_plane_transport_of_surplus_alone_is_that_of_all_mass(common_masses):
    _, p, q = common_masses
    points = np.random.default_rng(13).normal(size=(60, 2))
    pot = [ot.emd2(a, b, cdist(points, points)) for a, b in zip(p, q, strict=True)]
    assert wasserstein.plane_transport(points, p, q) == pytest.approx(pot)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_resampling_on_cells_is_resampling_on_frames(geometry):
    """The cells only tell how W1 changes in a resample: that must be right to a small part of its spread."""
    generator = np.random.default_rng(14)
    dims = 2 if geometry == "plane" else 1
    blocks, frames = 12, 50
    model, reference = (
        sample(
            (
                generator.normal(k * 0.3, 0.5, size=(blocks, 1, dims)) + generator.normal(size=(blocks, frames, dims))
            ).reshape(-1, dims),
            blocks=blocks,
        )
        for k in range(2)
    )
    estimator = estimators(FRAMES)["exact"][geometry]
    resamples = Resamples.draw(model, reference, 25, np.random.default_rng(0))
    full = [
        estimator.value(sample(model.values, a[model.block]), sample(reference.values, b[reference.block]))
        for a, b in zip(resamples.model, resamples.reference, strict=True)
    ]
    cells = estimator.distances(model, reference, resamples)
    error = (cells[1:] - cells[0]) - (np.array(full[1:]) - full[0])
    assert np.sqrt(np.mean(error**2)) < 0.1 * np.std(full)


def replicas(generator: np.random.Generator, count: int, frames: int, mean: float, spread: float) -> Sample:
    """Frames of unit variance around replica means that scatter by `spread`: strongly correlated within a replica."""
    means = generator.normal(mean, spread, size=(count, 1))
    return sample((means + generator.normal(size=(count, frames))).reshape(-1), blocks=count)


def interval(model: Sample, reference: Sample, seed: int = 0) -> dict[str, float]:
    resamples = Resamples.draw(model, reference, 200, np.random.default_rng(seed))
    return estimate(estimators(FRAMES)["exact"]["line"], model, reference, resamples)


def test_interval_covers_the_true_shift_and_is_no_wider_than_it_must():
    """True W1 is the shift, 1; its error that of two means of 20 replicas, 0.5 sqrt(2 / 20) = 0.16: 95 % spans 0.62.

    Of 60 experiments 57 should cover; a bootstrap of 20 blocks loses some: below 50 it would be wrong.
    """
    generator = np.random.default_rng(15)
    found = [interval(replicas(generator, 20, 25, 1.0, 0.5), replicas(generator, 20, 25, 0.0, 0.5)) for _ in range(60)]
    covered = sum(each["low"] <= 1.0 <= each["high"] for each in found)
    assert covered >= 50
    assert np.mean([each["high"] - each["low"] for each in found]) == pytest.approx(0.62, rel=0.2)


def test_interval_knows_that_frames_of_a_replica_are_correlated():
    """Variance of a mean: 1 / 20 + 1 / 500 from 20 replicas, 2 / 500 were all 500 frames independent: a factor 3.6."""
    generator = np.random.default_rng(16)
    model, reference = replicas(generator, 20, 25, 3.0, 1.0), replicas(generator, 20, 25, 0.0, 1.0)
    loose = [sample(side.values, blocks=len(side)) for side in (model, reference)]
    blocked, unblocked = interval(model, reference), interval(*loose)
    assert blocked["high"] - blocked["low"] > 2 * (unblocked["high"] - unblocked["low"])


@every_estimator
def test_interval_holds_the_value_and_stays_above_zero_even_at_the_floor(mode, geometry):
    model, reference = (sample(side) for side in np.random.default_rng(17).normal(size=(2, 200, shape_of(geometry)[1])))
    resamples = Resamples.draw(model, reference, 20, np.random.default_rng(0))
    found = estimate(estimators(FRAMES)[mode][geometry], model, reference, resamples)
    assert 0 <= found["low"] <= found["value"] <= found["high"]
    assert all(isinstance(each, float) for each in found.values())


def test_interval_is_the_same_for_the_same_seed_and_another_for_another():
    generator = np.random.default_rng(18)
    sides = replicas(generator, 10, 20, 1.0, 0.5), replicas(generator, 10, 20, 0.0, 0.5)
    assert interval(*sides, seed=1) == interval(*sides, seed=1)
    assert interval(*sides, seed=1) != interval(*sides, seed=2)


@pytest.mark.parametrize("mode", ["exact", "paper"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_floor_falls_with_sample_size(mode, geometry):
    """W1 of two samples of one distribution is noise: eight times the frames, 1 / sqrt(8) = 0.35 of it."""
    generator = np.random.default_rng(19)
    dims = shape_of(geometry)[1]

    def floor(frames: int) -> float:
        pairs = generator.normal(size=(12, 2, frames, dims))
        return float(np.mean([w1(mode, geometry, sample(one), sample(other)) for one, other in pairs]))

    assert floor(480) < 0.6 * floor(60)


def test_trajectories_without_weight_are_never_drawn():
    """Two of three: drawn alone they would leave nothing to compare with."""
    model = sample(np.random.default_rng(1).normal(size=(30, 1)), blocks=3)
    reference = sample(np.random.default_rng(2).normal(size=(30, 1)), np.repeat([0.0, 0.0, 1 / 10], 10), blocks=3)
    rows = Resamples.draw(model, reference, 50, np.random.default_rng(0)).reference
    assert (rows[0] == 1).all()
    assert (rows[1:] == [0, 0, 1]).all()
    with pytest.raises(ValueError, match="must be finite"):
        wasserstein.transport_costs(np.ones((2, 2)), np.full((1, 2), np.nan))


def test_thinning_takes_evenly_spaced_frames_without_chance():
    side = sample(np.arange(10))
    assert side.thin(5).values[:, 0].tolist() == [0, 2, 4, 6, 8]
    assert side.thin(10) is side
