"""How the cost of a step grows with the chain: pairs within a cutoff against all pairs."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.spatial.distance import pdist

from benchmarks.chains import TEMPERATURE_K, compact_chain, potential, shaken
from benchmarks.harness import Result, interleave
from cgal.params import SchNetParams, SimulationParams
from cgal.simulation.langevin import Engine
from cgal.simulation.run import start_engine

BEADS = (10, 35, 80, 200)
CUTOFFS_nm = (1.0, 1.5)
ALL_nm = 6.0
"""Cutoff beyond any of the chains: the same engine on all pairs."""
BEADS_AT_ONCE = 1600
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "growth.png"
COLOURS = {1.0: "#d1495b", 1.5: "#00798c", ALL_nm: "#222222"}


def results() -> Iterator[Result]:
    """Yield every length and cutoff against all pairs of the same chain; draw them."""
    torch.set_num_threads(2)
    points: dict[float, list[tuple[int, int, float]]] = {cutoff: [] for cutoff in COLOURS}
    for beads in BEADS:
        replicas, pairs = BEADS_AT_ONCE // beads, pdist(compact_chain(beads))
        everything = _engine(beads, ALL_nm)
        for cutoff_nm in CUTOFFS_nm:
            steps = max(4, 20000 // len(pairs) // replicas + 4)
            timing = interleave(
                partial(_engine(beads, cutoff_nm).advance, steps), partial(everything.advance, steps), repetitions=5
            )
            assert timing.peer_s is not None
            near, step_s = int((pairs < cutoff_nm).sum()), steps * replicas
            points[cutoff_nm].append((beads, near, timing.ours_s / step_s))
            note = f"{replicas} replicas; {near} of {len(pairs)} pairs within {cutoff_nm} nm; peer: all pairs"
            yield timing.rates(f"growth_{beads}_beads_{cutoff_nm}_nm", step_s, "replica-steps/s", note)
            all_s = timing.peer_s / step_s
        points[ALL_nm].append((beads, len(pairs), all_s))
    _draw(points)
    yield _all_but_the_network()


def _all_but_the_network() -> Result:
    """Bound what a list with a skin could save: search, prior, noise and integrator, by a network of one feature."""
    beads, cutoff_nm, steps = BEADS[-1], CUTOFFS_nm[0], 20
    bare, whole = _engine(beads, cutoff_nm, features=1, blocks=1), _engine(beads, cutoff_nm)
    timing = interleave(partial(bare.advance, steps), partial(whole.advance, steps), repetitions=5)
    return timing.rates(
        f"growth_{beads}_beads_without_network",
        steps * (BEADS_AT_ONCE // beads),
        "replica-steps/s",
        f"search among all pairs, prior, noise and integrator alone (cutoff {cutoff_nm} nm); peer: the whole step",
    )


def _engine(beads: int, cutoff_nm: float, features: int = 128, blocks: int = 3) -> Engine:
    """Give the engine at one spacing of the tables, whatever the cutoff."""
    chain, replicas = compact_chain(beads), BEADS_AT_ONCE // beads
    network = SchNetParams(features=features, blocks=blocks, radial_functions=32, cutoff_nm=cutoff_nm)
    params = SimulationParams(replicas=replicas, filter_intervals=round(340 * cutoff_nm))
    return start_engine(
        potential(chain, network), shaken(chain, replicas, 1), params, TEMPERATURE_K, seed=1, device="cpu"
    )


def _draw(points: dict[float, list[tuple[int, int, float]]]) -> None:
    figure = Figure(figsize=(9, 4), layout="constrained")
    by_pairs, by_beads = figure.subplots(1, 2, sharey=True)
    for cutoff_nm, rows in points.items():
        beads, pairs, step_s = (np.array(column) for column in zip(*rows, strict=True))
        label = "all pairs" if cutoff_nm == ALL_nm else f"cutoff {cutoff_nm} nm"
        by_pairs.loglog(pairs, 1e6 * step_s, "o-", color=COLOURS[cutoff_nm], label=label)
        by_beads.loglog(beads, 1e6 * step_s, "o-", color=COLOURS[cutoff_nm])
    by_pairs.set(xlabel="pairs of a replica within the cutoff", ylabel="cost of a step of one replica [µs]")
    by_beads.set(xlabel="beads")
    by_beads.set_xticks(BEADS, [str(number) for number in BEADS])
    by_beads.minorticks_off()
    by_pairs.legend(frameon=False)
    figure.savefig(PICTURE, dpi=150)
