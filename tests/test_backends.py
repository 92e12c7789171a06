"""A served project on a lab's own stores, with passwords; the environment alone names PostgreSQL and S3, twice each."""

import base64
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError

import psutil
import pytest

from flows.versioning import Repository
from tests.backends import BUCKET, PostgreSQL, bucket_contents, make_bucket, running_postgresql, running_s3
from tests.compose import service
from tests.conftest import make_copy
from tests.served import Served, alive, clean_environment, serving_project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

SECRETS = {
    name: f"secret-of-{name}-93b1e7"
    for name in ("postgres", "prefect-db", "mlflow-db", "prefect-page", "mlflow-page", "form-key", "s3-id", "s3-key")
}
"""Nothing that is written may hold one of them."""


@dataclass
class Lab:
    """A served project, its stores, and the variables that name them."""

    served: Served
    postgresql: PostgreSQL
    environment: dict[str, str]

    @property
    def root(self) -> Path:
        return self.served.root

    def bucket(self) -> dict[str, bytes]:
        return bucket_contents(self.environment)


def stores(postgresql: PostgreSQL, s3: str) -> dict[str, str]:
    """What an operator exports before `cgal serve`."""
    postgresql.make_databases(prefect=SECRETS["prefect-db"], mlflow=SECRETS["mlflow-db"])
    return {
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": postgresql.url(
            "prefect", SECRETS["prefect-db"], "postgresql+asyncpg"
        ),
        "PREFECT_SERVER_API_AUTH_STRING": f"lab:{SECRETS['prefect-page']}",
        "MLFLOW_BACKEND_STORE_URI": postgresql.url("mlflow", SECRETS["mlflow-db"]),
        "MLFLOW_ARTIFACTS_DESTINATION": f"s3://{BUCKET}/mlflow",
        "MLFLOW_AUTH_ADMIN_USERNAME": "lab",
        "MLFLOW_AUTH_ADMIN_PASSWORD": SECRETS["mlflow-page"],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": SECRETS["form-key"],
        "MLFLOW_SERVER_ALLOWED_HOSTS": service("mlflow")["environment"]["MLFLOW_SERVER_ALLOWED_HOSTS"],
        "AWS_ENDPOINT_URL": s3,
        "AWS_ACCESS_KEY_ID": SECRETS["s3-id"],
        "AWS_SECRET_ACCESS_KEY": SECRETS["s3-key"],
        "AWS_DEFAULT_REGION": "us-east-1",
    }


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, bundled_data: Path, git_identity: None) -> Iterator[Lab]:
    root = make_copy(tmp_path_factory.mktemp("lab") / "project", bundled_data, {"campaign": {"rounds": 0}})
    for command in (
        ["dvc", "remote", "add", "--quiet", "--default", "lab", f"s3://{BUCKET}/dvc"],
        ["git", "commit", "--quiet", "--all", "--message", "the lab's remote"],
    ):
        subprocess.run(command, cwd=root, check=True)
    with running_postgresql(SECRETS["postgres"]) as postgresql, running_s3() as s3:
        environment = stores(postgresql, s3)
        make_bucket(clean_environment() | environment)
        with serving_project(root, environment) as served:
            run = served.wait_for(served.start("active-learning", campaign="small", rounds=0))
            assert run.state is not None
            assert run.state.is_completed(), run.state
            yield Lab(served, postgresql, environment)
            assert "stopped" in served.stop()
        assert not alive(root)


def test_runs_are_in_postgresql_and_nowhere_else(lab: Lab) -> None:
    rows = lab.postgresql.query("prefect", "SELECT name, state_type FROM flow_run ORDER BY name")
    assert rows == ["round-000|COMPLETED", "simulate-r000|COMPLETED", "small|COMPLETED", "train-r000|COMPLETED"]
    assert not [*(lab.root / ".cgal" / "prefect").glob("*.db")]


def test_numbers_are_in_postgresql_and_figures_in_the_bucket(lab: Lab) -> None:
    assert lab.postgresql.query("mlflow", "SELECT name, status FROM runs ORDER BY name") == [
        "round-000|FINISHED",
        "small|FINISHED",
    ]
    (count,) = lab.postgresql.query("mlflow", "SELECT count(*) FROM metrics WHERE key = 'w1/tica'")
    assert int(count) == 2  # the round's and its campaign's
    figures = [key for key in lab.bucket() if key.startswith("mlflow/") and key.endswith(".png")]
    assert any(key.endswith("figures/benchmark/tica.png") for key in figures)
    assert not (lab.root / "mlflow.db").exists()
    assert not (lab.root / "mlartifacts").exists()


