"""Changes to `params.yaml` that come from a form: typed like the params themselves, every key optional."""

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, create_model

from cgal.params import Params, SelectionParams

__all__ = ["Acquisition", "Overrides"]

SECTIONS = ("force_field", "network", "training", "simulation", "selection", "oracle", "benchmark", "execution")
"""Those that one would change for a campaign; the rest belongs to the protein's data, or is in the form by itself."""


def _all_optional(section: type[BaseModel]) -> type[BaseModel]:
    """Make the model of a section in which every key may be left out: then `params.yaml` decides."""
    fields: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        annotation: Any = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
        fields[name] = (annotation | None, Field(None, title=name, description=field.description))
    return create_model(
        section.__name__.replace("Params", "Overrides"),
        __config__=ConfigDict(extra="forbid", title="change"),
        __doc__=section.__doc__,
        **fields,
    )


def _overrides() -> type[BaseModel]:
    seed = Field(None, ge=0, lt=2**31, title="seed", description="same seed, same machine: same bytes")
    fields: dict[str, Any] = {"seed": (int | None, seed)}
    for name in SECTIONS:
        section = type(Params.model_fields[name].default)
        fields[name] = (_all_optional(section) | None, Field(None, title=name, description=section.__doc__))
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
