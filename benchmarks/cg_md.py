"""Langevin steps of the coarse-grained model: ours, schnetpack's simulator, torchmd with torchmd-net, the machine.

All run the same chain, ten beads with all pairs within the cutoff, then 35 to 200 with the peers' own neighbour
lists, with a network of the same shape (128 features, 3 blocks, 32 Gaussian radial functions, shifted softplus) in
float32 on two threads. Ours has the prior and looks for lost replicas at every step.
"""

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from benchmarks.chains import TEMPERATURE_K, compact_chain, potential, shaken
from benchmarks.harness import Result, Timing, interleave, seconds
from cgal.params import SchNetParams, SimulationParams
from cgal.potential.potential import Potential
from cgal.schnet.evaluator import Evaluator
from cgal.schnet.fused import ROWS, FusedEvaluator, in_threads
from cgal.simulation.run import start_engine

NETWORK = SchNetParams(features=128, blocks=3, radial_functions=32, cutoff_nm=1.5)
BEADS = 10
BATCHES = (128, 64, 512)
"""Replicas; the first has the plain names."""
LONGER = {35: 32, 80: 16, 200: 8}
"""Beads and replicas of the chains where the peers' neighbour lists leave pairs out."""
THREADS = 2
MASS_amu, FRICTION_per_ps, TIMESTEP_ps = 100.0, 1.0, 0.005
ANGSTROM_per_nm, KCAL_per_kJ = 10.0, 1 / 4.184

type Advance = Callable[[int], object]
"""Take some steps."""


def results() -> Iterator[Result]:
    """Every peer at every batch, then the roofline."""
    torch.set_num_threads(THREADS)
    chain = compact_chain(BEADS)
    model = potential(chain, NETWORK)
    for replicas in BATCHES:
        starts = shaken(chain, replicas, seed=1)
        yield from _against_peers(model, starts, "" if replicas == BATCHES[0] else f"_{replicas}")
    for beads, replicas in LONGER.items():
        chain = compact_chain(beads)
        yield from _against_peers(potential(chain, NETWORK), shaken(chain, replicas, seed=1), f"_{beads}_beads")
    yield from _roofline(model, shaken(compact_chain(BEADS), BATCHES[0], seed=1))


def _against_peers(model: Potential, starts: Float32[np.ndarray, "replicas beads 3"], suffix: str) -> Iterator[Result]:
    replicas = len(starts)
    ours = _ours(model, starts)
    peers: dict[str, tuple[Callable[[], Advance], str]] = {
        "schnetpack": (partial(_schnetpack, model, starts), "its simulator has no prior: network and thermostat only"),
        "torchmd": (partial(_torchmd, model, starts, prior=True), "same prior: bonds, angles, dihedrals, repulsion"),
    }
    if not suffix:
        peers |= {
            "torchmd_without_prior": (partial(_torchmd, model, starts, prior=False), "torchmd with its prior left out"),
            "eager_torch": (
                partial(_ours, Evaluator(model), starts),
                "our former engine: the same tables, array by array",
            ),
        }
    for name, (build, note) in peers.items():
        label = f"cg_md_vs_{name}{suffix}"
        if name.startswith("torchmd") and (missing := [n for n in ("torchmd", "torchmdnet") if find_spec(n) is None]):
            timing = interleave(partial(ours, 50), None)
            yield timing.rates(label, replicas * 50, "replica-steps/s", f"{' and '.join(missing)} not installed")
            continue
        yield _race(ours, build(), label, replicas, note)


def _race(ours: Advance, peer: Advance, label: str, replicas: int, note: str) -> Result:
    """Rates over half a second of each in turn, five times; a peer's steps are fewer since it is slower."""
    our_steps, peer_steps = (_steps_in(0.5, advance) for advance in (ours, peer))
    pairs = [
        (seconds(partial(ours, our_steps)) / our_steps, seconds(partial(peer, peer_steps)) / peer_steps)
        for _ in range(5)
    ]
    ratios = sorted(theirs / own for own, theirs in pairs)
    own_s, theirs_s = (median(column) for column in zip(*pairs, strict=True))
    timing = Timing(own_s, theirs_s, median(ratios), f"ratio {ratios[0]:.2f} to {ratios[-1]:.2f} over 5 repetitions")
    return timing.rates(label, replicas, "replica-steps/s", f"{replicas} replicas; {note}")


