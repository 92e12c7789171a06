"""Backmapping of real chignolin beads, and of beads that no molecule can have."""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cgal.all_atom.backmapping import pulchra
from cgal.all_atom.backmapping.backmap import HeavyAtoms, backmap, backmapper_of
from cgal.all_atom.backmapping.remembered import nearest_stored
from cgal.all_atom.force_field import build_system, read_structure
from cgal.all_atom.soundness import cis_peptide_bonds, clashes, faults, stretched_bonds, wrong_handed_centres
from cgal.errors import BackmappingError, BadParams
from cgal.frames import AtomFrames, alpha_carbons, sequence_of
from cgal.params import BackmappingParams, ForceFieldParams

FRAMES = AtomFrames.load(Path(__file__).parent / "data" / "chignolin_small.h5")
ALPHA = alpha_carbons(FRAMES.topology)
BEADS = FRAMES.positions[:, ALPHA]
SEQUENCE = sequence_of(FRAMES.topology)
TOPOLOGY, _ = read_structure(FRAMES.pdb)
SYSTEM = build_system(TOPOLOGY, ForceFieldParams())
PARAMS = BackmappingParams(warm_up_steps=20)
METHODS = [
    pytest.param(name, marks=pytest.mark.skipif(find_spec(name) is None, reason=f"{name} is not installed"))
    for name in get_args(BackmappingParams.model_fields["method"].annotation)
]


def rebuild(beads: np.ndarray, params: BackmappingParams = PARAMS, seed: int = 1) -> np.ndarray:
    return backmap(beads, FRAMES.pdb, params, ForceFieldParams(), temperature_K=350.0, seed=seed).positions


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("frame", [0, 20, 39])
def test_real_beads_become_a_sound_molecule_around_them(frame: int, method: str) -> None:
    positions = rebuild(BEADS[frame], PARAMS.model_copy(update={"method": method}))
    assert positions.shape == (166, 3)
    assert faults(TOPOLOGY, SYSTEM, positions, clash_nm=0.15) == ()
    assert cis_peptide_bonds(TOPOLOGY, positions) == ()
    assert np.linalg.norm(positions[ALPHA] - BEADS[frame], axis=1).max() < PARAMS.maximum_displacement_nm


@pytest.mark.parametrize("method", METHODS)
def test_heavy_atoms_move_with_the_beads(method: str) -> None:
    """A backmapper sees no direction and no origin, but handedness; 0.001 nm is finer than what a PDB file holds."""
    beads = BEADS[0].astype(np.float64)
    turn, shift_nm = Rotation.random(rng=np.random.default_rng(1)), np.array([0.1, -0.7, 0.4])
    there = backmapper_of(method)(beads, SEQUENCE)
    moved = backmapper_of(method)(turn.apply(beads) + shift_nm, SEQUENCE)
    assert there.keys() == moved.keys()
    for atom, position in there.items():
        np.testing.assert_allclose(moved[atom], turn.apply(position) + shift_nm, atol=1e-3)


def test_atoms_that_a_backmapper_leaves_out_are_placed(monkeypatch: pytest.MonkeyPatch) -> None:
    """PULCHRA's backbone alone: side chains come from the structure's geometry, and nothing else asks who did it."""
    whole = pulchra.rebuild

    def backbone(beads: np.ndarray, sequence: str) -> HeavyAtoms:
        return {atom: place for atom, place in whole(beads, sequence).items() if atom[1] in {"N", "CA", "C", "O"}}

    monkeypatch.setattr(pulchra, "rebuild", backbone)
    positions = rebuild(BEADS[0])
    assert faults(TOPOLOGY, SYSTEM, positions, clash_nm=0.15) == ()
    assert np.linalg.norm(positions[ALPHA] - BEADS[0], axis=1).max() < PARAMS.maximum_displacement_nm


def test_backbone_comes_back_close_to_the_real_one() -> None:
    """PULCHRA places a backbone within some 0.05 nm (Rotkiewicz and Skolnick 2008); after relaxing, within 0.1."""
    backbone = [atom.index for atom in TOPOLOGY.atoms() if atom.name in {"N", "CA", "C"}]
    difference = rebuild(BEADS[0])[backbone] - FRAMES.positions[0, backbone]
    assert np.sqrt((difference**2).sum(axis=1).mean()) < 0.1


def test_same_seed_same_positions_and_another_seed_others() -> None:
    first = rebuild(BEADS[0])
    assert np.array_equal(first, rebuild(BEADS[0]))
    assert not np.array_equal(first, rebuild(BEADS[0], seed=2))


