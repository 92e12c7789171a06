"""The packed swarm is whole: what it holds is of one protein, finite, and goes on from where each trajectory stands."""

import numpy as np

from cgal.frames import alpha_carbons, read_pdb_text, sequence_of
from cgal.reference.sampling import Start
from study.swarms import Swarm, unpack
from tests.conftest import REPOSITORY


def test_the_packed_chignolin_can_be_learned_from_and_gone_on_with(tmp_path):
    swarm = Swarm.load(REPOSITORY / "study" / "swarms" / "chignolin_350K.h5")
    topology = read_pdb_text(swarm.structure).topology
    assert swarm.frames.sequence == sequence_of(topology) == "YYDPETGTWY"
    assert swarm.recipe["temperature_K"] == swarm.frames.provenance["temperature_K"] == 350.0
    assert np.isfinite(swarm.frames.forces).all()
    bonds = np.linalg.norm(np.diff(swarm.frames.positions, axis=1), axis=2)
    assert 0.37 < bonds.mean() < 0.40
    unpack(swarm, tmp_path)
    for index, positions in enumerate(swarm.end_positions):
        end = Start.load(tmp_path / "starts" / f"{index:03d}.h5").end
        assert np.array_equal(end.positions, positions)
        beads = end.positions[alpha_carbons(topology)]
        assert np.linalg.norm(np.diff(beads, axis=0), axis=1).max() < 0.45