def test_a_published_round_is_in_the_bucket_and_comes_back_in_a_fresh_clone(lab: Lab, tmp_path: Path) -> None:
    (published,) = Repository(lab.root).published("small")
    assert f"dvc/files/md5/{published.model_md5[:2]}/{published.model_md5[2:]}" in lab.bucket()
    clone = tmp_path / "clone"
    for command, folder in (
        (["git", "clone", "--quiet", str(lab.root), str(clone)], tmp_path),
        (["git", "checkout", "--quiet", published.tag, "--", "data.dvc", "dvc.lock", "params.yaml", "dvc.yaml"], clone),
        (["dvc", "pull", "--quiet"], clone),
    ):
        subprocess.run(command, cwd=folder, env=clean_environment() | lab.environment, check=True)
    for name in ("round/model.pt", "round/trajectory.h5", "data/chignolin/manifest.json"):
        assert (clone / name).read_bytes() == (lab.root / name).read_bytes()


@pytest.mark.parametrize(
    ("server", "path", "user", "secret"),
    [
        ("prefect", "/api/admin/version", "lab", "prefect-page"),
        ("mlflow", "/api/2.0/mlflow/experiments/get?experiment_id=0", "lab", "mlflow-page"),
    ],
)
def test_only_the_right_password_opens_a_server(lab: Lab, server: str, path: str, user: str, secret: str) -> None:
    address = getattr(lab.served, server)
    assert status(address + path) == 401
    assert status(address + path, f"{user}:guessed") == 401
    assert status(address + path, f"{user}:{SECRETS[secret]}") == 200


def status(url: str, password: str = "", **headers: str) -> int:
    if password:
        headers["Authorization"] = f"Basic {base64.b64encode(password.encode()).decode()}"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as answer:
            return int(answer.status)
    except HTTPError as error:
        return error.code


def processes(lab: Lab) -> Iterator[psutil.Process]:
    """`cgal serve` and all that runs under it."""
    yield psutil.Process(lab.served.process.pid)
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("PREFECT_HOME") == str(lab.root / ".cgal" / "prefect"):
                yield process


def test_every_part_listens_on_loopback_alone(lab: Lab) -> None:
    sockets = [entry for process in processes(lab) for entry in process.net_connections(kind="inet")]
    listening = {entry.laddr for entry in sockets if entry.status == psutil.CONN_LISTEN}
    assert {entry.ip for entry in listening} == {"127.0.0.1"}
    assert {f"http://127.0.0.1:{entry.port}" for entry in listening} >= {lab.served.prefect, lab.served.mlflow}


def test_workers_know_no_password_of_a_database(lab: Lab) -> None:
    of_workers = [process for process in processes(lab) if "--pool" in process.cmdline()]
    assert len(of_workers) >= 2
    for process in of_workers:
        values = " ".join(process.environ().values())
        for name in ("prefect-db", "mlflow-db", "form-key"):
            assert SECRETS[name] not in values


def test_no_secret_is_written_anywhere(lab: Lab) -> None:
    """Files of the project, git's objects, logs, both databases, the bucket, and command lines that all can read."""
    for name, content in written(lab):
        for secret in SECRETS.values():
            assert secret.encode() not in content, f"{name} holds {secret}"


def written(lab: Lab) -> Iterator[tuple[str, bytes]]:
    for path in lab.root.rglob("*"):
        if path.is_file():
            yield str(path), path.read_bytes()
    git = ["git", "-C", str(lab.root), "cat-file", "--batch-all-objects", "--batch"]
    yield "git", subprocess.run(git, capture_output=True, check=True).stdout
    for database in ("prefect", "mlflow"):
        yield database, lab.postgresql.run("pg_dump", database).encode()
    yield from lab.bucket().items()
    for process in processes(lab):
        yield "a command line", " ".join(process.cmdline()).encode()


