"""`make dashboard`: optuna-dashboard of the project's studies, for this machine only."""

import sys
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from optuna_dashboard import wsgi

from vae.errors import SearchError
from vae.search.storage import journal_path, open_storage, storage_url
from vae.workflow.command_line import errors_in_one_line

HOST, PORT = "127.0.0.1", 8080


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _SilentHandler(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


def serve(port: int = PORT) -> None:
    """Serve the dashboard until Ctrl-C. OPTUNA_STORAGE, which may hold a password, is on no command line.

    Raises SearchError if there is no study yet or the storage can't be used.
    """
    if not storage_url() and not journal_path().exists():
        raise SearchError("there is no study yet: `make search` creates one")
    application = local_only(wsgi(open_storage()), port)
    with make_server(HOST, port, application, server_class=_Server, handler_class=_SilentHandler) as server:
        print(f"optuna-dashboard: http://{HOST}:{port} (Ctrl-C ends it)", flush=True)
        server.serve_forever()


def local_only(application: Any, port: int) -> Callable[[dict[str, Any], Any], Iterable[bytes]]:
    """Refuse requests whose Host header is foreign: a web page's, by DNS rebinding."""
    allowed = {f"{host}:{port}" for host in (HOST, "localhost")}

    def checked(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ.get("HTTP_HOST") not in allowed:
            start_response("403 Forbidden", [("Content-Type", "text/plain")])
            return [b"This dashboard answers to requests from its own machine only.\n"]
        return application(environ, start_response)  # type: ignore[no-any-return]

    return checked


if __name__ == "__main__":
    with errors_in_one_line("the dashboard has ended"):
        serve(*map(int, sys.argv[1:2]))
