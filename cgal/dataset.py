"""The dataset of a campaign: immutable shards, the force map they share, and the manifest that records them.

The manifest is what counts. It is written last, and whatever lies beside it unrecorded (a shard or a checkpoint of an
interrupted `append`) is finished or swept the next time. So a kill at any point leaves the dataset as it was
before or as it is after, never between.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float32
from pydantic import Field, ValidationError

from cgal.errors import BadFile, BadParams, BadStructure, DatasetChanged
from cgal.files import sha256, write_bytes, write_json
from cgal.frames import AtomFrames, LabelledFrames, read_pdb_text, sequence_of
from cgal.hdf5 import Hdf5Record
from cgal.outcomes import RoundOutcome
from cgal.params import MappingParams, NetworkParams, Params, PriorParams, Section, protein_names
from cgal.potential.architectures import initial_potential
from cgal.potential.checkpoint import load_checkpoint, save_checkpoint
from cgal.potential.prior import fit_prior
from cgal.projection.mapping import ForceMap, coordinate_map, fit_force_map
from cgal.randomness import derive_seed

__all__ = [
    "Manifest",
    "PreparedFrom",
    "ShardRecord",
    "append",
    "labelled_seed",
    "load_atoms",
    "load_manifest",
    "load_shards",
    "physics_of",
    "prepare",
    "reset",
    "round_index",
]

MANIFEST = "manifest.json"
FORCE_MAP = "force_map.h5"
WARM_START = "warm_start.pt"
NEXT_WARM_START = "warm_start.next.pt"
"""The warm start of the next round, until the manifest that names it is written."""
ATOMS_EVERY = 10
"""Of the frames of a label run so many-th is kept with all its atoms."""
RESTORE = "restore it with 'dvc checkout --force'"


class ShardRecord(Section):
    """One shard: its file and bytes, where its frames come from, what they cost, what the round that asked found.

    `oracle_steps` are all-atom steps of every kind; in them are `failed_steps`, of tries that failed, and of a seed
    `run_steps`, of the dynamics that its frames were taken from. None where it was not recorded. `atoms_sha256` is of
    the all-atom frames of its label runs, thinned, if they are kept (`<name>.atoms.h5` beside the shard).
    """

    name: Annotated[str, Field(pattern=r"^[0-9]{3,}\.h5$")]
    sha256: str
    frames: int
    origin: str
    force_map: str
    oracle_steps: int = 0
    oracle_failed: int = 0
    failed_steps: int | None = None
    run_steps: int | None = None
    atoms_sha256: str | None = None
    outcome: RoundOutcome | None = None

    @property
    def atoms_name(self) -> str:
        """File of the all-atom frames."""
        return self.name.replace(".h5", ".atoms.h5")


@dataclass(frozen=True, eq=False)
class StoredAtoms(Hdf5Record):
    """All-atom frames without forces, in the atom order of the seed: starts of later backmapping."""

    KIND = "stored-atoms"

    positions: Float32[np.ndarray, "frames atoms 3"]


class PreparedFrom(Section):
    """All that force map, first shard and first warm start were made from.

    `force_field` is that of labels, as "ff96 + obc2" (None in manifests of earlier versions). `trained_beside` names
    the other proteins of the campaign, whose datasets train the same network.
    """

    mapping: MappingParams
    prior: PriorParams
    network: NetworkParams
    random_seed: int
    temperature_K: float
    force_field: str | None = Field(None, exclude_if=lambda name: name is None)
    seed_sha256: str
    seed_labels_sha256: str | None
    trained_beside: tuple[str, ...] = Field((), strict=False, exclude_if=lambda names: not names)


class Manifest(Section):
    """The shards of a campaign in order, and the SHA-256 of the files that they share (`files`)."""

    protein: str
    sequence: str
    temperature_K: float
    campaign: str
    prepared_from: PreparedFrom
    files: dict[Annotated[str, Field(pattern=r"^\w[\w.-]*$")], str]
    shards: tuple[ShardRecord, ...]


def load_manifest(folder: Path) -> Manifest:
    """Read a dataset's manifest; raises BadFile when it is missing or damaged."""
    path = folder / MANIFEST
    if not path.is_file():
        raise BadFile(f"{path}: no such file; 'cgal run' prepares the dataset from seed.h5")
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise BadFile(f"{path}: damaged manifest ({where} {fault['msg']}); {RESTORE}") from None


