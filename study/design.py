"""The design of a comparison: which arms there are, and in what each differs from `params.yaml`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from cgal.errors import BadFile, BadParams
from cgal.params import merged

__all__ = ["Design", "load_design"]

type ArmName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]{1,32}$")]
type Overrides = dict[str, Any]


class Design(BaseModel):
    """Overrides of `params.yaml`: `common` for all arms, then those of each arm on top."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    common: Overrides = Field(default_factory=dict)
    arms: dict[ArmName, Overrides]

    def of(self, arm: str, budget_steps: int, seed: int, campaign: str) -> Overrides:
        """What an arm's `params.yaml` changes; `budget_steps` bounds its labels, or is the length of its plain MD."""
        settings = merged(self.common, self.arms[arm])
        plain = settings.get("campaign", {}).get("continued_md_steps")
        spent = {"continued_md_steps" if plain else "budget_steps": budget_steps}
        one_thread = {"torch_threads": 1, "oracle_workers": 1}
        own = {"seed": seed, "campaign": {"name": campaign} | spent, "execution": one_thread}
        return merged(settings, own)

    def require(self, arms: Sequence[str]) -> None:
        """Raise BadParams when one of these arms is not in the design."""
        unknown = [arm for arm in arms if arm not in self.arms]
        if unknown:
            raise BadParams(f"no arm {', '.join(unknown)} in the design; it has {', '.join(self.arms)}")


def load_design(path: Path) -> Design:
    """Read a design; raises BadFile when there is no such file, or, naming the key, when it does not hold a design."""
    if not path.is_file():
        raise BadFile(f"{path}: no such file; it names the arms of a comparison, see docs/results/arms.yaml")
    try:
        return Design.model_validate(yaml.safe_load(path.read_text()))
    except (ValidationError, yaml.YAMLError) as error:
        raise BadFile(f"{path}: not a comparison's design ({error})") from None
