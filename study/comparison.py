"""A comparison in a working copy: where its parts lie, and which of its campaigns are still to be run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml

from cgal.errors import BadParams
from flows.versioning import Repository
from study.design import CampaignPlan, Design
from study.statistics import read_records

__all__ = ["Comparison", "campaigns_of", "read_campaigns", "to_run"]

NAMING = ("tag", "budget_steps")
"""Columns of the records that say which campaign a row is of."""


@dataclass(frozen=True)
class Comparison:
    """A comparison in a working copy: its folder holds one work tree for its code, and one for each campaign.

    All of them are at the commit at which the comparison began, so it ends with the code that it began with.
    """

    root: Path
    name: str

    @property
    def folder(self) -> Path:
        """Where the work trees are; they may be removed when the comparison is done."""
        return self.root / ".cgal" / "compare" / self.name

    @property
    def code(self) -> Path:
        """The code that all campaigns run."""
        return self.folder / "code"

    def campaign(self, plan: CampaignPlan) -> str:
        """Name of a campaign, in its tags and in MLflow."""
        return f"{self.name}-{plan.name}"

    def tree(self, plan: CampaignPlan) -> Path:
        """A campaign's work tree."""
        return self.folder / plan.name

    @property
    def records(self) -> Path:
        """Its records, which are complete without the work trees."""
        return self.root / "docs" / "results" / f"{self.name}.csv"

    def data(self, seed_set: int) -> Path:
        """Data of a test bed with one of its seed sets, which campaigns begin with."""
        return self.folder / "data" / f"set-{seed_set:03d}"


def to_run(comparison: Comparison, design: Design, plans: Sequence[CampaignPlan]) -> list[CampaignPlan]:
    """Campaigns that the records lack, wherever those were made.

    A campaign with a larger budget has the design's smaller ones, because its rounds were cut there. Raises BadParams
    when the records, or the rounds in git, have a campaign with another budget: its closing round labels nothing, so
    that it cannot go on, and run anew it would take the place of what is there.
    """
    recorded, cuts = _recorded_budgets(comparison), design.budgets.values()

    def is_held(plan: CampaignPlan) -> bool:
        budget = recorded.get(comparison.campaign(plan), 0)
        return budget == plan.budget_steps or (budget > plan.budget_steps and plan.budget_steps in cuts)

    def began_with(plan: CampaignPlan) -> int:
        campaign = comparison.campaign(plan)
        return recorded.get(campaign) or _published_budget(Repository(comparison.root), campaign) or plan.budget_steps

    left = [(plan, began_with(plan)) for plan in plans if not is_held(plan)]
    if wrong := [
        f"{plan.name} from {began} to {plan.budget_steps}" for plan, began in left if began != plan.budget_steps
    ]:
        raise BadParams(
            f"comparison {comparison.name}: the budget of a campaign that has rounds cannot change, as of "
            f"{', '.join(wrong)} steps; leave these arms out with --arms, give their --budget, or another --name"
        )
    return [plan for plan, _ in left]


def read_campaigns(comparison: Comparison) -> pd.DataFrame:
    """Records of a comparison, which say of each row which campaign it is of; BadFile as in `read_records`."""
    return read_records(comparison.records, NAMING)


def campaigns_of(records: pd.DataFrame) -> "pd.Series[str]":
    """By row: the campaign of its tag, CAMPAIGN/round-NNN."""
    return records["tag"].str.rpartition("/")[0]


def _recorded_budgets(comparison: Comparison) -> dict[str, int]:
    if not comparison.records.is_file():
        return {}
    found = read_campaigns(comparison)
    return dict(zip(campaigns_of(found), found["budget_steps"], strict=True))


def _published_budget(repository: Repository, campaign: str) -> int | None:
    """All-atom steps that a campaign in git may spend, by the params of its last round; None when it has none."""
    published = repository.published(campaign)
    if not published:
        return None
    spent = yaml.safe_load(repository.read_round_file(published[-1].tag, "params.yaml"))["campaign"]
    return int(spent.get("continued_md_steps") or spent["budget_steps"])
