"""Compiled loops do what the arrays of torch do, and keep the laws of dynamics while pairs come and go."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cgal.params import SchNetParams, SimulationParams
from cgal.potential.potential import Potential
from cgal.schnet.engine import FusedEngine
from cgal.schnet.evaluator import Evaluator
from cgal.schnet.fused import FusedEvaluator
from cgal.simulation import simulate
from cgal.simulation.langevin import BAOAB, GraphEngine, State, TorchEngine
from cgal.units import thermal_energy_kJ_per_mol
from tests.beads import TEMPERATURE_K, shaken_beads

from .test_evaluator import trained

kT = thermal_energy_kJ_per_mol(TEMPERATURE_K)
NARROW = SchNetParams(features=16, blocks=2, radial_functions=12, cutoff_nm=0.9)
"""A cutoff that many pairs of a ten-bead chain cross."""
RUN = SimulationParams(replicas=40, steps=30, stride=10)


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device at hand")


def gentle(params: SchNetParams = NARROW) -> Potential:
    """Network forces like those of a trained model: near 100 kJ/mol/nm."""
    potential = trained(params)
    with torch.no_grad():
        potential.network.readout[-1].weight.mul_(0.2)
    return potential


def baoab(model, params: SimulationParams) -> BAOAB:
    return BAOAB(model, params.timestep_ps, params.bead_mass_amu, params.friction_per_ps, kT)


def crossings(positions: np.ndarray, cutoff_nm: float) -> int:
    """How often a pair was within the cutoff at one frame and beyond it at the next."""
    first, second = np.triu_indices(positions.shape[2], 1)
    within = np.linalg.norm(positions[:, :, first] - positions[:, :, second], axis=3) < cutoff_nm
    return int((within[1:] != within[:-1]).sum())


def test_the_two_engines_take_the_same_steps():
    """Same start, same noise; 20 steps let float32 differences grow, and 1e-5 nm is a thousandth of a step's move."""
    potential, home = gentle(), shaken_beads(20)
    fused = FusedEngine(baoab(FusedEvaluator(potential), RUN), torch.from_numpy(home), RUN, seed=1)
    plain = baoab(Evaluator(potential), RUN)
    state = State(*(torch.from_numpy(array.copy()) for array in (home, fused.velocities, fused.forces)))
    draws = [np.random.Generator(type(batch.generator.bit_generator)()) for batch in fused.batches]
    for copy, batch in zip(draws, fused.batches, strict=True):
        copy.bit_generator.state = batch.generator.bit_generator.state
    shapes = [(20, batch.replicas.stop - batch.replicas.start, 10, 3) for batch in fused.batches]
    noise = [copy.standard_normal(shape, dtype=np.float32) for copy, shape in zip(draws, shapes, strict=True)]
    for step in np.concatenate(noise, axis=1):
        state = plain.step(state, torch.from_numpy(step))
    fused.advance(20)
    assert np.abs(fused.snapshot().positions - state.positions.numpy()).max() < 1e-5


def test_both_engines_lose_the_same_replicas_for_the_same_cause_at_the_start():
    home = shaken_beads(6)
    home[1, 4] += 5.0
    home[2, 9] = home[2, 8] + 0.05
    home[3, 4, 0] = np.nan
    potential = gentle()
    fused = FusedEngine(baoab(FusedEvaluator(potential), RUN), torch.from_numpy(home), RUN, seed=1)
    plain = TorchEngine(baoab(Evaluator(potential), RUN), torch.from_numpy(home), RUN, seed=1)
    for engine in (fused, plain):
        engine.advance(3)
        assert engine.snapshot().cause.tolist() == [0, 1, 2, 3, 0, 0]
        assert engine.snapshot().lost_at.tolist() == [0] * 6


@pytest.mark.parametrize("pull", ["bond", "collapse"])
def test_a_replica_that_breaks_on_the_way_is_lost_at_once_and_the_others_go_on(pull):
    """A bead thrown outwards, or at another, breaks the same bound at the same step in both engines."""
    home, potential = shaken_beads(20), gentle()
    run = RUN.model_copy(update={"friction_per_ps": 1e-6, "maximum_bond_nm": 0.6})
    speeds = np.zeros_like(home)
    away = home[3, 9] - home[3, 0]
    speeds[3, 9] = (30.0 if pull == "bond" else -30.0) * away / np.linalg.norm(away)
    engines = [
        FusedEngine(baoab(FusedEvaluator(potential), run), torch.from_numpy(home), run, seed=1),
        TorchEngine(baoab(Evaluator(potential), run), torch.from_numpy(home), run, seed=1),
    ]
    fused, plain = engines
    fused.velocities[:] = speeds
    plain.state = State(plain.state.positions, torch.from_numpy(speeds), plain.state.forces)
    for engine in engines:
        engine.advance(30)
    ends = [engine.snapshot() for engine in engines]
    assert ends[0].cause[3] == ends[1].cause[3] != 0
    assert ends[0].lost_at[3] == ends[1].lost_at[3] > 0
    assert (np.delete(ends[0].cause, 3) == 0).all()
    assert np.array_equal(ends[0].positions[3], home[3])


