"""The all-atom start structure of a protein: from its sequence, from a PDB file, or from a PDB id.

Missing atoms and hydrogens are added at the given pH, then the structure is relaxed with care: restrained
minimisation, free minimisation, then dynamics at 0.5 fs, 1 fs and the production step. Each result is checked for
handedness, clashes, torn bonds and cis peptide bonds. Where the solvent is explicit, all this is done in an implicit
one: each run from the structure brings its own water.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from itertools import pairwise
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import openmm
import PeptideBuilder
from Bio.PDB.PDBIO import PDBIO
from jaxtyping import Float64
from openmm import app, unit
from pdbfixer import PDBFixer

from cgal.all_atom.dynamics import AtomRun, restrain
from cgal.all_atom.force_field import build_system, read_structure, write_structure
from cgal.all_atom.solvation import require_solvable
from cgal.all_atom.soundness import cis_peptide_bonds, faults, heavy_atoms
from cgal.errors import BadFile, BadStructure, Diverged
from cgal.foreign.chemistry import Residue, check_backbone, check_chain, check_known, notes_on_names, select_protein
from cgal.foreign.pdb_text import plain_pdb
from cgal.frames import check_sequence, read_pdb_text, sequence_of
from cgal.params import ForceFieldParams
from cgal.progress import Note, Progress, silent, unsaid
from cgal.residues import stated_protonation

__all__ = ["structure_from_pdb_file", "structure_from_pdb_id", "structure_from_sequence"]

EXTENDED_PHI_degrees = -120.0
EXTENDED_PSI_degrees = 140.0
RESTRAINT_kJ_per_mol_nm2 = 1000.0
CLASH_nm = 0.08
LOOK_STEPS = 50
BROKEN_PEPTIDE_nm = 0.2
VARIANTS = {"CYM": "CYX", "ARN": None, "TYM": None}
"""What OpenMM calls a protonation where it is not AMBER's name; None where it has none. CYX and CYM both lack HG."""
DOWNLOAD_URL = "https://files.rcsb.org/download/{}.pdb"
DOWNLOAD_TIMEOUT_s = 30.0


def structure_from_sequence(
    sequence: str,
    params: ForceFieldParams,
    *,
    temperature_K: float,
    seed: int,
    phi_degrees: float = EXTENDED_PHI_degrees,
    psi_degrees: float = EXTENDED_PSI_degrees,
    relax_ps: float = 2.0,
    progress: Progress = silent,
) -> str:
    """PDB text of a zwitterionic peptide of that sequence, all residues at one (phi, psi), extended by default.

    Raises BadStructure for a letter that is no amino acid, or when no sound structure comes of it (a helix of
    prolines).
    """
    check_sequence(sequence)
    count = len(sequence) - 1
    with _seeded(seed):  # PeptideBuilder draws rotamers
        chain = PeptideBuilder.make_structure(sequence, [phi_degrees] * count, [psi_degrees] * count)
    stream = StringIO()
    writer = PDBIO()
    writer.set_structure(chain)
    writer.save(stream)
    return _prepare(stream.getvalue(), f"sequence {sequence}", params, temperature_K, seed, relax_ps, unsaid, progress)


def structure_from_pdb_file(
    path: Path,
    params: ForceFieldParams,
    *,
    temperature_K: float,
    seed: int,
    relax_ps: float = 2.0,
    note: Note = unsaid,
    progress: Progress = silent,
) -> str:
    """PDB text of the protein in a PDB file: missing atoms and hydrogens added, relaxed; residues are not made up.

    The first model is taken, and of alternative locations the one of highest occupancy; a residue that is named by its
    protonation (HIE, GLH, HSP, ...) has it, others go by the pH; selenomethionine becomes methionine; disulfide bonds
    are kept; water and ions are left out. `note` is called with each of these that was met.

    Raises BadFile when the file cannot be read, and BadStructure, naming the residue, when it holds anything but one
    chain of the twenty amino acids and caps, a gap in the chain, or what the force field cannot take.
    """
    try:
        text = path.read_text(errors="replace")
    except OSError as error:
        raise BadFile(f"{path}: cannot be read as a PDB file ({error})") from None
    return _prepare(text, str(path), params, temperature_K, seed, relax_ps, note, progress)


