"""Two peptides train one network, and a third that it has never seen is simulated with it and measured."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest

import cgal
from cgal.all_atom.oracle import run_md
from cgal.all_atom.structures import structure_from_sequence
from cgal.benchmark.suite import benchmark
from cgal.dataset import append, load_manifest, prepare
from cgal.errors import BadCheckpoint, BadParams, BadPositions, EmptyTrajectory, SamplingError
from cgal.files import sha256
from cgal.frames import AtomFrames, CGTrajectory, alpha_carbons, read_pdb_text
from cgal.params import BenchmarkParams, ForceFieldParams, Params, SchNetParams, SimulationParams, TrainingParams
from cgal.potential.architectures import initial_potential
from cgal.potential.checkpoint import save_checkpoint
from cgal.simulation import simulate
from cgal.training.proteins import TrainingSet, load_training_set
from cgal.training.train import train

CHIGNOLIN, SECOND, THIRD = "YYDPETGTWY", "KEAYDG", "GWTKLE"
PARAMS = Params(
    temperature_K=350.0,
    network=SchNetParams(features=16, blocks=1, radial_functions=12),
    training=TrainingParams(
        epochs=12, batch_size=8, learning_rate=1e-3, weight_decay=1.0, validation_block_frames=5, preflight=False
    ),
)
SIMULATION = SimulationParams(replicas=8, steps=1000, stride=20)


def all_atom(sequence: str, scratch: Path) -> AtomFrames:
    """Two runs of 4 ps from the structure of the sequence, a frame every 0.1 ps."""
    force_field = ForceFieldParams()
    structure = structure_from_sequence(sequence, force_field, temperature_K=350.0, seed=1, relax_ps=0.3)
    start = read_pdb_text(structure).xyz
    return run_md(
        structure,
        np.concatenate([start, start]),
        steps=1000,
        stride=25,
        equilibration_steps=250,
        force_field=force_field,
        temperature_K=350.0,
        seeds=[1, 2],
        workers=1,
        scratch=scratch,
    ).labelled


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The datasets of two peptides, as a campaign of each prepares them."""
    root = tmp_path_factory.mktemp("data")
    AtomFrames.load(Path(__file__).parent / "data" / "chignolin_small.h5").save(root / "chignolin" / "seed.h5")
    all_atom(SECOND, root / "scratch").save(root / "second" / "seed.h5")
    for name in ("chignolin", "second"):
        prepare(root / name, PARAMS.model_copy(update={"protein": name}))
    return [root / "chignolin", root / "second"]


@pytest.fixture(scope="module")
def training_set(folders: list[Path]) -> TrainingSet:
    return load_training_set(folders, PARAMS.prior)


