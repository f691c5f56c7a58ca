"""A local HTTP server of a data set, which fails in the way that a test asks for."""

import base64
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def good(handler, body):
    if body is None:
        handler.send_error(404)
    else:
        reply(handler, body)


def status(code):
    return lambda handler, body: handler.send_error(code)


def serves(other, headers=None):
    return lambda handler, body: reply(handler, other, headers)


def half(handler, body):
    send_headers(handler, {"Content-Length": str(len(body))})
    handler.wfile.write(body[: len(body) // 2])


def stalls(handler, body):
    half(handler, body)
    handler.wait()


def trickles(handler, body):
    send_headers(handler, {"Content-Length": str(len(body))})
    for byte in body:
        handler.wfile.write(bytes([byte]))
        if handler.server.closing.wait(0.05):
            break


def hangs_up(handler, body):
    pass


def never_answers(handler, body):
    handler.wait()


def reply(handler, body, headers=None):
    send_headers(handler, {"Content-Length": str(len(body)), **(headers or {})})
    handler.wfile.write(body)


def send_headers(handler, headers):
    handler.send_response(200)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.flush()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        name = self.path.rsplit("/", 1)[-1]
        with self.server.lock:
            self.server.requests.append(name)
            answers = self.server.answers.get(name, [])
            answer = answers.pop(0) if answers else self.server.otherwise
        if self.server.authorization not in (None, self.headers.get("Authorization")):
            answer = status(401)
        with suppress(ConnectionError):  # the client has given up
            answer(self, self.server.files.get(name))

    def wait(self):
        self.server.closing.wait()

    def log_message(self, *args):
        pass


class Mirror(ThreadingHTTPServer):
    """Serves `files`: each request for a file consumes one of its `answers`, then `otherwise` answers.

    `password` is `user:password`, required if given.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, files, otherwise=good, answers=None, password=None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.otherwise = files, otherwise
        self.answers = {name: list(turns) for name, turns in (answers or {}).items()}
        self.authorization = password and f"Basic {base64.b64encode(password.encode()).decode()}"
        self.requests = []
        self.lock, self.closing = threading.Lock(), threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/mnist/"
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *args):
        self.closing.set()
        self.shutdown()
        self._thread.join()
        self.server_close()