def round_index(manifest: Manifest) -> int:
    """Index of the round that trains on these shards."""
    return len(manifest.shards) - 1


def load_shards(folder: Path) -> tuple[LabelledFrames, ...]:
    """Read all shards in order.

    Raises DatasetChanged, naming the shard, when one is missing, its bytes are not those of the manifest, or it belongs
    to another protein.
    """
    manifest = load_manifest(folder)
    return tuple(_load_shard(folder, manifest, record) for record in manifest.shards)


def load_atoms(folder: Path) -> Float32[np.ndarray, "frames atoms 3"]:
    """All-atom frames [nm] that are stored: the seed's, and those of label runs that were kept.

    Raises DatasetChanged when a file is missing or its bytes are not those of the manifest.
    """
    manifest, found = load_manifest(folder), [AtomFrames.load(folder / "seed.h5").positions]
    for record in manifest.shards:
        if record.atoms_sha256:
            path = folder / "shards" / record.atoms_name
            _verify(path, record.atoms_sha256)
            found.append(StoredAtoms.load(path).positions)
    return np.concatenate(found)


def prepare(folder: Path, params: Params, *, beside: Sequence[str] = ()) -> Manifest:
    """Make the dataset of round 0 of the protein that `params` name from `seed.h5`, once a campaign.

    `beside` names the other proteins of the campaign, if it has several.

    Fits the force map on the instantaneous forces of `seed.h5`, projects `seed_labels.h5` (its mean forces, if the map
    is linear) or else `seed.h5` itself to shard 0, and lays a warm start that equals the seed's prior. Writes nothing
    when the manifest says that all this was done from the same inputs; sweeps what an interrupted `append` left.

    Raises BadParams when a campaign that has grown was made from other inputs, or when cgal made the seed with another
    force field, solvent or temperature than `params` name, DatasetChanged when one of its shared files was changed,
    BadStructure when `structure.pdb` has other atoms than the seed.
    """
    inputs = _inputs(folder, params, beside)
    if not (folder / MANIFEST).is_file():
        return _with_starts(folder, _prepare_afresh(folder, params, inputs, _load_seed(folder, params)), params)
    manifest = load_manifest(folder)
    changed = _changes(manifest, inputs, params)
    grown = round_index(manifest) > 0
    if changed and grown:
        raise BadParams(
            f"{', '.join(changed)} changed, but they are fixed for a campaign and "
            f"{manifest.campaign!r} has {len(manifest.shards)} shards; set it back, or start a new campaign with "
            "'cgal run --new NAME'"
        )
    seed = _load_seed(folder, params)
    _settle(folder, manifest)
    if not changed and (grown or _is_intact(folder, manifest)):
        manifest = _with_starts(folder, manifest, params)
        _verify_files(folder, manifest)
        return manifest
    return _with_starts(folder, _prepare_afresh(folder, params, inputs, seed), params)


def _with_starts(folder: Path, manifest: Manifest, params: Params) -> Manifest:
    """The manifest, with the file that replicas begin at among the shared ones: `simulate` depends on its bytes then.

    Raises DatasetChanged when it was there with other bytes.
    """
    files, path = (
        {name: manifest.files[name] for name in (FORCE_MAP, WARM_START)},
        folder / params.simulation.starts_file,
    )
    if path.is_file():
        files[path.name] = sha256(path)
    if manifest.files.get(path.name, files.get(path.name)) != files.get(path.name):
        raise DatasetChanged(
            f"{path}: changed since the campaign began; give other frames another name (simulation.starts_file), and "
            "bring these back with 'dvc checkout --force'"
        )
    if files == manifest.files:
        return manifest
    recorded = manifest.model_copy(update={"files": files})
    _write_manifest(folder, recorded)
    return recorded


