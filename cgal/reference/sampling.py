"""Unbiased all-atom sampling for a ground truth: hot exploration, k-centre starts, a swarm at the target temperature.

Everything lies in one folder, a file per piece of work, each written atomically and made by one process with its own
seed; so a run that was killed goes on with what is missing, and gives the same bytes:

    recipe.json             what the pieces depend on; another recipe is refused
    hot/000.h5 ...          all-atom frames of the exploration
    starts/000.h5 ...       all-atom states at the target temperature
    swarm/000/0000.h5 ...   segments of each trajectory: C-alpha frames and bead forces, all atoms at the end

The swarm grows by one segment of every trajectory at a time, so that what is there is useful at any moment. More or
longer trajectories add to it and throw nothing away: k-centre starts do not change when more of them are asked for.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import openmm
from jaxtyping import Float32, Float64, Int64, Shaped

from cgal.all_atom.dynamics import AtomRun, Moment
from cgal.all_atom.force_field import build_system, choose_platform, read_structure
from cgal.all_atom.oracle import bead_forces
from cgal.all_atom.solvation import solvated
from cgal.all_atom.soundness import cis_peptide_bonds, faults
from cgal.all_atom.workers import Announce, FanOut, run_in_processes
from cgal.errors import BadFile, BadParams, Diverged, SamplingError
from cgal.files import read_json, write_json
from cgal.frames import CGTrajectory, LabelledFrames, alpha_carbons, read_pdb_text, sequence_of
from cgal.hdf5 import Hdf5Record, stored
from cgal.params import ForceFieldParams, ReferenceParams
from cgal.progress import Progress, silent
from cgal.randomness import derive_seed

__all__ = [
    "Loss",
    "PhasePoint",
    "Start",
    "Status",
    "SwarmRecipe",
    "bead_distances",
    "explore",
    "k_centres",
    "load_swarm",
    "load_swarm_labels",
    "relax",
    "status",
    "swarm",
    "trajectory_ends",
]

CLASH_nm = 0.08
MINIMISE_STEPS = 500


@dataclass(frozen=True)
class SwarmRecipe:
    """What the trajectories are made from, and the folder they go to.

    `structure` is PDB text: the start of the exploration and of trajectory 0.
    """

    structure: str
    force_field: ForceFieldParams
    params: ReferenceParams
    temperature_K: float
    seed: int
    folder: Path

    def pieces(self) -> dict[str, Any]:
        """What the bytes of the pieces depend on (neither how many there are, nor how they are analysed)."""
        made = ("hot_temperature_K", "hot_ps", "hot_spacing_ps", "equilibration_ps", "segment_ps", "spacing_ps")
        return {
            "structure": sha256(self.structure.encode()).hexdigest(),
            "temperature_K": self.temperature_K,
            "seed": self.seed,
            **{f"force_field.{key}": value for key, value in self.force_field.model_dump(exclude={"platform"}).items()},
            **{f"reference.{key}": getattr(self.params, key) for key in (*made, "hot_trajectories")},
        }

    def claim(self) -> None:
        """Make the folder this recipe's own; raises BadParams when another recipe's pieces lie in it."""
        choose_platform(self.force_field.platform)
        path, mine = self.folder / "recipe.json", self.pieces()
        if not path.is_file():
            write_json(path, mine)
            return
        theirs = read_json(path)
        changed = [key for key in mine if theirs.get(key) != mine[key]]
        if changed:
            key = changed[0]
            raise BadParams(
                f"{self.folder}: sampled with {key} {theirs.get(key)}, which is now {mine[key]}; "
                "set it back, or move the folder away to start afresh"
            )

    def hot(self, index: int) -> Path:
        """File of a trajectory of the exploration."""
        return self.folder / "hot" / f"{index:03d}.h5"

    def start(self, index: int) -> Path:
        """File of a trajectory's start."""
        return self.folder / "starts" / f"{index:03d}.h5"

    def segment(self, trajectory: int, index: int) -> Path:
        """File of a segment of the swarm."""
        return self.folder / "swarm" / f"{trajectory:03d}" / f"{index:04d}.h5"

    @property
    def segments(self) -> int:
        """Segments of each trajectory."""
        return max(1, round(self.params.trajectory_ns * 1000 / self.params.segment_ps))

    def steps(self, time_ps: float) -> int:
        """Integration steps in a time."""
        return max(1, round(time_ps / self.force_field.timestep_ps))


