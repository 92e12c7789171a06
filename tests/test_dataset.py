"""A campaign's dataset: prepared once, growing by whole shards, never between two states."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest

from cgal.dataset import append, load_atoms, load_manifest, load_shards, prepare, reset, round_index
from cgal.errors import (
    BadCheckpoint,
    BadFile,
    BadParams,
    BadStructure,
    BadTrajectory,
    CgalError,
    DatasetChanged,
)
from cgal.files import sha256
from cgal.frames import AtomFrames, LabelledFrames, alpha_carbons
from cgal.importing import structure_pdb
from cgal.params import ForceFieldParams, MappingParams, Params, SchNetParams, SimulationParams, TrainingParams
from cgal.potential.architectures import initial_potential
from cgal.potential.checkpoint import load_checkpoint, save_checkpoint
from cgal.potential.prior import fit_prior
from cgal.projection.mapping import ForceMap, coordinate_map
from cgal.training.held_out import held_out_masks

SMALL = AtomFrames.load(Path(__file__).parent / "data" / "chignolin_small.h5")
PARAMS = Params(network=SchNetParams(features=16, blocks=1, radial_functions=8))
ORACLE = replace(SMALL.take(np.arange(30, 40)), provenance={"forces": "mean"})


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "chignolin"
    SMALL.take(np.arange(30)).save(folder / "seed.h5")
    (folder / "structure.pdb").write_text(structure_pdb(SMALL, 0))
    prepare(folder, PARAMS)
    return folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    return copytree(prepared, tmp_path / "chignolin")


@pytest.fixture
def checkpoint(folder: Path, tmp_path: Path) -> Path:
    """A checkpoint other than the first warm start, as a round's training would leave it."""
    prior = load_checkpoint(folder / "warm_start.pt", sequence="YYDPETGTWY")[0].prior
    save_checkpoint(tmp_path / "model.pt", initial_potential(prior, PARAMS.network, 7), {"round": 0})
    return tmp_path / "model.pt"


def grow(folder: Path, checkpoint: Path, labelled: AtomFrames = ORACLE, k: int = 0) -> None:
    origin = f"oracle round {k}"
    append(folder, labelled=labelled, origin=origin, oracle_steps=7500, oracle_failed=2, checkpoint=checkpoint)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_prepared_dataset_opens_round_0_with_the_projected_seed(folder: Path) -> None:
    manifest = load_manifest(folder)
    (shard,) = load_shards(folder)
    force_map = ForceMap.load(folder / "force_map.h5")
    assert round_index(manifest) == 0
    assert manifest.sequence == "YYDPETGTWY"
    assert (manifest.shards[0].frames, manifest.shards[0].origin, manifest.shards[0].force_map) == (
        30,
        "seed",
        "optimal",
    )
    np.testing.assert_array_equal(shard.positions, SMALL.positions[:30, alpha_carbons(SMALL.topology)])
    np.testing.assert_array_equal(shard.forces, force_map(SMALL.take(np.arange(30))))
    assert force_map.figures["optimal"] < force_map.figures["slice"]
    warm_start, _ = load_checkpoint(folder / "warm_start.pt", sequence=manifest.sequence)
    assert warm_start.prior.temperature_K == 350.0


