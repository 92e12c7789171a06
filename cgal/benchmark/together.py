"""Numbers of several proteins as those of one: counts summed, measures averaged, and each protein's own below."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["together"]


def together(each: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Numbers of a round of several proteins, from the numbers of each by its name; other content is left out.

    Whole numbers are counts and are summed, others are averaged. An estimate (`value`, `low`, `high`) becomes the mean
    with its interval, from independent ones by the method of variance estimates recovery (Zou & Donner, Stat. Med. 27,
    1693, 2008), and beside it stands each protein's own.

    >>> a, b = {"value": 1.0, "low": 0.7, "high": 1.3}, {"value": 2.0, "low": 1.6, "high": 2.4}
    >>> together({"a": {"w1": a}, "b": {"w1": b}})["w1"]["low"]
    1.25
    >>> together({"a": {"frames": 3, "lost": 0.5}, "b": {"frames": 4, "lost": 0.0}})
    {'frames': 7, 'lost': 0.25}
    """
    first = next(iter(each.values()))
    shared = [key for key in first if all(key in numbers for numbers in each.values())]
    found = {key: _joined({name: numbers[key] for name, numbers in each.items()}) for key in shared}
    return {key: value for key, value in found.items() if value is not None}


def _joined(parts: Mapping[str, Any]) -> Any:
    values = list(parts.values())
    if all(isinstance(value, Mapping) for value in values):
        return _estimate(parts) if all("value" in value for value in values) else together(parts)
    if all(isinstance(value, int) for value in values):
        return sum(values)
    return _mean(values) if all(isinstance(value, int | float) for value in values) else None


def _estimate(parts: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    mean = _mean([part["value"] for part in parts.values()])
    down, up = (
        math.hypot(*(part[edge] - part["value"] for part in parts.values())) / len(parts) for edge in ("low", "high")
    )
    return {"value": mean, "low": mean - down, "high": mean + up} | dict(parts)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
