"""The file that holds a potential."""

import json
from collections.abc import Iterable
from copy import deepcopy
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from cgal.errors import BadCheckpoint, BadFile
from cgal.files import write_bytes
from cgal.params import NetworkParams
from cgal.potential.architectures import architecture_of
from cgal.potential.ensemble import members_of, together
from cgal.potential.potential import Potential
from cgal.potential.prior import Prior

__all__ = ["load_checkpoint", "save_checkpoint"]

FORMAT = "cgal-potential-1"

NETWORK_PARAMS: TypeAdapter[NetworkParams] = TypeAdapter(NetworkParams)


def save_checkpoint(
    path: Path, potential: Potential, metadata: dict[str, Any], *, priors: Iterable[Prior] = ()
) -> None:
    """Write a checkpoint atomically: tensors and text only (no code), the same bytes for the same content.

    `metadata` is JSON-able: seed, round, training history, dataset checksums. `priors` are those of all proteins that
    the network was trained on; that of `potential` need not be among them, and without others nothing is added. Raises
    BadCheckpoint when one was fitted at another temperature.
    """
    content = _content(potential, metadata)
    others = {prior.sequence: prior for prior in priors if prior.sequence != potential.sequence}
    for prior in others.values():
        if prior.temperature_K != potential.prior.temperature_K:
            raise BadCheckpoint(
                f"{path}: the prior of {prior.sequence} is of {prior.temperature_K:g} K, that of {potential.sequence} "
                f"of {potential.prior.temperature_K:g} K; fit all at one temperature"
            )
    if (members := len(members_of(potential.network))) > 1:
        content["members"] = members
    if others:
        content["other_priors"] = {sequence: _plain(deepcopy(others[sequence]).float()) for sequence in sorted(others)}
    buffer = BytesIO()
    torch.save(content, buffer)
    write_bytes(path, buffer.getvalue())


def _content(potential: Potential, metadata: dict[str, Any]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "sequence": potential.sequence,
        "temperature_K": potential.prior.temperature_K,
        "architecture": potential.network.params.model_dump_json(),
        "prior": _plain(potential.prior),
        "network": _plain(potential.network),
        "metadata": json.dumps(metadata, sort_keys=True),
    }


def _plain(module: nn.Module) -> dict[str, Tensor]:
    """Tensors of a module on the CPU, each with storage of its own and no larger than itself."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()}


def load_checkpoint(
    path: Path, *, sequence: str | None = None, architecture: NetworkParams | None = None
) -> tuple[Potential, dict[str, Any]]:
    """Read a checkpoint onto the CPU; returns the potential and its metadata.

    Of a network trained on several proteins it is the potential of `sequence`, or else of the first one.

    Raises BadFile when there is no such file, BadCheckpoint when it is damaged or of another format, or is not for
    `sequence` or of `architecture` (where given).
    """
    content = _read(path)
    try:
        priors = {content["sequence"]: content["prior"], **content.get("other_priors", {})}
        found = sequence or content["sequence"]
        if found not in priors:
            raise BadCheckpoint(
                f"{path}: trained for {', '.join(priors)}, not for {sequence}; give this protein's checkpoint, or "
                "delete the file to start from a fresh network; to run a model on a protein that it was not trained "
                "on, give cgal.Model.transfer some frames of it"
            )
        params = NETWORK_PARAMS.validate_json(content["architecture"])
        if architecture is not None and params != architecture:
            raise BadCheckpoint(
                f"{path}: its network is {_words(params)}, params.yaml asks for {_words(architecture)}; restore "
                "section 'network', or set training.warm_start: false to start afresh"
            )
        network = together([architecture_of(params).network(params) for _ in range(content.get("members", 1))])
        network.load_state_dict(content["network"])
        prior = Prior(found, content["temperature_K"], priors[found])
        return Potential(prior, network), json.loads(content["metadata"])
    except (KeyError, TypeError, ValueError, RuntimeError, ValidationError) as error:
        raise _damaged(path, error) from None


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise BadFile(f"{path}: no such file")
    try:
        with ZipFile(path) as archive:  # torch does not look at the checksums of its own archive
            if spoilt := archive.testzip():
                raise BadZipFile(f"wrong checksum in {spoilt}")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (
        Exception
    ) as error:  # torch raises whatever its parser met: RuntimeError, UnpicklingError, EOFError, KeyError
        raise _damaged(path, error) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT or not isinstance(content.get("sequence"), str):
        raise BadCheckpoint(
            f"{path}: no checkpoint of format {FORMAT!r}; give a model.pt that this version of cgal wrote"
        )
    return content


def _damaged(path: Path, error: Exception) -> BadCheckpoint:
    reason = " ".join(str(error).split()).split(". ")[0][:200]
    return BadCheckpoint(f"{path}: damaged checkpoint ({reason}); restore it with 'dvc checkout --force'")


def _words(params: NetworkParams) -> str:
    return ", ".join(f"{name} {value}" for name, value in params.model_dump().items())
