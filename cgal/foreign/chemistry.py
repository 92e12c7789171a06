"""What the residues of a file are: amino acids, caps, water, ions, or what no model here can hold.

Residues go by the names of the file, so that every error and every note says what its owner will find there.
"""

from collections.abc import Collection, Sequence
from typing import Literal, NamedTuple

from cgal.errors import BadStructure
from cgal.residues import (
    AMINO_ACIDS,
    CAPS,
    IONS,
    MODIFIED,
    SELENOMETHIONINE,
    WATERS,
    amino_acid_of,
    heavy_atoms_of,
    protonation_of,
    stated_protonation,
)

__all__ = [
    "Residue",
    "Selection",
    "check_backbone",
    "check_chain",
    "check_complete",
    "notes_on_names",
    "select_protein",
]

type Selection = Literal["auto", "protein", "all"]
"""`auto` leaves out water and ions, `protein` all that is no part of the chain, `all` nothing: it is refused then."""

BACKBONE = frozenset(("N", "CA", "C"))


class Residue(NamedTuple):
    """A residue under its file's name; `label` is its number with insertion code, `chain` the count and id of its."""

    name: str
    label: str
    chain: tuple[int, str]
    atoms: tuple[str, ...]

    def __str__(self) -> str:
        """Name and number."""
        return f"{self.name} {self.label}"

    @property
    def amino_acid(self) -> str | None:
        """Three letters of the amino acid, None when it is none."""
        return amino_acid_of(self.name)

    @property
    def heavy(self) -> frozenset[str]:
        """Names of its atoms that are no hydrogens."""
        return frozenset(name for name in self.atoms if name.lstrip("0123456789")[:1] not in ("H", "D"))

    @property
    def kind(self) -> Literal["amino acid", "cap", "water", "ion", "other"]:
        """What it is; a residue of one atom by an ion's name is an ion."""
        if self.amino_acid:
            return "amino acid"
        name = self.name.upper()
        if name in CAPS:
            return "cap"
        if name in WATERS:
            return "water"
        return "ion" if name in IONS and len(self.atoms) == 1 else "other"


def select_protein(residues: Sequence[Residue], select: Selection) -> tuple[list[int], tuple[str, ...]]:
    """Which residues are the chain, caps included, and what to say of the others.

    Raises BadStructure, naming the residue, for a modified amino acid, for what `select` does not leave out, and when
    no amino acid is there.
    """
    kept: list[int] = []
    left_out: list[Residue] = []
    for number, residue in enumerate(residues):
        if residue.kind in ("amino acid", "cap"):
            kept.append(number)
            continue
        _check_stranger(residue, select)
        left_out.append(residue)
    if not any(residue.kind == "amino acid" for residue in residues):
        raise BadStructure("no amino acid is in the file; give the protein")
    return kept, _said_of(left_out)


def _check_stranger(residue: Residue, select: Selection) -> None:
    meaning = MODIFIED.get(residue.name.upper())
    if meaning or set(residue.atoms) >= BACKBONE:
        raise BadStructure(
            f"residue {residue}{f' ({meaning})' if meaning else ''} is none of the twenty amino acids, and force field "
            "and model know no other; replace it in the structure and simulate that"
        )
    if select == "all":
        raise BadStructure(
            f"residue {residue} is no amino acid; strip water, ions and ligands first, or select the protein "
            "(--select protein)"
        )
    if select == "auto" and residue.kind == "other":
        raise BadStructure(
            f"residue {residue} is no amino acid, water or known ion; strip ligands first, or, if it may be left out, "
            "select the protein (--select protein)"
        )


def _said_of(left_out: Sequence[Residue]) -> tuple[str, ...]:
    if not left_out:
        return ()
    waters = sum(residue.kind == "water" for residue in left_out)
    others: dict[str, int] = {}
    for residue in left_out:
        if residue.kind != "water":
            others[residue.name] = others.get(residue.name, 0) + 1
    parts = [f"{waters} water{'s' if waters > 1 else ''}"] if waters else []
    parts += [f"{count} {name}" for name, count in others.items()]
    return (f"left out: {', '.join(parts)}",)