def append(
    folder: Path,
    *,
    labelled: AtomFrames,
    origin: str,
    oracle_steps: int,
    oracle_failed: int,
    failed_steps: int | None = None,
    checkpoint: Path,
    outcome: RoundOutcome | None = None,
    keep_atoms: bool = False,
) -> Manifest:
    """Add the oracle's frames as the next shard, and the finished checkpoint as the next round's warm start.

    `outcome` is what the round that asked for these frames found, for the stop rule. `keep_atoms` also keeps every
    tenth all-atom frame of each run, for `load_atoms`. Without any frame the shard is
    empty and tells what was spent. Doing it again with the same frames changes nothing. Raises BadCheckpoint when the
    checkpoint is another protein's, DatasetChanged when `origin` was appended before with other frames or a shared file
    was changed.
    """
    manifest = load_manifest(folder)
    _settle(folder, manifest)
    _verify_files(folder, manifest)
    shard = _project(labelled, ForceMap.load(folder / FORCE_MAP), origin)
    _check_sequence(shard.sequence, manifest.sequence, f"frames of {origin}")
    if origin in (record.origin for record in manifest.shards):
        _check_same_frames(folder, manifest, shard)
        return manifest
    load_checkpoint(checkpoint, sequence=manifest.sequence)
    record = _write_shard(folder, len(manifest.shards), shard).model_copy(
        update={
            "oracle_steps": oracle_steps,
            "oracle_failed": oracle_failed,
            "failed_steps": failed_steps,
            "atoms_sha256": _write_atoms(folder, len(manifest.shards), labelled) if keep_atoms else None,
            "outcome": outcome,
        }
    )
    write_bytes(folder / NEXT_WARM_START, checkpoint.read_bytes())
    grown = manifest.model_copy(
        update={
            "files": manifest.files | {WARM_START: sha256(folder / NEXT_WARM_START)},
            "shards": (*manifest.shards, record),
        }
    )
    _write_manifest(folder, grown)
    _settle(folder, grown)
    return grown


def reset(folder: Path) -> None:
    """Take the dataset back to its seed: all that `prepare` and `append` made is removed, the manifest first."""
    made = [folder / name for name in (MANIFEST, FORCE_MAP, WARM_START, NEXT_WARM_START)]
    for path in (*made, *(folder / "shards").glob("*"), *folder.glob(".*.tmp")):
        path.unlink(missing_ok=True)


def _inputs(folder: Path, params: Params, beside: Sequence[str]) -> PreparedFrom:
    labels = folder / "seed_labels.h5"
    if not (folder / "seed.h5").is_file():
        missing = folder / "seed.h5"
        raise BadFile(
            f"{missing}: no such file; make it with 'cgal seed {folder.name}', or 'cgal import' from a trajectory; "
            "'dvc pull data.dvc' fetches that of the bundled protein"
        )
    return PreparedFrom(
        mapping=params.mapping,
        prior=params.prior,
        network=params.network,
        random_seed=params.seed,
        temperature_K=params.temperature_K,
        force_field=params.force_field.physics,
        seed_sha256=sha256(folder / "seed.h5"),
        seed_labels_sha256=sha256(labels) if labels.is_file() else None,
        trained_beside=tuple(sorted(beside)),
    )


def _changes(manifest: Manifest, inputs: PreparedFrom, params: Params) -> list[str]:
    """Name what the dataset was made from that is now another."""
    before = manifest.prepared_from
    changed = [name for name in PreparedFrom.model_fields if getattr(before, name) != getattr(inputs, name)]
    if before.force_field is None:
        changed.remove("force_field")
    if manifest.campaign != params.campaign.name:
        changed.append("campaign.name")
    if manifest.protein != _name(params):
        changed.append("protein")
    return changed


def _name(params: Params) -> str:
    (name,) = protein_names(params.protein)
    return name


