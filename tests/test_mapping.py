"""Files, figures and faults of the maps."""

from pathlib import Path

import mdtraj
import numpy as np
import pytest

from cgal.errors import BadFile, BadStructure, BadTrajectory, EmptyTrajectory
from cgal.files import sha256
from cgal.frames import AtomFrames
from cgal.mapping import LinearMap, constrained_clusters, coordinate_map, fit_force_map
from cgal.params import MappingParams

SMALL = AtomFrames.load(Path(__file__).parent / "data" / "chignolin_small.h5")


def test_saved_map_comes_back_with_its_figures(tmp_path: Path) -> None:
    fitted = fit_force_map(SMALL.topology, SMALL.forces, MappingParams())
    fitted.save(tmp_path / "map.h5")
    loaded = LinearMap.load(tmp_path / "map.h5")
    assert loaded.kind == "optimal"
    assert loaded.figures == fitted.figures
    np.testing.assert_array_equal(loaded.matrix, fitted.matrix)


def test_same_frames_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.h5", "b.h5"):
        fit_force_map(SMALL.topology, SMALL.forces, MappingParams()).save(tmp_path / name)
    assert sha256(tmp_path / "a.h5") == sha256(tmp_path / "b.h5")


def test_figures_name_all_three_kinds_in_order_of_noise() -> None:
    figures = fit_force_map(SMALL.topology, SMALL.forces, MappingParams(force_map="slice")).figures
    assert sorted(figures, key=lambda kind: figures[kind]) == ["optimal", "constraint_aware", "slice"]
    assert 1000 < figures["slice"] < 1400, "chignolin at 350 K: about 1180 kJ/mol/nm"


def test_glycine_has_both_alpha_hydrogens_in_its_cluster() -> None:
    glycine = next(residue for residue in SMALL.topology.residues if residue.name == "GLY")
    names = {atom.index: atom.name for atom in glycine.atoms}
    clusters = [{names.get(index) for index in cluster} for cluster in constrained_clusters(SMALL.topology)]
    assert {"CA", "HA2", "HA3"} in clusters


def test_truncated_map_file_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "map.h5"
    coordinate_map(SMALL.topology).save(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BadFile, match=r"map\.h5: truncated"):
        LinearMap.load(path)


def test_frames_of_another_molecule_are_refused() -> None:
    with pytest.raises(BadTrajectory, match="for 166 atoms, the frames have 100"):
        coordinate_map(SMALL.topology)(SMALL.positions[:, :100])


def test_lone_hydrogen_is_refused() -> None:
    topology = SMALL.topology.subset(range(10))
    topology.add_atom("HX", mdtraj.element.hydrogen, topology.residue(0))
    with pytest.raises(BadStructure, match="HX has no bond"):
        constrained_clusters(topology)


def test_one_frame_fits_no_map() -> None:
    with pytest.raises(EmptyTrajectory, match="at least 2 frames"):
        fit_force_map(SMALL.topology, SMALL.forces[:1], MappingParams())