@pytest.mark.parametrize(
    ("kind", "device"),
    [
        (FusedEngine, "cpu"),
        (TorchEngine, "cpu"),
        pytest.param(GraphEngine, "cuda", marks=[pytest.mark.gpu, needs_cuda]),
    ],
)
def test_another_engine_goes_on_where_one_came_to(kind, device):
    """Without noise: 10 and 10 steps are 20, but for forces that are computed anew; who was lost stays so."""
    home, potential = shaken_beads(6), gentle()
    home[2, 4] += 5.0
    run = RUN.model_copy(update={"friction_per_ps": 1e-9})
    evaluator = FusedEvaluator(potential) if kind is FusedEngine else Evaluator(potential).to(device)
    first, second = (kind(baoab(evaluator, run), torch.from_numpy(home).to(device), run, seed) for seed in (1, 2))
    first.advance(10)
    half_way = first.snapshot()
    second.go_on(half_way, 10)
    for mine, theirs in zip(second.snapshot(), half_way, strict=True):
        assert np.array_equal(mine, theirs)
    for engine in (first, second):
        engine.advance(10)
    ends = [engine.snapshot() for engine in (first, second)]
    assert np.abs(ends[0].positions - ends[1].positions).max() < 1e-5
    assert np.abs(ends[0].positions - half_way.positions).max() > 1e-3
    assert ends[1].cause.tolist() == [0, 0, 1, 0, 0, 0]
    assert ends[1].lost_at.tolist() == [0] * 6
    assert int(second.step) == 20


def test_energy_is_conserved_while_pairs_come_and_go():
    """Without friction, the error of 30 degrees of freedom stays below kT/5, and falls as the square of the step.

    Float32 energies of 3000 kJ/mol are rounded off at 1e-3 kJ/mol.
    """
    model, cutoff_nm = FusedEvaluator(gentle()), NARROW.cutoff_nm
    errors, generator = [], torch.Generator().manual_seed(1)
    velocities = torch.randn(8, 10, 3, generator=generator) * (kT / 100.0) ** 0.5
    for timestep_ps in (0.004, 0.002):
        langevin = BAOAB(model, timestep_ps, 100.0, 1e-9, kT)
        positions = torch.from_numpy(shaken_beads(8))
        state = State(positions, velocities, langevin.forces(positions))
        energies, frames = [], []
        for _ in range(round(0.8 / timestep_ps)):
            kinetic = 50.0 * state.velocities.double().square().sum((1, 2))
            energies.append(model.energy_and_forces(state.positions)[0].double() + kinetic)
            frames.append(state.positions.numpy())
            state = langevin.step(state, torch.zeros_like(positions))
        total = torch.stack(energies)
        errors.append(float((total - total[0]).abs().max()))
        assert crossings(np.stack(frames), cutoff_nm) > 20
        assert float((total[-40:].mean(0) - total[:40].mean(0)).abs().max()) < kT / 10
    assert errors[1] < kT / 5
    assert 2.5 < errors[0] / errors[1] < 6


def test_kinetic_energy_per_degree_of_freedom_is_half_kT():
    """300 chains of 30 degrees of freedom, sampled over ten correlation times: 1e5 samples, so 0.5 % standard error."""
    run = SimulationParams(replicas=300, timestep_ps=0.002, friction_per_ps=20.0)
    engine = FusedEngine(baoab(FusedEvaluator(gentle()), run), torch.from_numpy(shaken_beads(300)), run, seed=1)
    energies = []
    for _ in range(40):
        engine.advance(12)
        energies.append(0.5 * run.bead_mass_amu * np.square(engine.velocities, dtype=np.float64).mean())
    assert not engine.cause.any()
    assert np.mean(energies[5:]) == pytest.approx(0.5 * kT, rel=0.02)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_number_of_threads_changes_no_bit(threads):
    potential, runs = gentle(), []
    for number in (1, 2, 3):
        threads(number)
        runs.append(simulate(potential, shaken_beads(10), RUN, temperature_K=TEMPERATURE_K, seed=5).positions.tobytes())
    assert len(set(runs)) == 1


