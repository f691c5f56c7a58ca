"""`python -m vae.tracking ui` serves the MLflow UI; `sync` logs to MLflow what it could not take before."""

import os
import signal
import subprocess
import sys
import time
import webbrowser
from contextlib import suppress

import requests

from vae.errors import TrackingError
from vae.tracking.run import sync
from vae.tracking.store import EXPERIMENT, connect, experiment_id, shown_store, tracking_uri, ui_link


def main(command: str) -> None:
    """Run one of the two commands. Raises TrackingError."""
    connect()
    if command == "ui":
        return ui(ui_link(experiment_id(EXPERIMENT)))
    if folders := sync():
        raise TrackingError(
            f"{shown_store()} did not take {', '.join(map(str, folders))}: it is in trouble, or the run is deleted or "
            "of another store (run.json in there tells which)"
        )
    print(f"{shown_store()} has everything")


def ui(link: str) -> None:
    """Show where the runs are, in a browser if there is a display; serve them until Ctrl-C unless a server does."""
    if tracking_uri().startswith("http"):
        return _show(link)
    if _answers(link):
        raise TrackingError(f"something answers at {link} already: open that, or set MLFLOW_PORT=5002 for a second UI")
    # Not an argument of the server's, which the list of processes would show to everyone: it may hold a password.
    os.environ |= {"MLFLOW_BACKEND_STORE_URI": tracking_uri(), "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    os.environ["PYTHONWARNINGS"] = "ignore"
    # MLFLOW_PORT is the port. At a lower level, uvicorn logs each request, and a traceback after Ctrl-C.
    options = ["--host", "127.0.0.1", "--workers", "1", "--uvicorn-opts", "--log-level critical"]
    server = subprocess.Popen([sys.executable, "-m", "mlflow", "server", *options])
    signal.signal(signal.SIGTERM, lambda *_: server.terminate())
    with suppress(KeyboardInterrupt):
        while server.poll() is None and not _answers(link):
            time.sleep(0.2)
        if server.poll() is not None:
            raise TrackingError(
                "the MLflow server ended: where its port is taken, MLFLOW_PORT=5002 make ui has another"
            )
        _show(link)
        server.wait()
    server.terminate()  # a terminal's Ctrl-C has reached it, one of `kill -INT` has not
    sys.exit(server.wait())


def _show(link: str) -> None:
    print(f"MLflow runs:\n  {link}", flush=True)
    if sys.platform == "darwin" or {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys():
        webbrowser.open(link)


def _answers(link: str) -> bool:
    with suppress(requests.RequestException):
        requests.get(link, timeout=5, proxies={"no_proxy": "127.0.0.1"})
        return True
    return False


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except TrackingError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
