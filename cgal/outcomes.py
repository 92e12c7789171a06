"""What a round found, as the manifest keeps it for the rounds after."""

from cgal.params import Section

__all__ = ["RoundOutcome"]


class RoundOutcome(Section):
    """What a round found: TICA W1 with its 95 % interval, and the share of simulated frames that are uncovered."""

    w1: float
    low: float
    high: float
    uncovered_fraction: float
