"""Share of left-handed C-alpha turns of the helical test bed, model against reference.

    python -m study.handedness [--ns 64] [--model prior] [--seeds 3]

Networks here are blind to mirror images: the prior's dihedrals tell a left-handed turn from a right-handed one, and the
linear rung's. Models are trained and simulated as in `study.learning_curves`; `raw` are the training frames.
"""

from typing import Annotated

import numpy as np
import typer
from jaxtyping import Float32, Int32

from study.beds import GROUND_TRUTHS, GroundTruth, HELIX_degrees, SETTLE_ns, dihedrals_degrees
from study.learning_curves import Halves, Task, as_trajectory, draw, model_of, simulate, system_of

__all__ = ["left_share", "parted"]

SYSTEM = "a10"


def left_share(
    positions: Float32[np.ndarray, "frames beads 3"], structure: str, runs: Int32[np.ndarray, " frames"]
) -> tuple[float, float]:
    """Share of C-alpha dihedrals in the mirror image of the helix, and its standard error over runs."""
    degrees = -dihedrals_degrees(positions, structure)
    left = ((degrees > HELIX_degrees[0]) & (degrees < HELIX_degrees[1])).mean(axis=1)
    each = [left[runs == run].mean() for run in np.unique(runs)]
    return float(left.mean()), float(np.std(each, ddof=1) / np.sqrt(len(each)))


def parted(bed: GroundTruth) -> Halves:
    """A bed as `study.learning_curves` parts it, without floors."""
    swarm = bed.load()
    settled = swarm.frames.take(np.flatnonzero(swarm.frames.time_ps > 1000 * SETTLE_ns))
    for_truth = settled.trajectory % 2 == 0
    training, truth = settled.take(np.flatnonzero(~for_truth)), as_trajectory(settled.take(np.flatnonzero(for_truth)))
    return Halves(bed, swarm, training, truth, float(np.diff(truth.time_ps[:2])[0]), {})


def main(
    ns: Annotated[float, typer.Option(help="Nanoseconds to learn from.")] = 64.0,
    model: Annotated[list[str] | None, typer.Option(help="A model of the learning curves; may be given again.")] = None,
    seeds: int = 3,
) -> None:
    """Print a table."""
    parts = parted(next(bed for bed in GROUND_TRUTHS if system_of(bed).startswith(SYSTEM)))
    structure = parts.swarm.structure
    share, error = left_share(parts.truth.positions, structure, parts.truth.replica)
    print("| | seed | left-handed share | standard error |\n|---|---|---|---|")
    print(f"| reference | | {share:.4f} | {error:.4f} |", flush=True)
    for name in ["raw", *(model or ["prior"])]:
        for seed in range(seeds):
            task = Task(system_of(parts.bed), ns, name, seed)
            frames = draw(parts, task)
            if name == "raw":
                late = as_trajectory(frames)
            else:
                simulated, _ = simulate(parts, model_of(parts, frames, task), seed)
                late = simulated.take(np.flatnonzero(simulated.time_ps > simulated.time_ps.max() / 2))
            share, error = left_share(late.positions, structure, late.replica)
            print(f"| `{name}` | {seed} | {share:.4f} | {error:.4f} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