def _prepare_afresh(folder: Path, params: Params, inputs: PreparedFrom, seed: AtomFrames) -> Manifest:
    sequence = sequence_of(seed.topology)
    force_map = fit_force_map(seed, params.mapping)
    labels = labelled_seed(folder, params.mapping)
    labelled = seed if labels is None else labels
    shard = _project(labelled, force_map, "seed")
    _check_sequence(shard.sequence, sequence, "seed_labels.h5")
    beads = coordinate_map(seed.topology)(seed.positions)
    prior = fit_prior(beads, sequence, params.temperature_K, params.prior)
    potential = initial_potential(prior, params.network, derive_seed(params.seed, 0, "initialise"))
    reset(folder)
    force_map.save(folder / FORCE_MAP)
    save_checkpoint(folder / WARM_START, potential, {"origin": "prior"})
    manifest = Manifest(
        protein=_name(params),
        sequence=sequence,
        temperature_K=params.temperature_K,
        campaign=params.campaign.name,
        prepared_from=inputs,
        files={name: sha256(folder / name) for name in (FORCE_MAP, WARM_START)},
        shards=(_write_shard(folder, 0, shard).model_copy(update=_seed_cost(seed, folder / "seed_labels.h5")),),
    )
    _write_manifest(folder, manifest)
    return manifest


def _seed_cost(seed: AtomFrames, labels: Path) -> dict[str, int | None]:
    """All-atom steps of the seed's runs, if known, and of its labels, whether the force map takes them or not."""
    spent = AtomFrames.load(labels).provenance if labels.is_file() else {}
    run_steps: int | None = seed.provenance.get("run_steps")
    return {
        "oracle_steps": (run_steps or 0) + int(spent.get("oracle_steps", 0)),
        "run_steps": run_steps,
        "failed_steps": spent.get("failed_steps"),
    }


def labelled_seed(folder: Path, mapping: MappingParams) -> AtomFrames | None:
    """Mean forces of the seed's frames, if they are there and the force map can take them."""
    path = folder / "seed_labels.h5"
    if not path.is_file():
        return None
    labels = AtomFrames.load(path)
    return None if mapping.force_map == "local_frames" and labels.bead_forces is None else labels


def _load_seed(folder: Path, params: Params) -> AtomFrames:
    """Read `seed.h5`; raises as `prepare` when it, its labels or the structure are not what is asked for."""
    seed, labels = AtomFrames.load(folder / "seed.h5"), folder / "seed_labels.h5"
    _require_physics(folder / "seed.h5", seed, params)
    if labels.is_file():
        _require_physics(labels, AtomFrames.load(labels), params)
    sampled_K = float(seed.provenance.get("temperature_K", params.temperature_K))
    if abs(sampled_K - params.temperature_K) > 0.5:
        raise BadParams(
            f"temperature_K is {params.temperature_K:g}, but {folder / 'seed.h5'} was sampled at {sampled_K:g} K; "
            "set it to that, or make ('cgal seed') or import a seed of this temperature"
        )
    structure = folder / "structure.pdb"
    if structure.is_file() and read_pdb_text(structure.read_text(errors="replace")).topology != seed.topology:
        raise BadStructure(
            f"{structure}: other atoms, or in another order, than those of seed.h5; use one topology for both"
        )
    return seed


def physics_of(provenance: Mapping[str, Any]) -> str | None:
    """Force field and solvent that cgal has made frames with, as "ff96 + obc2"; None where it is not known."""
    made = provenance.get("force_field")
    if not isinstance(made, Mapping) or not {"name", "solvent"} <= set(made):
        return None
    return f"{made['name']} + {made['solvent']}"


def _require_physics(path: Path, frames: AtomFrames, params: Params) -> None:
    """Refuse frames of another potential than labels will be of: their forces would be of no one potential."""
    made = physics_of(frames.provenance)
    if made not in (None, params.force_field.physics):
        raise BadParams(
            f"force_field is {params.force_field.physics}, but {path} is of {made}; set force_field.name and .solvent "
            "to that, or make ('cgal seed') or import a seed of this force field"
        )


