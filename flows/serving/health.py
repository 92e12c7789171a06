"""Is this machine's worker at work? Asked of Prefect's server without importing Prefect: a health check runs often."""

import json
import os
import socket
from base64 import b64encode
from datetime import UTC, datetime, timedelta
from urllib.error import URLError
from urllib.request import Request, urlopen

from cgal.errors import CgalError
from flows.settings import without_passwords

__all__ = ["HEARTBEAT", "require_worker", "worker_name"]

HEARTBEAT = timedelta(seconds=30)
"""How often a worker reports to the server."""

TIMEOUT_S = 10.0
DEFAULT_API = "http://127.0.0.1:4200/api"


def worker_name(pool: str) -> str:
    """Name of this machine's worker of a pool; the same each time, so that it knows its own runs again."""
    return f"{pool}@{socket.gethostname()}"


def require_worker(pool: str) -> None:
    """Raise CgalError unless this machine's worker of a pool has reported in the last minute and a half."""
    since = datetime.now(UTC) - 3 * HEARTBEAT
    heard = [worker["last_heartbeat_time"] for worker in _workers(pool) if worker["name"] == worker_name(pool)]
    if not any(moment and datetime.fromisoformat(moment) > since for moment in heard):
        raise CgalError(f"{worker_name(pool)} has not reported for {3 * HEARTBEAT.seconds} s; is it running?")


def _workers(pool: str) -> list[dict[str, str]]:
    api = os.environ.get("PREFECT_API_URL", DEFAULT_API).removesuffix("/")
    headers = {"Content-Type": "application/json"}
    if password := os.environ.get("PREFECT_API_AUTH_STRING"):
        headers["Authorization"] = f"Basic {b64encode(password.encode()).decode()}"
    request = Request(f"{api}/work_pools/{pool}/workers/filter", b"{}", headers)  # noqa: S310 - http, of the user's
    try:
        with urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
            found: list[dict[str, str]] = json.load(answer)
    except (URLError, OSError, ValueError) as error:
        raise CgalError(f"Prefect at {without_passwords(api)} does not answer ({error}); is it running?") from None
    return found