@pytest.mark.parametrize(
    "parameters",
    [
        {"campaign": "x; touch pwned"},
        {"campaign": "$(touch pwned)"},
        {"campaign": "../outside"},
        {"campaign": "--upload-pack=touch pwned"},
        {"protein": "../../etc"},
        {"protein": "/etc"},
        {"acquisition": "`touch pwned`"},
        {"overrides": {"force_field": {"platform": "$(touch pwned)"}}},
        {"overrides": {"campaign": {"name": "../x"}}},
    ],
    ids=str,
)
def test_what_a_form_says_is_neither_a_command_nor_a_way_out(lab: Lab, parameters: dict[str, object]) -> None:
    with pytest.raises(Exception, match=r"Validation failed|does not match|not one of|not valid"):
        lab.served.start("active-learning", **parameters)
    assert not [*lab.root.rglob("pwned"), *Path.cwd().glob("pwned")]


def test_a_database_is_backed_up_and_comes_back(lab: Lab) -> None:
    """`pg_dump` into an empty database: every run is there again."""
    for name in ("prefect", "mlflow"):
        backup = lab.postgresql.run("pg_dump", "--no-owner", name)
        lab.postgresql.run("createdb", f"{name}_again")
        lab.postgresql.run("psql", "--quiet", "--dbname", f"{name}_again", text=backup)
    for question, name in (("SELECT id FROM flow_run ORDER BY id", "prefect"), ("SELECT * FROM metrics", "mlflow")):
        assert lab.postgresql.query(f"{name}_again", question) == lab.postgresql.query(name, question) != []


@pytest.mark.parametrize("name", ["postgres", "prefect", "mlflow", "cpu-worker", "gpu-worker"])
def test_health_checks_of_the_containers_tell_life_from_death(lab: Lab, name: str) -> None:
    """The very commands of compose.yaml, but for the addresses; nothing answers on the second ones."""
    alive = {
        "127.0.0.1:4200": lab.served.prefect.removeprefix("http://"),
        "127.0.0.1:5000": lab.served.mlflow.removeprefix("http://"),
        "http://prefect:4200": lab.served.prefect,
        "/project": str(lab.root),
    }
    dead = {
        "127.0.0.1:4200": "127.0.0.1:9",
        "127.0.0.1:5000": "127.0.0.1:9",
        "http://prefect:4200": "http://127.0.0.1:9",
    }
    assert check_health(lab, name, alive, lab.postgresql.folder) == 0
    assert check_health(lab, name, alive | dead, lab.root) != 0


def check_health(lab: Lab, name: str, addresses: dict[str, str], socket: Path) -> int:
    kind, *command = service(name)["healthcheck"]["test"]
    assert kind == "CMD"
    command = [str(socket) if word == "127.0.0.1" else word for word in command]  # where this PostgreSQL listens
    for address, real in addresses.items():
        command = [word.replace(address, real) for word in command]
    environment = clean_environment() | lab.environment | {"PGHOST": str(socket)}
    environment["PREFECT_API_AUTH_STRING"] = lab.environment["PREFECT_SERVER_API_AUTH_STRING"]
    environment["PREFECT_API_URL"] = addresses["http://prefect:4200"] + "/api"
    environment["PATH"] = f"{lab.postgresql.programs}:{environment['PATH']}"
    return subprocess.run(command, env=environment, capture_output=True).returncode


@pytest.mark.parametrize(("host", "expected"), [("mlflow:5000", 200), ("127.0.0.1:5000", 200), ("evil.example", 403)])
def test_mlflow_answers_to_the_names_that_containers_call_it(lab: Lab, host: str, expected: int) -> None:
    """A page elsewhere that leads its own name to this address reads nothing."""
    path = "/api/2.0/mlflow/experiments/get?experiment_id=0"
    assert status(lab.served.mlflow + path, f"lab:{SECRETS['mlflow-page']}", Host=host) == expected


def test_a_worker_refuses_inputs_that_are_not_in_its_folder(lab: Lab) -> None:
    """Before it computes; the run says what to do."""
    run = lab.served.wait_for(lab.served.start("train", campaign="small", round_index=0, inputs="0" * 64))
    assert run.state is not None
    assert run.state.name == "Refused"
    assert "let CGAL_ROOT of this worker name the campaign's project" in str(run.state.message)