@pytest.mark.parametrize(
    ("beads", "minimised"),
    [
        (BEADS[0] * np.float32(0.2), True),
        (np.zeros_like(BEADS[0]), False),
        (BEADS[0] * np.float32(3.0), True),
        (np.full_like(BEADS[0], np.nan), False),
        (np.full_like(BEADS[0], 1e30), False),
    ],
    ids=["collapsed", "on one point", "exploded", "nan", "far away"],
)
def test_impossible_beads_are_refused_with_reason_cure_and_structure(beads: np.ndarray, minimised: bool) -> None:
    with pytest.raises(BackmappingError, match=r"; raise backmapping.minimise_steps, or drop such frames") as caught:
        rebuild(beads)
    assert caught.value.positions.shape == (166, 3)
    assert caught.value.permanent
    assert (caught.value.steps > 0) == minimised


def test_only_what_the_warm_up_spoils_is_worth_another_seed() -> None:
    """A step of 0.05 ps tears any molecule apart."""
    with pytest.raises(BackmappingError) as caught:
        rebuild(BEADS[0], PARAMS.model_copy(update={"warm_up_timestep_ps": 0.05}))
    assert not caught.value.permanent
    assert caught.value.steps > PARAMS.warm_up_steps


def test_a_chain_of_another_length_is_refused() -> None:
    with pytest.raises(BackmappingError, match="9 beads, but the structure has 10 residues"):
        rebuild(BEADS[0, :9])


def test_alpha_carbons_that_had_to_move_too_far_are_refused() -> None:
    tight = PARAMS.model_copy(update={"maximum_displacement_nm": 1e-4})
    with pytest.raises(BackmappingError, match=r"C-alpha of residue \d+ moved 0.0\d+ nm from its bead"):
        rebuild(BEADS[0], tight)


def test_a_frame_near_the_beads_is_steered_onto_them_and_keeps_its_planes() -> None:
    """The C-alpha come to where they are wanted; peptide planes and side chains stay those of the near frame."""
    (near,) = nearest_stored(BEADS[20:21], FRAMES.positions[21:22], ALPHA, within_nm=0.3)
    assert near is not None
    found = backmap(BEADS[20], FRAMES.pdb, PARAMS, ForceFieldParams(), temperature_K=350.0, seed=1, near=near)
    assert np.abs(found.positions[ALPHA] - BEADS[20]).max() < 1e-5
    assert faults(TOPOLOGY, SYSTEM, found.positions, clash_nm=0.15) == ()
    assert planes_the_wrong_way(found.positions, 20) == 0
    assert found.steps == PARAMS.steer_steps + PARAMS.warm_up_steps


def test_the_nearest_stored_frame_is_superposed_and_one_too_far_is_none() -> None:
    turn = Rotation.random(rng=np.random.default_rng(1))
    turned = (turn.apply(FRAMES.positions.reshape(-1, 3)) + 1.0).reshape(FRAMES.positions.shape).astype(np.float32)
    own, far = nearest_stored(np.stack([BEADS[7], 3 * BEADS[7]]), turned, ALPHA, within_nm=0.1)
    assert far is None
    np.testing.assert_allclose(own, FRAMES.positions[7], atol=1e-5)


def test_what_cannot_be_reached_from_a_near_frame_is_rebuilt_and_all_steps_count() -> None:
    """A frame that a spring tears apart: its C-alpha are mirrored."""
    near = FRAMES.positions[0] * np.float32([-1, 1, 1])
    found = backmap(BEADS[0], FRAMES.pdb, PARAMS, ForceFieldParams(), temperature_K=350.0, seed=1, near=near)
    plain = backmap(BEADS[0], FRAMES.pdb, PARAMS, ForceFieldParams(), temperature_K=350.0, seed=1)
    np.testing.assert_array_equal(found.positions, plain.positions)
    assert found.steps > plain.steps


def test_a_second_method_is_tried_where_the_first_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, calls = pulchra.rebuild, []

    def fails_first(beads: np.ndarray, sequence: str) -> HeavyAtoms:
        calls.append(len(calls))
        if len(calls) == 1:
            raise BackmappingError("no")
        return whole(beads, sequence)

    monkeypatch.setattr(pulchra, "rebuild", fails_first)
    positions = rebuild(BEADS[0], PARAMS.model_copy(update={"second_method": "pulchra"}))
    assert (len(calls), faults(TOPOLOGY, SYSTEM, positions, clash_nm=0.15)) == (2, ())


