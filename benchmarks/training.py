"""Training: full force-matching steps (gradient of the force loss along all weights, clipping, AdamW).

The peer is schnetpack's own path: its `NeuralNetworkPotential` (PairwiseDistances, SchNet, Atomwise, Forces, which
differentiates twice) under the loss of its `AtomisticTask`. Lightning's loop and logging are left out, and so is the
collation of batches and neighbour lists, which is done once before the clock starts; its AdamW is fused, as ours is.
Both start from the same weights and see the same frames; their losses are compared before anything is timed.

Relative entropy has no peer: its whole training is told in seconds, from the settling of the replicas that watch and a
few updates and looks.
"""

import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64

from benchmarks.chains import TEMPERATURE_K, compact_chain, potential, shaken
from benchmarks.harness import Result, interleave, seconds
from cgal.frames import AtomFrames, alpha_carbons, sequence_of
from cgal.params import RelativeEntropyParams, SchNetParams, TrainingParams
from cgal.potential.architectures import initial_potential, new_network, without_network
from cgal.potential.force_matching import ParallelMap, worker_threads
from cgal.potential.network import ENERGY_SCALE_kJ_per_mol, bead_types
from cgal.potential.potential import Potential
from cgal.schnet.network import CGSchNet
from cgal.simulation.run import simulate
from cgal.training import relative_entropy
from cgal.training.force_matching import Frames, Run
from cgal.training.learners import Learner, NetworkLearner
from cgal.training.linear_populations import RungLearner

THREADS = 2
STEPS_COMPARED = 5
ENTROPY_BEADS = (10, 20, 35, 80)
ENTROPY_UPDATES = 4
"""Updates that a whole training is told from, after one that nothing is told from."""
CHIGNOLIN = Path(__file__).parents[1] / "tests" / "data" / "chignolin_small.h5"

type MakeLearner = Callable[[Potential, relative_entropy.Data, TrainingParams], Learner]
type Step = Callable[[], float]
"""One step of the optimiser; gives the mean squared force error before it [(kJ/mol/nm)^2]."""


def results() -> Iterator[Result]:
    """Steps of a large network in large batches, then those of the demo."""
    large = SchNetParams(features=128, blocks=3, radial_functions=50)
    yield _compare("training_vs_schnetpack", large, TrainingParams(batch_size=64, weight_decay=0.0), steps=5)
    yield _compare("training_vs_schnetpack_demo", SchNetParams(), TrainingParams(weight_decay=0.0), steps=40)
    entropy = RelativeEntropyParams()
    network = f"{SchNetParams().features} features, {entropy.updates} updates"
    yield _relative_entropy("relative_entropy", network, _network_learner)
    yield _relative_entropy("relative_entropy_rung", f"linear rung, {entropy.rung.updates} updates", _rung_learner)


def _relative_entropy(name: str, what: str, make: MakeLearner) -> Result:
    """Seconds of a whole training by relative entropy of ten beads, and in the note those of longer chains."""
    torch.set_num_threads(THREADS)
    found = {beads: _entropy_seconds(beads, make) for beads in ENTROPY_BEADS}
    entropy = RelativeEntropyParams()
    longer = ", ".join(f"{wall_s:.0f} s for {beads}" for beads, (wall_s, _) in list(found.items())[1:])
    wall_s, processor_s = found[ENTROPY_BEADS[0]]
    note = (
        f"{what}, {entropy.dynamics.replicas} replicas, updates of {entropy.dynamics.steps} steps, "
        f"{ENTROPY_BEADS[0]} beads, {THREADS} threads: told from settling, {ENTROPY_UPDATES} updates and a look; "
        f"{processor_s:.0f} s of processor time; {longer} beads"
    )
    return Result(name, wall_s, None, None, "s", note)