def test_preparing_again_writes_nothing(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    prepare(folder, PARAMS)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_same_seed_gives_the_same_bytes(folder: Path) -> None:
    before = contents(folder)
    reset(folder)
    assert sorted(contents(folder)) == ["seed.h5", "structure.pdb"]
    prepare(folder, PARAMS)
    assert contents(folder) == before


def test_mean_forces_of_the_seed_become_the_first_shard(folder: Path) -> None:
    labels = replace(SMALL.take(np.arange(5)), forces=SMALL.forces[:5] / 2, provenance={"oracle_steps": 3750})
    labels.save(folder / "seed_labels.h5")
    manifest = prepare(folder, PARAMS)
    force_map = ForceMap.load(folder / "force_map.h5")
    np.testing.assert_array_equal(load_shards(folder)[0].forces, force_map(labels))
    assert manifest.shards[0].oracle_steps == 3750


@pytest.mark.parametrize("force_map", ["optimal", "local_frames"])
def test_the_seeds_runs_and_labels_stand_in_the_manifest(folder: Path, force_map: str) -> None:
    """Whether the force map takes the labels or not: they were paid for."""
    seed = SMALL.take(np.arange(30))
    replace(seed, provenance=seed.provenance | {"run_steps": 9000}).save(folder / "seed.h5")
    labels = seed.take(np.arange(5))
    replace(labels, provenance={"oracle_steps": 3750, "failed_steps": 750}).save(folder / "seed_labels.h5")
    manifest = prepare(folder, PARAMS.model_copy(update={"mapping": MappingParams(force_map=force_map)}))
    (record,) = manifest.shards
    assert (record.run_steps, record.oracle_steps, record.failed_steps) == (9000, 12750, 750)


def test_a_manifest_from_before_steps_were_told_apart_is_read(folder: Path) -> None:
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    for shard in content["shards"]:
        del shard["failed_steps"], shard["run_steps"]
    path.write_text(json.dumps(content))
    (record,) = load_manifest(folder).shards
    assert (record.failed_steps, record.run_steps) == (None, None)


def test_local_frames_take_the_seeds_own_forces_and_refuse_mean_ones(folder: Path, checkpoint: Path) -> None:
    """Mean forces that were not averaged on the beads have no places of the atoms; the dataset stays as it was."""
    SMALL.take(np.arange(5)).save(folder / "seed_labels.h5")
    manifest = prepare(folder, PARAMS.model_copy(update={"mapping": MappingParams(force_map="local_frames")}))
    assert (manifest.shards[0].frames, manifest.shards[0].force_map) == (30, "local_frames")
    grow(folder, checkpoint, replace(ORACLE, provenance={"forces": "instantaneous"}))
    force_map = ForceMap.load(folder / "force_map.h5")
    np.testing.assert_array_equal(load_shards(folder)[1].forces, force_map(SMALL.take(np.arange(30, 40))))
    before = contents(folder)
    with pytest.raises(BadTrajectory, match="label the frames again"):
        grow(folder, checkpoint, ORACLE, k=1)
    assert contents(folder) == before


def test_local_frames_take_mean_forces_that_were_averaged_on_the_beads(folder: Path, checkpoint: Path) -> None:
    beads = SMALL.forces[:, :10] / 3
    mean = replace(SMALL, bead_forces=beads, provenance={"forces": "mean"})
    mean.take(np.arange(5)).save(folder / "seed_labels.h5")
    prepare(folder, PARAMS.model_copy(update={"mapping": MappingParams(force_map="local_frames")}))
    grow(folder, checkpoint, mean.take(np.arange(30, 40)))
    first, second = load_shards(folder)
    np.testing.assert_array_equal(first.forces, beads[:5])
    np.testing.assert_array_equal(second.forces, beads[30:])


@pytest.mark.parametrize("change", [{"mapping": MappingParams(force_map="slice")}, {"seed": 2}])
def test_changed_inputs_prepare_a_fresh_seed_anew(folder: Path, change: dict[str, object]) -> None:
    before = contents(folder)
    prepare(folder, PARAMS.model_copy(update=change))
    assert contents(folder) != before


def test_changed_inputs_are_refused_once_the_campaign_has_grown(folder: Path, checkpoint: Path) -> None:
    grow(folder, checkpoint)
    before = contents(folder)
    changed = PARAMS.model_copy(update={"mapping": MappingParams(force_map="slice")})
    with pytest.raises(BadParams, match=r"mapping changed.*cgal run --new NAME"):
        prepare(folder, changed)
    assert contents(folder) == before


def test_appended_frames_are_the_next_shard_and_the_checkpoint_the_next_warm_start(
    folder: Path, checkpoint: Path
) -> None:
    first = (folder / "shards" / "000.h5").read_bytes()
    grow(folder, checkpoint)
    manifest = load_manifest(folder)
    seed, oracle = load_shards(folder)
    record = manifest.shards[1]
    assert round_index(manifest) == 1
    assert (record.origin, record.frames, record.oracle_steps, record.oracle_failed) == ("oracle round 0", 10, 7500, 2)
    assert (folder / "shards" / "000.h5").read_bytes() == first
    assert (folder / "warm_start.pt").read_bytes() == checkpoint.read_bytes()
    np.testing.assert_array_equal(oracle.positions, coordinate_map(SMALL.topology)(SMALL.positions[30:]))
    assert oracle.provenance == {"forces": "mean", "force_map": "optimal", "origin": "oracle round 0"}
    assert len(seed) == 30


def test_label_runs_are_kept_with_all_atoms_where_that_is_wanted(folder: Path, checkpoint: Path) -> None:
    assert len(load_atoms(folder)) == 30, "the seed's"
    runs = replace(SMALL.take(np.arange(25)), trajectory=np.repeat(np.int32([0, 1]), (15, 10)))
    manifest = append(
        folder, labelled=runs, origin="oracle", oracle_steps=1, oracle_failed=0, checkpoint=checkpoint, keep_atoms=True
    )
    np.testing.assert_array_equal(load_atoms(folder)[30:], runs.positions[[0, 10, 15]])
    prepare(folder, PARAMS)
    path = folder / "shards" / manifest.shards[1].atoms_name
    path.write_bytes(b"other")
    with pytest.raises(DatasetChanged, match=r"001.atoms.h5"):
        load_atoms(folder)
    reset(folder)
    assert not path.exists()


def test_appending_the_same_round_again_changes_nothing(folder: Path, checkpoint: Path) -> None:
    grow(folder, checkpoint)
    before = contents(folder)
    grow(folder, checkpoint)
    assert contents(folder) == before


def test_another_answer_for_an_appended_round_is_refused(folder: Path, checkpoint: Path) -> None:
    grow(folder, checkpoint)
    with pytest.raises(DatasetChanged, match=r"oracle round 0 was appended before with other frames"):
        grow(folder, checkpoint, ORACLE.take(np.arange(3)))


def killed_at_replacement(number: int, work: Callable[[], object]) -> bool:
    """Run `work` in a child process that dies, cleaning nothing up, when it would put file `number` in its place."""
    child = os.fork()
    if child == 0:
        real, calls = os.replace, []

        def dying(source: Path, target: Path) -> None:
            calls.append(target)
            if len(calls) == number:
                os._exit(9)
            real(source, target)

        os.replace = dying  # type: ignore[assignment]
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_killed_append_ends_with_the_same_bytes(folder: Path, checkpoint: Path, tmp_path: Path, number: int) -> None:
    """Its replacements are: the shard, the waiting warm start, the manifest, the warm start. All are recovered from."""
    undisturbed = copytree(folder, tmp_path / "undisturbed")
    grow(undisturbed, checkpoint)
    assert killed_at_replacement(number, lambda: grow(folder, checkpoint))
    prepare(folder, PARAMS)
    round_reached = round_index(load_manifest(folder))
    assert round_reached == (1 if number == 4 else 0), "the manifest is what counts"
    load_shards(folder)
    if round_reached == 0:
        grow(folder, checkpoint)
    assert contents(folder) == contents(undisturbed)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_killed_prepare_ends_with_the_same_bytes(prepared: Path, tmp_path: Path, number: int) -> None:
    folder = copytree(prepared, tmp_path / "chignolin")
    reset(folder)
    assert killed_at_replacement(number, lambda: prepare(folder, PARAMS))
    prepare(folder, PARAMS)
    assert contents(folder) == contents(prepared)


@pytest.mark.parametrize("force_map", ["optimal", "local_frames"])
def test_a_shard_without_a_frame_tells_what_was_spent(folder: Path, checkpoint: Path, force_map: str) -> None:
    reset(folder)
    oracle = PARAMS.oracle.model_copy(update={"mode": "free"})
    prepare(folder, PARAMS.model_copy(update={"mapping": MappingParams(force_map=force_map), "oracle": oracle}))
    labelled = SMALL.take(np.arange(30, 40))
    grow(folder, checkpoint, labelled.take(np.arange(0)))
    manifest = load_manifest(folder)
    assert round_index(manifest) == 1
    assert (manifest.shards[1].frames, manifest.shards[1].oracle_steps, manifest.shards[1].oracle_failed) == (
        0,
        7500,
        2,
    )
    grow(folder, checkpoint, labelled, k=1)
    shards = load_shards(folder)
    assert [len(shard) for shard in shards] == [30, 0, 10]
    masks = held_out_masks(shards, TrainingParams())
    assert [len(mask) for mask in masks] == [30, 0, 10]


def test_checkpoint_of_another_protein_is_refused_and_nothing_written(folder: Path, tmp_path: Path) -> None:
    beads = coordinate_map(SMALL.topology)(SMALL.positions)
    other = fit_prior(beads, "AAAAAAAAAA", 350.0, PARAMS.prior)
    save_checkpoint(tmp_path / "other.pt", initial_potential(other, PARAMS.network, 1), {})
    before = contents(folder)
    with pytest.raises(BadCheckpoint, match="trained for AAAAAAAAAA, not for YYDPETGTWY"):
        grow(folder, tmp_path / "other.pt")
    assert contents(folder) == before


def test_shard_changed_by_hand_is_named_with_the_cure(folder: Path) -> None:
    path = folder / "shards" / "000.h5"
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)
    with pytest.raises(DatasetChanged, match=r"000\.h5: its bytes are not .*dvc checkout --force"):
        load_shards(folder)


