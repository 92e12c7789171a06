"""How a long stage tells its caller where it is, without knowing who draws the bar."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

__all__ = ["Note", "Progress", "silent", "unsaid"]

type Note = Callable[[str], None]
"""Called with one sentence that the user should read, about what was read otherwise than it is written."""


@runtime_checkable
class Progress(Protocol):
    """Called by a stage whenever it has got on: `done` of `total` units, and what is going on in a few words."""

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Report progress; must return at once and never raise."""


def silent(done: int, total: int, note: str = "") -> None:
    """Report nothing."""


def unsaid(text: str) -> None:
    """Say nothing."""
