"""Changes to `params.yaml` that come from a form: typed like the params themselves, every key optional."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, create_model

from cgal.params import Params, SelectionParams, section_models

__all__ = ["Acquisition", "Overrides"]

SECTIONS = ("force_field", "network", "training", "simulation", "selection", "oracle", "benchmark", "execution")
"""Those that one would change for a campaign; the rest belongs to the protein's data, or is in the form by itself."""


def _all_optional(section: str, models: Sequence[type[BaseModel]]) -> type[BaseModel]:
    """Make the model of a section in which every key may be left out: then `params.yaml` decides."""
    fields: dict[str, Any] = {}
    for model in models:
        for name, field in model.model_fields.items():
            annotation: Any = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
            others = fields[name][0] if name in fields else None
            fields[name] = (annotation | others, Field(None, title=name, description=field.description))
    return create_model(
        section.title().replace("_", "") + "Overrides",
        __config__=ConfigDict(extra="forbid", title="change"),
        __doc__=" ".join(model.__doc__ or "" for model in models),
        **fields,
    )


def _overrides() -> type[BaseModel]:
    seed = Field(None, ge=0, lt=2**31, title="seed", description="same seed, same machine: same bytes")
    fields: dict[str, Any] = {"seed": (int | None, seed)}
    for name in SECTIONS:
        section = _all_optional(name, section_models(Params.model_fields[name].annotation))
        fields[name] = (section | None, Field(None, title=name, description=section.__doc__))
    return create_model(
        "Overrides",
        __config__=ConfigDict(extra="forbid", title="change"),
        __doc__="Values that replace those of params.yaml; what is left out stays.",
        **fields,
    )


if TYPE_CHECKING:
    Overrides = BaseModel
    Acquisition = str
else:
    Overrides = _overrides()
    Acquisition = SelectionParams.model_fields["strategy"].annotation