def test_missing_shard_is_named(folder: Path) -> None:
    (folder / "shards" / "000.h5").unlink()
    with pytest.raises(DatasetChanged, match=r"000\.h5: missing"):
        load_shards(folder)


@pytest.mark.parametrize("name", ["force_map.h5", "warm_start.pt"])
def test_shared_file_changed_by_hand_is_named_once_the_campaign_has_grown(
    folder: Path, checkpoint: Path, name: str
) -> None:
    grow(folder, checkpoint)
    (folder / name).write_bytes(b"changed")
    with pytest.raises(DatasetChanged, match=f"{name}: its bytes are not"):
        prepare(folder, PARAMS)


def test_other_starts_under_one_name_are_made_from_anew_or_refused(folder: Path, checkpoint: Path) -> None:
    """The manifest is an input of `simulate`, and vouches for the file; a new name is a new parameter."""
    params = PARAMS.model_copy(update={"simulation": SimulationParams(starts="given", starts_file="mine.h5")})
    (folder / "mine.h5").write_bytes(b"frames")
    assert prepare(folder, params).files["mine.h5"] == sha256(folder / "mine.h5")
    (folder / "mine.h5").write_bytes(b"mended before round 0 is done")
    assert prepare(folder, params).files["mine.h5"] == sha256(folder / "mine.h5")
    grow(folder, checkpoint)
    before = contents(folder)
    prepare(folder, params)
    assert contents(folder) == before
    (folder / "mine.h5").rename(folder / "other.h5")
    with pytest.raises(DatasetChanged, match=r"mine\.h5: changed since the campaign began; give other frames another"):
        prepare(folder, params)
    params = PARAMS.model_copy(update={"simulation": SimulationParams(starts="given", starts_file="other.h5")})
    assert set(prepare(folder, params).files) == {"force_map.h5", "warm_start.pt", "other.h5"}


