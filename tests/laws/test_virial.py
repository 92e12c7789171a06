"""Law of force maps on equilibrium frames: < F . grad q > = - k_B T < div grad q >, which a biased map breaks.

One real run of chignolin at 450 K, 160 ps from a folded frame, with a look every 40 fs.
"""

from pathlib import Path

import numpy as np
import pytest

from cgal.all_atom.dynamics import AtomRun
from cgal.all_atom.force_field import build_system, read_structure
from cgal.errors import EmptyTrajectory
from cgal.frames import AtomFrames
from cgal.params import ForceFieldParams, MappingParams
from cgal.projection.mapping import coordinate_map, fit_force_map
from cgal.projection.virial import Ratio, virial_ratios
from study.beds import Swarm

SMALL = AtomFrames.load(Path(__file__).parents[1] / "data" / "chignolin_small.h5")
SWARMS = Path(__file__).parents[2] / "study" / "swarms"
TEMPERATURE_K = 450.0
LOOKS, STRIDE = 4000, 10


@pytest.fixture(scope="module")
def frames() -> AtomFrames:
    topology, _ = read_structure(SMALL.pdb)
    force_field = ForceFieldParams()
    run = AtomRun(
        build_system(topology, force_field),
        force_field,
        temperature_K=TEMPERATURE_K,
        timestep_ps=force_field.timestep_ps,
        seed=3,
    )
    run.place(SMALL.positions[8], constrain=True)
    run.draw_velocities()
    run.advance(2500)
    moments = list(run.moments(LOOKS, STRIDE))
    return AtomFrames(
        SMALL.pdb,
        np.array([moment.positions for moment in moments], dtype=np.float32),
        np.array([moment.forces for moment in moments], dtype=np.float32),
        np.zeros(LOOKS, dtype=np.int32),
        np.arange(LOOKS) * (STRIDE * force_field.timestep_ps),
        {"forces": "instantaneous"},
    )


def ratios(frames: AtomFrames, kind: str) -> dict[str, Ratio]:
    force_map = fit_force_map(SMALL, MappingParams(force_map=kind))
    beads = coordinate_map(frames.topology)(frames.positions)
    return virial_ratios(beads, force_map(frames), TEMPERATURE_K)


@pytest.mark.parametrize("kind", ["constraint_aware", "optimal", "local_frames"])
def test_valid_maps_balance_thermal_motion(frames: AtomFrames, kind: str) -> None:
    """Twelve values in all, each with a t distribution of 19: one beyond 4 errors in a thousand such tests."""
    for name, ratio in ratios(frames, kind).items():
        assert abs(ratio.deviations) < 4.0, f"{kind}, {name}: {ratio.value:.2f} +- {ratio.error:.2f}"


def test_the_slice_is_biased_under_constraints(frames: AtomFrames) -> None:
    """Forces of the rigid CA-HA bonds are missing: bonds come out near -1.8 (0.14), not -1; one in 250 by chance."""
    bonds = ratios(frames, "slice")["bonds"]
    assert bonds.deviations < -3.0, f"{bonds.value:.2f} +- {bonds.error:.2f}"


@pytest.mark.parametrize(("name", "temperature_K"), [("chignolin_350K_long", 350.0), ("a10_300K", 300.0)])
def test_a_long_swarm_in_local_frames_is_balanced(name: str, temperature_K: float) -> None:
    """After the first nanosecond of each trajectory; 560 ns of the one and 130 of the other."""
    labels = Swarm.load(SWARMS / f"{name}.h5").frames
    labels = labels.take(labels.time_ps - labels.time_ps.min() > 1000.0)
    for distance, ratio in virial_ratios(labels.positions, labels.forces, temperature_K).items():
        assert ratio.error < 0.2, distance
        assert abs(ratio.deviations) < 4.0, f"{distance}: {ratio.value:.3f} +- {ratio.error:.3f}"


def test_forces_of_another_temperature_are_caught(frames: AtomFrames) -> None:
    beads, forces = coordinate_map(frames.topology)(frames.positions), fit_force_map(SMALL, MappingParams())(frames)
    assert virial_ratios(beads, forces, 2 * TEMPERATURE_K)["bonds"].value == pytest.approx(
        0.5 * virial_ratios(beads, forces, TEMPERATURE_K)["bonds"].value
    )
    assert virial_ratios(beads, forces, 2 * TEMPERATURE_K)["bonds"].deviations > 4.0


def test_too_few_frames_are_refused(frames: AtomFrames) -> None:
    beads = coordinate_map(frames.topology)(frames.positions[:39])
    with pytest.raises(EmptyTrajectory, match="at least 40 frames"):
        virial_ratios(beads, beads, TEMPERATURE_K)
