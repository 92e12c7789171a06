"""DVC in one working copy: what is recorded, what is restored, and where its remotes are."""

import os
import re
from functools import partial
from pathlib import Path
from typing import Any

import platformdirs

from cgal.errors import VersioningError
from flows.versioning.dvc_session import reason, with_dvc
from flows.versioning.round_files import (
    SHARED_POINTER,
    data_md5,
    data_pointer,
    data_pointers,
    has_newer_inputs,
    proteins_of,
)

__all__ = ["BUNDLED_REMOTE", "Dvc", "own_remotes"]

BUNDLED_REMOTE = "bundled"
"""DVC remote that travels inside the repository (`.dvc/bundled`) and holds the seed; `publish` never pushes to it."""


OWN_REMOTE = re.compile(rf'remote "(?!{BUNDLED_REMOTE}")')
"""A section of DVC's configuration for a remote beside the bundled one."""


class Dvc:
    """DVC in one working copy; every method raises VersioningError, with DVC's reason, when it cannot do its work."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def stage_is_current(self, stage: str) -> bool:
        """Whether command, inputs, params and outputs of a stage are those that `dvc.lock` records.

        Inputs that another stage has made anew are seen in `dvc.lock` itself, before DVC hashes anything.
        """
        lock = self.root / "dvc.lock"
        if lock.is_file() and has_newer_inputs(lock.read_bytes(), stage):
            return False
        return not self._status(f"{self._path('dvc.yaml')}:{stage}")

    def stale_stages(self) -> list[str]:
        """Stages whose command, inputs, params or outputs are not those that `dvc.lock` records."""
        return [name.rpartition(":")[2] for name in self._status(self._path("dvc.yaml"))]

    def record_stage(self, stage: str) -> None:
        """Keep the outputs of a stage that has just run in the DVC cache, and in `dvc.lock` what made them."""
        with_dvc(self.root, lambda repo: _record_stage(repo, self._path("dvc.yaml"), stage))

    def record_data(self, protein: str | None = None) -> str:
        """Keep the data of a protein (those of params.yaml by default) in the DVC cache as they are; give their hash.

        Their DVC file (see `data_pointer`) names them then; it is made when there is none. Hashes of several have
        spaces between.
        """
        proteins = (protein,) if protein else proteins_of((self.root / "params.yaml").read_bytes())
        for name in proteins:
            with_dvc(self.root, partial(_record_data, root=self.root, protein=name))
        return " ".join(data_md5((self.root / path).read_bytes()) for path in data_pointers(self.root, proteins))

    def is_bundled(self, protein: str) -> bool:
        """Whether the data of a protein travel with the repository."""
        return data_pointer(self.root, protein) == SHARED_POINTER

    def pull_bundled(self, protein: str | None = None) -> None:
        """Fetch the seed that travels with the repository into `data/`, with no network.

        Raises VersioningError when there are files that are not recorded: they are left alone.
        """
        targets = [self._path(pointer) for pointer in data_pointers(self.root, [protein] if protein else None)]
        with_dvc(self.root, lambda repo: repo.pull(targets=targets, remote=BUNDLED_REMOTE))

    def check_out(self, *, allow_missing: bool = False) -> None:
        """Do `dvc checkout` for params.yaml's proteins and the stages; other proteins' data are left alone.

        Looks first at where that would write: DVC follows names that lead out of the project. They come from a tag, and
        from the list of a folder's files that its remote holds: from whoever may write those.
        """
        pointers = [self._path(pointer) for pointer in data_pointers(self.root)]
        with_dvc(self.root, lambda repo: _check_out(repo, self.root, pointers, allow_missing))

    def cache_folder(self) -> str:
        """Where the DVC cache is."""
        return str(with_dvc(self.root, lambda repo: repo.cache.local_cache_dir))

    def share_cache(self, folder: str) -> None:
        """Use the DVC cache of another working copy."""
        with_dvc(self.root, lambda repo: _share_cache(repo, folder))

    def _status(self, target: str) -> dict[str, list[Any]]:
        status: dict[str, list[Any]] = with_dvc(self.root, lambda repo: repo.status(targets=[target]))
        return status

    def _path(self, path: str) -> str:
        return str(self.root / path)


def own_remotes(root: Path) -> list[str]:
    """DVC remotes that a round is pushed to: the default one, or all when the bundled one is the default.

    Reads DVC's configuration alone, and imports DVC only when a file of it names such a remote. Raises VersioningError
    when it is wrong.
    """
    if not any(OWN_REMOTE.search(path.read_text()) for path in _config_files(root) if path.is_file()):
        return []
    from dvc.config import Config, ConfigError

    try:
        config = Config(dvc_dir=str(root / ".dvc"))
    except ConfigError as error:
        raise VersioningError(f"DVC: {reason(error)}") from error
    default = config["core"].get("remote", BUNDLED_REMOTE)
    return [default] if default != BUNDLED_REMOTE else sorted(set(config["remote"]) - {BUNDLED_REMOTE})


def _config_files(root: Path) -> list[Path]:
    """Where DVC looks: the project, its user, the machine."""
    user = os.environ.get("DVC_GLOBAL_CONFIG_DIR") or platformdirs.user_config_dir("dvc")
    machine = os.environ.get("DVC_SYSTEM_CONFIG_DIR") or platformdirs.site_config_dir("dvc")
    return [root / ".dvc" / "config", root / ".dvc" / "config.local", Path(user, "config"), Path(machine, "config")]


def _record_stage(repo: Any, path: str, stage_name: str) -> None:
    """Do `dvc commit --force` for one stage, in any current folder: without DVC's run cache, which we do not use."""
    stage = repo.stage.load_one(path, stage_name)
    stage.save(run_cache=False)
    stage.commit()
    stage.dump(update_pipeline=False)


def _record_data(repo: Any, root: Path, protein: str) -> None:
    pointer = root / data_pointer(root, protein)
    if pointer.is_file():
        repo.commit(str(pointer), force=True)
    else:
        repo.add(str(root / "data" / protein))


def _share_cache(repo: Any, folder: str) -> None:
    with repo.config.edit("local") as settings:
        settings["cache"]["dir"] = folder


def _check_out(repo: Any, root: Path, pointers: list[str], allow_missing: bool) -> None:
    for output in repo.index.outs:
        if not _stays_inside(output, root):
            raise VersioningError(f"{output}: names files outside of {root}; whoever wrote that is not to be trusted")
    targets = [path for path in (*pointers, str(root / "dvc.yaml")) if Path(path).is_file()]
    repo.checkout(targets=targets, allow_missing=allow_missing)


def _stays_inside(output: Any, root: Path) -> bool:
    if not Path(os.path.normpath(output.fs_path)).is_relative_to(root):
        return False
    is_folder = output.hash_info and output.hash_info.isdir
    return not (is_folder and any(".." in key for key, _, _ in output.get_obj() or ()))
