"""Laws of explicit solvent on chignolin: one topology for all shapes, and bead forces that leave the water out."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial import KDTree

from cgal.all_atom.force_field import build_system, forces_of, make_context, read_structure, with_solvent
from cgal.all_atom.oracle import run_md
from cgal.all_atom.solvation import solvated
from cgal.all_atom.water import fill, require_room
from cgal.errors import BadStructure
from cgal.frames import AtomFrames, alpha_carbons
from cgal.params import ForceFieldParams, WaterParams
from cgal.projection.local_frames import project_in_local_frames, rigid_groups
from cgal.projection.mapping import constrained_clusters
from tests.laws.test_local_frames import localised, placement

SMALL = AtomFrames.load(Path(__file__).parents[1] / "data" / "chignolin_small.h5")
TOPOLOGY, _ = read_structure(SMALL.pdb)
ATOMS, EDGE_nm = 166, 3.2
PARAMS = ForceFieldParams(
    name="ff14SB", solvent="tip3pfb", platform="CPU", water=WaterParams(box_nm=EDGE_nm, settling_steps=10)
)
WHOLE = with_solvent(TOPOLOGY, PARAMS)
STEP_nm = 5e-7


@pytest.mark.parametrize("frame", [0, 20, 39])
def test_every_frame_has_the_same_molecules_and_none_overlaps_the_protein(frame: int) -> None:
    positions = fill(SMALL.positions[frame], WHOLE, seed=1)
    assert positions.shape == (WHOLE.getNumAtoms(), 3)
    np.testing.assert_array_equal(positions[:ATOMS], SMALL.positions[frame])
    others = positions[ATOMS:] % EDGE_nm % EDGE_nm
    inside = positions[:ATOMS] % EDGE_nm % EDGE_nm
    assert KDTree(inside, boxsize=np.full(3, EDGE_nm)).query(others)[0].min() > 0.08, "minimisation is to mend the rest"


def test_a_chain_that_meets_its_own_image_is_refused() -> None:
    with pytest.raises(BadStructure, match=r"raise force_field\.water\.box_nm"):
        require_room(SMALL.positions[0], 2.1)


def test_bead_forces_are_minus_the_gradient_at_fixed_water() -> None:
    """Beads move, the protein follows in its local frames, water stays: the work is that of the mapped forces.

    Water has weight zero, and its coordinates are their own: the volume of all coordinates is that of the protein's
    local ones (`test_local_frames`), so no other term is in the mean force. In double precision, with steps so short
    that hardly a pair crosses the cutoff, where the energy jumps.
    """
    params = PARAMS.model_copy(update={"platform": "Reference"})
    context = make_context(build_system(TOPOLOGY, params), params, temperature_K=300.0, timestep_ps=0.001, seed=1)
    start = fill(SMALL.positions[0], WHOLE, seed=1)
    context.setPositions(start)
    frame = replace(SMALL.take(np.array([0])), forces=forces_of(context)[:ATOMS][None].astype(np.float32))
    found = project_in_local_frames(frame, constrained_clusters(SMALL.topology)).astype(np.float64)[0]
    move = np.random.default_rng(1).standard_normal((10, 3))
    carbons = alpha_carbons(SMALL.topology)
    work = 0.0
    for follows_next in (False, True):
        groups = rigid_groups(SMALL.topology, constrained_clusters(SMALL.topology), follows_next=follows_next)
        energies = []
        for step in (STEP_nm, -STEP_nm):
            local = localised(groups, start[:ATOMS])
            local.view(-1, 3)[carbons] += step * torch.from_numpy(move)
            moved = start.copy()
            moved[:ATOMS] = placement(groups, local).view(-1, 3).numpy()
            context.setPositions(moved)
            energies.append(context.getState(energy=True).getPotentialEnergy()._value)
        work -= 0.5 * (energies[0] - energies[1]) / (2 * STEP_nm)
    assert work == pytest.approx(float((found * move).sum()), rel=2e-3)


@pytest.mark.slow
def test_c_alpha_stay_while_water_settles_and_runs_show_the_protein_alone(tmp_path: Path) -> None:
    start = solvated(SMALL.positions[0], SMALL.pdb, PARAMS, temperature_K=300.0, seed=1)
    carbons = alpha_carbons(SMALL.topology)
    np.testing.assert_allclose(start[carbons], SMALL.positions[0, carbons], atol=1e-6)
    result = run_md(
        SMALL.pdb, SMALL.positions[:1], steps=20, stride=10, force_field=PARAMS, temperature_K=300.0, seeds=[1],
        workers=1, scratch=tmp_path,
    )  # fmt: skip
    assert not result.failures
    assert result.labelled.positions.shape == result.labelled.forces.shape == (2, ATOMS, 3)
    assert result.steps == 10 + 20, "water settles, then the run"
