"""The all-atom start structure of a protein: from its sequence, from a PDB file, or from a PDB id.

Missing atoms and hydrogens are added at the given pH, then the structure is relaxed with care: restrained
minimisation, free minimisation, then dynamics at 0.5 fs, 1 fs and the production step. Each result is checked for
handedness, clashes, torn bonds and cis peptide bonds.
"""

import random
from collections.abc import Iterator
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
from cgal.all_atom.soundness import cis_peptide_bonds, faults, heavy_atoms
from cgal.errors import BadFile, BadStructure, Diverged
from cgal.frames import RESIDUE_NAMES, check_sequence, read_pdb_text, sequence_of
from cgal.params import ForceFieldParams

__all__ = ["structure_from_pdb_file", "structure_from_pdb_id", "structure_from_sequence"]

EXTENDED_PHI_degrees = -120.0
EXTENDED_PSI_degrees = 140.0
RESTRAINT_kJ_per_mol_nm2 = 1000.0
CLASH_nm = 0.08
BROKEN_PEPTIDE_nm = 0.2
AMINO_ACIDS = frozenset(RESIDUE_NAMES.values())
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
    return _prepare(stream.getvalue(), f"sequence {sequence}", params, temperature_K, seed, relax_ps)


def structure_from_pdb_file(
    path: Path, params: ForceFieldParams, *, temperature_K: float, seed: int, relax_ps: float = 2.0
) -> str:
    """PDB text of the protein in a PDB file: missing atoms and hydrogens added, relaxed; residues are not made up.

    Raises BadFile when the file cannot be read, and BadStructure, naming the residue, when it holds anything but one
    chain of the twenty amino acids (water is stripped), a gap in the chain, or what the force field cannot take.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise BadFile(f"{path}: cannot be read as a PDB file ({error})") from None
    return _prepare(text, str(path), params, temperature_K, seed, relax_ps)


def structure_from_pdb_id(
    pdb_id: str, params: ForceFieldParams, *, temperature_K: float, seed: int, relax_ps: float = 2.0
) -> str:
    """PDB text of an entry of the Protein Data Bank, downloaded; otherwise as from a file.

    Raises BadStructure when it is no PDB id, and BadFile when the download fails.
    """
    if not (len(pdb_id) == 4 and pdb_id.isascii() and pdb_id.isalnum() and pdb_id[0].isdigit()):
        raise BadStructure(f"{pdb_id!r} is no PDB id; one has four characters, a digit first, such as 5AWL")
    url = DOWNLOAD_URL.format(pdb_id.upper())
    try:
        with urlopen(url, timeout=DOWNLOAD_TIMEOUT_s) as response:  # noqa: S310  # the scheme is ours
            text = response.read().decode()
    except (URLError, OSError, UnicodeDecodeError) as error:
        raise BadFile(
            f"{url}: download failed ({error}); when offline, give a PDB file or a sequence instead"
        ) from None
    return _prepare(text, f"PDB entry {pdb_id.upper()}", params, temperature_K, seed, relax_ps)


def _prepare(text: str, source: str, params: ForceFieldParams, temperature_K: float, seed: int, relax_ps: float) -> str:
    try:
        topology, positions = _complete(text, params.ph, seed)
        sequence_of(read_pdb_text(write_structure(topology, positions)).topology)
        relaxed = _relax(topology, positions, params, temperature_K, seed, relax_ps)
    except BadStructure as error:
        raise BadStructure(f"{source}: {error}") from None
    except Diverged as error:
        raise BadStructure(f"{source}: relaxation failed ({error}); look at the structure for overlaps") from error
    pdb = write_structure(topology, relaxed)
    _check(pdb, source, params)
    return pdb


def _complete(text: str, ph: float, seed: int) -> tuple[app.Topology, Float64[np.ndarray, "atoms 3"]]:
    """Missing heavy atoms and hydrogens added; water stripped; first model, first alternative locations."""
    read_structure(text)
    with _seeded(seed):
        fixer = PDBFixer(pdbfile=StringIO(text), platform=openmm.Platform.getPlatformByName("Reference"))
        _strip_water(fixer)
        _check_chain(fixer.topology)
        fixer.missingResidues = {}
        fixer.findMissingAtoms()
        fixer.addMissingAtoms(seed=seed)
        _check_gaps(fixer)
        fixer.addMissingHydrogens(ph)
    fixer.topology.setPeriodicBoxVectors(None)
    return fixer.topology, np.array(fixer.positions.value_in_unit(unit.nanometer), dtype=np.float64)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed Python's global generator, which OpenMM's Modeller and PeptideBuilder use, and give it back as it was."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


def _strip_water(fixer: PDBFixer) -> None:
    modeller = app.Modeller(fixer.topology, fixer.positions)
    modeller.deleteWater()
    fixer.topology, fixer.positions = modeller.topology, modeller.positions


def _check_chain(topology: app.Topology) -> None:
    """One chain of amino acids: what this model of one bead per residue, bonded in order, can hold."""
    for residue in topology.residues():
        if residue.name not in AMINO_ACIDS:
            raise BadStructure(
                f"residue {residue.name} {residue.id} is none of the twenty amino acids; "
                "strip ions and ligands, and replace modified residues"
            )
    chains = [chain.id for chain in topology.chains()]
    if len(chains) != 1:
        raise BadStructure(f"{len(chains)} chains ({', '.join(chains)}); keep one chain only in the file")


def _check_gaps(fixer: PDBFixer) -> None:
    positions = np.array(fixer.positions.value_in_unit(unit.nanometer))
    for first, second in pairwise(fixer.topology.residues()):
        carbon = next(atom.index for atom in first.atoms() if atom.name == "C")
        nitrogen = next(atom.index for atom in second.atoms() if atom.name == "N")
        if np.linalg.norm(positions[carbon] - positions[nitrogen]) > BROKEN_PEPTIDE_nm:
            raise BadStructure(
                f"the chain is broken between {first.name} {first.id} and {second.name} {second.id}; "
                "model the missing residues"
            )


def _relax(
    topology: app.Topology,
    positions: Float64[np.ndarray, "atoms 3"],
    params: ForceFieldParams,
    temperature_K: float,
    seed: int,
    relax_ps: float,
) -> Float64[np.ndarray, "atoms 3"]:
    """Restrained, then free minimisation under H-bond constraints; then dynamics at ever longer steps."""
    system = build_system(topology, params)
    restrained = np.flatnonzero(heavy_atoms(topology))
    restrain(system, restrained, positions[restrained], RESTRAINT_kJ_per_mol_nm2)
    run = AtomRun(system, params, temperature_K=temperature_K, timestep_ps=0.0005, seed=seed)
    run.place(positions)
    run.minimise()
    run.context.setParameter("k", 0.0)
    run.minimise()
    run.draw_velocities()
    for timestep_ps in (0.0005, 0.001, params.timestep_ps):
        run.integrator.setStepSize(timestep_ps)
        run.advance(round(relax_ps / 3 / timestep_ps))
    return run.positions()


def _check(pdb: str, source: str, params: ForceFieldParams) -> None:
    topology, positions = read_structure(pdb)
    found = faults(topology, build_system(topology, params), positions, clash_nm=CLASH_nm)
    found += tuple(fault for fault in cis_peptide_bonds(topology, positions) if "PRO" not in fault)
    if found:
        raise BadStructure(f"{source}: the relaxed structure has {'; '.join(found[:3])}; give a better start structure")
