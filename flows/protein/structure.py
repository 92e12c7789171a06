"""The start structure of a protein, from its sequence, a PDB file or the Protein Data Bank."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cgal.all_atom.structures import structure_from_pdb_file, structure_from_pdb_id, structure_from_sequence
from cgal.errors import BadFile, BadParams
from cgal.files import write_text
from cgal.params import Params
from cgal.progress import Note, unsaid
from flows.terminal import stage_bar

__all__ = ["make_structure"]


def make_structure(
    out: Path,
    params: Params,
    *,
    sequence: str | None = None,
    pdb: Path | None = None,
    pdb_id: str | None = None,
    overwrite: bool = False,
    note: Note = unsaid,
) -> None:
    """Write a PDB file of all atoms, relaxed in the force field of params.yaml; raises BadParams unless one source.

    `sequence` is in one-letter code and becomes an extended chain, `pdb` is a file to complete, `pdb_id` an entry to
    download; `note` is called with what was read as another or left out. Raises BadFile when `out` is there, unless
    `overwrite` is set, and BadFile and BadStructure as `cgal.all_atom.structures`.
    """
    sources: dict[Callable[..., str], Any] = {
        structure_from_sequence: sequence,
        structure_from_pdb_file: pdb,
        structure_from_pdb_id: pdb_id,
    }
    given = [(build, source) for build, source in sources.items() if source is not None]
    if len(given) != 1:
        raise BadParams("give one of --sequence, --pdb and --pdb-id")
    if out.exists() and not overwrite:
        raise BadFile(
            f"{out}: there already, nothing was written; give another name, or --overwrite (a seed and a reference "
            "that were made from it are then of another structure)"
        )
    build, source = given[0]
    options: dict[str, Any] = {} if build is structure_from_sequence else {"note": note}
    options |= {"temperature_K": params.temperature_K, "seed": params.seed}
    with stage_bar("structure") as progress:
        built = build(source, params.force_field, progress=progress, **options)
    write_text(out, built)