def _entropy_seconds(beads: int, make: MakeLearner) -> tuple[float, float]:
    """Wall and processor time of a whole training [s]."""
    chain, params = compact_chain(beads), TrainingParams(objective="relative_entropy")
    prior = potential(chain, SchNetParams()).prior
    initial = initial_potential(prior, SchNetParams(), 0)
    entropy = params.relative_entropy
    few = entropy.dynamics.model_copy(update={"replicas": 16, "steps": 40, "stride": 10})
    frames = simulate(initial, shaken(chain, 16), few, temperature_K=TEMPERATURE_K, seed=1).positions
    numbers = np.arange(entropy.held_out_frames)
    held_out = np.resize(frames, (len(numbers), beads, 3))
    data = relative_entropy.Data(frames, None, held_out, np.ones(len(numbers)), numbers // 100, numbers)
    learners: list[Learner] = []
    settling = _both_clocks(lambda: learners.append(make(initial, data, params)))
    run = relative_entropy.Run(learners[0], initial, data, params, 0)
    settling += _both_clocks(lambda: run.resume(None))
    run.update()
    updates = _both_clocks(partial(_repeat, run.update, ENTROPY_UPDATES))
    look = _both_clocks(run.look)
    looks = learners[0].updates / entropy.look_updates
    wall_s, processor_s = settling + updates * (learners[0].updates / ENTROPY_UPDATES) + look * looks
    return float(wall_s), float(processor_s)


def _network_learner(initial: Potential, data: relative_entropy.Data, params: TrainingParams) -> Learner:
    return NetworkLearner(initial, params.relative_entropy)


def _rung_learner(initial: Potential, data: relative_entropy.Data, params: TrainingParams) -> Learner:
    return RungLearner(without_network(initial.prior.double()), data, params, 0)


def _both_clocks(call: Callable[[], object]) -> Float64[np.ndarray, " 2"]:
    """Wall and processor time of one call [s]."""
    before = time.process_time()
    wall_s = seconds(call)
    return np.array([wall_s, time.process_time() - before])


def _compare(name: str, architecture: SchNetParams, params: TrainingParams, steps: int) -> Result:
    network, batch = _network(architecture), _batch(params.batch_size)
    with worker_threads(THREADS) as share:
        ours, theirs = _our_step(network, batch, params, share), _peer_step(network, batch, params)
        difference = max(abs(ours() / theirs() - 1.0) for _ in range(STEPS_COMPARED))
        timing = interleave(partial(_repeat, ours, steps), partial(_repeat, theirs, steps), repetitions=9)
    return timing.rates(
        name,
        steps * params.batch_size,
        "frames/s",
        f"{architecture.features} features, {architecture.blocks} blocks, {architecture.radial_functions} radial "
        f"functions, {batch.positions.shape[1]} beads, batches of {params.batch_size}, {THREADS} threads each; peer "
        f"without Lightning and collation; the losses of the first {STEPS_COMPARED} steps agree to {difference:.0e}",
    )


def _repeat(step: Callable[[], object], times: int) -> None:
    for _ in range(times):
        step()


def _network(architecture: SchNetParams) -> CGSchNet:
    network = new_network(architecture, 0)
    assert isinstance(network, CGSchNet)
    torch.nn.init.normal_(
        dict(network.named_parameters())["readout.1.weight"], std=0.1, generator=torch.Generator().manual_seed(0)
    )
    return network


def _batch(size: int) -> Frames:
    """Shaken frames of chignolin, with forces of the size that a prior leaves over."""
    frames = AtomFrames.load(CHIGNOLIN)
    generator = np.random.default_rng(0)
    beads = np.resize(frames.positions[:, alpha_carbons(frames.topology)], (size, len(sequence_of(frames.topology)), 3))
    noise = generator.normal(scale=0.01, size=beads.shape)
    forces = generator.normal(scale=130.0, size=beads.shape)
    return Frames(
        sequence_of(frames.topology),
        bead_types(sequence_of(frames.topology)),
        torch.from_numpy(beads + noise).float(),
        torch.from_numpy(forces).float(),
    )


def _our_step(network: CGSchNet, batch: Frames, params: TrainingParams, share: ParallelMap) -> Step:
    run = Run(network, [batch], [batch], params, 0, share)

    def step() -> float:
        return float(run.step(batch)) / batch.residuals.numel()

    return step


def _peer_step(network: Any, batch: Frames, params: TrainingParams) -> Step:
    from schnetpack import properties
    from schnetpack.atomistic import Atomwise, Forces, PairwiseDistances
    from schnetpack.model import NeuralNetworkPotential
    from schnetpack.nn import shifted_softplus
    from schnetpack.task import ModelOutput

    features = network.params.features
    readout = Atomwise(features, n_hidden=features, activation=shifted_softplus, output_key=properties.energy)
    readout.outnet.load_state_dict(network.readout.state_dict(), strict=False)  # it has a bias more: of no force
    heads = [readout, EnergyScale(), Forces()]
    model = NeuralNetworkPotential(deepcopy(network.representation), [PairwiseDistances()], heads).train()
    weight = 1.0 / float(batch.residuals.square().mean())
    output = ModelOutput(properties.forces, torch.nn.MSELoss(), weight, {})
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=params.learning_rate, weight_decay=params.weight_decay, fused=True
    )
    inputs, target = _collated(batch)

    def step() -> float:
        torch.set_num_threads(THREADS)
        prediction = model({**inputs, properties.R: inputs[properties.R].clone()})
        loss = output.calculate_loss(prediction, target)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), params.gradient_clip)
        optimiser.step()
        torch.set_num_threads(1)  # ours has its threads elsewhere
        return float(loss.detach()) / weight

    return step


class EnergyScale(torch.nn.Module):
    """Energies in the unit of our network's readout, so that one learning rate means the same to both."""

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Scale the energy."""
        inputs["energy"] = ENERGY_SCALE_kJ_per_mol * inputs["energy"]
        return inputs


def _collated(batch: Frames) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Inputs with all pairs within a frame as neighbours, and targets, as schnetpack's loader would give them."""
    from schnetpack import properties

    frames, beads = batch.positions.shape[:2]
    of_frame = torch.arange(frames).repeat_interleave(beads)
    centres, neighbours = torch.where((of_frame[:, None] == of_frame) & ~torch.eye(len(of_frame), dtype=torch.bool))
    inputs = {
        properties.R: batch.positions.flatten(0, 1),
        properties.Z: batch.types.repeat(frames),
        properties.idx_i: centres,
        properties.idx_j: neighbours,
        properties.idx_m: of_frame,
        properties.n_atoms: torch.full((frames,), beads),
        properties.offsets: torch.zeros(len(centres), 3),
    }
    return inputs, {properties.forces: batch.residuals.flatten(0, 1)}