def _steps_in(budget_s: float, advance: Advance) -> int:
    advance(2)  # warm
    return max(2, round(budget_s / (seconds(partial(advance, 2)) / 2)))


def _ours(model: Any, starts: Float32[np.ndarray, "replicas beads 3"]) -> Advance:
    params = SimulationParams(
        replicas=len(starts), timestep_ps=TIMESTEP_ps, friction_per_ps=FRICTION_per_ps, bead_mass_amu=MASS_amu
    )
    return start_engine(model, starts, params, TEMPERATURE_K, seed=1, device="cpu").advance


def _schnetpack(model: Potential, starts: Float32[np.ndarray, "replicas beads 3"]) -> Advance:
    """Give schnetpack's SchNet with our weights in its MD simulator, neighbour lists kept by a generous shell."""
    from ase import Atoms
    from schnetpack import md
    from schnetpack.md.calculators import SchNetPackCalculator
    from schnetpack.md.integrators import VelocityVerlet
    from schnetpack.md.neighborlist_md import NeighborListMD
    from schnetpack.md.simulation_hooks import LangevinThermostat
    from schnetpack.transform import TorchNeighborList

    system = md.System()
    bodies = [Atoms(model.types.numpy(), start, masses=np.full(starts.shape[1], MASS_amu)) for start in starts]
    system.load_molecules(bodies, position_unit_input="nm")
    with tempfile.TemporaryDirectory() as folder:
        torch.save(_schnetpack_model(model), Path(folder) / "model")
        neighbours = NeighborListMD(NETWORK.cutoff_nm, 1.0, TorchNeighborList)
        calculator = SchNetPackCalculator(str(Path(folder) / "model"), "forces", "kJ/mol", "nm", neighbours)
    simulator = md.Simulator(
        system,
        VelocityVerlet(1000 * TIMESTEP_ps),
        calculator,
        [LangevinThermostat(TEMPERATURE_K, 1000 / FRICTION_per_ps)],
        progress=False,
    ).to(torch.float32)
    advance: Advance = simulator.simulate
    return advance


def _schnetpack_model(model: Potential) -> torch.nn.Module:
    from schnetpack.atomistic import Atomwise, Forces, PairwiseDistances
    from schnetpack.model import NeuralNetworkPotential

    features = NETWORK.features
    network: torch.nn.Module = NeuralNetworkPotential(
        representation=model.network.representation,
        input_modules=[PairwiseDistances()],
        output_modules=[Atomwise(features, n_hidden=[features], output_key="energy"), Forces()],
    )
    return network


def _torchmd(model: Potential, starts: Float32[np.ndarray, "replicas beads 3"], *, prior: bool) -> Advance:
    """Give torchmd-net's graph network (SchNet's shape) and our prior in torchmd's Langevin integrator; Å, kcal/mol."""
    from torchmd.forces import Forces
    from torchmd.integrator import Integrator
    from torchmd.parameters import Parameters
    from torchmd.systems import System
    from torchmdnet.calculators import External

    replicas, beads = starts.shape[:2]
    terms = ["bonds", "angles", "dihedrals", "repulsioncg"] if prior else []
    parameters = Parameters(TorchmdPrior(model), _torchmd_molecule(beads), terms=terms)
    if prior:
        parameters.A, parameters.B = parameters.get_AB()  # torchmd 1.1 does so for Lennard-Jones terms only
    embeddings = model.types.repeat(replicas, 1)
    forces = Forces(parameters, terms=terms, external=External(_torchmd_network(beads), embeddings))
    system = System(beads, replicas, torch.float32, "cpu")
    system.box[:] = 1e4 * torch.eye(3)  # torchmd hands its box on, and torchmd-net 3.1 takes a zero one for periodic
    system.set_positions(np.moveaxis(starts, 0, 2) * ANGSTROM_per_nm)
    integrator = Integrator(system, forces, 1000 * TIMESTEP_ps, "cpu", gamma=FRICTION_per_ps, T=TEMPERATURE_K)
    advance: Advance = integrator.step
    return advance


