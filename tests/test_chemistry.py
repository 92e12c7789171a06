"""What residues are read as: protonation names, caps, disulfides, locations, insertion codes, solvent, strangers."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mdtraj
import numpy as np
import openmm
import pytest
from openmm import app, unit

from cgal.all_atom.backmapping.backmap import backmap
from cgal.all_atom.dynamics import AtomRun
from cgal.all_atom.force_field import build_system, read_structure, recompute_forces, write_structure
from cgal.all_atom.structures import structure_from_pdb_file, structure_from_sequence
from cgal.errors import BadStructure, BadTrajectory
from cgal.foreign.pdb_text import plain_pdb
from cgal.foreign.topology import Protein, read_protein
from cgal.frames import AtomFrames, alpha_carbons, beads_of_residues, read_pdb_text, sequence_of
from cgal.importing import as_reference
from cgal.params import BackmappingParams, ForceFieldParams, MappingParams
from cgal.projection.mapping import fit_force_map
from cgal.residues import AMINO_ACIDS, heavy_atoms_of
from tests.imported import import_reference, import_trajectory

SMALL = AtomFrames.load(Path(__file__).parent / "data" / "chignolin_small.h5")
PARAMS = ForceFieldParams(platform="Reference")


def named(lines: str, change: Callable[[str], str]) -> str:
    return "\n".join(change(line) for line in lines.splitlines()) + "\n"


def read(folder: Path, text: str, select: str = "auto") -> Protein:
    path = folder / "protein.pdb"
    path.write_text(text)
    return read_protein(path, select)


def complete(folder: Path, text: str) -> tuple[str, list[str]]:
    """Structure of a file, and what is said of it."""
    path, said = folder / "start.pdb", []
    path.write_text(text)
    pdb = structure_from_pdb_file(path, PARAMS, temperature_K=350.0, seed=1, relax_ps=0.06, note=said.append)
    return pdb, said


def heavy(pdb: str) -> str:
    return named(pdb, lambda line: "" if line[76:78].strip() == "H" else line)


@pytest.fixture(scope="module")
def short() -> str:
    return structure_from_sequence("AHDCG", PARAMS, temperature_K=350.0, seed=1, relax_ps=0.06)


@pytest.fixture(scope="module")
def capped(tmp_path_factory: pytest.TempPathFactory) -> str:
    """ACE-AHDG-NME, from GAHDGG by leaving out what its first and last glycine have more than the caps."""
    whole = structure_from_sequence("GAHDGG", PARAMS, temperature_K=350.0, seed=1, relax_ps=0.06)
    new = {("1", "CA"): "CH3", ("1", "C"): "C", ("1", "O"): "O", ("6", "N"): "N", ("6", "CA"): "C"}

    def cap(line: str) -> str:
        number, name = line[22:27].strip(), line[12:16].strip()
        if number not in ("1", "6") or not line.startswith("ATOM"):
            return line
        if (number, name) not in new:
            return ""
        return f"{line[:12]} {new[number, name]:<3} {'ACE' if number == '1' else 'NME'}{line[20:]}"

    pdb, said = complete(tmp_path_factory.mktemp("capped"), named(heavy(whole), cap))
    assert said == []
    return pdb


@pytest.fixture(scope="module")
def bridged() -> str:
    """CGGGGGGC with a disulfide: a weak spring draws the sulphurs together in 10 ps, then the bond is made."""
    topology, positions = read_structure(
        structure_from_sequence("CGGGGGGC", PARAMS, temperature_K=350.0, seed=1, relax_ps=0.06)
    )
    system = build_system(topology, PARAMS)
    spring = openmm.HarmonicBondForce()
    spring.addBond(*(atom.index for atom in topology.atoms() if atom.name == "SG"), 0.3, 200.0)
    system.addForce(spring)
    run = AtomRun(system, PARAMS, temperature_K=350.0, timestep_ps=0.004, seed=1)
    run.place(positions)
    run.draw_velocities()
    run.advance(2500)
    modeller = app.Modeller(topology, run.positions() * unit.nanometer)
    modeller.delete([atom for atom in topology.atoms() if atom.name == "HG"])
    modeller.topology.addBond(*(atom for atom in modeller.topology.atoms() if atom.name == "SG"))
    closed = AtomRun(build_system(modeller.topology, PARAMS), PARAMS, temperature_K=350.0, timestep_ps=0.001, seed=1)
    closed.place(np.array(modeller.positions.value_in_unit(unit.nanometer)))
    closed.minimise()
    return write_structure(modeller.topology, closed.positions())


def dynamics(pdb: str, count: int) -> AtomFrames:
    """Frames of a short run, 0.05 ps apart, with their forces."""
    topology, positions = read_structure(pdb)
    run = AtomRun(build_system(topology, PARAMS), PARAMS, temperature_K=300.0, timestep_ps=0.001, seed=1)
    run.place(positions, constrain=True)
    run.draw_velocities()
    frames = []
    for _ in range(count):
        run.advance(50)
        frames.append(run.positions())
    where = np.array(frames, dtype=np.float32)
    forces = recompute_forces(pdb, where, PARAMS)
    numbers = np.zeros(count, dtype=np.int32)
    return AtomFrames(pdb, where, forces, numbers, 0.05 * np.arange(count), {"forces": "instantaneous"})


# the table


def test_table_has_the_heavy_atoms_of_the_force_fields_own_templates() -> None:
    forcefield = app.ForceField("amber14/protein.ff14SB.xml")
    for name in AMINO_ACIDS:
        template = forcefield._templates["HIE" if name == "HIS" else name]
        expected = {atom.name for atom in template.atoms if atom.element.symbol != "H"}
        assert heavy_atoms_of(name) == expected, name


@pytest.mark.parametrize(
    ("residue", "name", "said"),
    [
        ("HIS", "HIE", "HIE 2 is read as HIS"),
        ("HIS", "HID", "HID 2 is read as HIS"),
        ("HIS", "HSP", "HSP 2 is read as HIS; its hydrogens are those of HI[DE], not of HIP"),
        ("HIS", "HSD", "HSD 2 is read as HIS"),
        ("HIS", "NHID", "NHID 2 is read as HIS"),
        ("ASP", "ASH", "ASH 3 is read as ASP; its hydrogens are those of ASP, not of ASH"),
        ("ASP", "ASPP", "ASPP 3 is read as ASP"),
        ("CYS", "CYX", "CYX 4 is read as CYS; its hydrogens are those of CYS, not of CYX"),
    ],
)
def test_protonation_names_are_amino_acids(tmp_path: Path, short: str, residue: str, name: str, said: str) -> None:
    changed = named(short, lambda line: line.replace(f" {residue} ", f" {name:<4}"))
    found = read(tmp_path, changed)
    assert sequence_of(found.topology) == "AHDCG"
    assert found.topology == read(tmp_path, short).topology
    assert len(found.notes) == 1
    assert re.match(said, found.notes[0]), found.notes


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("TPO", r"residue TPO 2 \(phosphothreonine\) is none of the twenty"),
        ("SEP", r"residue SEP 2 \(phosphoserine\) is none of the twenty"),
        ("PTR", r"residue PTR 2 \(phosphotyrosine\) is none of the twenty"),
        ("XYZ", "residue XYZ 2 is none of the twenty"),
        ("LEU", "residue LEU 2 has atoms that LEU has not"),
    ],
)
@pytest.mark.parametrize("select", ["auto", "protein", "all"])
def test_other_residues_of_a_chain_are_refused_by_name(
    tmp_path: Path, short: str, name: str, message: str, select: str
) -> None:
    with pytest.raises(BadStructure, match=message):
        read(tmp_path, short.replace("HIS", name), select)


def test_incomplete_side_chain_is_named(tmp_path: Path, short: str) -> None:
    with pytest.raises(BadStructure, match=r"residue ASP 3 lacks CG; .*cgal structure"):
        read(tmp_path, named(short, lambda line: "" if " CG  ASP" in line else line))


@pytest.mark.parametrize("second", ["A", "B", "OXT"])
def test_two_chains_are_refused(tmp_path: Path, short: str, second: str) -> None:
    """Told by chain names, by TER alone, or, in a format that has neither, by the OXT within."""
    atoms = named(short, lambda line: line if line.startswith("ATOM") else "")
    if second == "OXT":
        twice = read_pdb_text(atoms)
        both = mdtraj.Topology()
        chain = both.add_chain()
        for _ in range(2):
            for residue in twice.topology.residues:
                added = both.add_residue(residue.name, chain)
                for atom in residue.atoms:
                    both.add_atom(atom.name, atom.element, added)
        path = tmp_path / "two.gro"
        mdtraj.Trajectory(np.concatenate([twice.xyz, twice.xyz + 3.0], axis=1), both).save(str(path))
    else:
        path = tmp_path / "two.pdb"
        path.write_text(f"{atoms}TER\n{named(atoms, lambda line: line[:21] + second + line[22:])}TER\nEND\n")
    with pytest.raises(BadStructure, match=r"2 chains \(A, B\); keep one"):
        read_protein(path, "auto")


# selenomethionine, locations, insertion codes, models


def selenium(pdb: str) -> str:
    """Methionine's sulphur as selenium, in a HETATM of MSE."""

    def change(line: str) -> str:
        if " MET " not in line:
            return line
        line = f"HETATM{line[6:17]}MSE{line[20:]}"
        return f"{line[:12]}SE  {line[16:76]}SE{line[78:]}" if line[12:16].strip() == "SD" else line

    return named(pdb, change)


