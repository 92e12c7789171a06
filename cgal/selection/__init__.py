"""Which simulated frames are worth an oracle call: one strategy a file, behind one signature."""

from cgal.selection.acquisition import STRATEGIES, select
from cgal.selection.figures import plot_selection
from cgal.selection.picks import Selection

__all__ = ["STRATEGIES", "Selection", "plot_selection", "select"]
