"""compose.yaml and the Dockerfile: no engine runs here, so their words are held against what the other tests run.

The commands, databases and health checks of the containers are run by tests/test_backends.py.
"""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.serving.serve import prefect_command, worker_command
from flows.tracking.runs import server_command
from tests.backends import MAKE_BUCKET
from tests.compose import COMPOSE, VARIABLE, parse, service, services

ROOT = COMPOSE.parent
OWN = ("bucket", "prefect", "mlflow", "cpu-worker", "gpu-worker")
SECRET = re.compile(r"PASSWORD|SECRET|AUTH|_KEY$|_KEY_ID$")


@pytest.mark.parametrize("command", [["hadolint", "Dockerfile"], ["compose-lint", "compose.yaml"]], ids=lambda c: c[0])
def test_linters_have_nothing_to_say(command: list[str]) -> None:
    done = subprocess.run([Path(sys.executable).parent / command[0], *command[1:]], cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stdout


def expected_command(name: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    for variable in service("mlflow")["environment"]:
        monkeypatch.setenv(variable, "set")
    return {
        "prefect": prefect_command("0.0.0.0", 4200),
        "mlflow": server_command(Path("/project"), host="0.0.0.0", port=5000),
        "cpu-worker": worker_command(Path("/project"), "cgal-cpu"),
        "gpu-worker": worker_command(Path("/project"), "cgal-gpu"),
        "bucket": ["python", "-c", MAKE_BUCKET],
    }[name]


@pytest.mark.parametrize("name", OWN)
def test_a_container_runs_what_cgal_serve_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same words, but for the Python that runs them (`cgal` is `python -m flows.cli.main`)."""
    command = service(name)["command"]
    expected = ["python", *expected_command(name, monkeypatch)[1:]]
    assert command == (["cgal", *expected[3:]] if expected[1:3] == ["-m", "flows.cli"] else expected)


def test_nothing_starts_without_a_password_of_ones_own() -> None:
    """Each secret is a variable without a default, and leaving out any one stops all, with a word on what to do."""
    found = [*VARIABLE.finditer(COMPOSE.read_text())]
    required = {match["name"]: match["rest"] for match in found if match["kind"] == ":?"}
    assert len(required) == 10
    for name in required:
        given = {other: "./given" for other in required if other != name}
        with pytest.raises(KeyError, match=re.escape(required[name])):
            parse(given)


@pytest.mark.parametrize("name", sorted(services()))
def test_no_secret_is_a_literal(name: str) -> None:
    written: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"][name].get("environment", {})
    for variable, value in written.items():
        if SECRET.search(variable) or ("://" in value and "@" in value):
            assert ":?" in value, f"{name}: {variable}"


@pytest.mark.parametrize("name", sorted(services()))
def test_a_service_is_checked_and_reached_from_this_machine_alone(name: str) -> None:
    described = service(name)
    assert "healthcheck" in described or name == "bucket"
    assert all(port["host_ip"] == "127.0.0.1" for port in described.get("ports", []))
    assert described["cap_drop"] == ["ALL"]
    assert described["mem_limit"]
    assert described["logging"]["options"].keys() == {"max-size", "max-file"}


def test_every_variable_is_documented() -> None:
    documented = (ROOT / "docs" / "operations.md").read_text()
    for match in VARIABLE.finditer(COMPOSE.read_text()):
        assert f"`{match['name']}`" in documented


def test_workers_get_no_password_of_a_database() -> None:
    for name in ("cpu-worker", "gpu-worker"):
        assert not [value for value in service(name)["environment"].values() if "DB_PASSWORD" in value]
    assert service("gpu-worker")["deploy"]["resources"]["reservations"]["devices"][0]["driver"] == "nvidia"


def test_the_image_installs_from_what_it_copies(tmp_path: Path) -> None:
    """The files that the Dockerfile copies, and that .dockerignore lets through, are enough for the install step."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY") and "--from" not in line for word in line.split()[1:-1]]
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied) == allowed
    for name in copied:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-r", ROOT / name, tmp_path / name], check=True)
    assert "RUN make setup" in lines
    (step,) = [line for line in (ROOT / "Makefile").read_text().splitlines() if "--no-build-isolation -e ." in line]
    uv = Path(sys.executable).parent / "uv"
    command = [uv, *step.split()[1:-2]]
    command = [word if word != "$(PY)" else sys.executable for word in command]
    subprocess.run([*command, "--target", tmp_path / "site", tmp_path], check=True)
    assert (tmp_path / "site" / "bin" / "cgal").is_file()
    assert (tmp_path / "site" / "flows" / "serving" / "serve.py").is_file()