@pytest.fixture(scope="module")
def checkpoint(training_set: TrainingSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    first = training_set.sequences[0]
    initial = initial_potential(training_set.priors[first], PARAMS.network, 3)
    result = train(training_set.shards, initial, PARAMS.training, seed=11, priors=training_set.priors)
    path = tmp_path_factory.mktemp("round") / "model.pt"
    save_checkpoint(path, result.potential, result.summary(), priors=training_set.priors.values())
    return path


@pytest.fixture(scope="module")
def third(tmp_path_factory: pytest.TempPathFactory) -> AtomFrames:
    return all_atom(THIRD, tmp_path_factory.mktemp("third"))


def beads(frames: AtomFrames) -> np.ndarray:
    return np.ascontiguousarray(frames.positions[:, alpha_carbons(frames.topology)])


def test_a_training_set_has_the_frames_and_the_prior_of_each(training_set: TrainingSet) -> None:
    assert training_set.sequences == (CHIGNOLIN, SECOND)
    assert [len(training_set.positions(sequence)) for sequence in training_set.sequences] == [40, 80]
    assert [len(training_set.priors[sequence].bond_length_nm) for sequence in training_set.sequences] == [9, 5]


def test_a_third_protein_is_simulated_with_the_network_of_two_and_measured(
    checkpoint: Path, third: AtomFrames, record_property: Callable[[str, object], None]
) -> None:
    """Its prior is from its first run, its reference the second; 4 ps say nothing, so no figure is asked."""
    both = cgal.load(checkpoint)
    first, second = (third.take(third.trajectory == run) for run in (0, 1))
    model = both.transfer(THIRD, beads(first))
    assert model.metadata["transferred_from"] == CHIGNOLIN
    assert model.potential.network is both.potential.network
    prior_alone = initial_potential(model.potential.prior, PARAMS.network, 0)
    scores = {}
    for name, potential in {"network": model.potential, "prior alone": prior_alone}.items():
        trajectory = simulate(potential, beads(first), SIMULATION, temperature_K=350.0, seed=5)
        assert trajectory.sequence == THIRD
        assert not any(fate.lost for fate in trajectory.fates)
        reference = CGTrajectory.from_positions(THIRD, beads(second), second.time_ps, np.zeros(len(second)))
        result = benchmark(
            trajectory,
            reference,
            BenchmarkParams(bootstrap=10, maximum_frames=100, tica_lag_ps=0.2),
            native=beads(first)[0],
            training_positions=beads(first),
            seed=1,
        )
        scores[name] = {metric: score["value"] for metric, score in result.metrics["w1"].items()}
        record_property(name, scores[name])
    explained = {name: value for name, value in both.metadata.items() if name.startswith("explained_fraction")}
    record_property("explained", explained)
    assert all(np.isfinite(value) for each in scores.values() for value in each.values())


def test_a_protein_without_frames_of_its_own_is_refused(checkpoint: Path, third: AtomFrames) -> None:
    with pytest.raises(BadCheckpoint, match=rf"trained for {CHIGNOLIN}, {SECOND}, not for {THIRD}.*Model\.transfer"):
        cgal.load(checkpoint, sequence=THIRD)
    model = cgal.load(checkpoint, sequence=SECOND)
    assert model.sequence == SECOND
    for frames in (beads(third)[:0], beads(third)[:1]):
        with pytest.raises(EmptyTrajectory, match=f"a prior of {THIRD} needs at least 2 frames"):
            model.transfer(THIRD, frames)
    with pytest.raises(BadPositions, match="divide those in Angstrom by 10"):
        model.transfer(THIRD, beads(third) * np.float32(10))


def test_one_checkpoint_is_the_warm_start_of_each_dataset(
    folders: list[Path], checkpoint: Path, tmp_path: Path
) -> None:
    for folder in folders:
        grown = copytree(folder, tmp_path / folder.name)
        labelled = replace(AtomFrames.load(folder / "seed.h5").take(np.arange(3)), provenance={"forces": "mean"})
        append(grown, labelled=labelled, origin="oracle", oracle_steps=9, oracle_failed=0, checkpoint=checkpoint)
        assert load_manifest(grown).files["warm_start.pt"] == sha256(checkpoint)


def test_datasets_that_cannot_train_one_network_are_refused(folders: list[Path], tmp_path: Path) -> None:
    twin = copytree(folders[0], tmp_path / "twin")
    with pytest.raises(BadParams, match=rf"twin are both of {CHIGNOLIN}"):
        load_training_set([*folders, twin], PARAMS.prior)
    manifest = (twin / "manifest.json").read_text().replace('"temperature_K": 350.0', '"temperature_K": 450.0')
    (twin / "manifest.json").write_text(manifest)
    with pytest.raises(BadParams, match="datasets of 450, 350 K"):
        load_training_set([twin, folders[1]], PARAMS.prior)


def test_a_seed_of_short_runs_counts_alike_until_there_are_labels(
    folders: list[Path], checkpoint: Path, tmp_path: Path
) -> None:
    """Runs of 4 ps and a lag of 10 ps: round 0 trains on equal weights, labels as short as these are refused."""
    markov = TrainingParams(frame_weights="markov")
    weighted = load_training_set([folders[1]], PARAMS.prior, markov)
    assert weighted.summary() == {"effective_frames": 80.0}
    grown = copytree(folders[1], tmp_path / "second")
    labelled = AtomFrames.load(folders[1] / "seed.h5").take(np.arange(3))
    append(grown, labelled=labelled, origin="oracle", oracle_steps=9, oracle_failed=0, checkpoint=checkpoint)
    with pytest.raises(SamplingError, match=r"no two frames of a run lie training\.markov\.lag_ps \(10 ps\) apart"):
        load_training_set([grown], PARAMS.prior, markov)
