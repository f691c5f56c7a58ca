"""`python -m vae.workflow.serve`: a model's HTTP server, until Ctrl-C."""

import os
import socket
import sys
from typing import NoReturn

from vae.errors import TrackingError
from vae.serving.lookup import model_folder
from vae.workflow.command_line import ArgumentParser, errors_in_one_line

PORT = 5001
APPLICATION = "mlflow.pyfunc.scoring_server.app:app"  # what `mlflow models serve` runs, after importing MLflow again
MODEL_PATH = "__pyfunc_model_path__"  # the environment variable that names its model


def serve(model: str | None, port: int) -> NoReturn:
    """Replace this process by the server that `mlflow models serve` starts, on 127.0.0.1.

    It runs the code that is saved with the model. Raises TrackingError where the port is taken.
    """
    folder = model_folder(model)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise TrackingError(f"port {port} can't be used ({error}): PORT=5002 takes another one") from None
    print(f"http://127.0.0.1:{port}/invocations, when the server says that it is running; Ctrl-C ends it", flush=True)
    command = [sys.executable, "-m", "uvicorn", "--host", "127.0.0.1", "--port", str(port), APPLICATION]
    os.execve(sys.executable, command, os.environ | {MODEL_PATH: folder.absolute().as_uri()})


if __name__ == "__main__":
    with errors_in_one_line("nothing was served"):
        parser = ArgumentParser(__doc__)
        parser.add_argument("--model", help="such as vae-mnist@champion (the default), vae-mnist/3, runs:/ID/vae")
        parser.add_argument("--port", type=int, default=PORT)
        serve(**vars(parser.parse_args()))