def _torchmd_network(beads: int) -> torch.nn.Module:
    from torchmdnet.models.model import create_model

    settings = {
        "model": "graph-network",
        "embedding_dimension": NETWORK.features,
        "num_layers": NETWORK.blocks,
        "num_rbf": NETWORK.radial_functions,
        "rbf_type": "gauss",
        "trainable_rbf": False,
        "activation": "ssp",
        "neighbor_embedding": False,
        "aggr": "add",
        "cutoff_lower": 0.0,
        "cutoff_upper": NETWORK.cutoff_nm * ANGSTROM_per_nm,
        "max_z": 20,
        "max_num_neighbors": beads,
        "precision": 32,
        "derivative": True,
        "atom_filter": -1,
        "prior_model": None,
        "output_model": "Scalar",
        "reduce_op": "sum",
    }
    torch.manual_seed(0)
    network: torch.nn.Module = create_model(settings).requires_grad_(False)
    return network


def _torchmd_molecule(beads: int) -> SimpleNamespace:
    """Chain of beads, each of a type of its own, as torchmd reads it of a moleculekit molecule."""
    names = np.array([str(bead) for bead in range(beads)])
    runs = {n: np.array([np.arange(i, i + n) for i in range(beads - n + 1)]) for n in (2, 3, 4)}
    return SimpleNamespace(
        numAtoms=beads,
        atomtype=names,
        charge=np.zeros(beads, np.float32),
        masses=np.full(beads, MASS_amu, np.float32),
        bonds=runs[2],
        angles=runs[3],
        dihedrals=runs[4],
        impropers=np.zeros((0, 4), int),
    )


class TorchmdPrior:
    """Terms of our prior in the form and units of a torchmd force field: k (r - r0)^2, A + A cos(n phi - delta)."""

    prm = True

    def __init__(self, model: Potential) -> None:
        self.prior = model.prior

    def get_mass(self, _: str) -> float:
        """Mass of a bead [amu]."""
        return MASS_amu

    def get_LJ(self, _: str) -> tuple[float, float]:
        """Sigma [Å] and epsilon of the r^-6 repulsion 4 epsilon (sigma / r)^6."""
        prior = self.prior
        return ANGSTROM_per_nm * float(prior.repulsion_radius_nm), KCAL_per_kJ * float(prior.repulsion_kJ_per_mol) / 4

    def get_bond(self, first: str, _: str) -> tuple[float, float]:
        """Force constant and length."""
        stiffness = float(self.prior.bond_stiffness_kJ_per_mol_nm2[int(first)])
        length_nm = float(self.prior.bond_length_nm[int(first)])
        return KCAL_per_kJ * stiffness / 2 / ANGSTROM_per_nm**2, ANGSTROM_per_nm * length_nm

    def get_angle(self, first: str, *_: str) -> tuple[float, float]:
        """Force constant and angle."""
        stiffness = float(self.prior.angle_stiffness_kJ_per_mol_rad2[int(first)])
        return KCAL_per_kJ * stiffness / 2, float(self.prior.angle_rad[int(first)])

    def get_dihedral(self, first: str, *_: str) -> list[list[float]]:
        """Amplitude, phase and multiplicity of each order."""
        cosine = self.prior.dihedral_cosine_kJ_per_mol[int(first)].tolist()
        sine = self.prior.dihedral_sine_kJ_per_mol[int(first)].tolist()
        return [
            [KCAL_per_kJ * float(np.hypot(a, b)), float(np.arctan2(b, a)), order]
            for order, (a, b) in enumerate(zip(cosine, sine, strict=True), start=1)
        ]