def structure_from_pdb_id(
    pdb_id: str,
    params: ForceFieldParams,
    *,
    temperature_K: float,
    seed: int,
    relax_ps: float = 2.0,
    note: Note = unsaid,
    progress: Progress = silent,
) -> str:
    """PDB text of an entry of the Protein Data Bank, downloaded; otherwise as from a file.

    Raises BadStructure when it is no PDB id, and BadFile when the download fails.
    """
    if not (len(pdb_id) == 4 and pdb_id.isascii() and pdb_id.isalnum() and pdb_id[0].isdigit()):
        raise BadStructure(f"{pdb_id!r} is no PDB id; one has four characters, a digit first, such as 5AWL")
    url = DOWNLOAD_URL.format(pdb_id.upper())
    try:
        with urlopen(url, timeout=DOWNLOAD_TIMEOUT_s) as response:  # noqa: S310  # the scheme is ours
            text = response.read().decode(errors="replace")
    except (URLError, OSError) as error:
        raise BadFile(
            f"{url}: download failed ({error}); when offline, give a PDB file or a sequence instead"
        ) from None
    return _prepare(text, f"PDB entry {pdb_id.upper()}", params, temperature_K, seed, relax_ps, note, progress)


def _prepare(
    text: str,
    source: str,
    params: ForceFieldParams,
    temperature_K: float,
    seed: int,
    relax_ps: float,
    note: Note,
    progress: Progress,
) -> str:
    dry = params.without_water
    try:
        topology, positions = _complete(text, params.ph, seed, note)
        sequence_of(read_pdb_text(write_structure(topology, positions)).topology)
        relaxed = _relax(topology, positions, dry, temperature_K, seed, relax_ps, progress)
        require_solvable(relaxed, params)
    except BadStructure as error:
        raise BadStructure(f"{source}: {error}") from None
    except Diverged as error:
        raise BadStructure(f"{source}: relaxation failed ({error}); look at the structure for overlaps") from error
    pdb = write_structure(topology, relaxed)
    _check(pdb, source, dry)
    return pdb


def _complete(text: str, ph: float, seed: int, note: Note) -> tuple[app.Topology, Float64[np.ndarray, "atoms 3"]]:
    """Missing heavy atoms and hydrogens added; what is no part of the chain left out."""
    plain = plain_pdb(text)
    kept, left_out = select_protein(plain.residues, "auto")
    chain = [plain.residues[number] for number in kept]
    check_chain(chain)
    check_backbone(chain)
    for found in (*left_out, *plain.notes, *_said_of_names(chain)):
        note(found)
    with _seeded(seed):
        platform = openmm.Platform.getPlatformByName("Reference")
        fixer = PDBFixer(pdbfile=StringIO(plain.first_model(kept)), platform=platform)
        check_known([residue._replace(atoms=names) for residue, names in _with_names(chain, fixer.topology)])
        fixer.missingResidues = {}
        fixer.findMissingAtoms()
        fixer.addMissingAtoms(seed=seed)
        _check_gaps(fixer, chain)
        modeller = app.Modeller(fixer.topology, fixer.positions)
        modeller.addHydrogens(pH=ph, variants=_variants(modeller.topology, chain, note), platform=platform)
    modeller.topology.setPeriodicBoxVectors(None)
    return modeller.topology, np.array(modeller.positions.value_in_unit(unit.nanometer), dtype=np.float64)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed Python's global generator, which OpenMM's Modeller and PeptideBuilder use, and give it back as it was."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


def _with_names(chain: Sequence[Residue], topology: app.Topology) -> Iterator[tuple[Residue, tuple[str, ...]]]:
    """Each residue with its atoms by the PDB's names, which OpenMM translates others to."""
    for residue, found in zip(chain, topology.residues(), strict=True):
        yield residue, tuple(atom.name for atom in found.atoms())