def test_selenomethionine_is_methionine_and_said(tmp_path: Path) -> None:
    pdb = structure_from_sequence("AMGA", PARAMS, temperature_K=350.0, seed=1, relax_ps=0.06)
    found, said = complete(tmp_path, heavy(selenium(pdb)))
    assert read_pdb_text(found).topology == read_pdb_text(pdb).topology
    assert said == ["MSE 2 (selenomethionine) is read as MET, its selenium as sulphur"]
    path = tmp_path / "run.xtc"
    frames = dynamics(pdb, 3)
    mdtraj.Trajectory(frames.positions, frames.topology, time=frames.time_ps).save(str(path))
    (tmp_path / "mse.pdb").write_text(selenium(pdb))
    said.clear()
    reference = import_reference(tmp_path / "mse.pdb", [path], temperature_K=300.0, note=said.append)
    assert reference.sequence == "AMGA"
    assert said == ["mse.pdb: MSE 2 (selenomethionine) is read as MET, its selenium as sulphur"]
    with pytest.raises(BadStructure, match="forces cannot be recomputed for selenium"):
        import_trajectory(tmp_path / "mse.pdb", [path], temperature_K=300.0, forces="recompute")


def located(line: str, letter: str, occupancy: float, shift: float = 0.0) -> str:
    x = float(line[30:38]) + shift
    return f"{line[:16]}{letter}{line[17:30]}{x:8.3f}{line[38:54]}{occupancy:6.2f}{line[60:]}"