def _roofline(model: Potential, starts: Float32[np.ndarray, "replicas beads 3"]) -> Iterator[Result]:
    """Yield how near a step comes to what the machine can do: counted work over time, against measured rates."""
    flop, byte = _work(FusedEvaluator(model), starts)
    steps, ours = 40, _ours(model, starts)
    counted = (
        f"{flop / 1e6:.2f} MFLOP and {byte / 1e6:.2f} MB per replica-step by count, {flop / byte:.0f} FLOP/byte; peer: "
    )
    for name, rate, unit, machine, note in (
        (
            "roofline_matmul",
            flop,
            "GFLOP/s",
            _matmuls(ROWS, NETWORK.features),
            f"float32 products of this shape, {ROWS} rows",
        ),
        ("roofline_matmul_large", flop, "GFLOP/s", _matmuls(2048, 2048), "float32 product 2048 x 2048 x 2048"),
        ("roofline_memory", byte, "GB/s", _copies(), "copying 256 MB, read and written bytes counted"),
    ):
        call, amount = machine
        timing = interleave(partial(ours, steps), call, repetitions=7)
        assert timing.peer_s is not None
        reached, possible = rate * len(starts) * steps / timing.ours_s / 1e9, amount / timing.peer_s / 1e9
        yield Result(name, reached, possible, reached / possible, unit, f"{counted}{note}; ratio: fraction reached")


def _work(evaluator: FusedEvaluator, starts: Float32[np.ndarray, "replicas beads 3"]) -> tuple[float, float]:
    """FLOP, and bytes read or written once an array and pass, of a replica-step.

    Dense layers: three a block forth and as many back (one of them for the readout). A filter takes 7 FLOP a pair and
    feature, its use 4 in a convolution (one forth in each block, one back in all but the first) and 5 in a slope.
    Softplus takes 40. Bytes: four table rows a pair and pass, features in and out of every pass, and the weights once
    a batch.
    """
    beads, features, blocks = starts.shape[1], NETWORK.features, NETWORK.blocks
    distances = np.linalg.norm(starts[:, :, None] - starts[:, None], axis=3)
    pairs = (distances < NETWORK.cutoff_nm).sum() / len(starts) / 2 - beads / 2
    passes, dense = 3 * blocks - 1, 6 * blocks
    flop = dense * 2 * beads * features**2
    flop += pairs * features * ((2 * blocks - 1) * 11 + blocks * 12) + (blocks + 1) * beads * features * 40
    arrays = 2 * dense + 3 * passes + 3 * (blocks + 1) + 3 * 2 * blocks
    byte = 4 * (passes * pairs * 4 * features + arrays * beads * features)
    byte += 4 * dense * features**2 * beads / ROWS
    return float(flop), float(byte)


def _matmuls(rows: int, columns: int) -> tuple[Callable[[], object], float]:
    """Give a call that multiplies matrices on every thread, and its FLOP."""
    left = np.ones((THREADS, rows, columns), np.float32)
    right, out = np.ones((columns, columns), np.float32), np.empty_like(left)
    repeats = max(1, round(4e9 / (2 * rows * columns**2)))

    def multiply(thread: int) -> None:
        for _ in range(repeats):
            np.matmul(left[thread], right, out=out[thread])

    return partial(in_threads, multiply, range(THREADS)), THREADS * repeats * 2.0 * rows * columns**2


def _copies() -> tuple[Callable[[], object], float]:
    """Give a call that copies memory on every thread, and the bytes that it reads and writes."""
    source = np.ones((THREADS, 32 * 2**20), np.float32)
    target = np.empty_like(source)

    def copy(thread: int) -> None:
        np.copyto(target[thread], source[thread])

    return partial(in_threads, copy, range(THREADS)), 2.0 * source.nbytes
