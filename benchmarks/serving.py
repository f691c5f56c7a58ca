"""Serves a model to 50 clients that send 20 requests each: latency, requests a second, and the server's memory.

`make load` runs it on the champion, or the newest model; arguments are those of `vae.workflow.serve`. The table is also
benchmarks/serving.csv.
"""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import requests

from vae.errors import VAEError
from vae.workflow.command_line import errors_in_one_line

CLIENTS, REQUESTS, SECONDS = 50, 20, 120
TABLE = Path("benchmarks/serving.csv")


@contextmanager
def server(*arguments: str, **options: Any) -> Iterator[tuple[str, psutil.Process]]:
    """`python -m vae.workflow.serve` on a free port: its URL, once it is ready, and its process."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = str(unused.getsockname()[1])
    command = [sys.executable, "-m", "vae.workflow.serve", "--port", port, *arguments]
    with subprocess.Popen(command, **options) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + SECONDS
            while not _answers(url):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise VAEError("the server did not start: `make serve` shows why")
                time.sleep(0.05)
            yield url, psutil.Process(process.pid)
        finally:
            process.terminate()


def _answers(url: str) -> bool:
    try:
        return requests.get(f"{url}/ping", timeout=1).ok
    except requests.RequestException:
        return False


def measure(url: str, process: psutil.Process, task: str, images: int) -> dict[str, Any]:
    """Send the requests, of `images` random binary images each."""
    inputs = np.random.default_rng(0).integers(0, 2, (images, 784)).tolist()
    body = {"inputs": inputs, "params": {"task": task}}
    before = process.memory_info().rss

    def client(_: int) -> list[tuple[float, bool]]:
        answers = []
        with requests.Session() as session:
            for _ in range(REQUESTS):
                started = time.perf_counter()
                ok = session.post(f"{url}/invocations", json=body, timeout=SECONDS).ok
                answers.append((time.perf_counter() - started, ok))
        return answers

    started = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = [answer for part in pool.map(client, range(CLIENTS)) for answer in part]
    seconds = time.perf_counter() - started
    p50, p99 = np.percentile([latency for latency, _ in answers], [50, 99])
    return {
        "task": task,
        "images": images,
        "errors": sum(not ok for _, ok in answers),
        "requests_per_second": len(answers) / seconds,
        "p50_ms": 1000 * p50,
        "p99_ms": 1000 * p99,
        "mib_before": before / 2**20,
        "mib_after": process.memory_info().rss / 2**20,
    }


def main() -> None:
    """Measure each task, the first one twice: what grows in its first round is what the server needs."""
    started = time.perf_counter()
    with server(*sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as (url, process):
        print(f"ready after {time.perf_counter() - started:.1f} s")
        cases = [("reconstruct", 1), ("reconstruct", 1), ("reconstruct", 10), ("score", 1), ("score", 1)]
        table = pd.DataFrame([measure(url, process, *case) for case in cases])
    print(table.round(1).to_string(index=False))
    table.to_csv(TABLE, index=False, float_format="%.1f")


if __name__ == "__main__":
    with errors_in_one_line("nothing was written"):
        main()
