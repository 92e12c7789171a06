"""What can be refused before any work begins: each check is quick, and `Refusals` tells all that fail at once."""

from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from cgal.benchmark.lag import lag_frames
from cgal.dataset import labelled_seed
from cgal.errors import BadParams, BadTrajectory, DatasetChanged, Refusals
from cgal.files import read_json, sha256
from cgal.frames import AtomFrames, CGTrajectory, alpha_carbons, read_pdb_text, rmsd_nm, sequence_of
from cgal.params import Params
from cgal.simulation.starts import read_starts
from cgal.training.held_out import require_enough
from flows.campaign.plain_md import plan_of
from flows.terminal import console
from flows.versioning import Repository
from flows.versioning.round_files import proteins_of
from flows.versioning.rounds import campaign_and_index, find_tags
from flows.workspace import Workspace

__all__ = [
    "last_rounds",
    "require_own_reference",
    "require_replaceable",
    "require_repository",
    "require_runnable",
    "require_sound_structure",
    "tell_undo",
]

BEYOND = 0.05
"""Share of true frames that may lie beyond `selection.cutoff_nm`."""


def require_runnable(workspace: Workspace) -> None:
    """Raise a CgalError when a campaign would fail later for its data, or be measured against another's.

    Its structure must be one that the force field knows, its seed enough to train on and to hold out, its reference of
    the same temperature, longer and denser than the lag of the benchmark's TICA, and both within `selection.cutoff_nm`
    but for a few frames; of several proteins each its own, and no two of one sequence. Raises Refused when several
    things are to be mended.
    """
    params, refusals = workspace.params, Refusals()
    with refusals.gathered():
        _require_backmappers(workspace)
    with refusals.gathered():
        _require_weighable(params)
    for part in workspace.parts:
        with refusals.gathered():
            require_own_reference(part.data, params.temperature_K)
        with refusals.gathered():
            require_sound_structure(part)
            _require_within_cutoff(part)
        with refusals.gathered():
            require_enough(_training_trajectories(part), params.training)
        if params.simulation.starts == "given":
            with refusals.gathered():
                sequence = sequence_of(read_pdb_text(part.structure).topology)
                read_starts(part.data / params.simulation.starts_file, sequence, params.simulation)
        with refusals.gathered():
            lag_frames(CGTrajectory.load(part.data / "reference.h5"), params.benchmark.tica_lag_ps)
    refusals.tell()
    _require_different(workspace)


def require_own_reference(data: Path, temperature_K: float) -> None:
    """Raise unless `reference.h5` is what `reference.json`, if it is there, describes, and of this temperature.

    DatasetChanged for other bytes, BadParams for another temperature.
    """
    path, note = data / "reference.h5", data / "reference.json"
    if not (path.is_file() and note.is_file()):
        return
    said = read_json(note)
    if said.get("sha256") not in (None, sha256(path)):
        raise DatasetChanged(
            f"{path}: its bytes are not those that reference.json records (SHA-256); restore it with 'dvc checkout "
            f"--force', or make ('cgal reference {data.name}') or import it again"
        )
    sampled_K = float(said.get("temperature_K", temperature_K))
    if abs(sampled_K - temperature_K) > 0.5:
        raise BadParams(
            f"{path}: sampled at {sampled_K:g} K, but temperature_K is {temperature_K:g}: set it to that, or make "
            f"('cgal reference {data.name}') or import a reference of this temperature"
        )


def _require_backmappers(workspace: Workspace) -> None:
    from cgal.all_atom.backmapping.backmap import backmapper_of

    backmapping = workspace.params.backmapping
    for method in {backmapping.method, backmapping.second_method} - {"none"}:
        backmapper_of(method)


