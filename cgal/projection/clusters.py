"""Atoms that rigid bonds tie together.

Apart from the maps, which need torch: processes that label frames start without it, and so much sooner.
"""

import mdtraj
import numpy as np
from jaxtyping import Int

from cgal.errors import BadStructure

__all__ = ["constrained_clusters"]


def constrained_clusters(topology: mdtraj.Topology) -> tuple[Int[np.ndarray, " members"], ...]:
    """Atoms that H-bond constraints tie together: each heavy atom with its hydrogens, in order of the heavy atoms.

    Every atom is in exactly one cluster. Raises BadStructure for a hydrogen that is bonded to no heavy atom.
    """
    members = {atom.index: [atom.index] for atom in topology.atoms if not _is_hydrogen(atom)}
    for bond in topology.bonds:
        heavy, hydrogen = sorted(bond, key=_is_hydrogen)
        if _is_hydrogen(hydrogen) and not _is_hydrogen(heavy):
            members[heavy.index].append(hydrogen.index)
    tied = {index for cluster in members.values() for index in cluster}
    for atom in topology.atoms:
        if atom.index not in tied:
            raise BadStructure(f"hydrogen {atom} has no bond to a heavy atom; give a topology with standard atom names")
    return tuple(np.sort(cluster) for cluster in members.values())


def _is_hydrogen(atom: mdtraj.core.topology.Atom) -> bool:
    return bool(atom.element.symbol == "H")