COMPILE = """
import numpy as np
from cgal.schnet import kernels
noise = np.random.default_rng(0)

def normal(*shape):
    return noise.normal(scale=0.1, size=shape).astype(np.float32)

chain = kernels.Chain(
    1 + normal(9), normal(9), 2 + normal(8), normal(8), normal(7, 3), normal(7, 3), np.float32(1), normal(28, 15),
    normal(6, 2, 2, 2, 2),
)
matrices, rows = normal(1, 2, 64, 64), normal(1, 2, 64)
committee = kernels.Committee(
    np.float32(1), np.float32(32), normal(1, 2, 66, 64), normal(1, 10, 64), normal(1, 10, 64), matrices, matrices, rows,
    matrices, rows, matrices[0, :1], rows[0, :1], rows[0, :1], normal(1),
)
positions = np.cumsum(0.2 + normal(12, 10, 3), axis=1, dtype=np.float32)
gradients = np.empty_like(positions)
kernels.evaluate(positions, chain, committee, np.empty(12, np.float32), gradients)
print(gradients.tobytes().hex())
"""


COMPILE_SMALL = """
import numpy as np
from cgal.benchmark.kernels import add_kernels
noise, masses = np.random.default_rng(0), np.zeros((1, 10))
add_kernels(noise.normal(size=(99, 2)), np.ones(99), np.zeros(99, dtype=np.int64), noise.normal(size=(10, 2)), masses)
print(masses.tobytes().hex())
"""


@pytest.mark.parametrize(("code", "at_once"), [(COMPILE, 1), (COMPILE_SMALL, 2)], ids=["large", "small"])
def test_processes_may_compile_at_once_into_an_empty_cache(code, at_once, tmp_path):
    """They write the same kernel to the same folder and give the same numbers, and one more finds it there: the bytes
    of a first run are those of all later ones."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    command, root = [sys.executable, "-W", "ignore", "-c", code], Path(__file__).parents[2]
    started = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, cwd=root) for _ in range(at_once)]
    outputs = {process.communicate(timeout=600)[0] for process in started}
    assert not any(process.returncode for process in started)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("kernels.*")}
    outputs.add(subprocess.run(command, env=environment, stdout=subprocess.PIPE, cwd=root, check=True).stdout)
    assert len(outputs) == 1
    assert kept
    assert kept == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("kernels.*")}


@pytest.mark.gpu
@needs_cuda
def test_replayed_steps_are_those_taken_one_by_one():
    """Same launches in the same order with the same noise; a library may choose otherwise while captured."""
    potential = gentle()
    home = torch.from_numpy(shaken_beads(40)).cuda()
    engines = [
        kind(baoab(Evaluator(potential).to("cuda"), RUN), home, RUN, seed=1) for kind in (TorchEngine, GraphEngine)
    ]
    for engine in engines:
        engine.advance(20)
    plain, replayed = (engine.snapshot() for engine in engines)
    assert np.abs(plain.positions - replayed.positions).max() < 1e-5
    assert int(engines[1].step) == 20


@pytest.mark.gpu
@needs_cuda
def test_forces_on_the_card_are_those_on_the_cpu():
    potential, positions = gentle(), torch.from_numpy(shaken_beads(40))
    expected = FusedEvaluator(potential).energy_and_forces(positions)[1]
    forces = Evaluator(potential).to("cuda").energy_and_forces(positions.cuda())[1].cpu()
    assert float((forces - expected).abs().max() / expected.square().mean().sqrt()) < 1e-4


@pytest.mark.gpu
@needs_cuda
def test_same_seed_same_bytes_on_the_card_and_a_lost_replica_changes_nothing():
    potential, starts = gentle(), shaken_beads(40)
    torn = starts.copy()
    torn[7, 4] += 5.0
    first, again, broken = (
        simulate(potential, at, RUN, temperature_K=TEMPERATURE_K, seed=5, device="cuda")
        for at in (starts, starts, torn)
    )
    assert first.positions.tobytes() == again.positions.tobytes()
    (lost,) = [fate for fate in broken.fates if fate.lost]
    assert (lost.last_step, lost.cause) == (0, "exploded")
    assert first.positions[first.replica != lost.replica].tobytes() == broken.positions.tobytes()


@pytest.mark.gpu
@needs_cuda
def test_no_step_waits_for_the_host():
    """With synchronisation made an error, replays between two saves still go through."""
    home = torch.from_numpy(shaken_beads(40)).cuda()
    engine = GraphEngine(baoab(Evaluator(gentle()).to("cuda"), RUN), home, RUN, seed=1)
    torch.cuda.set_sync_debug_mode("error")
    try:
        engine.advance(50)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not engine.snapshot().cause.any()