def test_shard_of_another_protein_is_refused(folder: Path) -> None:
    path = folder / "shards" / "000.h5"
    replace(LabelledFrames.load(path), sequence="AAAAAAAAAA").save(path)
    content = json.loads((folder / "manifest.json").read_text())
    content["shards"][0]["sha256"] = sha256(path)
    (folder / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(DatasetChanged, match=r"000\.h5: belongs to AAAAAAAAAA, the dataset to YYDPETGTWY"):
        load_shards(folder)


@pytest.mark.parametrize("content", ["{", "[]", '{"protein": "chignolin"}', '{"protin": 1}'])
def test_damaged_manifest_is_one_clear_error(folder: Path, content: str) -> None:
    (folder / "manifest.json").write_text(content)
    with pytest.raises(BadFile, match=r"manifest\.json: damaged manifest") as fault:
        load_manifest(folder)
    assert "\n" not in str(fault.value)


def test_seed_of_another_temperature_is_refused(folder: Path) -> None:
    with pytest.raises(BadParams, match=r"temperature_K is 300, but .* sampled at 350 K"):
        prepare(folder, PARAMS.model_copy(update={"temperature_K": 300.0}))


def test_a_campaign_has_one_force_field(folder: Path, checkpoint: Path) -> None:
    """Also where nobody knows what the seed was made with, as of one with forces that were stored."""
    other = PARAMS.model_copy(update={"force_field": ForceFieldParams(name="ff14SB", solvent="gbn2")})
    grow(folder, checkpoint)
    with pytest.raises(BadParams, match="force_field changed, but they are fixed for a campaign"):
        prepare(folder, other)
    reset(folder)
    seed = AtomFrames.load(folder / "seed.h5")
    made = {"name": "ff96", "solvent": "obc2"}
    replace(seed, provenance=seed.provenance | {"force_field": made}).save(folder / "seed.h5")
    with pytest.raises(BadParams, match=r"force_field is ff14SB \+ gbn2, but .*seed\.h5 is of ff96 \+ obc2; set"):
        prepare(folder, other)
    prepare(folder, PARAMS)


def test_structure_with_another_order_of_atoms_is_refused(folder: Path) -> None:
    lines = (folder / "structure.pdb").read_text().splitlines()
    lines[4], lines[5] = lines[5], lines[4]
    (folder / "structure.pdb").write_text("\n".join(lines) + "\n")
    with pytest.raises(BadStructure, match="other atoms, or in another order"):
        prepare(folder, PARAMS)  # labels of a dataset that is there would be of this structure
    reset(folder)
    with pytest.raises(BadStructure, match="other atoms, or in another order"):
        prepare(folder, PARAMS)


def test_missing_or_truncated_seed_is_one_clear_error(folder: Path) -> None:
    reset(folder)
    seed = folder / "seed.h5"
    seed.write_bytes(seed.read_bytes()[:5000])
    with pytest.raises(CgalError, match=r"seed\.h5: truncated or damaged HDF5"):
        prepare(folder, PARAMS)
    seed.unlink()
    with pytest.raises(BadFile, match=r"seed\.h5: no such file; make it with 'cgal seed chignolin'"):
        prepare(folder, PARAMS)
