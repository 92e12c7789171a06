"""The teacher: a fixed coarse-grained potential that labels frames, with the measured noise of all-atom labels.

Only the oracle is exchanged: what the arms train, simulate, select and benchmark by is the product's own code. A label
run is a short Langevin run of the teacher from a given frame; its forces are the teacher's own plus white noise, as the
forces of all-atom runs are at a stride that long (`study.label_noise`).
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from deeptime.decomposition import CovarianceKoopmanModel
from jaxtyping import Float32

from cgal.benchmark.observables import OBSERVABLES
from cgal.benchmark.suite import observe
from cgal.benchmark.tica import fit_tica
from cgal.benchmark.wasserstein import MODES, Sample, estimators
from cgal.frames import CGTrajectory, LabelledFrames
from cgal.params import DynamicsParams
from cgal.potential.architectures import freeze
from cgal.potential.checkpoint import load_checkpoint
from cgal.potential.potential import Potential
from cgal.simulation.run import run_from, to_trajectory

__all__ = ["ALIKE", "BOUND", "STRIDE", "NOISE_kJ_per_mol_nm", "STEP_ps", "Teacher", "load_teacher", "w1"]

HOME = Path(__file__).parent
MODEL, TRUTH = HOME / "model.pt", HOME / "truth.h5"
STEP_ps, STRIDE = 0.005, 50
"""Time step, and steps between labelled frames."""

NOISE_kJ_per_mol_nm = 241.0
"""Of a force in local frames, root mean square of a component: docs/results/label_noise_costs.csv."""

BOUND = "equilibrium"
"""The arm whose label runs begin at frames drawn from the truth (`study.teacher.arms`)."""

ALIKE = 0.22
"""Noise, in these units, at which the labels of one slowest time tell as much of mean forces as those of chignolin at
350 K: there they are 13,200 (1270 ps, a frame every 24 steps of 4 fs), here 620; the root of their ratio."""

TICA_LAG_ps = 20.0
FRAMES = 1000
"""Of each side in the transport problem of the TICA plane."""


@dataclass(frozen=True, eq=False)
class Teacher:
    """The potential, frames of its equilibrium, the native frame [nm], and what was measured of it.

    `facts` has `slowest_ps` (with `low` and `high`) and `floor`, W1 between random halves of the truth.
    """

    potential: Potential
    truth: CGTrajectory
    native: Float32[np.ndarray, "beads 3"]
    facts: dict[str, Any]

    @property
    def slowest_ps(self) -> float:
        """Its slowest process."""
        return float(self.facts["slowest_ps"]["value"])

    @property
    def temperature_K(self) -> float:
        """That it was trained at."""
        return self.potential.prior.temperature_K

    @cached_property
    def tica(self) -> CovarianceKoopmanModel:
        """Slow coordinates of the truth."""
        return fit_tica(self.truth, TICA_LAG_ps)

    @cached_property
    def observed(self) -> dict[str, Sample]:
        """Observables of the truth."""
        return sample_of(self.truth, self.tica)

    def steps(self, share: float) -> int:
        """Steps of a share of the slowest time, a whole number of strides."""
        return max(1, round(share * self.slowest_ps / STEP_ps / STRIDE)) * STRIDE

    def label(
        self, starts: Float32[np.ndarray, "runs beads 3"], steps: int, *, noise: float, seed: int, first: int
    ) -> tuple[LabelledFrames, int]:
        """A run from each start, frames every `STRIDE` steps, and how many runs were lost on the way.

        `noise` is in units of the measured one; trajectories are numbered from `first` on. Raises EmptyTrajectory when
        no run has a sound frame.
        """
        params = DynamicsParams(replicas=len(starts), steps=steps, stride=STRIDE, timestep_ps=STEP_ps)
        record = run_from(self.potential, starts, params, temperature_K=self.temperature_K, seed=seed)
        runs = to_trajectory(self.potential.sequence, record, params, "cpu")
        forces = freeze(self.potential).energy_and_forces(torch.from_numpy(runs.positions))[1].detach().numpy()
        scatter = np.random.default_rng([seed, 1]).normal(0.0, NOISE_kJ_per_mol_nm, forces.shape)
        labelled = LabelledFrames(
            runs.sequence,
            runs.positions,
            (forces + noise * scatter).astype(np.float32),
            runs.replica + np.int32(first),
            runs.time_ps,
            {"source": "teacher"},
        )
        return labelled, sum(fate.lost for fate in runs.fates)

    def score(self, trajectory: CGTrajectory) -> dict[tuple[str, str], float]:
        """W1 to the truth, by metric and mode."""
        return w1(sample_of(trajectory, self.tica), self.observed)


def w1(one: dict[str, Sample], other: dict[str, Sample]) -> dict[tuple[str, str], float]:
    """W1 between two samples of all observables, by metric and mode."""
    table = estimators(FRAMES)
    return {
        (each.name, mode): table[mode][each.geometry].value(one[each.name], other[each.name])
        for mode, each in product(MODES, OBSERVABLES.values())
    }


def sample_of(trajectory: CGTrajectory, tica: CovarianceKoopmanModel) -> dict[str, Sample]:
    return observe(trajectory, tica, np.zeros(len(trajectory), dtype=np.int64))


def load_teacher() -> Teacher:
    """The committed teacher; raises BadFile when its files are not there (`python -m study.teacher.make`)."""
    potential, metadata = load_checkpoint(MODEL)
    native = np.array(metadata.pop("native_nm"), dtype=np.float32)
    return Teacher(potential, CGTrajectory.load(TRUTH), native, metadata)
