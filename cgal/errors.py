"""Every error that cgal raises on purpose; each says which, why, where and what to do.

One root, so that a caller can tell "the user can mend this" (`CgalError`) from a defect (anything else).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

__all__ = [
    "BackmappingError",
    "BadCheckpoint",
    "BadFile",
    "BadParams",
    "BadPositions",
    "BadStructure",
    "BadTrajectory",
    "CampaignLocked",
    "CgalError",
    "DatasetChanged",
    "EmptyTrajectory",
    "OracleError",
    "PreflightFailed",
    "QuorumMissed",
    "Refusals",
    "Refused",
    "SamplingError",
    "VersioningError",
]


class CgalError(Exception):
    """Something the user can mend; the message says how.

    `permanent` tells that another try, with another seed, would end the same way.
    """

    permanent: bool = False


class BadParams(CgalError):
    """`params.yaml` has an unknown key, a wrong type or a value outside its bounds."""


class BadFile(CgalError):
    """A file is missing, truncated, of another format, or could not be written."""


class BadPositions(CgalError):
    """Positions that a model is asked about are not those of its beads in nm."""


class BadStructure(CgalError):
    """A sequence or structure that the force field or the bead mapping cannot take."""


class BadTrajectory(CgalError):
    """An imported trajectory does not fit its topology, lacks forces, is not finite, or is wrapped."""


class BadCheckpoint(CgalError):
    """A model checkpoint belongs to another protein, another format or another architecture."""


class DatasetChanged(CgalError):
    """A shard's bytes are not those that the manifest records."""


class EmptyTrajectory(CgalError):
    """No usable frame is left to work on."""


class PreflightFailed(CgalError):
    """The trained model predicts held-out forces no better than the prior alone."""


class BackmappingError(CgalError):
    """A coarse-grained frame could not be rebuilt to a sound all-atom structure, which `positions` [nm] keeps.

    `steps` are the all-atom steps taken until then.
    """

    positions: Any = None
    steps: int = 0


class Diverged(CgalError):
    """An all-atom run whose numbers ran away; whoever runs it says what to do.

    `steps` are those taken to solvate what it was to begin with, if that is where it failed.
    """

    steps: int = 0


class OracleError(CgalError):
    """All-atom labelling of one frame failed, after so many all-atom `steps`."""

    steps: int = 0


class QuorumMissed(CgalError):
    """Too few of a round's frames could be labelled."""


class SamplingError(CgalError):
    """An all-atom trajectory of the reference could not be run, or there are too few of them."""


class CampaignLocked(CgalError):
    """Another process runs a campaign in this working copy."""


class VersioningError(CgalError):
    """DVC or git could not record or restore a round."""


class Refused(CgalError):
    """Several things to mend before any work begins, one a line; `errors` are those."""

    def __init__(self, errors: Sequence[CgalError]) -> None:
        lines = dict.fromkeys(str(error) for error in errors)
        super().__init__("\n  ".join([f"{len(lines)} things to mend; nothing was changed", *lines]))
        self.errors = tuple(errors)


class Refusals:
    """Errors of checks that do not wait for one another, so that all are told at once.

    >>> refusals = Refusals()
    >>> for frame_ps in (-1.0, 2.0, 0.0):
    ...     with refusals.gathered():
    ...         if frame_ps <= 0:
    ...             raise BadParams(f"--frame-ps is {frame_ps:g}")
    >>> refusals.tell()
    Traceback (most recent call last):
    cgal.errors.Refused: 2 things to mend; nothing was changed
      --frame-ps is -1
      --frame-ps is 0
    """

    def __init__(self) -> None:
        self._errors: list[CgalError] = []

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self._errors)

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Keep the error that the block raises, if it raises one, and go on behind it."""
        try:
            yield
        except Refused as several:
            self._errors += several.errors
        except CgalError as error:
            self._errors.append(error)

    def tell(self) -> None:
        """Raise the one error that was gathered, or Refused with all of them; nothing when there is none."""
        if len(set(map(str, self._errors))) == 1:
            raise self._errors[0]
        if self._errors:
            raise Refused(self._errors)
