"""Which models the learning curves are of, from how much data, over how many seeds."""

__all__ = ["MODELS", "SEEDS", "SIZES_ns"]

MODELS = (
    "relative_entropy_on_linear",
    "relative_entropy",
    "force_matching_on_linear",
    "force_matching",
    "forces_and_noise",
    "forces_and_populations_on_linear",
    "relative_entropy_on_linear_committee",
)
SIZES_ns = (64.0, 16.0, 0.0, 4.0, 1.0)
"""Nanoseconds to learn from, the most telling first; zero is all that there are."""

SEEDS = 5