def _project(frames: AtomFrames, force_map: ForceMap, origin: str) -> LabelledFrames:
    """Beads and bead forces of all-atom frames."""
    return LabelledFrames(
        sequence_of(frames.topology),
        coordinate_map(frames.topology)(frames.positions),
        force_map(frames),
        frames.trajectory,
        frames.time_ps,
        frames.provenance | {"force_map": force_map.kind, "origin": origin},
    )


def _write_shard(folder: Path, number: int, shard: LabelledFrames) -> ShardRecord:
    name = f"{number:03d}.h5"
    path = folder / "shards" / name
    shard.save(path)
    return ShardRecord(
        name=name,
        sha256=sha256(path),
        frames=len(shard),
        origin=shard.provenance["origin"],
        force_map=shard.provenance["force_map"],
    )


def _write_atoms(folder: Path, number: int, labelled: AtomFrames) -> str:
    """Write every tenth frame of each run, the first included; gives the SHA-256 of the file."""
    runs = [np.flatnonzero(labelled.trajectory == run)[::ATOMS_EVERY] for run in np.unique(labelled.trajectory)]
    kept = np.concatenate(runs) if runs else np.zeros(0, dtype=int)
    path = folder / "shards" / f"{number:03d}.atoms.h5"
    StoredAtoms(labelled.positions[kept]).save(path)
    return sha256(path)


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    write_json(folder / MANIFEST, manifest.model_dump(mode="json"))


def _settle(folder: Path, manifest: Manifest) -> None:
    """Finish what an interrupted `append` had recorded, and sweep what it had not."""
    waiting = folder / NEXT_WARM_START
    if waiting.is_file() and sha256(waiting) == manifest.files[WARM_START]:
        os.replace(waiting, folder / WARM_START)
    recorded = {record.name for record in manifest.shards}
    recorded |= {record.atoms_name for record in manifest.shards if record.atoms_sha256}
    unrecorded = [path for path in (folder / "shards").glob("*") if path.name not in recorded]
    for path in (waiting, *unrecorded, *folder.glob(".*.tmp")):
        path.unlink(missing_ok=True)


def _is_intact(folder: Path, manifest: Manifest) -> bool:
    paths = {folder / name: expected for name, expected in manifest.files.items()}
    paths |= {folder / "shards" / record.name: record.sha256 for record in manifest.shards}
    return all(path.is_file() and sha256(path) == expected for path, expected in paths.items())


def _verify(path: Path, expected: str) -> None:
    if not path.is_file():
        raise DatasetChanged(f"{path}: missing, though the manifest records it; {RESTORE}")
    if sha256(path) != expected:
        raise DatasetChanged(f"{path}: its bytes are not those that the manifest records (SHA-256); {RESTORE}")


def _verify_files(folder: Path, manifest: Manifest) -> None:
    for name, expected in manifest.files.items():
        _verify(folder / name, expected)


def _load_shard(folder: Path, manifest: Manifest, record: ShardRecord) -> LabelledFrames:
    path = folder / "shards" / record.name
    _verify(path, record.sha256)
    shard = LabelledFrames.load(path)
    _check_sequence(shard.sequence, manifest.sequence, str(path))
    return shard


def _check_sequence(found: str, expected: str, what: str) -> None:
    if found != expected:
        raise DatasetChanged(f"{what}: belongs to {found}, the dataset to {expected}; keep one protein a folder")


def _check_same_frames(folder: Path, manifest: Manifest, shard: LabelledFrames) -> None:
    origin = shard.provenance["origin"]
    record = next(record for record in manifest.shards if record.origin == origin)
    present = _load_shard(folder, manifest, record)
    same = np.array_equal(present.positions, shard.positions) and np.array_equal(present.forces, shard.forces)
    if not same:
        raise DatasetChanged(
            f"{folder / 'shards' / record.name}: {origin} was appended before with other frames; shards never change: "
            "restore the round with 'cgal checkout', or start a new campaign with 'cgal run --new NAME'"
        )