def _said_of_names(chain: Sequence[Residue]) -> tuple[str, ...]:
    """What to say of residues whose names are not those of the twenty amino acids."""
    stated = {str(residue): stated_protonation(residue.name) for residue in chain}
    notes = [
        f"{residue} is read as {residue.amino_acid}, protonated as its name says"
        for residue in chain
        if stated[str(residue)]
    ]
    return (*notes, *notes_on_names([residue for residue in chain if not stated[str(residue)]]))


def _variants(topology: app.Topology, chain: Sequence[Residue], note: Note) -> list[str | None]:
    """OpenMM's name of each residue's protonation, None where the pH decides; disulfide bonds are said."""
    bridges = sorted(
        sorted((one.residue.index, other.residue.index))
        for one, other in topology.bonds()
        if one.name == other.name == "SG"
    )
    for first, second in bridges:
        note(f"the disulfide bond {chain[first]} to {chain[second]} is kept")
    bridged = {number for bridge in bridges for number in bridge}
    variants: list[str | None] = []
    for number, residue in enumerate(chain):
        stated = stated_protonation(residue.name)
        if stated == "CYX" and number not in bridged:
            raise BadStructure(
                f"residue {residue} is named as half of a disulfide bond, but no other sulphur is within 0.3 nm of "
                "its own; name it CYS, or give a structure with its partner"
            )
        variant = VARIANTS.get(stated, stated) if stated else None
        if stated and variant is None:
            raise BadStructure(f"residue {residue} has a protonation that no force field here knows; neutralise it")
        variants.append(variant)
    return variants


def _check_gaps(fixer: PDBFixer, chain: Sequence[Residue]) -> None:
    positions = np.array(fixer.positions.value_in_unit(unit.nanometer))
    for number, (first, second) in enumerate(pairwise(fixer.topology.residues())):
        carbon = next(atom.index for atom in first.atoms() if atom.name == "C")
        nitrogen = next(atom.index for atom in second.atoms() if atom.name == "N")
        if np.linalg.norm(positions[carbon] - positions[nitrogen]) > BROKEN_PEPTIDE_nm:
            raise BadStructure(
                f"the chain is broken between {chain[number]} and {chain[number + 1]}; model the missing residues"
            )


def _relax(
    topology: app.Topology,
    positions: Float64[np.ndarray, "atoms 3"],
    params: ForceFieldParams,
    temperature_K: float,
    seed: int,
    relax_ps: float,
    progress: Progress,
) -> Float64[np.ndarray, "atoms 3"]:
    """Restrained, then free minimisation under H-bond constraints; then dynamics at ever longer steps."""
    system = build_system(topology, params)
    restrained = np.flatnonzero(heavy_atoms(topology))
    restrain(system, restrained, positions[restrained], RESTRAINT_kJ_per_mol_nm2)
    run = AtomRun(system, params, temperature_K=temperature_K, timestep_ps=0.0005, seed=seed)
    run.place(positions)
    steps = {timestep_ps: round(relax_ps / 3 / timestep_ps) for timestep_ps in (0.0005, 0.001, params.timestep_ps)}
    total = sum(steps.values())
    progress(0, total, "minimising")
    run.minimise()
    run.context.setParameter("k", 0.0)
    run.minimise()
    run.draw_velocities()
    minimised = run.steps
    for timestep_ps, count in steps.items():
        run.integrator.setStepSize(timestep_ps)
        for done in range(0, count, LOOK_STEPS):
            run.advance(min(LOOK_STEPS, count - done))
            progress(run.steps - minimised, total, f"relaxing, steps of {1000 * timestep_ps:g} fs")
    return run.positions()


def _check(pdb: str, source: str, params: ForceFieldParams) -> None:
    topology, positions = read_structure(pdb)
    found = faults(topology, build_system(topology, params), positions, clash_nm=CLASH_nm)
    found += tuple(fault for fault in cis_peptide_bonds(topology, positions) if "PRO" not in fault)
    if found:
        raise BadStructure(f"{source}: the relaxed structure has {'; '.join(found[:3])}; give a better start structure")