@dataclass(frozen=True)
class Loss:
    """A piece that could not be made, and why."""

    piece: str
    reason: str


@dataclass(frozen=True)
class Status:
    """How far the sampling has got; times of the swarm in ns, one a trajectory."""

    hot: int
    hot_asked: int
    starts: int
    swarm_ns: tuple[float, ...]
    asked_ns: float

    @property
    def total_ns(self) -> float:
        """Time that the swarm has sampled."""
        return sum(self.swarm_ns)


@dataclass(frozen=True, eq=False)
class PhasePoint:
    """All that a trajectory needs to go on: positions [nm] and velocities [nm/ps] of all particles, water too."""

    positions: Float64[np.ndarray, "particles 3"]
    velocities: Float64[np.ndarray, "particles 3"]

    @property
    def digest(self) -> str:
        """SHA-256 of the bytes."""
        return sha256(self.positions.tobytes() + self.velocities.tobytes()).hexdigest()


def explore(
    recipe: SwarmRecipe, *, workers: int, progress: Progress = silent, fan_out: FanOut = run_in_processes
) -> tuple[Loss, ...]:
    """Run the trajectories of the exploration that are not there yet, all from the structure, at `hot_temperature_K`.

    `fan_out` does them, `workers` at a time (see `cgal.all_atom.workers`). Raises BadParams when the folder belongs to
    another recipe, BadFile when the disk is full.
    """
    recipe.claim()
    count = recipe.params.hot_trajectories
    missing = [index for index in range(count) if not recipe.hot(index).is_file()]
    work, crew = partial(_run_hot, recipe=recipe), partial(fan_out, workers=workers)
    return _make(work, missing, "hot trajectory {}".format, crew, progress, count, count - len(missing))


def relax(
    recipe: SwarmRecipe, *, workers: int, progress: Progress = silent, fan_out: FanOut = run_in_processes
) -> tuple[Loss, ...]:
    """Bring the starts that are not there yet to the target temperature: minimised, then `equilibration_ps` each.

    Start 0 is the structure, the others are k-centres of the hot frames. Raises SamplingError when there is no hot
    frame, or fewer than starts.
    """
    recipe.claim()
    count = recipe.params.trajectories
    missing = [index for index in range(count) if not recipe.start(index).is_file()]
    if not missing:
        return ()
    chosen = _starting_frames(recipe, count)
    tasks = [(index, chosen[index]) for index in missing]
    work, crew = partial(_run_relax, recipe=recipe), partial(fan_out, workers=workers)
    return _make(work, tasks, lambda task: f"start {task[0]}", crew, progress, count, count - len(missing))


def swarm(
    recipe: SwarmRecipe, *, workers: int, progress: Progress = silent, fan_out: FanOut = run_in_processes
) -> tuple[Loss, ...]:
    """Run the segments of the swarm that are not there yet, one of every trajectory at a time.

    A trajectory without a start, or whose segment failed twice, stays as long as it is; it is in what is returned.
    """
    recipe.claim()
    trajectories = [index for index in range(recipe.params.trajectories) if recipe.start(index).is_file()]
    lengths = {trajectory: len(_chain(recipe, trajectory)) for trajectory in trajectories}
    work, crew = partial(_run_segment, recipe=recipe), partial(fan_out, workers=workers)
    total = len(trajectories) * recipe.segments
    lost: list[Loss] = []
    for segment in range(recipe.segments):
        due = [(trajectory, segment) for trajectory in trajectories if lengths[trajectory] == segment]
        done = sum(min(length, recipe.segments) for length in lengths.values())
        lost += _make(work, due, _segment_name, crew, progress, total, done)
        for trajectory, _ in due:
            lengths[trajectory] += recipe.segment(trajectory, segment).is_file()
    return tuple(lost)