def _require_weighable(params: Params) -> None:
    """Raise BadParams unless label runs are longer than the lag of the Markov model that weights their frames."""
    oracle, lag_ps = params.oracle, params.training.markov.lag_ps
    if params.training.frame_weights == "none" or not params.campaign.rounds:
        return
    run_ps = oracle.average_steps * params.force_field.timestep_ps
    between_ps = (oracle.average_steps // oracle.free_stride - 1) * oracle.free_stride * params.force_field.timestep_ps
    if oracle.mode != "free" or between_ps < lag_ps:  # between the first frame of a run and its last
        raise BadParams(
            f"training.frame_weights: markov needs label runs longer than training.markov.lag_ps ({lag_ps:g} ps): set "
            f"oracle.mode: free and oracle.average_steps ({oracle.average_steps}, {run_ps:g} ps) to match, with frames "
            "that far apart (oracle.free_stride), or frame_weights: none"
        )


def _require_within_cutoff(workspace: Workspace) -> None:
    """Raise BadParams when more than a few frames of seed or reference are beyond `selection.cutoff_nm`.

    Simulated frames like them would all be dropped. Raises BadTrajectory when one is of another protein.
    """
    from cgal.selection.pool import chain_cutoff_nm

    structure, seed = read_pdb_text(workspace.structure), _seed(workspace)
    reference = CGTrajectory.load(workspace.data / "reference.h5")
    native, sequence = structure.xyz[0, alpha_carbons(structure.topology)], sequence_of(structure.topology)
    cutoff_nm = workspace.params.selection.cutoff_nm
    for name, found, positions, weights in (
        ("seed", sequence_of(seed.topology), seed.positions[:, alpha_carbons(seed.topology)], None),
        ("reference", reference.sequence, reference.positions, reference.weights),
    ):
        if found != sequence:
            raise BadTrajectory(
                f"{workspace.data}: the {name} is of {found}, structure.pdb of {sequence}: make or import it again"
            )
        beyond = float(np.average(rmsd_nm(positions, native) > cutoff_nm, weights=weights))
        if beyond > BEYOND:
            raise BadParams(
                f"selection.cutoff_nm: {beyond:.0%} of the {name} of {workspace.data.name} is more than {cutoff_nm:g} "
                f"nm from structure.pdb, and such frames would be dropped as unphysical: set it to "
                f"{chain_cutoff_nm(len(native)):g}, which no chain of {len(native)} residues is beyond"
            )


def _require_different(workspace: Workspace) -> None:
    owners: dict[str, str] = {}
    for part in workspace.parts:
        sequence = sequence_of(read_pdb_text(part.structure).topology)
        if (other := owners.setdefault(sequence, part.data.name)) != part.data.name:
            raise BadParams(
                f"protein: {other} and {part.data.name} are both {sequence}, and frames of one protein share one "
                "prior: leave one of them out"
            )


def require_sound_structure(workspace: Workspace) -> None:
    """Raise BadStructure, naming file and residue, unless `structure.pdb` is one chain that the force field knows."""
    from cgal.all_atom.force_field import build_system, read_structure
    from cgal.all_atom.solvation import require_solvable
    from cgal.foreign.trajectory import open_protein

    text = workspace.structure
    open_protein(workspace.data / "structure.pdb", "auto")
    topology, positions = read_structure(text)
    build_system(topology, workspace.params.force_field)
    require_solvable(positions, workspace.params.force_field)


def require_repository(workspace: Workspace) -> Repository:
    """The working copy; raises VersioningError when it is none, or what is made could not be kept."""
    repository = Repository(workspace.root)
    repository.require_writable()
    return repository


def require_replaceable(workspace: Workspace, repository: Repository, replace: bool) -> str:
    """How to undo a replacement of the protein's data; "" when it has no campaign, BadParams unless `replace` is set.

    A campaign is one with published rounds, or one whose labels lie in `data/`.
    """
    tags = last_rounds(repository, workspace.data.name)
    if not tags and (grown := _grown(workspace)):
        tags = [grown]
    if not tags:
        return ""
    names = ", ".join(campaign_and_index(tag)[0] for tag in tags)
    undo = f"'cgal checkout {tags[-1]}'"
    if not replace:
        raise BadParams(
            f"{workspace.data}: campaigns were run on it ({names}); set up another protein (protein: in params.yaml), "
            f"or replace it with --replace: published rounds stay, and {undo} brings these data back"
        )
    return undo


def tell_undo(undo: str) -> None:
    """Print how to bring replaced data back, if there were any."""
    if undo:
        console.print(f"undo: {undo}; a campaign on the new data: 'cgal run --new NAME'")


def last_rounds(repository: Repository, protein: str) -> list[str]:
    """Tag of the last published round of each campaign of a protein."""
    last = {campaign_and_index(tag)[0]: tag for tag in find_tags(repository.git)}
    tags = list(last.values())
    named = [proteins_of(text) for text in repository.read_round_files(tags, "params.yaml")]
    return [tag for tag, proteins in zip(tags, named, strict=True) if protein in proteins]


def _grown(workspace: Workspace) -> str:
    """Round whose labels were the last to be appended to the data; "" when there are none."""
    path = workspace.data / "manifest.json"
    if not path.is_file():
        return ""
    content = read_json(path)
    labelled = [shard for shard in content["shards"] if shard["origin"].startswith("oracle round")]
    return f"{content['campaign']}/round-{len(labelled) - 1:03d}" if labelled else ""


def _training_trajectories(workspace: Workspace) -> list[Shaped[np.ndarray, "..."]]:
    """Numbers of the trajectories that round 0 trains on, frame by frame: the seed's, and its continuation."""
    params = workspace.params
    epochs, runs, steps = plan_of(params)
    return [
        _seed(workspace).trajectory,
        np.repeat(np.arange(epochs * runs, dtype=np.int32), steps // params.oracle.free_stride),
    ]


def _seed(workspace: Workspace) -> AtomFrames:
    """Frames of the seed that are trained on: those with mean forces, if there are any."""
    labelled = labelled_seed(workspace.data, workspace.params.mapping)
    return AtomFrames.load(workspace.data / "seed.h5") if labelled is None else labelled
