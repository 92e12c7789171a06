"""Do the two halves of a simulation agree? If not, it still forgets its starts, and no W1 measures its model."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

__all__ = ["compare_halves", "verdict"]

ERRORS = 2.0
"""Standard errors that the halves may differ by."""


def compare_halves(
    slow: Float64[np.ndarray, " frames"], replica: Int64[np.ndarray, " frames"], unit: float
) -> dict[str, Any]:
    """By how much the mean of a slow coordinate changes from the earlier to the later half of each replica.

    `drift` is the mean over replicas, `drift_error` its standard error, both in `unit` (the spread of the reference);
    `agree` says whether the one is within two of the other, None where fewer than three replicas have two frames.
    """
    changes = []
    for name in np.unique(replica):
        values = slow[replica == name]
        if len(values) > 1:
            early, late = np.array_split(values, 2)
            changes.append(late.mean() - early.mean())
    if len(changes) < 3 or not unit > 0:
        return {"drift": None, "drift_error": None, "agree": None}
    drift, error = float(np.mean(changes)) / unit, float(np.std(changes, ddof=1) / np.sqrt(len(changes))) / unit
    return {"drift": drift, "drift_error": error, "agree": abs(drift) <= ERRORS * error}


def verdict(halves: Mapping[str, Any]) -> str:
    """What `compare_halves` found, in words.

    >>> verdict({"drift": 0.314, "drift_error": 0.1, "agree": False})
    'differ by 0.31 +- 0.10'
    """
    if halves["agree"] is None:
        return "too few replicas to tell"
    return "agree" if halves["agree"] else f"differ by {halves['drift']:.2f} +- {halves['drift_error']:.2f}"
