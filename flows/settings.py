"""Environment defaults of the embedded parts; whatever the user has set wins.

Import this before Prefect, DVC or MLflow: they read their settings when they are imported.
"""

import os
import re
import warnings
from pathlib import Path

__all__ = ["NO_TELEMETRY", "use_project_settings", "use_quiet_tools", "without_passwords"]

NO_TELEMETRY = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DVC_NO_ANALYTICS": "true",
}
"""Nothing of a run is told to the makers of its tools."""

SAME_PASSWORD = {
    "PREFECT_API_AUTH_STRING": "PREFECT_SERVER_API_AUTH_STRING",
    "MLFLOW_TRACKING_USERNAME": "MLFLOW_AUTH_ADMIN_USERNAME",
    "MLFLOW_TRACKING_PASSWORD": "MLFLOW_AUTH_ADMIN_PASSWORD",
}
"""What a client says, unless it is set, is what the server that is started here asks for."""


def use_project_settings(root: Path) -> None:
    """Keep the embedded Prefect server's state in the project, wait for it under load, switch telemetry off."""
    defaults = {
        "PREFECT_HOME": str(root / ".cgal" / "prefect"),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # the terminal has its own lines; the web page gets all
        "PREFECT_LOGGING_SERVER_LEVEL": "ERROR",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    for name, source in SAME_PASSWORD.items():
        if source in os.environ:
            os.environ.setdefault(name, os.environ[source])
    use_quiet_tools()
    # Without its folder the embedded server cannot open its database, and is restarted until it times out.
    Path(os.environ["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)


def use_quiet_tools() -> None:
    """Switch off telemetry, and other packages' notices to their own developers."""
    for name, value in NO_TELEMETRY.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.")
    warnings.filterwarnings("ignore", category=SyntaxWarning)


def without_passwords(text: str) -> str:
    """Text whose addresses show no user and password: what a tool says of its own fault goes to logs and pages.

    >>> without_passwords("no answer from postgresql://lab:secret@db:5432/mlflow")
    'no answer from postgresql://***@db:5432/mlflow'
    """
    return re.sub(r"(?<=://)[^/\s]*@", "***@", text)
