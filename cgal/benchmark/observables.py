"""What is compared with the reference: the table of observables, each with all that tables and figures need of it.

Observables are of C-alpha beads, in nm and rad, never across a periodic box: beads have none. A new one is a line of
`OBSERVABLES`; rounds that were published before it show a dash for it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import mdtraj
import numpy as np
from jaxtyping import Float64

from cgal.frames import CGTrajectory

__all__ = [
    "HEADLINE",
    "MISSING",
    "OBSERVABLES",
    "Observable",
    "angles",
    "bonds",
    "dihedrals",
    "in_records",
    "reaction_coordinate",
]

HEADLINE = "tica"
"""Name of the observable whose W1 decides whether a campaign has converged and an arm is better."""

MISSING = "–"
"""What tables show for a round from before an observable was measured."""


@dataclass(frozen=True)
class Observable:
    """One observable, whose Wasserstein-1 distance to the reference is a metric of each round.

    Attributes
    ----------
    name:
        Key in `metrics.json` and in MLflow (`w1/<name>`).
    title, heading:
        Of figures, and of columns in tables.
    unit, axis:
        Of its values ("" if they have none), and what their axis is called; a plane numbers its two axes.
    geometry:
        What its values lie on, which decides how W1 is estimated (`cgal.benchmark.wasserstein.estimators`): on a line,
        on a circle [rad] if it is periodic, or in a plane, all columns together.
    values:
        `values(trajectory, tica)`: a row per frame, a column per term. `tica` is the model fitted to the reference.
    scale:
        What W1 is multiplied by for its column in tables.
    """

    name: str
    title: str
    heading: str
    unit: str
    axis: str
    geometry: Literal["line", "circle", "plane"]
    values: Callable[[CGTrajectory, Any], Float64[np.ndarray, "frames terms"]]
    scale: float = 1.0

    @property
    def periodic(self) -> bool:
        """Whether values a turn apart are the same."""
        return self.geometry == "circle"

    def with_unit(self, text: str) -> str:
        """A label with the unit, where there is one."""
        return f"{text} / {self.unit}" if self.unit else text


def bonds(beads: mdtraj.Trajectory) -> Float64[np.ndarray, "frames bonds"]:
    """Distance of each two successive beads [nm]."""
    return _distances(beads, _runs(beads, 2))


def angles(beads: mdtraj.Trajectory) -> Float64[np.ndarray, "frames angles"]:
    """Angle at the middle of each three successive beads [rad, 0 to pi]."""
    return np.asarray(mdtraj.compute_angles(beads, _runs(beads, 3), periodic=False), dtype=np.float64)


def dihedrals(beads: mdtraj.Trajectory) -> Float64[np.ndarray, "frames dihedrals"]:
    """Torsion of each four successive beads [rad, -pi to pi, periodic]."""
    return np.asarray(mdtraj.compute_dihedrals(beads, _runs(beads, 4), periodic=False), dtype=np.float64)


def reaction_coordinate(beads: mdtraj.Trajectory) -> Float64[np.ndarray, "frames 1"]:
    """Distance from the first to the last bead [nm]."""
    return _distances(beads, [(0, beads.n_atoms - 1)])


def _slow(trajectory: CGTrajectory, tica: Any) -> Float64[np.ndarray, "frames 2"]:
    from cgal.benchmark.tica import project  # deeptime takes a second: not to print a table

    return project(tica, trajectory)


def _of_beads(compute: Callable[[mdtraj.Trajectory], Any]) -> Callable[[CGTrajectory, Any], Any]:
    return lambda trajectory, tica: compute(trajectory.to_mdtraj())


OBSERVABLES = {
    observable.name: observable
    for observable in (
        Observable(HEADLINE, "TICA", "TICA", "", "TIC", "plane", _slow),
        Observable(
            "reaction_coordinate", "Reaction coordinate", "RC [nm]", "nm", "distance of first and last CA",
            "line", _of_beads(reaction_coordinate),
        ),
        Observable(
            "bond", "CA-CA bond", "bond [pm]", "nm", "CA-CA bond", "line", _of_beads(bonds), scale=1000.0
        ),
        Observable(
            "angle", "CA-CA-CA angle", "angle [rad]", "rad", "CA-CA-CA angle", "line", _of_beads(angles)
        ),
        Observable(
            "dihedral", "CA dihedral", "dihedral [rad]", "rad", "CA dihedral", "circle", _of_beads(dihedrals)
        ),
    )
}  # fmt: skip
"""By name, in the order of tables and figures. The first five are those of the paper's Table 1."""


def in_records(names: Iterable[str]) -> dict[str, Observable]:
    """Those of the observables that records have, by name and in the order of the table."""
    found = set(names)
    return {name: observable for name, observable in OBSERVABLES.items() if name in found}


def _runs(beads: mdtraj.Trajectory, length: int) -> list[tuple[int, ...]]:
    return [tuple(range(first, first + length)) for first in range(beads.n_atoms - length + 1)]


def _distances(beads: mdtraj.Trajectory, pairs: list[tuple[int, ...]]) -> Float64[np.ndarray, "frames pairs"]:
    return np.asarray(mdtraj.compute_distances(beads, pairs, periodic=False), dtype=np.float64)