def test_location_of_highest_occupancy_is_taken_and_said(short: str) -> None:
    side = ("CB", "CG", "OD1", "OD2")

    def twice(line: str) -> str:
        if " ASP " not in line or line[12:16].strip() not in side:
            return line
        return f"{located(line, 'A', 0.3, shift=50.0)}\n{located(line, 'B', 0.7)}"

    plain = plain_pdb(named(short, twice))
    np.testing.assert_array_equal(read_pdb_text(plain.text).xyz, read_pdb_text(short).xyz)
    assert plain.notes == ("ASP 3: location B (occupancy 0.70) is kept, A (0.30) left out",)
    swapped = plain_pdb(named(short, twice).replace("  0.30", "  0.90"))
    assert swapped.notes == ("ASP 3: location A (occupancy 0.90) is kept, B (0.70) left out",)


def test_two_amino_acids_at_one_place_are_the_more_occupied_one(short: str) -> None:
    """ALA 1 as 0.4 of a serine: atoms of both stand under one number."""
    first = [line for line in short.splitlines() if " ALA " in line]
    serine = [located(line.replace("ALA", "SER"), "B", 0.4) for line in first if line[76:78].strip() != "H"]
    alanine = [located(line, "A", 0.6) for line in first]
    rest = [line for line in short.splitlines() if " ALA " not in line]
    plain = plain_pdb("\n".join([*serine, *alanine, *rest]))
    assert read_pdb_text(plain.text).topology == read_pdb_text(short).topology
    assert plain.notes == ("ALA 1: location A (occupancy 0.60) is kept, B (0.40) left out",)


