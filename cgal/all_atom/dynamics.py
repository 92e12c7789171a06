"""All-atom dynamics, and what is read off a run: the one driver of reference, oracle, relaxation and warm-up."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import openmm
from jaxtyping import Float32, Float64, Int, Shaped
from openmm import unit

from cgal.all_atom.force_field import forces_of, make_context
from cgal.errors import Diverged
from cgal.hdf5 import Hdf5Record
from cgal.params import ForceFieldParams, OracleParams

__all__ = ["AtomRun", "Label", "Moment", "RunPlan", "restrain", "run_plan"]

DIVERGED_kJ_per_mol_nm = 1e5
"""A force on one atom beyond this (thermal ones stay below 1e4) means that the run has diverged."""

CONSTRAINT_TOLERANCE = 1e-6


class Moment(NamedTuple):
    """A protein at one time: positions [nm], velocities [nm/ps], forces but those of constraints [kJ/mol/nm]."""

    positions: Float64[np.ndarray, "atoms 3"]
    velocities: Float64[np.ndarray, "atoms 3"]
    forces: Float64[np.ndarray, "atoms 3"]


class _Iterations(openmm.MinimizationReporter):  # type: ignore[misc]  # OpenMM has no types
    """Counts the iterations of minimisations, and changes nothing in them."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def report(self, *_: object) -> bool:
        """Count one, and let it go on."""
        self.count += 1
        return False


class AtomRun:
    """One Langevin run of a system at a temperature; same seed, same run. `place` it before anything else.

    `atoms` is how many of the system's particles, the first ones, are the protein's and are shown; the others are its
    water. None: all.
    """

    def __init__(
        self,
        system: openmm.System,
        force_field: ForceFieldParams,
        *,
        temperature_K: float,
        timestep_ps: float,
        seed: int,
        atoms: int | None = None,
    ) -> None:
        self.context = make_context(
            system, force_field, temperature_K=temperature_K, timestep_ps=timestep_ps, seed=seed
        )
        self.integrator: openmm.LangevinMiddleIntegrator = self.context.getIntegrator()
        self.temperature_K, self.seed, self.atoms = temperature_K, seed, atoms
        self._minimiser = _Iterations()

    @property
    def steps(self) -> int:
        """Steps taken so far; an iteration of the minimiser, which takes one force or two, counts as one."""
        return int(self.context.getStepCount()) + self._minimiser.count

    def place(
        self,
        positions: Shaped[np.ndarray, "particles 3"],
        velocities: Float64[np.ndarray, "particles 3"] | None = None,
        *,
        constrain: bool = False,
    ) -> None:
        """Put all particles there [nm]; with `constrain` moved by what the constraints on bonds ask for."""
        self.context.setPositions(np.asarray(positions, dtype=np.float64))
        if constrain:
            self.context.applyConstraints(CONSTRAINT_TOLERANCE)
        if velocities is not None:
            self.context.setVelocities(velocities)

    def minimise(self, rms_force_kJ_per_mol_nm: float = 10.0, max_steps: int = 0) -> float:
        """Go down in energy until forces are small, or for so many iterations; gives the energy [kJ/mol].

        0 is no limit. OpenMM begins anew, and counts from there, with stiffer constraints where these are off.
        """
        with _diverging():
            openmm.LocalEnergyMinimizer.minimize(self.context, rms_force_kJ_per_mol_nm, max_steps, self._minimiser)
            energy = self.context.getState(energy=True).getPotentialEnergy()
        return float(energy.value_in_unit(unit.kilojoule_per_mole))

    def draw_velocities(self) -> None:
        """Draw velocities of the run's temperature from its seed."""
        self.context.setVelocitiesToTemperature(self.temperature_K, self.seed)

    def advance(self, steps: int) -> None:
        """Take some steps; raises Diverged when OpenMM cannot."""
        with _diverging():
            self.integrator.step(steps)

    def moments(self, count: int, stride: int) -> Iterator[Moment]:
        """Go on for `count` times `stride` steps and look each time; raises Diverged when a force is out of bounds."""
        for _ in range(count):
            self.advance(stride)
            yield self.moment()

    def moment(self) -> Moment:
        """Look at the protein's atoms; raises Diverged when a force on any particle is out of bounds."""
        with _diverging():
            positions, velocities = self.phase_point()
            forces = forces_of(self.context)
        if not np.abs(forces).max() < DIVERGED_kJ_per_mol_nm:
            raise Diverged("a force is out of bounds")
        return Moment(*(np.array(each[: self.atoms]) for each in (positions, velocities, forces)))

    def positions(self) -> Float64[np.ndarray, "atoms 3"]:
        """Give the positions of the protein's atoms [nm], whatever they are."""
        return self.phase_point()[0][: self.atoms]

    def phase_point(self) -> tuple[Float64[np.ndarray, "particles 3"], Float64[np.ndarray, "particles 3"]]:
        """Give positions [nm] and velocities [nm/ps] of all particles, from which `place` goes on."""
        state = self.context.getState(positions=True, velocities=True)
        return (
            np.array(state.getPositions(asNumpy=True).value_in_unit(unit.nanometer)),
            np.array(state.getVelocities(asNumpy=True).value_in_unit(unit.nanometer / unit.picosecond)),
        )


