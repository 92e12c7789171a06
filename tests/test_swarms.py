"""The packed swarm is whole: what it holds is of one protein, finite, and goes on from where each trajectory stands."""

import numpy as np
import pytest

from cgal.all_atom.force_field import read_structure
from cgal.frames import alpha_carbons, read_pdb_text, sequence_of
from cgal.params import ForceFieldParams
from cgal.reference.sampling import Start
from study.beds import Swarm, helical_share, native_share
from study.ground_truths import left_handed_share
from study.swarms import grow, unpack
from tests.conftest import REPOSITORY

SWARMS = REPOSITORY / "study" / "swarms"


@pytest.mark.parametrize("path", sorted(SWARMS.glob("*.h5")), ids=lambda path: path.stem)
def test_a_packed_swarm_can_be_learned_from_and_gone_on_with(path, tmp_path):
    swarm = Swarm.load(path)
    topology = read_pdb_text(swarm.structure).topology
    assert swarm.frames.sequence == sequence_of(topology)
    assert swarm.recipe["temperature_K"] == swarm.frames.provenance["temperature_K"]
    assert np.isfinite(swarm.frames.forces).all()
    bonds = np.linalg.norm(np.diff(swarm.frames.positions, axis=1), axis=2)
    assert 0.37 < bonds.mean() < 0.40
    unpack(swarm, tmp_path)
    for index, positions in enumerate(swarm.end_positions):
        end = Start.load(tmp_path / "starts" / f"{index:03d}.h5").end
        assert np.array_equal(end.positions, positions)
        beads = end.positions[alpha_carbons(topology)]
        assert np.linalg.norm(np.diff(beads, axis=0), axis=1).max() < 0.45


def test_a_swarm_goes_on_side_by_side_the_same_bytes_for_the_same_seed():
    packed = Swarm.load(SWARMS / "chignolin_350K.h5")
    first, again = (
        grow(
            packed.end_positions[:2],
            packed.structure,
            ForceFieldParams(name="ff96", platform="CPU"),
            temperature_K=350.0,
            copies=3,
            spacing_ps=0.04,
            minutes=0.0,
        )
        for _ in range(2)
    )
    assert np.array_equal(first.frames.positions, again.frames.positions)
    assert np.array_equal(first.frames.forces, again.frames.forces)
    assert first.frames.time_ps.reshape(3, -1)[0] == pytest.approx(0.04 * np.arange(1, 11))
    _, native = read_structure(first.structure)
    assert first.end_positions.shape == (3, *native.shape)
    assert first.frames.forces.std() == pytest.approx(packed.frames.forces.std(), rel=0.3)


def test_the_hairpin_is_native_at_times_and_the_helix_right_handed():
    hairpin, helix = Swarm.load(SWARMS / "chignolin_350K_long.h5"), Swarm.load(SWARMS / "a10_300K.h5")
    assert 0.1 < native_share(hairpin.frames.positions, hairpin.structure).mean() < 0.2
    assert 0.4 < helical_share(helix.frames.positions, helix.structure).mean() < 0.6
    assert left_handed_share(helix) < 0.05
