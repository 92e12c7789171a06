"""What `cgal serve` keeps between its lives."""

from pathlib import Path

import pytest

from flows.serving import serve
from flows.workspace import Workspace


def test_a_log_is_appended_to_and_a_large_one_put_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "LARGE_LOG_BYTES", 60)
    path = tmp_path / "worker.log"
    for life in range(6):
        with serve.open_log(path) as log:
            log.write(f"life {life}\n".encode())
    lives = [[line for line in (tmp_path / name).read_text().splitlines() if line.startswith("life")]
             for name in ("worker.log.2", "worker.log.1", "worker.log")]  # fmt: skip
    assert lives == [["life 0", "life 1"], ["life 2", "life 3"], ["life 4", "life 5"]]


def test_scratch_of_a_published_round_is_removed_but_for_its_failed_labels(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    for name in ("train", "committee-0", "label-r000", "label-r001"):
        workspace.scratch(name).mkdir(parents=True)
        (workspace.scratch(name) / "state.pt").touch()
    workspace.prune_scratch(keep="label-r001")
    assert [folder.name for folder in (tmp_path / ".cgal" / "work").iterdir()] == ["label-r001"]
