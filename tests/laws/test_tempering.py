"""Parallel tempering on systems with a known answer."""

import numpy as np
import pytest

from cgal.reference.tempering import exchange, memory, round_trips, visits
from cgal.units import BOLTZMANN_kJ_per_mol_K

TEMPERATURES_K = np.array([300.0, 360.0, 432.0, 520.0])
FREEDOM = 6


def canonical_energies(generator: np.random.Generator) -> np.ndarray:
    """Potential energies of as many harmonic oscillators at each temperature: mean f/2 kT."""
    return generator.gamma(FREEDOM / 2, BOLTZMANN_kJ_per_mol_K * TEMPERATURES_K)


def test_exchanges_leave_the_canonical_distribution_of_every_temperature_as_it_is() -> None:
    generator = np.random.default_rng(1)
    after = []
    for trial in range(20_000):
        energies = canonical_energies(generator)
        after.append(energies[exchange(energies, TEMPERATURES_K, generator, odd=bool(trial % 2))])
    scaled = np.array(after) / (BOLTZMANN_kJ_per_mol_K * TEMPERATURES_K)
    # mean and variance of a gamma distribution; their standard errors over 20,000 trials are 0.012 and 0.05
    np.testing.assert_allclose(scaled.mean(axis=0), FREEDOM / 2, atol=0.05)
    np.testing.assert_allclose(scaled.var(axis=0), FREEDOM / 2, atol=0.2)


def test_only_neighbours_of_the_right_parity_swap() -> None:
    generator = np.random.default_rng(2)
    falling = np.array([40.0, 30.0, 20.0, 10.0])  # every swap is downhill
    np.testing.assert_array_equal(exchange(falling, TEMPERATURES_K, generator, odd=False), [1, 0, 3, 2])
    np.testing.assert_array_equal(exchange(falling, TEMPERATURES_K, generator, odd=True), [0, 2, 1, 3])


def test_an_exchange_far_uphill_never_happens() -> None:
    generator = np.random.default_rng(3)
    rising = np.array([0.0, 1e4, 2e4, 3e4])
    for odd in (False, True):
        np.testing.assert_array_equal(exchange(rising, TEMPERATURES_K, generator, odd=odd), np.arange(4))


@pytest.mark.parametrize(
    ("rungs_of_walker_0", "trips"),
    [([0, 1, 2, 1, 0], 1), ([0, 1, 0, 1, 0], 0), ([0, 1, 2], 0), ([2, 1, 0, 1, 2, 1, 0], 1)],
)
def test_a_round_trip_goes_all_the_way_up_and_down(rungs_of_walker_0: list[int], trips: int) -> None:
    """Two walkers fill the other rungs in order; what they do is counted by hand, and taken off."""
    walkers = np.array([[*[1, 2][:rung], 0, *[1, 2][rung:]] for rung in rungs_of_walker_0])
    assert round_trips(walkers) - sum(_trips_of(walkers, other) for other in (1, 2)) == trips


def _trips_of(walkers: np.ndarray, walker: int) -> int:
    rung = np.argmax(walkers == walker, axis=1)
    ends = rung[(rung == 0) | (rung == 2)]
    return int(np.count_nonzero(np.diff(ends))) // 2


def test_a_visit_ends_when_its_walker_has_been_at_the_top() -> None:
    walkers = np.array([[0, 1, 2], [1, 0, 2], [1, 2, 0], [1, 0, 2], [0, 1, 2], [2, 1, 0], [2, 1, 0], [1, 2, 0]])
    np.testing.assert_array_equal(visits(walkers), [[0, 0], [1, 0], [1, 0], [1, 0], [0, 1], [2, 2], [2, 2], [1, 0]])


@pytest.mark.parametrize("kept", [0.0, 0.7])
def test_memory_is_the_correlation_of_successive_visits(kept: float) -> None:
    """Walkers whose coordinate follows an autoregressive chain from visit to visit, with visits of unequal lengths."""
    generator = np.random.default_rng(5)
    names, values = [], []
    for walker in range(40):
        state = generator.normal()
        for visit in range(50):
            frames = int(generator.integers(1, 6))
            names += [[walker % 4, walker // 4, visit]] * frames
            values += [state] * frames
            state = kept * state + np.sqrt(1 - kept**2) * generator.normal()
    found = memory(np.array(names), np.array(values))
    assert found == pytest.approx(kept, abs=0.07)  # standard error 0.023 over 1960 pairs


def test_too_few_visits_have_no_memory() -> None:
    assert memory(np.array([[0, 0, 0], [0, 0, 1], [0, 1, 0]]), np.array([1.0, 2.0, 3.0])) is None