def test_insertion_codes_are_residues_of_their_own(tmp_path: Path, short: str) -> None:
    """Numbers 1, 2, 2A, 2B, 3 in place of 1 to 5."""
    places = {"   1 ": "   1 ", "   2 ": "   2 ", "   3 ": "   2A", "   4 ": "   2B", "   5 ": "   3 "}
    coded = named(short, lambda line: line[:22] + places.get(line[22:27], line[22:27]) + line[27:])
    found = read(tmp_path, coded)
    assert sequence_of(found.topology) == "AHDCG"
    assert [residue.resSeq for residue in found.topology.residues] == [1, 2, 3, 4, 5]
    assert found.notes == ("residues are numbered anew from 1: the file has insertion codes (first at ASP 2A)",)
    pdb, said = complete(tmp_path, coded)
    assert sequence_of(read_pdb_text(pdb).topology) == "AHDCG"
    assert said == list(found.notes)


# structures


@pytest.mark.parametrize(
    ("residue", "name", "there"),
    [
        ("HIS", "HIP", {"HD1", "HE2"}),
        ("HIS", "HSE", {"HE2"}),
        ("HIS", "HID", {"HD1"}),
        ("ASP", "ASH", {"HD2"}),
        ("CYS", "CYM", set()),
    ],
)
def test_structure_has_the_protonation_that_a_name_tells(
    tmp_path: Path, short: str, residue: str, name: str, there: set[str]
) -> None:
    pdb, said = complete(tmp_path, heavy(short).replace(residue, name))
    found = next(found for found in read_pdb_text(pdb).topology.residues if found.name == residue)
    titratable = {"HIS": {"HD1", "HE2"}, "ASP": {"HD2"}, "CYS": {"HG"}}[residue]
    assert {atom.name for atom in found.atoms} & titratable == there
    assert said == [f"{name} {found.resSeq} is read as {residue}, protonated as its name says"]


def test_structure_leaves_water_and_ions_out_and_says_so(tmp_path: Path, short: str) -> None:
    others = (
        "HETATM  900  O   HOH A 201      90.000  90.000  90.000  1.00  0.00           O\n"
        "HETATM  901  O   HOH A 202      80.000  90.000  90.000  1.00  0.00           O\n"
        "HETATM  902 CA    CA A 203      70.000  90.000  90.000  1.00  0.00          CA\n"
    )
    pdb, said = complete(tmp_path, short.replace("END\n", others))
    assert read_pdb_text(pdb).n_atoms == read_pdb_text(short).n_atoms
    assert said == ["left out: 2 waters, 1 CA"]


