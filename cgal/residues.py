"""The twenty amino acids, and what force fields and other programs call them: one table for all that is read.

A bead is one amino acid, whatever its protonation; which hydrogens a residue has is told by its atoms, never by its
name alone. Names: AMBER's libraries (amino12.lib and its terminal ones), CHARMM's top_all36_prot.rtf with the patches
ASPP, GLUP and LSN, GROMACS' aminoacids.r2b; atoms: the Chemical Component Dictionary of the PDB.
"""

from collections.abc import Collection

__all__ = [
    "AMINO_ACIDS",
    "CAPS",
    "IONS",
    "MODIFIED",
    "RESIDUE_NAMES",
    "SELENOMETHIONINE",
    "WATERS",
    "amino_acid_of",
    "heavy_atoms_of",
    "protonation_of",
    "stated_protonation",
]

RESIDUE_NAMES = {
    "A": "ALA", "R": "ARG", "N": "ASN", "D": "ASP", "C": "CYS", "Q": "GLN", "E": "GLU", "G": "GLY", "H": "HIS",
    "I": "ILE", "L": "LEU", "K": "LYS", "M": "MET", "F": "PHE", "P": "PRO", "S": "SER", "T": "THR", "W": "TRP",
    "Y": "TYR", "V": "VAL",
}  # fmt: skip
"""The twenty amino acids, one letter to three."""

AMINO_ACIDS = {name: letter for letter, name in RESIDUE_NAMES.items()}
"""The twenty amino acids, three letters to one."""

FORMS = {
    "HID": "HID", "HIE": "HIE", "HIP": "HIP", "HSD": "HID", "HSE": "HIE", "HSP": "HIP", "HISD": "HID", "HISE": "HIE",
    "HISH": "HIP", "HISA": "HID", "HISB": "HIE", "ASH": "ASH", "ASPP": "ASH", "ASPH": "ASH", "GLH": "GLH",
    "GLUP": "GLH", "GLUH": "GLH", "LYN": "LYN", "LSN": "LYN", "LYSH": "LYS", "CYX": "CYX", "CYS2": "CYX", "CYM": "CYM",
    "CYSH": "CYS", "ARN": "ARN", "ARGN": "ARN", "TYM": "TYM",
}  # fmt: skip
"""Names that tell a protonation, in AMBER, CHARMM and GROMACS, to AMBER's."""

PARENTS = {
    "HID": "HIS", "HIE": "HIS", "HIP": "HIS", "ASH": "ASP", "GLH": "GLU", "LYN": "LYS", "CYX": "CYS", "CYM": "CYS",
    "ARN": "ARG", "TYM": "TYR",
}  # fmt: skip
"""A protonation to its amino acid."""

SELENOMETHIONINE = "MSE"
"""Methionine with selenium in place of sulphur, which crystals are grown with: read as MET, SE as SD."""

CAPS = {"ACE": "ACE", "NME": "NME", "NMA": "NME", "NH2": "NH2", "NHE": "NH2"}
"""Groups that close a chain's ends, and the PDB's names of them: no beads of their own."""

MODIFIED = {
    "TPO": "phosphothreonine", "SEP": "phosphoserine", "PTR": "phosphotyrosine", "HYP": "hydroxyproline",
    "PCA": "pyroglutamate", "MLY": "dimethyllysine", "M3L": "trimethyllysine", "ALY": "acetyllysine",
    "CSO": "hydroxycysteine", "CME": "a cysteine adduct", "OCS": "cysteinesulphonate", "SEC": "selenocysteine",
    "PYL": "pyrrolysine", "KCX": "carboxylysine", "AIB": "aminoisobutyrate", "NLE": "norleucine", "ORN": "ornithine",
    "DAL": "D-alanine", "SAR": "sarcosine", "TYS": "sulphotyrosine", "CGU": "carboxyglutamate",
    "ASX": "either ASP or ASN", "GLX": "either GLU or GLN", "UNK": "unknown",
}  # fmt: skip
"""Frequent residues of chains that are none of the twenty, and what they are."""

