"""The protein in a topology file of any format that mdtraj reads, atoms and residues by the names of the PDB."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import mdtraj
import numpy as np
from jaxtyping import Int

from cgal.errors import BadStructure
from cgal.foreign.chemistry import (
    Residue,
    Selection,
    check_backbone,
    check_chain,
    check_complete,
    check_known,
    notes_on_names,
    select_protein,
)
from cgal.foreign.pdb_text import PlainPdb, plain_pdb
from cgal.hdf5 import check_foreign_hdf5
from cgal.residues import CAPS

__all__ = ["Protein", "in_lower_case", "is_pdb", "plain_copy", "read_protein"]

SULPHUR = mdtraj.element.sulfur


@dataclass(frozen=True, eq=False)
class Protein:
    """One chain of a file: the topology of all that is in the file, which `atoms` of it are the chain, and its own.

    `residues` are the chain's under the file's names; `notes` say what was left out or read as another.
    """

    file: mdtraj.Topology
    atoms: Int[np.ndarray, " atoms"]
    topology: mdtraj.Topology
    residues: tuple[Residue, ...]
    notes: tuple[str, ...]

    @property
    def is_all(self) -> bool:
        """Whether the file holds nothing else."""
        return bool(len(self.atoms) == self.file.n_atoms)


def read_protein(path: Path, select: Selection) -> Protein:
    """Read the chain; raises BadStructure, naming the residue, for all that is no chain of the twenty amino acids."""
    file, residues, notes = _read(path)
    chosen, left_out = select_protein(residues, select)
    kept = [residues[number] for number in chosen]
    check_chain(kept)
    members = [list(file.residue(number).atoms) for number in chosen]
    topology = _standard(file, kept, members)
    named = [
        Residue(residue.name, residue.label, residue.chain, tuple(atom.name for atom in standard.atoms))
        for residue, standard in zip(kept, topology.residues, strict=True)
    ]
    check_backbone(named)
    check_known(named)
    check_complete(named)
    atoms = np.array([atom.index for atoms in members for atom in atoms])
    return Protein(file, atoms, topology, tuple(named), (*left_out, *notes, *notes_on_names(named)))


def _read(path: Path) -> tuple[mdtraj.Topology, tuple[Residue, ...], tuple[str, ...]]:
    """All that the file holds: topology, residues under the file's names, and what was changed in reading."""
    if is_pdb(path):
        with plain_copy(path) as (copy, plain):
            topology = mdtraj.load_topology(str(copy), standard_names=False)
        names = [residue for residue in plain.residues for _ in residue.atoms]
        if len(names) != topology.n_atoms:
            raise BadStructure(f"{len(names)} atoms, of which {topology.n_atoms} can be told apart; are two alike?")
        found = [names[next(residue.atoms).index] for residue in topology.residues]
        return topology, tuple(found), plain.notes
    check_foreign_hdf5(path)
    with in_lower_case(path) as readable:
        topology = mdtraj.load_topology(str(readable))
    return topology, tuple(_residue(residue) for residue in topology.residues), ()


def _residue(residue: mdtraj.core.topology.Residue) -> Residue:
    chain = (residue.chain.index, residue.chain.chain_id or "")
    return Residue(residue.name, str(residue.resSeq), chain, tuple(atom.name for atom in residue.atoms))


def is_pdb(path: Path) -> bool:
    """Whether the ending says that it is PDB text."""
    return path.suffix.lower() in (".pdb", ".ent")


@contextmanager
def plain_copy(path: Path) -> Iterator[tuple[Path, PlainPdb]]:
    """A copy of PDB text made plain, and what that text holds; raises BadStructure when it is no PDB."""
    plain = plain_pdb(path.read_text(errors="replace"))  # remarks are in any encoding, atoms in ASCII
    with TemporaryDirectory() as folder:
        copy = Path(folder) / "plain.pdb"
        copy.write_text(plain.text)
        yield copy, plain


@contextmanager
def in_lower_case(path: Path) -> Iterator[Path]:
    """The file by a name whose ending is in lower case, which mdtraj tells formats by."""
    if path.suffix == path.suffix.lower():
        yield path
        return
    with TemporaryDirectory() as folder:
        link = Path(folder) / f"{path.stem}{path.suffix.lower()}"
        link.symlink_to(path.resolve())
        yield link


def _standard(
    file: mdtraj.Topology, residues: Sequence[Residue], members: Sequence[Sequence[mdtraj.core.topology.Atom]]
) -> mdtraj.Topology:
    """Topology of the chain by standard names, with standard bonds and the file's disulfide bonds.

    Atoms get the PDB's names by being written and read again, which is where mdtraj knows others' names.
    """
    numbers = [atoms[0].residue.resSeq for atoms in members]
    if any(first == second for first, second in pairwise(numbers)):
        numbers = list(range(1, len(numbers) + 1))
    names = [["SD" if atom.name == "SE" else atom.name for atom in atoms] for atoms in members]
    draft = _build(residues, members, numbers, names)
    with TemporaryDirectory() as folder:
        written = str(Path(folder) / "draft.pdb")
        mdtraj.Trajectory(np.zeros((1, draft.n_atoms, 3), dtype=np.float32), draft).save_pdb(written)
        read = mdtraj.load_topology(written)
    if read.n_atoms != draft.n_atoms:
        raise BadStructure("a residue has two atoms of one name; give a topology with standard atom names")
    renamed = iter(read.atoms)
    standard = _build(residues, members, numbers, [[next(renamed).name for _ in atoms] for atoms in members])
    standard.create_standard_bonds()
    _add_disulfides(standard, file, members)
    return standard


def _build(
    residues: Sequence[Residue],
    members: Sequence[Sequence[mdtraj.core.topology.Atom]],
    numbers: Sequence[int],
    names: Sequence[Sequence[str]],
) -> mdtraj.Topology:
    topology = mdtraj.Topology()
    chain = topology.add_chain(chain_id=members[0][0].residue.chain.chain_id)
    for residue, atoms, number, labels in zip(residues, members, numbers, names, strict=True):
        name = residue.amino_acid or CAPS[residue.name.upper()]
        added = topology.add_residue(name, chain, resSeq=number)
        for atom, label in zip(atoms, labels, strict=True):
            topology.add_atom(label, SULPHUR if atom.name == "SE" else atom.element, added)
    return topology


def _add_disulfides(
    topology: mdtraj.Topology, file: mdtraj.Topology, members: Sequence[Sequence[mdtraj.core.topology.Atom]]
) -> None:
    place = {atom.index: number for number, atom in enumerate(atom for atoms in members for atom in atoms)}
    for one, other in file.bonds:
        if one.name == other.name == "SG" and one.index in place and other.index in place:
            topology.add_bond(topology.atom(place[one.index]), topology.atom(place[other.index]))
