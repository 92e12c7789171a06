"""Seeds derived from (campaign seed, round, stage, index): the same four give the same numbers, always."""

from zlib import crc32

import numpy as np

__all__ = ["derive_generator", "derive_seed"]


def _sequence(seed: int, round_index: int, stage: str, index: int) -> np.random.SeedSequence:
    return np.random.SeedSequence([seed, round_index, crc32(stage.encode()), index])


def derive_generator(seed: int, round_index: int, stage: str, index: int = 0) -> np.random.Generator:
    """NumPy generator for one piece of work."""
    return np.random.default_rng(_sequence(seed, round_index, stage, index))


def derive_seed(seed: int, round_index: int, stage: str, index: int = 0) -> int:
    """Positive 31-bit seed for one piece of work (OpenMM and torch take it).

    >>> derive_seed(1, 0, "train") == derive_seed(1, 0, "train")
    True
    >>> derive_seed(1, 0, "train") == derive_seed(1, 1, "train")
    False
    """
    return int(_sequence(seed, round_index, stage, index).generate_state(1)[0] & 0x7FFFFFFF) or 1
