"""compose.yaml as Docker Compose reads it: variables replaced, parsed by the rules of the Compose Specification."""

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from compose_spec import PyCompose

__all__ = ["COMPOSE", "VARIABLE", "parse", "service", "services"]

COMPOSE = Path(__file__).parents[1] / "compose.yaml"
VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?P<kind>:[?-])(?P<rest>[^}]*)\}")


def interpolate(text: str, values: Mapping[str, str]) -> str:
    """Replace `${NAME:-default}` and `${NAME:?what to do}`; raises KeyError with the latter's text."""

    def value(found: re.Match[str]) -> str:
        if given := values.get(found["name"]):
            return given
        if found["kind"] == ":-":
            return found["rest"]
        raise KeyError(found["rest"])

    return VARIABLE.sub(value, text)


def parse(values: Mapping[str, str]) -> PyCompose:
    """Parse the file; raises ValueError where it is not as the specification says."""
    merged = yaml.safe_load(interpolate(COMPOSE.read_text(), values))  # `<<` is YAML's, not the specification's
    compose = PyCompose.from_json(json.dumps(merged))
    compose.validate()
    return compose


@cache
def services() -> dict[str, Any]:
    """Services by name, every required variable set to its own name, as a path."""
    values = {
        found["name"]: f"./{found['name']}" for found in VARIABLE.finditer(COMPOSE.read_text()) if found["kind"] == ":?"
    }
    described: dict[str, Any] = parse(values).to_dict()["services"]
    return described


def service(name: str) -> dict[str, Any]:
    described: dict[str, Any] = services()[name]
    return described
