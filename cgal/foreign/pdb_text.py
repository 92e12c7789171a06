"""PDB text made plain, and what was changed: one location an atom, no insertion codes, names of the amino acids."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from cgal.errors import BadStructure
from cgal.foreign.chemistry import Residue
from cgal.residues import SELENOMETHIONINE, amino_acid_of

__all__ = ["PlainPdb", "plain_pdb"]


@dataclass(frozen=True)
class PlainPdb:
    """Text of all models; the residues of the first under the names of the file, and their lines; what was changed."""

    text: str
    residues: tuple[Residue, ...]
    lines: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]

    def first_model(self, chosen: Sequence[int]) -> str:
        """Text of some residues of the first model, as one chain."""
        return "".join(f"{line}\n" for number in chosen for line in self.lines[number]) + "TER\nEND\n"


@dataclass(frozen=True)
class _Atom:
    """One ATOM or HETATM line; `piece` counts the TER lines before it."""

    line: str
    piece: int

    @property
    def name(self) -> str:
        return self.line[12:16].strip()

    @property
    def residue(self) -> str:
        return self.line[17:21].strip()

    @property
    def place(self) -> tuple[int, str, str]:
        """Piece, chain, and number with insertion code."""
        return self.piece, self.line[21:22], self.line[22:27]

    @property
    def location(self) -> str:
        return self.line[16:17].strip()

    @property
    def occupancy(self) -> float:
        text = self.line[54:60].strip()
        return float(text) if text else 1.0


def plain_pdb(text: str) -> PlainPdb:
    """Read PDB text; raises BadStructure when it is empty, holds no atom, or a line is damaged."""
    if not text.strip():
        raise BadStructure("the file is empty; give a PDB file of the protein")
    models = [atoms for atoms in map(_atoms, _models(text)) if atoms]
    if not models:
        raise BadStructure("no ATOM line, so it is no readable PDB file of a protein; give one")
    notes: list[str] = []
    first = _one_location(models[0], notes)
    written = [_plain_lines(first), *(_plain_lines(_one_location(atoms, [])) for atoms in models[1:])]
    coded = next((group for group in first if group[0].line[26] != " "), None)
    if coded:
        notes.append(f"residues are numbered anew from 1: the file has insertion codes (first at {_residue(coded)})")
    lines = [line for line in text.splitlines() if line.startswith("CRYST1")][:1]
    for number, model in enumerate(written, start=1):
        lines += [f"MODEL     {number:4d}", *_joined(model), "ENDMDL"] if len(written) > 1 else _joined(model)
    return PlainPdb(
        "\n".join([*lines, "END", ""]),
        tuple(_residue(group) for group in first),
        tuple(lines for _, lines in written[0]),
        tuple(notes),
    )


def _models(text: str) -> Iterable[list[str]]:
    model: list[str] = []
    for line in text.splitlines():
        if line.startswith(("MODEL", "ENDMDL")):
            yield model
            model = []
        else:
            model.append(line)
    yield model


def _atoms(lines: Sequence[str]) -> list[_Atom]:
    atoms, piece = [], 0
    for line in lines:
        if line.startswith("TER"):
            piece += 1
        elif line.startswith(("ATOM", "HETATM")):
            atom = _Atom(line.ljust(80), piece)
            try:
                [float(line[start : start + 8]) for start in (30, 38, 46)], atom.occupancy
            except ValueError:
                raise BadStructure(f"damaged line {line.strip()!r}; give a whole PDB file") from None
            atoms.append(atom)
    return atoms


def _one_location(atoms: Sequence[_Atom], notes: list[str]) -> list[list[_Atom]]:
    """Atoms by residue, each at its location of highest occupancy; the letter of most occupancy is a residue's."""
    groups: list[list[_Atom]] = []
    for _, members in groupby(atoms, key=lambda atom: atom.place):
        residue = list(members)
        shares: dict[str, list[float]] = defaultdict(list)
        for atom in residue:
            if atom.location:
                shares[atom.location].append(atom.occupancy)
        if shares:
            means = {letter: sum(found) / len(found) for letter, found in shares.items()}
            letter = max(means, key=lambda letter: means[letter])  # the first of equal ones
            residue = _kept(residue, letter)
            others = ", ".join(f"{other} ({means[other]:.2f})" for other in means if other != letter)
            if others:
                label = _residue(residue)
                notes.append(f"{label}: location {letter} (occupancy {means[letter]:.2f}) is kept, {others} left out")
        groups += [list(same) for _, same in groupby(residue, key=lambda atom: atom.residue)]
    return groups


def _kept(residue: Sequence[_Atom], letter: str) -> list[_Atom]:
    """Atoms of one location: those that have no letter or this one, else the most occupied; the name is `letter`'s."""
    name = next(atom.residue for atom in residue if atom.location == letter)
    best: dict[str, _Atom] = {}
    for atom in residue:
        if atom.location and atom.residue != name:
            continue
        rank = (atom.location in ("", letter), atom.occupancy)
        held = best.get(atom.name)
        if held is None or rank > (held.location in ("", letter), held.occupancy):
            best[atom.name] = atom
    return [atom for atom in residue if best.get(atom.name) is atom]


def _residue(group: Sequence[_Atom]) -> Residue:
    piece, chain, number = group[0].place
    return Residue(group[0].residue, number.strip(), (piece, chain.strip()), tuple(atom.name for atom in group))


def _plain_lines(groups: Sequence[Sequence[_Atom]]) -> list[tuple[int, tuple[str, ...]]]:
    """Piece and lines of each residue, by the amino acids' names; numbered from 1 when there are insertion codes."""
    coded = any(group[0].line[26] != " " for group in groups)
    return [
        (group[0].piece, tuple(_plain_line(atom, number if coded else None).rstrip() for atom in group))
        for number, group in enumerate(groups, start=1)
    ]


def _joined(residues: Sequence[tuple[int, tuple[str, ...]]]) -> list[str]:
    """Lines of a model, TER after each piece."""
    lines: list[str] = []
    for _, members in groupby(residues, key=lambda residue: residue[0]):
        lines += [line for _, residue in members for line in residue] + ["TER"]
    return lines


def _plain_line(atom: _Atom, number: int | None) -> str:
    line = atom.line
    name = amino_acid_of(atom.residue)
    if atom.residue == SELENOMETHIONINE and atom.name == "SE":
        line = f"{line[:12]} SD {line[16:76]} S{line[78:]}"
    if name is not None:
        line = f"ATOM  {line[6:16]} {name} {line[21:]}"
    place = line[22:27] if number is None else f"{number % 10000:4d} "
    return f"{line[:16]} {line[17:22]}{place}{line[27:]}"
