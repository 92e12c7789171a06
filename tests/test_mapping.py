"""Files, figures and faults of the maps."""

from pathlib import Path

import mdtraj
import numpy as np
import pytest

from cgal.errors import BadFile, BadStructure, BadTrajectory, EmptyTrajectory
from cgal.files import sha256
from cgal.frames import AtomFrames
from cgal.params import MappingParams
from cgal.projection.clusters import constrained_clusters
from cgal.projection.mapping import ForceMap, coordinate_map, fit_force_map

SMALL = AtomFrames.load(Path(__file__).parent / "data" / "chignolin_small.h5")


def test_saved_map_comes_back_with_its_figures(tmp_path: Path) -> None:
    fitted = fit_force_map(SMALL, MappingParams())
    fitted.save(tmp_path / "map.h5")
    loaded = ForceMap.load(tmp_path / "map.h5")
    assert loaded.kind == "optimal"
    assert loaded.figures == fitted.figures
    assert loaded.linear is not None
    assert fitted.linear is not None
    np.testing.assert_array_equal(loaded.linear.matrix, fitted.linear.matrix)


def test_same_frames_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.h5", "b.h5"):
        fit_force_map(SMALL, MappingParams()).save(tmp_path / name)
    assert sha256(tmp_path / "a.h5") == sha256(tmp_path / "b.h5")


def test_figures_name_all_kinds_in_order_of_noise() -> None:
    figures = fit_force_map(SMALL, MappingParams(force_map="slice")).figures
    assert sorted(figures, key=lambda kind: figures[kind]) == ["local_frames", "optimal", "constraint_aware", "slice"]
    assert 800 < figures["slice"] < 1000, "chignolin at 350 K, across the bonds: about 906 kJ/mol/nm"


def test_glycine_has_both_alpha_hydrogens_in_its_cluster() -> None:
    glycine = next(residue for residue in SMALL.topology.residues if residue.name == "GLY")
    names = {atom.index: atom.name for atom in glycine.atoms}
    clusters = [{names.get(index) for index in cluster} for cluster in constrained_clusters(SMALL.topology)]
    assert {"CA", "HA2", "HA3"} in clusters


def test_truncated_map_file_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "map.h5"
    fit_force_map(SMALL, MappingParams()).save(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BadFile, match=r"map\.h5: truncated"):
        ForceMap.load(path)


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
        fit_force_map(SMALL.take(np.arange(1)), MappingParams())