def test_a_backmapper_that_is_not_installed_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cgal.all_atom.backmapping.cgback", None)
    with pytest.raises(BadParams, match=r"pip install '/path/to/cgal\[cgback\]'"):
        backmapper_of("cgback")


def test_soundness_sees_what_is_wrong() -> None:
    real = FRAMES.positions[0]
    assert len(wrong_handed_centres(TOPOLOGY, real * np.array([-1, 1, 1]))) == 9 + 2  # glycine has none, threonines two
    close = real.copy()
    close[ALPHA[0]] = close[ALPHA[9]] + 0.05
    assert any("CA of TYR 1" in clash for clash in clashes(TOPOLOGY, close, clash_nm=0.1))
    torn = real.copy()
    torn[TOPOLOGY.getNumAtoms() // 2 :] += 0.1
    assert stretched_bonds(TOPOLOGY, SYSTEM, torn)
    assert faults(TOPOLOGY, SYSTEM, real * np.nan, clash_nm=0.1) == ("positions that are not finite",)


def test_a_flipped_peptide_bond_is_cis() -> None:
    """Turn everything before a peptide bond's carbon by half a turn about the bond C-N."""
    positions = FRAMES.positions[0].astype(np.float64)
    index = {(atom.residue.index, atom.name): atom.index for atom in TOPOLOGY.atoms()}
    carbon, nitrogen = positions[index[4, "C"]], positions[index[5, "N"]]
    axis = (nitrogen - carbon) / np.linalg.norm(nitrogen - carbon)
    before = [atom.index for atom in TOPOLOGY.atoms() if atom.residue.index <= 4]
    arm = positions[before] - carbon
    positions[before] = carbon + 2 * np.outer(arm @ axis, axis) - arm
    assert cis_peptide_bonds(TOPOLOGY, positions) == ("cis peptide bond before THR 6",)


def peptide_planes(positions: np.ndarray) -> np.ndarray:
    """Direction of each peptide bond's oxygen, seen along the C-alpha trace."""
    index = {(atom.residue.index, atom.name): atom.index for atom in TOPOLOGY.atoms()}
    last = TOPOLOGY.getNumResidues() - 1
    oxygen = np.array([positions[index[i, "O"]] - positions[index[i, "C"]] for i in range(last)])
    axis = np.array([positions[index[i + 1, "CA"]] - positions[index[i, "CA"]] for i in range(last)])
    axis /= np.linalg.norm(axis, axis=1, keepdims=True)
    across = oxygen - (oxygen * axis).sum(axis=1, keepdims=True) * axis
    return across / np.linalg.norm(across, axis=1, keepdims=True)


def planes_the_wrong_way(positions: np.ndarray, frame: int) -> int:
    """How many peptide planes point away from where they point in the real frame."""
    agreement = (peptide_planes(positions) * peptide_planes(FRAMES.positions[frame])).sum(axis=1)
    return int((agreement < 0).sum())


@pytest.mark.parametrize("frame", [5, 15])
def test_annealing_turns_over_the_planes_that_pulchra_set_wrong(frame: int) -> None:
    """PULCHRA sets planes wrong whatever the seed, and annealing leaves at most half of them; the C-alpha stay.

    Over three seeds each: which planes turn depends on the processor's rounding.
    """
    annealing = PARAMS.model_copy(update={"anneal_steps": 2000})
    plain = [rebuild(BEADS[frame], seed=seed) for seed in (1, 2, 3)]
    annealed = [rebuild(BEADS[frame], annealing, seed=seed) for seed in (1, 2, 3)]
    wrong_before = [planes_the_wrong_way(positions, frame) for positions in plain]
    wrong_after = [planes_the_wrong_way(positions, frame) for positions in annealed]
    assert min(wrong_before) >= 1
    assert sum(wrong_after) <= sum(wrong_before) / 2
    for positions in annealed:
        np.testing.assert_allclose(positions[ALPHA], plain[0][ALPHA], atol=1e-6)


def test_minimisation_warm_up_and_annealing_count_as_steps() -> None:
    plain = backmap(BEADS[0], FRAMES.pdb, PARAMS, ForceFieldParams(), temperature_K=350.0, seed=1)
    annealing = PARAMS.model_copy(update={"anneal_steps": 30})
    annealed = backmap(BEADS[0], FRAMES.pdb, annealing, ForceFieldParams(), temperature_K=350.0, seed=1)
    assert annealed.steps == plain.steps + 30
    assert PARAMS.warm_up_steps < plain.steps <= PARAMS.steps
