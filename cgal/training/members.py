"""Several networks of one architecture trained on the same frames, and their mean as the model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cgal.frames import LabelledFrames
from cgal.params import TrainingParams
from cgal.potential.architectures import new_network
from cgal.potential.ensemble import members_of, together
from cgal.potential.potential import Potential
from cgal.progress import Progress, silent
from cgal.randomness import derive_seed
from cgal.training.runs import NETWORK, TrainingResult, widen

if TYPE_CHECKING:
    from matplotlib.figure import FigureBase

__all__ = ["MembersResult", "train_members"]


def train_members(
    train: Callable[..., TrainingResult],
    shards: Sequence[LabelledFrames],
    initial: Potential,
    params: TrainingParams,
    *,
    seed: int,
    scratch: Path | None = None,
    progress: Progress = silent,
    **others: Any,
) -> TrainingResult:
    """Call an objective's `train` for each of `params.members` networks; of one its result is given as it is.

    The first member is trained as a single network would be. Each of the rest has a seed of its own, and begins as the
    member of `initial` in its place, or as a fresh network where there is none. `others` go to `train`, and so do the
    exceptions that it raises come from here.
    """
    if params.members == 1:
        return train(
            shards, _with_member(initial, 0, seed), params, seed=seed, scratch=scratch, progress=progress, **others
        )
    results = []
    for member in range(params.members):
        own = derive_seed(seed, 0, "member", member) if member else seed
        results.append(
            train(
                shards,
                _with_member(initial, member, own),
                params,
                seed=own,
                scratch=scratch and scratch / f"member-{member}",
                progress=_part(progress, member, params.members),
                **others,
            )
        )
    network = together([result.potential.network for result in results])
    potential = Potential(results[0].potential.prior, network).to(initial.types.device)
    return MembersResult(potential, tuple(results))


def _with_member(initial: Potential, member: int, seed: int) -> Potential:
    """The potential with the network that a member begins with."""
    networks = members_of(initial.network)
    if networks == [initial.network] and member == 0:
        return initial
    network = networks[member] if member < len(networks) else new_network(initial.network.params, seed)
    return Potential(initial.prior, network).to(initial.types.device)


def _part(progress: Progress, member: int, members: int) -> Progress:
    def show(done: int, total: int, note: str = "") -> None:
        progress(member * total + done, members * total, f"network {member + 1} of {members}: {note}")

    return show


@dataclass(frozen=True, eq=False)
class MembersResult:
    """The potential whose network is the mean of those trained, and how each was found."""

    potential: Potential
    results: tuple[TrainingResult, ...]

    @property
    def curves(self) -> Mapping[str, tuple[Any, ...]]:
        """Those of the members, numbered."""
        members = enumerate((result.curves[NETWORK] for result in self.results), 1)
        return {f"{NETWORK} {number}": records for number, records in members}

    def summary(self) -> dict[str, float | int]:
        """Means over the members, and how many there are."""
        summaries = [result.summary() for result in self.results]
        means = {name: float(np.mean([summary[name] for summary in summaries])) for name in summaries[0]}
        return {**means, "members": len(self.results)}

    def draw(self, figure: "FigureBase") -> None:
        """Draw the history of each member, side by side."""
        widen(figure, len(self.results))
        for result, part in zip(self.results, figure.subfigures(1, len(self.results), squeeze=False)[0], strict=True):
            result.draw(part)
