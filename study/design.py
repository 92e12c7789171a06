"""The design of a comparison: its system, its arms, its budgets, and what it shall decide, written before it starts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from cgal.errors import BadFile, BadParams
from cgal.files import read_yaml
from cgal.params import merged

__all__ = ["CampaignPlan", "Contrast", "Design", "SeedSets", "load_design"]

type ArmName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]{1,32}$")]
type Overrides = dict[str, Any]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SeedSets(_Frozen):
    """Sets of short all-atom runs from the structure, each drawn by a seed of its own; campaigns take them in turn."""

    count: int = Field(gt=0)
    runs: int = Field(10, gt=0)
    length_ps: float = Field(5.0, gt=0)
    equilibration_ps: float = Field(1.0, ge=0, description="left out at the start of each run, in addition")
    spacing_ps: float = Field(0.1, gt=0)


class Contrast(_Frozen):
    """An arm against a control at a budget, in multiples of the slowest process."""

    arm: ArmName
    control: ArmName
    budget: float


class CampaignPlan(NamedTuple):
    """One campaign: its arm and seed, the all-atom steps that it may spend, and those at which a round is cut.

    `alone` is set where the arm has a campaign for each budget, because its labels are made all at once.
    """

    arm: str
    seed: int
    budget_steps: int
    cut_steps: tuple[int, ...] = ()
    alone: bool = False

    @property
    def name(self) -> str:
        """Name within the comparison."""
        return f"{self.arm}-b{self.budget_steps}-s{self.seed}" if self.alone else f"{self.arm}-s{self.seed}"


class Design(_Frozen):
    """Overrides of `params.yaml`: `common` for all arms, then those of each arm on top.

    `system` is a test bed of `study.beds` on which all is done; without one the project's own protein is taken.
    `budgets` gives the all-atom steps of each budget by its multiple of the slowest process.
    """

    system: str | None = None
    seeds: int = Field(5, gt=0)
    seed_sets: SeedSets | None = None
    budgets: dict[float, int] = Field(default_factory=dict)
    primary: Contrast | None = None
    secondary: tuple[Contrast, ...] = ()
    common: Overrides = Field(default_factory=dict)
    arms: dict[ArmName, Overrides]

    @model_validator(mode="after")
    def _contrasts_are_of_its_arms_and_budgets(self) -> "Design":
        for contrast in self.contrasts:
            if unknown := {contrast.arm, contrast.control} - set(self.arms):
                raise ValueError(f"a contrast is of {', '.join(sorted(unknown))}, which is no arm")
            if contrast.budget not in self.budgets:
                raise ValueError(f"a contrast is at {contrast.budget:g}, which is no budget")
        if bool(self.system) != bool(self.seed_sets):
            raise ValueError("system and seed_sets go together: the seeds of a test bed are drawn from it")
        return self

    def seed_set(self, seed: int) -> int:
        """Number of the seed set, from 1, that campaigns of a seed begin with; the project's own is the first."""
        return 1 + (seed - 1) % self.seed_sets.count if self.seed_sets else 1

    @property
    def contrasts(self) -> tuple[Contrast, ...]:
        """All of them, the primary one first."""
        return (*([self.primary] if self.primary else []), *self.secondary)

    def steps(self, largest: int | None = None) -> tuple[int, ...]:
        """All-atom steps of the budgets up to the largest, which is one, too; raises BadParams when there is none."""
        if largest is None and not self.budgets:
            raise BadParams("the design names no budgets: give the all-atom steps of a campaign with --budget")
        found = sorted(self.budgets.values())
        return tuple(found) if largest is None else (*(steps for steps in found if steps < largest), largest)

    def campaigns(self, arms: Sequence[str], seeds: int, steps: Sequence[int]) -> list[CampaignPlan]:
        """The campaigns of these arms, seed by seed: of plain dynamics one for each budget, else one for all.

        Raises BadParams when one of the arms is not in the design.
        """
        if unknown := [arm for arm in arms if arm not in self.arms]:
            raise BadParams(f"no arm {', '.join(unknown)} in the design; it has {', '.join(self.arms)}")
        return [plan for seed in range(1, seeds + 1) for arm in arms for plan in self._plans(arm, seed, steps)]

    def _plans(self, arm: str, seed: int, steps: Sequence[int]) -> list[CampaignPlan]:
        if self._is_plain(arm):
            return [CampaignPlan(arm, seed, budget, alone=bool(self.budgets)) for budget in steps]
        return [CampaignPlan(arm, seed, steps[-1], tuple(steps[:-1]))]

    def _is_plain(self, arm: str) -> bool:
        return bool(merged(self.common, self.arms[arm]).get("campaign", {}).get("continued_md_steps"))

    def of(self, plan: CampaignPlan, campaign: str) -> Overrides:
        """What a campaign's `params.yaml` changes: its budget bounds the labels, or is the length of its plain MD."""
        spent: Overrides = {"budget_steps": plan.budget_steps, "cut_steps": list(plan.cut_steps)}
        if self._is_plain(plan.arm):
            spent = {"continued_md_steps": plan.budget_steps}
        own = {
            "seed": plan.seed,
            "campaign": {"name": campaign} | spent,
            "execution": {"torch_threads": 1, "oracle_workers": 1},
        }
        return merged(merged(self.common, self.arms[plan.arm]), own)


def load_design(path: Path) -> Design:
    """Read a design; raises BadFile when there is no such file, or, naming the key, when it does not hold a design."""
    if not path.is_file():
        raise BadFile(
            f"{path}: no such file; it says what each arm of the comparison changes in params.yaml, such as "
            "'arms: {coverage: {}, random: {selection: {strategy: random}}}'"
        )
    try:
        return Design.model_validate(read_yaml(path))
    except ValidationError as error:
        raise BadFile(f"{path}: not a comparison's design ({error})") from None
