"""Start structures from a sequence, a file and an id."""

import random
from pathlib import Path

import mdtraj
import numpy as np
import pytest

from cgal.all_atom import structures
from cgal.all_atom.force_field import build_system, read_structure
from cgal.all_atom.soundness import cis_peptide_bonds, faults
from cgal.all_atom.structures import structure_from_pdb_file, structure_from_pdb_id, structure_from_sequence
from cgal.errors import BadFile, BadStructure
from cgal.frames import AtomFrames, read_pdb_text
from cgal.params import ForceFieldParams

FRAMES = AtomFrames.load(Path(__file__).parent / "data" / "chignolin_small.h5")
PARAMS = ForceFieldParams()


def build(sequence: str, **options: float) -> str:
    return structure_from_sequence(sequence, PARAMS, temperature_K=350.0, seed=1, relax_ps=0.3, **options)


def from_file(path: Path, text: str, params: ForceFieldParams = PARAMS) -> str:
    path.write_text(text)
    return structure_from_pdb_file(path, params, temperature_K=350.0, seed=1, relax_ps=0.3)


@pytest.fixture(scope="module")
def chignolin() -> str:
    return build("YYDPETGTWY")


@pytest.fixture(scope="module")
def short() -> str:
    return build("AHDG")


def test_chignolin_has_the_atoms_of_its_trajectory_in_their_order(chignolin: str) -> None:
    assert [str(atom) for atom in read_pdb_text(chignolin).topology.atoms] == [
        str(atom) for atom in FRAMES.topology.atoms
    ]


def test_structure_is_sound_and_zwitterionic(chignolin: str) -> None:
    topology, positions = read_structure(chignolin)
    assert faults(topology, build_system(topology, PARAMS), positions, clash_nm=0.15) == ()
    assert cis_peptide_bonds(topology, positions) == ()
    names = [{atom.name for atom in residue.atoms()} for residue in topology.residues()]
    assert {"H", "H2", "H3"} <= names[0]
    assert "OXT" in names[-1]


def test_same_seed_same_text(short: str) -> None:
    assert build("AHDG") == short


def test_the_global_generator_is_given_back_as_it_was() -> None:
    """Not tested on a whole build: beartype draws from the same generator."""
    state = random.getstate()
    with structures._seeded(1):
        random.random()
    assert random.getstate() == state


def test_dihedral_angles_are_those_asked_for() -> None:
    """Relaxation moves them: within 40 degrees is still a helix and no strand."""
    pdb = build("AAAAAA", phi_degrees=-57.0, psi_degrees=-47.0)
    _, phi = mdtraj.compute_phi(read_pdb_text(pdb), periodic=False)
    assert np.abs(np.degrees(phi[0, 1:-1]) + 57.0).max() < 40.0


@pytest.mark.parametrize(("ph", "protonated"), [(7.0, False), (2.0, True)])
def test_hydrogens_follow_the_ph(tmp_path: Path, short: str, ph: float, protonated: bool) -> None:
    heavy = "\n".join(line for line in short.splitlines() if line[76:78].strip() != "H")
    pdb = from_file(tmp_path / "x.pdb", heavy, PARAMS.model_copy(update={"ph": ph}))
    names = {(atom.residue.name, atom.name) for atom in read_pdb_text(pdb).topology.atoms}
    assert (("ASP", "HD2") in names) is protonated
    assert ({("HIS", "HD1"), ("HIS", "HE2")} <= names) is protonated


def test_missing_side_chain_atoms_come_back_and_water_goes(tmp_path: Path, short: str) -> None:
    kept = [line for line in short.splitlines() if line[76:78].strip() != "H" and line[12:16].strip() != "CG"]
    water = "HETATM  900  O   HOH A 201      90.000  90.000  90.000  1.00  0.00           O"
    pdb = from_file(tmp_path / "x.pdb", "\n".join([*kept, water]))
    assert {str(atom) for atom in read_pdb_text(pdb).topology.atoms} == {
        str(atom) for atom in read_pdb_text(short).topology.atoms
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda line: line.replace("HIS", "TPO"), r"residue TPO 2 \(phosphothreonine\) is none of the twenty"),
        (lambda line: line.replace("HIS", "MSE"), "residue MSE 2 has atoms that MET has not .*CD2"),
        (lambda line: line.replace("HIS", "QQQ"), "residue QQQ 2 is none of the twenty"),
        (lambda line: line[:21] + "B" + line[22:] if " 4 " in line[22:28] else line, r"2 chains \(A, B\)"),
        (lambda line: "" if " 2 " in line[22:28] else line, "chain is broken between ALA 1 and ASP 3"),
        (lambda line: "", "the file is empty"),
        (lambda line: "REMARK", "no readable PDB"),
        (lambda line: line if line[12:16].strip() == "CA" else "", "holds only C-alpha atoms"),
        (lambda line: "" if line[12:16] == " C  " else line, "residue ALA 1 lacks C; "),
        (lambda line: line.replace("HIS", "ARN"), "ARN 2 has atoms that ARG has not"),
    ],
)
def test_a_structure_that_cannot_be_used_is_refused_with_its_file(tmp_path: Path, short: str, change, message) -> None:
    text = "\n".join(change(line) for line in short.splitlines())
    with pytest.raises(BadStructure, match=message) as caught:
        from_file(tmp_path / "x.pdb", text)
    assert str(tmp_path / "x.pdb") in str(caught.value)


def test_a_missing_file_is_a_bad_file(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="cannot be read"):
        structure_from_pdb_file(tmp_path / "none.pdb", PARAMS, temperature_K=350.0, seed=1)


def test_a_sequence_that_is_none_is_refused() -> None:
    with pytest.raises(BadStructure, match="letter 'X' at position 4"):
        build("YYDXT")


def test_pdb_id_is_checked_and_a_failed_download_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structures, "DOWNLOAD_URL", "http://127.0.0.1:9/{}.pdb")  # nobody listens there
    with pytest.raises(BadFile, match=r"5AWL.pdb: download failed.*offline.*sequence"):
        structure_from_pdb_id("5awl", PARAMS, temperature_K=350.0, seed=1)
    with pytest.raises(BadStructure, match="no PDB id"):
        structure_from_pdb_id("chignolin", PARAMS, temperature_K=350.0, seed=1)


def test_pdb_id_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short: str) -> None:
    (tmp_path / "1ABC.pdb").write_text(short)
    monkeypatch.setattr(structures, "DOWNLOAD_URL", (tmp_path / "{}.pdb").as_uri().replace("%7B%7D", "{}"))
    pdb = structure_from_pdb_id("1abc", PARAMS, temperature_K=350.0, seed=1, relax_ps=0.3)
    assert read_pdb_text(pdb).n_atoms == read_pdb_text(short).n_atoms