def test_disulfide_is_kept_and_said(tmp_path: Path, bridged: str) -> None:
    pdb, said = complete(tmp_path, heavy(bridged))
    topology = read_pdb_text(pdb).topology
    assert sum(one.name == other.name == "SG" for one, other in topology.bonds) == 1
    assert said == ["the disulfide bond CYS 1 to CYS 8 is kept"]
    frames = dynamics(pdb, 4)
    path = tmp_path / "run.xtc"
    mdtraj.Trajectory(frames.positions, frames.topology, time=frames.time_ps).save(str(path))
    (tmp_path / "bridged.pdb").write_text(pdb.replace("CYS", "CYX"))
    known = import_trajectory(
        tmp_path / "bridged.pdb", [path], temperature_K=300.0, forces="recompute", force_field=PARAMS
    )
    assert sum(one.name == other.name == "SG" for one, other in known.topology.bonds) == 1
    assert "bridged.pdb: the disulfide bond CYS1-CYS8 is kept in the all-atom structure" in known.provenance["notes"]


def test_half_a_disulfide_is_refused(tmp_path: Path, short: str) -> None:
    with pytest.raises(BadStructure, match="CYX 4 is named as half of a disulfide bond"):
        complete(tmp_path, heavy(short).replace("CYS", "CYX"))
    frames = dynamics(short, 3)
    keep = [atom.index for atom in frames.topology.atoms if atom.name != "HG"]
    run = mdtraj.Trajectory(frames.positions, frames.topology, time=frames.time_ps).atom_slice(keep)
    run.save(str(tmp_path / "run.xtc"))
    run[0].save(str(tmp_path / "run.pdb"))
    with pytest.raises(BadStructure, match="sulphur of CYS 4 has neither a hydrogen nor another sulphur"):
        import_trajectory(tmp_path / "run.pdb", [tmp_path / "run.xtc"], temperature_K=300.0, forces="recompute")


# caps


def test_caps_are_no_beads(capped: str) -> None:
    topology = read_pdb_text(capped).topology
    assert [residue.name for residue in topology.residues] == ["ACE", "ALA", "HIS", "ASP", "GLY", "NME"]
    assert sequence_of(topology) == "AHDG"
    assert [topology.atom(index).residue.resSeq for index in alpha_carbons(topology)] == [2, 3, 4, 5]
    np.testing.assert_array_equal(beads_of_residues(topology), [0, 0, 1, 2, 3, 3])


def test_capped_trajectory_comes_in(tmp_path: Path, capped: str) -> None:
    frames = dynamics(capped, 4)
    mdtraj.Trajectory(frames.positions, frames.topology, time=frames.time_ps).save(str(tmp_path / "run.nc"))
    (tmp_path / "capped.pdb").write_text(capped)
    known = import_trajectory(
        tmp_path / "capped.pdb", [tmp_path / "run.nc"], temperature_K=300.0, forces="recompute", force_field=PARAMS
    )
    assert known.topology == frames.topology
    np.testing.assert_allclose(known.forces, frames.forces, atol=2.0)


@pytest.mark.parametrize("kind", ["optimal", "local_frames"])
def test_forces_on_caps_go_to_their_neighbours(capped: str, kind: str) -> None:
    """All forces reach a bead: their sums agree. A push on the cap of one end moves no bead of the other end."""
    frames = dynamics(capped, 8)
    force_map = fit_force_map(frames, MappingParams(force_map=kind))
    np.testing.assert_allclose(force_map(frames).sum(axis=1), frames.forces.sum(axis=1), atol=0.05)
    if kind == "local_frames":
        pushed = np.zeros_like(frames.forces)
        pushed[:, [atom.index for atom in frames.topology.residue(0).atoms]] = 1.0
        moved = np.abs(force_map(replace(frames, forces=pushed)))
        assert moved[:, 0].min() > 0.0
        assert moved[:, 3].max() == 0.0


def test_capped_beads_are_rebuilt_with_their_caps(capped: str) -> None:
    structure = read_pdb_text(capped)
    beads = structure.xyz[0, alpha_carbons(structure.topology)]
    rebuilt = backmap(beads, capped, BackmappingParams(), PARAMS, temperature_K=300.0, seed=1).positions
    assert rebuilt.shape == (structure.n_atoms, 3)
    lengths = [np.linalg.norm(rebuilt[one.index] - rebuilt[other.index]) for one, other in structure.topology.bonds]
    assert min(lengths) > 0.09
    assert max(lengths) < 0.17