@contextmanager
def _diverging() -> Iterator[None]:
    """Say Diverged for what OpenMM raises when numbers run away."""
    try:
        yield
    except openmm.OpenMMException as error:
        raise Diverged(str(error)) from error


def restrain(
    system: openmm.System,
    atoms: Int[np.ndarray, " restrained"],
    targets: Shaped[np.ndarray, "restrained 3"],
    stiffness_kJ_per_mol_nm2: float,
) -> None:
    """Tie atoms to targets [nm] by springs; the context's parameter `k` is their stiffness."""
    springs = openmm.CustomExternalForce("0.5*k*((x-x0)^2+(y-y0)^2+(z-z0)^2)")
    springs.addGlobalParameter("k", stiffness_kJ_per_mol_nm2)
    for name in ("x0", "y0", "z0"):
        springs.addPerParticleParameter(name)
    for atom, target in zip(atoms, np.asarray(targets, dtype=np.float64), strict=True):
        springs.addParticle(int(atom), target.tolist())
    system.addForce(springs)


@dataclass(frozen=True, eq=False)
class Label(Hdf5Record):
    """What one run brought: one frame with a mean force, or several with instantaneous ones, and at what cost.

    A mean force is also there as `bead_forces`, averaged after the projection (see `AtomFrames`).

    `steps` are those of all tries, `failed_steps` those of the ones that failed before. `fingerprint` is that of all
    it was made from, once it is in a file (`cgal.all_atom.label_files`).
    """

    KIND = "oracle-frame"

    positions: Float32[np.ndarray, "frames atoms 3"]
    forces: Float32[np.ndarray, "frames atoms 3"]
    time_ps: Float64[np.ndarray, " frames"]
    steps: int = 0
    failed_steps: int = 0
    fingerprint: str = ""
    bead_forces: Float32[np.ndarray, "frames beads 3"] | None = None


type Project = Callable[[Sequence[Moment]], Float32[np.ndarray, "moments beads 3"]]
"""Bead forces [kJ/mol/nm] of all atoms at some moments."""


@dataclass(frozen=True)
class RunPlan:
    """A run that labels: a burn-in, then a look every `stride` steps.

    With `mean_force` the C-alpha are held, the label is the last frame with the forces averaged over all looks;
    without, nothing is held and each look is a frame with its instantaneous forces.
    """

    burn_in_steps: int
    run_steps: int
    stride: int
    timestep_ps: float
    mean_force: bool

    @property
    def looks(self) -> int:
        """How often it looks."""
        return self.run_steps // self.stride

    @property
    def steps(self) -> int:
        """Steps that it takes."""
        return self.burn_in_steps + self.looks * self.stride

    def label(self, run: AtomRun, project: Project) -> Label:
        """Label by a run that is placed; times count from the end of the burn-in. Raises Diverged.

        `project` is for mean forces, whose bead forces are averaged too.
        """
        run.advance(self.burn_in_steps)
        run.moment()
        moments = list(run.moments(self.looks, self.stride))
        return self._mean(moments, project) if self.mean_force else self._frames(moments)

    def _mean(self, moments: Sequence[Moment], project: Project) -> Label:
        mean = np.mean([moment.forces for moment in moments], axis=0)
        on_beads = project(moments).mean(axis=0, dtype=np.float64)
        return Label(
            moments[-1].positions[np.newaxis].astype(np.float32),
            mean[np.newaxis].astype(np.float32),
            np.zeros(1),
            bead_forces=on_beads[np.newaxis].astype(np.float32),
        )

    def _frames(self, found: Sequence[Moment]) -> Label:
        return Label(
            np.array([moment.positions for moment in found], dtype=np.float32),
            np.array([moment.forces for moment in found], dtype=np.float32),
            np.arange(1, self.looks + 1) * (self.stride * self.timestep_ps),
        )


def run_plan(oracle: OracleParams, force_field: ForceFieldParams) -> RunPlan:
    """Plan of the run that labels a picked frame."""
    if oracle.mode == "mean_force":
        return RunPlan(
            oracle.burn_in_steps, oracle.average_steps, oracle.sample_stride, oracle.timestep_ps, mean_force=True
        )
    return RunPlan(
        oracle.burn_in_steps, oracle.average_steps, oracle.free_stride, force_field.timestep_ps, mean_force=False
    )