def status(recipe: SwarmRecipe) -> Status:
    """Count what is there."""
    count = recipe.params.trajectories
    return Status(
        hot=sum(recipe.hot(index).is_file() for index in range(recipe.params.hot_trajectories)),
        hot_asked=recipe.params.hot_trajectories,
        starts=sum(recipe.start(index).is_file() for index in range(count)),
        swarm_ns=tuple(len(_chain(recipe, index)) * recipe.params.segment_ps / 1000 for index in range(count)),
        asked_ns=recipe.segments * recipe.params.segment_ps / 1000,
    )


def load_swarm(recipe: SwarmRecipe) -> CGTrajectory:
    """All C-alpha frames of the swarm, a replica per trajectory, with equal weights.

    Forces come along if every segment has them. Time counts from the start of each trajectory [ps]. Raises
    SamplingError when there is no frame.
    """
    chains = [_chain(recipe, index) for index in range(recipe.params.trajectories)]
    lengths = [sum(len(segment.positions) for segment in chain) for chain in chains]
    segments = [segment for chain in chains for segment in chain]
    if not segments:
        raise SamplingError(f"{recipe.folder}: the swarm has no frame yet; run 'cgal reference'")
    forces = [segment.forces for segment in segments if segment.forces is not None]
    found = CGTrajectory.from_positions(
        sequence_of(read_pdb_text(recipe.structure).topology),
        np.concatenate([segment.positions for segment in segments]),
        np.concatenate([recipe.params.spacing_ps * np.arange(1, length + 1) for length in lengths]),
        np.repeat(np.arange(len(chains)), lengths),
    )
    return replace(found, forces=np.concatenate(forces)) if len(forces) == len(segments) else found


def load_swarm_labels(recipe: SwarmRecipe) -> LabelledFrames:
    """C-alpha frames of the swarm with bead forces by local frames, for force matching on plain dynamics.

    Segments from before forces were kept have none, and are left out. Raises SamplingError when there is no frame.
    """
    chains = [_chain(recipe, index) for index in range(recipe.params.trajectories)]
    found = [
        (trajectory, number, segment)
        for trajectory, chain in enumerate(chains)
        for number, segment in enumerate(chain)
        if segment.forces is not None
    ]
    if not found:
        raise SamplingError(f"{recipe.folder}: the swarm has no frame with forces yet; run 'cgal reference'")
    spacing_ps, segment_ps = recipe.params.spacing_ps, recipe.params.segment_ps
    return LabelledFrames(
        sequence_of(read_pdb_text(recipe.structure).topology),
        np.concatenate([segment.positions for _, _, segment in found]),
        np.concatenate([segment.forces for _, _, segment in found if segment.forces is not None]),
        np.concatenate([np.full(len(piece.positions), trajectory, dtype=np.int32) for trajectory, _, piece in found]),
        np.concatenate(
            [segment_ps * number + spacing_ps * np.arange(1, len(piece.positions) + 1) for _, number, piece in found]
        ),
        {"origin": "swarm", "force_map": "local_frames", "temperature_K": recipe.temperature_K},
    )


def trajectory_ends(recipe: SwarmRecipe) -> list[PhasePoint]:
    """Where each trajectory of the swarm stands, in order; one without a start is left out."""
    ends = []
    for index in range(recipe.params.trajectories):
        if recipe.start(index).is_file():
            chain = _chain(recipe, index)
            ends.append(chain[-1].end if chain else Start.load(recipe.start(index)).end)
    return ends


def bead_distances(positions: Float32[np.ndarray, "frames beads 3"]) -> Float64[np.ndarray, "frames pairs"]:
    """Distance of every two beads [nm]."""
    first, second = np.triu_indices(positions.shape[1], 1)
    beads = positions.astype(np.float64)
    return np.asarray(np.linalg.norm(beads[:, first] - beads[:, second], axis=2))


