"""A real MLflow server for tests, that can be killed, stopped and started again over the same store."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from urllib.error import URLError
from urllib.request import urlopen

from support import ENVIRONMENT


def free_port():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return unused.getsockname()[1]


class Server:
    """A server over a copy of `database`, in `folder`: the leader of a group of processes; it runs in a `with`.

    It stores artifacts in `folder` as well, or in `bucket`, the URL of one, with variables that say where S3 is.
    """

    def __init__(self, folder, database, bucket=None, **environment):
        self.folder, self.artifacts = folder, bucket or folder / "artifacts"
        self.environment = {**ENVIRONMENT, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **environment}
        shutil.copy(database, folder / "server.db")
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = None

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.signal(signal.SIGKILL)

    def start(self):
        command = [sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={self.port}", "--workers=1"]
        folders = [
            f"--backend-store-uri=sqlite:///{self.folder / 'server.db'}",
            f"--artifacts-destination={self.artifacts}",
        ]
        log = self.folder / "server.log"
        with log.open("w") as file:
            options = {"stdout": file, "stderr": file, "start_new_session": True, "cwd": self.folder}
            self.process = subprocess.Popen([*command, *folders], env=self.environment, **options)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                with urlopen(f"{self.url}/health", timeout=1):
                    return
            except (URLError, TimeoutError, ConnectionError):
                time.sleep(0.2)
        raise AssertionError(f"the MLflow server did not start:\n{log.read_text()}")

    def signal(self, number):
        """Send a signal to all its processes."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, number)
            if number == signal.SIGKILL:
                self.process.wait()