def check_chain(residues: Sequence[Residue]) -> None:
    """Raise BadStructure unless the amino acids and caps are one chain, caps at its ends.

    Files without chain names end one by OXT.
    """
    chains: list[tuple[int, str]] = []
    ended = True
    for residue in residues:
        if residue.kind == "amino acid" and (ended or residue.chain != chains[-1]):
            chains.append(residue.chain)
            ended = False
        ended = ended or bool(set(residue.atoms) & {"OXT", "OT2", "OC2"})
    if len(chains) > 1:
        names = [name for _, name in chains]
        if len(set(names)) < len(names) or "" in names:
            names = [chr(ord("A") + number % 26) for number in range(len(names))]
        raise BadStructure(f"{len(chains)} chains ({', '.join(names)}); keep one chain only in the file")
    for residue in residues[1:-1]:
        if residue.kind == "cap":
            raise BadStructure(f"the cap {residue} lies within the chain; a cap closes an end of one")


def check_backbone(residues: Sequence[Residue]) -> None:
    """Raise BadStructure when there are but C-alpha atoms, or a residue lacks one of N, CA and C."""
    chain = [residue for residue in residues if residue.kind == "amino acid"]
    if all(residue.heavy <= {"CA"} for residue in chain):
        raise BadStructure(
            "the file holds only C-alpha atoms; give all atoms (C-alpha alone tell no side chains and no forces)"
        )
    for residue in chain:
        lacking = sorted(BACKBONE - residue.heavy)
        if lacking:
            raise BadStructure(f"residue {residue} lacks {', '.join(lacking)}; give a structure with a whole backbone")


def check_known(residues: Sequence[Residue]) -> None:
    """Raise BadStructure when a residue has a heavy atom that its name does not tell (OXT may be there)."""
    for residue in residues:
        foreign = residue.heavy - {"OXT"} - heavy_atoms_of(residue.amino_acid) if residue.amino_acid else ()
        if foreign:
            raise BadStructure(
                f"residue {residue} has atoms that {residue.amino_acid} has not ({', '.join(sorted(foreign))}); either "
                "its name is wrong, or it is modified, or its atoms are not named as in the PDB"
            )


def check_complete(residues: Sequence[Residue]) -> None:
    """Raise BadStructure when a residue lacks a heavy atom."""
    for residue in residues:
        lacking = heavy_atoms_of(residue.amino_acid) - residue.heavy if residue.amino_acid else ()
        if lacking:
            raise BadStructure(
                f"residue {residue} lacks {', '.join(sorted(lacking))}; all atoms are needed ('cgal structure' adds "
                "them: simulate what it makes)"
            )


def notes_on_names(residues: Sequence[Residue]) -> tuple[str, ...]:
    """What to say of residues whose names are not those of the twenty amino acids."""
    notes = []
    for residue in residues:
        amino_acid = residue.amino_acid
        if amino_acid is None or residue.name in AMINO_ACIDS:
            continue
        stated = stated_protonation(residue.name)
        if residue.name.upper() == SELENOMETHIONINE:
            notes.append(f"{residue} (selenomethionine) is read as MET, its selenium as sulphur")
        elif stated:
            notes.append(f"{residue} is read as {amino_acid}{_agreement(stated, amino_acid, residue.atoms)}")
    return tuple(notes)


def _agreement(stated: str, amino_acid: str, atoms: Collection[str]) -> str:
    """Whether the hydrogens are those that the name tells; CYX and CYM have the same ones."""
    if not any(name.lstrip("0123456789").startswith("H") for name in atoms):
        return ""
    found = protonation_of(amino_acid, atoms)
    if found == stated or {found, stated} == {"CYX", "CYM"} or stated in ("ARN", "TYM"):
        return "; its hydrogens are kept"
    return f"; its hydrogens are those of {found}, not of {stated}, and are kept"
