"""Which frames of a dataset are held out from training, and whether there are enough of both."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Shaped

from cgal.errors import EmptyTrajectory
from cgal.frames import LabelledFrames
from cgal.params import TrainingParams

__all__ = ["held_out_masks", "require_both", "require_enough"]


def held_out_masks(shards: Sequence[LabelledFrames], params: TrainingParams) -> tuple[Bool[np.ndarray, "..."], ...]:
    """For each shard, which frames are held out for validation.

    Each trajectory of each shard is cut into blocks of `validation_block_frames` consecutive frames (neighbours in time
    are alike, so single random frames would leak), and of all blocks in order a fixed share is taken at even
    spacing. No random number enters, and a later shard changes nothing in earlier ones: a warm start
    never sees its own validation frames as training frames of the round before. Blocks are counted for each protein
    on its own, so that each has its share held out, whatever others there are.
    """
    return _masks(((shard.sequence, shard.trajectory) for shard in shards), params)


def require_enough(trajectories: Sequence[Shaped[np.ndarray, "..."]], params: TrainingParams) -> None:
    """Raise EmptyTrajectory unless shards, by the numbers of their frames' trajectories, can train a model."""
    held_out = sum(int(mask.sum()) for mask in _masks((("", numbers) for numbers in trajectories), params))
    require_both(sum(len(numbers) for numbers in trajectories) - held_out, held_out, params)


def _masks(
    trajectories: Iterable[tuple[str, Shaped[np.ndarray, "..."]]], params: TrainingParams
) -> tuple[Bool[np.ndarray, "..."], ...]:
    masks = []
    blocks: Counter[str] = Counter()
    for protein, numbers in trajectories:
        mask = np.zeros(len(numbers), dtype=bool)
        for trajectory in np.unique(numbers):
            frames = np.flatnonzero(numbers == trajectory)
            for start in range(0, len(frames), params.validation_block_frames):
                mask[frames[start : start + params.validation_block_frames]] = _is_held_out(blocks[protein], params)
                blocks[protein] += 1
        masks.append(mask)
    return tuple(masks)


def require_both(training: int, held_out: int, params: TrainingParams, what: str = "labelled frames") -> None:
    """Raise EmptyTrajectory unless there are frames to train on and frames to hold out."""
    if not training or not held_out:
        raise EmptyTrajectory(
            f"{training + held_out} {what} leave {training} to train on and {held_out} to hold out; give more "
            f"frames, lower training.validation_block_frames ({params.validation_block_frames}) or raise "
            f"training.validation_fraction ({params.validation_fraction})"
        )


def _is_held_out(block: int, params: TrainingParams) -> bool:
    """Whether the running sum of held-out shares passes a half-integer at this block."""
    share = params.validation_fraction
    return math.floor((block + 1) * share + 0.5) > math.floor(block * share + 0.5)
