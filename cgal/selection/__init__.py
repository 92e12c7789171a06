"""Which simulated frames are worth an oracle call: one strategy per file, behind one signature."""

from cgal.selection.acquisition import Acquisition, Finding, acquire, measure_pool, select
from cgal.selection.committee import Committee
from cgal.selection.figures import plot_selection
from cgal.selection.nearest import nearest_rmsd_nm
from cgal.selection.picks import Selection

__all__ = [
    "Acquisition",
    "Committee",
    "Finding",
    "Selection",
    "acquire",
    "measure_pool",
    "nearest_rmsd_nm",
    "plot_selection",
    "select",
]
