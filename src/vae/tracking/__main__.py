"""`python -m vae.tracking ui` serves the MLflow UI; `sync` logs to MLflow what it could not take before."""

import os
import sys

from vae.errors import TrackingError
from vae.tracking.run import sync
from vae.tracking.store import connect, shown_store, tracking_uri


def main(command: str) -> None:
    """Run one of the two commands. Raises TrackingError."""
    if command == "ui" and tracking_uri().startswith("http"):
        raise TrackingError(f"MLFLOW_TRACKING_URI is {shown_store()}: open that in a browser")
    connect()
    if command == "ui":
        # Not an argument of the server's, which the list of processes would show to everyone: it may hold a password.
        os.environ |= {"MLFLOW_BACKEND_STORE_URI": tracking_uri(), "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        arguments = ["-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1"]  # MLFLOW_PORT is the port
        os.execv(sys.executable, [sys.executable, *arguments])
    if folders := sync():
        raise TrackingError(
            f"{shown_store()} did not take {', '.join(map(str, folders))}: it is in trouble, or the run is deleted or "
            "of another store (run.json in there tells which)"
        )
    print(f"{shown_store()} has everything")


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except TrackingError as error:
        sys.exit(f"error: {error}")