WATERS = frozenset((
    "HOH", "WAT", "SOL", "H2O", "DOD", "TIP", "TIP2", "TIP3", "TIP4", "TIP5", "TP3", "TP4", "TP5", "TIP3P", "TIP4P",
    "T3P", "T4P", "T4E", "SPC", "SPCE", "OPC", "OP3"
))  # fmt: skip
IONS = frozenset((
    "NA", "CL", "K", "LI", "RB", "CS", "F", "BR", "I", "MG", "CA", "ZN", "MN", "FE", "FE2", "CU", "CU1", "NI", "CO",
    "CD", "SR", "BA", "NA+", "CL-", "K+", "LI+", "CS+", "RB+", "MG2", "CA2", "ZN2", "MG2+", "CA2+", "ZN2+", "SOD",
    "CLA", "POT", "LIT", "CES", "RUB", "CAL", "CAD", "BAR", "CIO", "CIP", "IB"
))  # fmt: skip
"""Waters and ions of the common force fields and of the PDB."""

BACKBONE = ("N", "CA", "C", "O")
SIDE_CHAINS = {
    "ALA": "CB",
    "ARG": "CB CG CD NE CZ NH1 NH2",
    "ASN": "CB CG OD1 ND2",
    "ASP": "CB CG OD1 OD2",
    "CYS": "CB SG",
    "GLN": "CB CG CD OE1 NE2",
    "GLU": "CB CG CD OE1 OE2",
    "GLY": "",
    "HIS": "CB CG ND1 CD2 CE1 NE2",
    "ILE": "CB CG1 CG2 CD1",
    "LEU": "CB CG CD1 CD2",
    "LYS": "CB CG CD CE NZ",
    "MET": "CB CG SD CE",
    "PHE": "CB CG CD1 CD2 CE1 CE2 CZ",
    "PRO": "CB CG CD",
    "SER": "CB OG",
    "THR": "CB OG1 CG2",
    "TRP": "CB CG CD1 CD2 NE1 CE2 CE3 CZ2 CZ3 CH2",
    "TYR": "CB CG CD1 CD2 CE1 CE2 CZ OH",
    "VAL": "CB CG1 CG2",
}


def amino_acid_of(name: str) -> str | None:
    """Three letters of the amino acid that a residue of this name is, whatever its protonation; None if it is none.

    AMBER's terminal residues have a letter in front, NALA or CHIE.

    >>> [amino_acid_of(name) for name in ("HIE", "GLUP", "CTYR", "MSE", "TPO")]
    ['HIS', 'GLU', 'TYR', 'MET', None]
    """
    form = _form(name.upper())
    if form is None and len(name) == 4 and name[0].upper() in "NC":
        form = _form(name[1:].upper())
    return form and PARENTS.get(form, form)


def _form(name: str) -> str | None:
    return "MET" if name == SELENOMETHIONINE else FORMS.get(name, name if name in AMINO_ACIDS else None)


def heavy_atoms_of(amino_acid: str) -> frozenset[str]:
    """Names of the atoms that an amino acid within a chain has, hydrogens apart; its last residue has OXT besides."""
    return frozenset(BACKBONE) | frozenset(SIDE_CHAINS[amino_acid].split())


def protonation_of(amino_acid: str, atoms: Collection[str]) -> str:
    """AMBER's name for an amino acid with these atoms (the PDB's names); CYX and CYM differ in bonds, both are CYX.

    >>> protonation_of("HIS", {"HE2", "HD2"}), protonation_of("GLU", {"HG2", "HG3"})
    ('HIE', 'GLU')
    """
    acid = {"ASP": ("ASH", ("HD1", "HD2")), "GLU": ("GLH", ("HE1", "HE2"))}
    if amino_acid == "HIS":
        return {(True, False): "HID", (False, True): "HIE", (True, True): "HIP"}.get(
            ("HD1" in atoms, "HE2" in atoms), "HIS"
        )
    if amino_acid in acid:
        form, hydrogens = acid[amino_acid]
        return form if any(name in atoms for name in hydrogens) else amino_acid
    if amino_acid == "CYS":
        return "CYS" if "HG" in atoms or "HG1" in atoms else "CYX"
    if amino_acid == "LYS":
        return "LYN" if sum(name.strip("123") == "HZ" for name in atoms) == 2 else "LYS"
    return amino_acid


def stated_protonation(name: str) -> str | None:
    """AMBER's name of the protonation that a residue's name tells, None when it tells none.

    >>> stated_protonation("HSD"), stated_protonation("CGLH"), stated_protonation("HIS")
    ('HID', 'GLH', None)
    """
    name = name.upper()
    form = FORMS.get(name)
    if form is None and len(name) == 4 and name[0] in "NC":
        form = FORMS.get(name[1:])
    return form