# solvent


def solvated(folder: Path, extra: str = "") -> tuple[Path, Path]:
    """Chignolin's frames with waters and a chloride before and after it, all of it wrapped into a cube of 2.5 nm."""
    waters = 4
    whole = mdtraj.Topology()
    for count in (1, 0, waters):
        chain = whole.add_chain()
        for _ in range(count):
            residue = whole.add_residue("HOH" if count > 1 else "CL", chain)
            for name in ("O", "H1", "H2") if count > 1 else ("CL",):
                element = {"O": "O", "C": "Cl"}.get(name[0], "H")
                whole.add_atom(name, mdtraj.element.Element.getBySymbol(element), residue)
        if not count:
            whole = whole.join(SMALL.topology)
    if extra:
        residue = whole.add_residue(extra, whole.add_chain())
        whole.add_atom("C1", mdtraj.element.carbon, residue)
        whole.add_atom("C2", mdtraj.element.carbon, residue)
    count = SMALL.topology.n_atoms
    positions = np.random.default_rng(1).uniform(0.0, 2.5, (40, whole.n_atoms, 3)).astype(np.float32)
    positions[:, 1 : 1 + count] = np.mod(SMALL.positions, 2.5)
    run = mdtraj.Trajectory(positions, whole, time=SMALL.time_ps)
    run.unitcell_lengths, run.unitcell_angles = np.full((40, 3), 2.5), np.full((40, 3), 90.0)
    run.save(str(folder / "run.xtc"))
    run[0].save(str(folder / "solvated.pdb"))
    return folder / "solvated.pdb", folder / "run.xtc"


def test_protein_is_taken_out_of_its_water_and_made_whole(tmp_path: Path) -> None:
    topology, path = solvated(tmp_path)
    said: list[str] = []
    reference = import_reference(topology, [path], temperature_K=350.0, note=said.append)
    assert reference.sequence == "YYDPETGTWY"
    expected = as_reference(SMALL).positions
    np.testing.assert_allclose(reference.positions - reference.positions[:, :1], expected - expected[:, :1], atol=3e-3)
    assert said == [
        "solvated.pdb: left out: 4 waters, 1 CL",
        "run.xtc: the chain was wrapped around its box in 40 frames and is made whole",
    ]
    with pytest.raises(BadStructure, match=r"residue CL 0 is no amino acid; strip .*--select protein"):
        import_reference(topology, [path], temperature_K=350.0, select="all")


def test_forces_computed_without_the_water_are_said_to_be_so(tmp_path: Path) -> None:
    topology, path = solvated(tmp_path)
    frames = import_trajectory(topology, [path], temperature_K=350.0, forces="recompute", force_field=PARAMS)
    assert frames.topology == SMALL.topology
    assert "forces are those of obc2, not of what was left out" in frames.provenance["notes"]


def test_a_ligand_is_left_out_only_when_that_is_asked_for(tmp_path: Path) -> None:
    topology, path = solvated(tmp_path, "LIG")
    with pytest.raises(BadStructure, match=r"residue LIG .* is no amino acid, water or known ion; .*--select protein"):
        import_reference(topology, [path], temperature_K=350.0)
    said: list[str] = []
    import_reference(topology, [path], temperature_K=350.0, select="protein", note=said.append)
    assert "solvated.pdb: left out: 4 waters, 1 CL, 1 LIG" in said


def test_solvated_topology_with_a_stripped_trajectory_is_named(tmp_path: Path) -> None:
    """With a choice of atoms mdtraj would read the wrong ones without a word."""
    topology, _ = solvated(tmp_path)
    path = tmp_path / "stripped.xtc"
    mdtraj.Trajectory(SMALL.positions, SMALL.topology, time=SMALL.time_ps).save(str(path))
    with pytest.raises(BadTrajectory, match="another number of atoms than the 179 of the topology"):
        import_reference(topology, [path], temperature_K=350.0)