def k_centres(features: Shaped[np.ndarray, "frames features"], count: int) -> Int64[np.ndarray, " count"]:
    """Indices of `count` frames far from one another: frame 0, then always the one furthest from all chosen ones.

    The greedy algorithm of Gonzalez (Theor. Comput. Sci. 38, 293 (1985)). More centres leave the first ones as they
    were. Raises SamplingError when there are fewer different frames than centres.
    """
    chosen = [0]
    nearest = np.linalg.norm(features - features[0], axis=1)
    while len(chosen) < count:
        furthest = int(np.argmax(nearest))
        if nearest[furthest] <= 0:
            raise SamplingError(
                f"only {len(chosen)} different frames to start {count} trajectories from; "
                "raise reference.hot_ps or lower reference.trajectories"
            )
        chosen.append(furthest)
        nearest = np.minimum(nearest, np.linalg.norm(features - features[furthest], axis=1))
    return np.array(chosen, dtype=np.int64)


def _make(
    work: Callable[[Any, int, Announce], None],
    tasks: Sequence[Any],
    name: Callable[[Any], str],
    crew: FanOut,
    progress: Progress,
    total: int,
    done: int,
) -> tuple[Loss, ...]:
    """Let the crew do the tasks; `done` of the `total` pieces are there before them. Gives those that failed."""
    lost: list[Loss] = []
    progress(done, total)
    for finished, outcome in enumerate(crew(work, tasks), start=done + 1):
        if outcome.reason is not None:
            lost.append(Loss(name(tasks[outcome.index]), f"{outcome.stage}: {outcome.reason}"))
        progress(finished, total, f"{len(lost)} failed" if lost else "")
    return tuple(sorted(lost, key=lambda loss: loss.piece))


def _segment_name(task: tuple[int, int]) -> str:
    return f"segment {task[1]} of trajectory {task[0]}"


def _starting_frames(recipe: SwarmRecipe, count: int) -> Float32[np.ndarray, "starts atoms 3"]:
    """All-atom frames: the structure, then the k-centres of the hot frames on C-alpha distances."""
    _, native = read_structure(recipe.structure)
    frames = [native[None].astype(np.float32)]
    for index in range(recipe.params.hot_trajectories):
        if recipe.hot(index).is_file():
            frames.append(_HotFrames.load(recipe.hot(index)).positions)
    pooled = np.concatenate(frames)
    beads = alpha_carbons(read_pdb_text(recipe.structure).topology)
    return np.asarray(pooled[k_centres(bead_distances(pooled[:, beads]), count)])


@dataclass(frozen=True, eq=False)
class _HotFrames(Hdf5Record):
    """A trajectory of the exploration."""

    KIND = "reference-hot"

    positions: Float32[np.ndarray, "frames atoms 3"]


@dataclass(frozen=True, eq=False)
class Start(Hdf5Record):
    """Where a trajectory of the swarm starts."""

    KIND = "reference-start"

    end: PhasePoint = field(metadata=stored(prefix="end_"))


@dataclass(frozen=True, eq=False)
class _Segment(Hdf5Record):
    """A segment of the swarm; `begin` is the digest of where it started. Those of earlier versions have no forces."""

    KIND = "reference-segment"

    positions: Float32[np.ndarray, "frames beads 3"]
    end: PhasePoint = field(metadata=stored(prefix="end_"))
    begin: str
    forces: Float32[np.ndarray, "frames beads 3"] | None = None


def _chain(recipe: SwarmRecipe, trajectory: int) -> list[_Segment]:
    """Segments of a trajectory up to the first that is missing, damaged, or does not continue the one before."""
    chain: list[_Segment] = []
    try:
        state = Start.load(recipe.start(trajectory)).end
        while True:
            segment = _Segment.load(recipe.segment(trajectory, len(chain)))
            if segment.begin != state.digest:
                return chain
            chain.append(segment)
            state = segment.end
    except BadFile:
        return chain


# ------------------------------------------------------------------------------------- inside a worker process


def _run_hot(index: int, attempt: int, announce: Announce, *, recipe: SwarmRecipe) -> None:
    """One trajectory of the exploration, all atoms kept."""
    params = recipe.params
    seed = derive_seed(recipe.seed, index, "reference hot", attempt)
    _, positions = read_structure(recipe.structure)
    announce("minimising")
    run = _relaxed_run(recipe, positions, params.hot_temperature_K, seed)
    announce("exploring")
    stride = recipe.steps(params.hot_spacing_ps)
    frames = [moment.positions for moment in _moments(run, round(params.hot_ps / params.hot_spacing_ps), stride)]
    _HotFrames(np.array(frames, dtype=np.float32)).save(recipe.hot(index))


