"""Replicas that follow a changing model tell its free energy: harmonic wells, whose Z is known."""

from itertools import pairwise

import numpy as np
import pytest

from cgal.training.population import Population

STIFFNESS = np.linspace(1.0, 6.0, 26)
"""Of a well in three dimensions, in units of k_B T: Z goes as its power -3/2."""


def follow(seed: int, memory: float, replicas: int = 200) -> Population:
    """Replicas that keep `memory` of where they were at each step: at 1 they never move."""
    generator = np.random.default_rng(seed)
    population = Population.begin(generator.normal(size=(replicas, 1, 3)).astype(np.float32))
    for before, after in pairwise(STIFFNESS):
        square = (population.positions.astype(np.float64) ** 2).sum(axis=(1, 2))
        population = population.weigh(0.5 * (after - before) * square).draw_anew(generator)
        noise = generator.normal(scale=after**-0.5, size=population.positions.shape)
        moved = memory * population.positions + np.sqrt(1 - memory**2) * noise
        population = population.move(moved.astype(np.float32))
    return population


@pytest.mark.parametrize("memory", [0.0, 0.9])
def test_the_free_energy_is_found_however_slowly_the_replicas_follow(memory):
    """Over 40 seeds the mean is known to a sixth of one error; its bias, half the variance, is far below that."""
    expected = -1.5 * np.log(STIFFNESS[-1] / STIFFNESS[0])
    found = [follow(seed, memory) for seed in range(40)]
    errors = np.array([population.log_ratio - expected for population in found])
    assert abs(errors.mean()) < 4 * errors.std() / 40**0.5
    assert errors.std() < 0.3


def test_the_error_that_is_told_is_the_scatter_over_seeds():
    found = [follow(seed, 0.0) for seed in range(60)]
    told = np.mean([population.variance for population in found]) ** 0.5
    assert told == pytest.approx(np.std([population.log_ratio for population in found]), rel=0.3)


def test_replicas_are_drawn_in_proportion_to_their_weights():
    population = Population.begin(np.arange(8, dtype=np.float32).reshape(8, 1, 1).repeat(3, axis=2))
    drawn = population.weigh(np.array([0.0, np.nan, *[20.0] * 6])).draw_anew(np.random.default_rng(0))
    assert not drawn.positions.any()
    assert drawn.log_ratio == pytest.approx(-np.log(8), abs=1e-6)
    assert drawn.effective == pytest.approx(8)
