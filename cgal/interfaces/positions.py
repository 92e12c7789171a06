"""What a caller's positions must be, before a model sees them."""

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32, Shaped

from cgal.errors import BadPositions

__all__ = ["EnergiesAndForces", "check_positions"]

BONDS_nm = (0.1, 1.0)
"""Between these lies the median CA-CA distance of a chain in nm, even a broken one; in Angstrom it is near 3.8."""


@runtime_checkable
class EnergiesAndForces(Protocol):
    """A model of one chain that takes numpy arrays."""

    sequence: str

    def energy_and_forces(
        self, positions_nm: Float[np.ndarray, "*frames beads 3"]
    ) -> tuple[Float[np.ndarray, "*frames"], Float[np.ndarray, "*frames beads 3"]]:
        """Energies [kJ/mol] and forces [kJ/mol/nm] of one frame or of many."""


def check_positions(
    positions_nm: Shaped[np.ndarray, "..."], sequence: str
) -> Float32[np.ndarray, "frames {len(sequence)} 3"]:
    """Give positions [nm] of one frame or of many as float32 with an axis of frames.

    Raises BadPositions for another type than float32 or float64, a shape that does not fit the chain, a number that is
    not finite, or a frame whose CA-CA distances are not those of a chain in nm (in Angstrom, most likely).
    """
    found = np.asarray(positions_nm)
    if found.dtype not in (np.float32, np.float64):
        raise BadPositions(f"positions are {found.dtype}; give nm as float32 or float64")
    if found.ndim not in (2, 3) or found.shape[-2:] != (len(sequence), 3):
        raise BadPositions(
            f"positions have the shape {found.shape}; {sequence} has {len(sequence)} beads: give ({len(sequence)}, 3) "
            f"for one frame, (frames, {len(sequence)}, 3) for many"
        )
    frames = np.ascontiguousarray(found.reshape(-1, len(sequence), 3), dtype=np.float32)
    finite = np.isfinite(frames).all(axis=(1, 2))
    if not finite.all():
        raise BadPositions(f"frame {np.argmin(finite)}: a coordinate is not finite; leave such frames out")
    bonds_nm = np.median(np.linalg.norm(np.diff(frames, axis=1), axis=2), axis=1)
    wrong = (bonds_nm < BONDS_nm[0]) | (bonds_nm > BONDS_nm[1])
    if wrong.any():
        frame = int(np.argmax(wrong))
        raise BadPositions(
            f"frame {frame}: neighbouring beads are {bonds_nm[frame]:.3g} nm apart (median), in a protein 0.38 nm; "
            "positions are taken in nm: divide those in Angstrom by 10, and do not wrap the chain around a box"
        )
    return frames