def _run_relax(
    task: tuple[int, Float32[np.ndarray, "atoms 3"]], attempt: int, announce: Announce, *, recipe: SwarmRecipe
) -> None:
    """One start at the target temperature."""
    index, frame = task
    seed = derive_seed(recipe.seed, index, "reference start", attempt)
    announce("minimising")
    run = _relaxed_run(recipe, frame.astype(np.float64), recipe.temperature_K, seed)
    announce("equilibrating")
    _ = list(_moments(run, 1, recipe.steps(recipe.params.equilibration_ps)))
    Start(PhasePoint(*run.phase_point())).save(recipe.start(index))


def _run_segment(task: tuple[int, int], attempt: int, announce: Announce, *, recipe: SwarmRecipe) -> None:
    """One segment of a trajectory, from where the one before ended."""
    trajectory, index = task
    begin = (
        _Segment.load(recipe.segment(trajectory, index - 1)).end if index else Start.load(recipe.start(trajectory)).end
    )
    seed = derive_seed(recipe.seed, trajectory, f"reference segment {index}", attempt)
    run = _new_run(recipe, recipe.temperature_K, seed)
    run.place(begin.positions, begin.velocities)
    announce("sampling")
    params = recipe.params
    count, stride = round(params.segment_ps / params.spacing_ps), recipe.steps(params.spacing_ps)
    moments = list(_moments(run, count, stride))
    positions = np.array([moment.positions for moment in moments], dtype=np.float32)
    _Segment(
        positions[:, alpha_carbons(read_pdb_text(recipe.structure).topology)],
        PhasePoint(*run.phase_point()),
        begin.digest,
        bead_forces(recipe.structure, moments),
    ).save(recipe.segment(trajectory, index))


@lru_cache(maxsize=2)
def _system(structure: str, force_field: ForceFieldParams) -> openmm.System:
    topology, _ = read_structure(structure)
    return build_system(topology, force_field)


def _new_run(recipe: SwarmRecipe, temperature_K: float, seed: int) -> AtomRun:
    system, timestep_ps = _system(recipe.structure, recipe.force_field), recipe.force_field.timestep_ps
    return AtomRun(
        system,
        recipe.force_field,
        temperature_K=temperature_K,
        timestep_ps=timestep_ps,
        seed=seed,
        atoms=read_structure(recipe.structure)[0].getNumAtoms(),
    )


def _relaxed_run(
    recipe: SwarmRecipe, positions: Float64[np.ndarray, "atoms 3"], temperature_K: float, seed: int
) -> AtomRun:
    """Run from a minimised and sound structure, in settled water if any, with velocities.

    Raises SamplingError when it is not sound, or its water does not settle.
    """
    run = _new_run(recipe, temperature_K, seed)
    try:
        start = solvated(positions, recipe.structure, recipe.force_field, temperature_K=temperature_K, seed=seed)
    except Diverged as error:
        raise SamplingError(f"the water did not settle ({error}); raise force_field.water.box_nm") from error
    run.place(start.positions)
    if not recipe.force_field.explicit:
        run.minimise(max_steps=MINIMISE_STEPS)
    topology, _ = read_structure(recipe.structure)
    minimised = run.positions()
    found = faults(topology, run.context.getSystem(), minimised, clash_nm=CLASH_nm)
    found += tuple(bond for bond in cis_peptide_bonds(topology, minimised) if "PRO" not in bond)
    if found:
        raise SamplingError(f"the minimised structure has {'; '.join(found[:3])}; lower reference.hot_temperature_K")
    run.draw_velocities()
    return run


def _moments(run: AtomRun, count: int, stride: int) -> Iterator[Moment]:
    """Look at all atoms every `stride` steps; raises SamplingError when the run has diverged."""
    try:
        yield from run.moments(count, stride)
    except Diverged as error:
        raise SamplingError(f"the all-atom run diverged ({error}); lower force_field.timestep_ps") from error
