"""Behaviour under load: many processes that log at once, long studies, long histories, a store with many runs.

`make load` measures all parts with real processes, SQLite, the search stage and MLflow's server, each in a temporary
folder. `python benchmarks/load.py many_loggers` measures one part, and `--trials 50` a smaller size. Each value is
compared with the same one under little load. Writes benchmarks/load.csv if all parts ran at full size.
"""

import math
import multiprocessing
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, NamedTuple

from vae import tracking  # first: it configures MLflow before that is imported

# isort: split
import numpy as np
import pandas as pd
import psutil
import requests
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from ruamel.yaml import YAML

from vae.config import DataParams, Params, RenderParams, TrainParams
from vae.device import resolve
from vae.errors import VAEError
from vae.files import write_atomically
from vae.plots.figure import save
from vae.plots.history import training_history
from vae.workflow.command_line import ArgumentParser, errors_in_one_line
from vae.workflow.stages import fetch_dataset

PROJECT = Path(__file__).resolve().parents[1]
OUTPUT = PROJECT / "benchmarks" / "load.csv"
SIZES = {"processes": 8, "epochs": 100, "trials": 2000, "history": 5000, "runs": 1000}
FEW_EPOCHS, FEW_RUNS = 50, 10  # a short history, and a store with few runs
CURVES = ("neg_elbo", "reconstruction", "kl", "seconds", "images_per_second")  # of training and validation
SMALLEST = {"trials": 20, "runs": FEW_RUNS + 1}
PLOTS, REQUESTS = 3, 10
START_SECONDS = 120
# The request of the MLflow UI when it opens an experiment.
FIRST_PAGE = {"run_view_type": "ACTIVE_ONLY", "order_by": ["attributes.start_time DESC"], "max_results": 100}

Sizes = Mapping[str, int]
Row = dict[str, Any]


def row(what: str, size: str, figure: str, unit: str, value: float, than: str = "", base: float = math.nan) -> Row:
    """A measured value, and its ratio to the one under little load."""
    named = {"what": what, "size": size, "figure": figure, "value": float(f"{value:.3g}"), "unit": unit}
    return {**named, "compared_with": than, "ratio": round(value / base, 2) if base else math.nan}


# Many processes that log


DATASET = {"name": "MNIST", "source": "bundled", "sha256": {"train-images-idx3-ubyte": "0" * 64}}


class Logged(NamedTuple):
    """Seconds until a run was open and had its parameters, and seconds to log each epoch."""

    opening: float
    epochs: list[float]


def log_run(name: str, epochs: int) -> Logged:
    """Log a run as a training does, without training."""
    params, train = Params(), TrainParams(device="cpu", precision="fp32")
    started = time.perf_counter()
    tracking.connect()
    with tracking.open_run(name) as run:
        tracking.log_settings(run, params, resolve(train), DATASET)
        times = [time.perf_counter()]
        for epoch in range(1, epochs + 1):
            run.log_metrics(metrics_of(epoch), step=epoch)
            times.append(time.perf_counter())
    return Logged(times[0] - started, np.diff(times).tolist())


def metrics_of(epoch: int) -> dict[str, float]:
    """The metrics of an epoch, with values that identify it."""
    return {f"{part}/{name}": epoch + n / 10 for part in ("train", "val") for n, name in enumerate(CURVES)}


def log_in_parallel(processes: int, epochs: int) -> list[Logged]:
    """Log one run in each of several processes, all starting at once."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes, initializer=wait, initargs=(context.Barrier(processes),)) as pool:
        names = [(f"logger {number}", epochs) for number in range(processes)]
        return pool.starmap(log_run, names, chunksize=1)


def wait(barrier: Barrier) -> None:
    """Wait for the other processes, after the libraries are imported."""
    barrier.wait()


def check_all_logged(processes: int, epochs: int) -> None:
    """Raise VAEError unless each run is finished and has all metrics of all epochs in order."""
    client, experiment = store()
    runs = client.search_runs([experiment])
    lost = [] if len(runs) == processes else [f"{len(runs)} runs of {processes}"]
    for run in runs:
        if run.info.status != "FINISHED" or "train.epochs" not in run.data.params:
            lost.append(f"{run.info.run_name}: {run.info.status}, {len(run.data.params)} parameters")
        for name in metrics_of(1):
            history = [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]
            if history != [(epoch, metrics_of(epoch)[name]) for epoch in range(1, epochs + 1)]:
                lost.append(f"{run.info.run_name}: {name} of {len(history)} epochs")
    if lost:
        raise VAEError("not all was logged: " + "; ".join(lost))


def many_loggers(sizes: Sizes) -> list[Row]:
    """Processes that create a store and log to it at once, compared with a single one."""
    logged: dict[int, list[Logged]] = {}
    for processes in (1, sizes["processes"]):
        with empty_project():
            logged[processes] = log_in_parallel(processes, sizes["epochs"])
            check_all_logged(processes, sizes["epochs"])
    (one,), many = logged[1], logged[sizes["processes"]]
    together = [seconds for process in many for seconds in process.epochs]
    size = f"{sizes['processes']} processes × {sizes['epochs']} epochs"
    return [
        row("many_loggers", size, figure, "s", value, "1 process", base)
        for figure, value, base in (
            ("opening a fresh store and a run", max(process.opening for process in many), one.opening),
            ("logging an epoch, mean", statistics.mean(together), statistics.mean(one.epochs)),
            ("logging an epoch, longest", max(together), max(one.epochs)),
        )
    ]


# A long study


def prepare_study(trials: int) -> None:
    """In the current folder, a project with the bundled digits and a search with very short trials."""
    shutil.copytree(PROJECT / "pipeline", "pipeline")
    fetch_dataset(DataParams(source="bundled"))
    tree = {
        "data": {"source": "bundled", "validation_size": 500},
        "model": {"hidden_dims": [4], "latent_dim": 2, "prior": "standard"},
        "train": {"batch_size": 5000, "device": "cpu", "precision": "fp32"},
        "search": {"n_trials": trials, "epochs": 2, "workers": 2, "finalists": 0},  # with one epoch, no trial is pruned
    }
    YAML().dump(tree, Path("params.yaml"))


def watched_search() -> tuple[pd.DataFrame, float]:
    """Run the search stage; its time, CPU time and memory after each trial, and the seconds after the last one."""
    samples = []
    command = [sys.executable, "pipeline/search/search.py"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as search:
        assert search.stdout is not None
        seen: dict[int, tuple[float, float]] = {}
        for line in search.stdout:
            print(line, end="", flush=True)
            if line.startswith("trial ") and ":" in line:
                seen |= usage(psutil.Process(search.pid))
                seconds, (parent, *workers) = sum(cpu for cpu, _ in seen.values()), [size for _, size in seen.values()]
                samples.append({"ended": time.perf_counter(), "cpu": seconds, "parent": parent, "worker": max(workers)})
    if search.returncode:
        raise VAEError(f"the search ended with code {search.returncode}")
    return pd.DataFrame(samples), time.perf_counter() - samples[-1]["ended"]


def usage(parent: psutil.Process) -> dict[int, tuple[float, float]]:
    """CPU seconds and MiB of memory of the parent and of each child (with what the child started), by process id."""
    found = {}
    for process in (parent, *parent.children()):
        with suppress(psutil.Error):  # the process has ended meanwhile
            times = process.cpu_times()
            of_children = times.children_user + times.children_system if process != parent else 0.0
            found[process.pid] = times.user + times.system + of_children, process.memory_info().rss / 2**20
    return found


def long_study(sizes: Sizes) -> list[Row]:
    """Cost of a trial and memory of the search, at the beginning and at the end of a long study."""
    trials = sizes["trials"]
    with empty_project():
        prepare_study(trials)
        samples, writing = watched_search()
    tenth, warm = trials // 10, trials // 100  # libraries are imported in the first hundredth
    early, late = samples.iloc[warm:tenth], samples.iloc[-tenth:]

    def per_trial(samples: pd.DataFrame, column: str) -> float:
        return float(samples[column].iloc[-1] - samples[column].iloc[0]) / max(1, len(samples) - 1)

    size = f"{trials} trials, 2 workers"
    rows = []
    for name, column in (("a trial's wall time", "ended"), ("a trial's CPU time", "cpu")):
        first, last = per_trial(early, column), per_trial(late, column)
        rows.append(row("long_study", size, f"{name}, last tenth", "s", last, "first tenth", first))
    for column in ("parent", "worker"):
        first, most = float(early[column].iloc[0]), float(samples[column].max())
        rows.append(row("long_study", size, f"memory of the {column}, at most", "MiB", most, "beginning", first))
    return [*rows, row("long_study", size, "from the last trial to the results", "s", writing)]


# A long history


def history_of(epochs: int) -> pd.DataFrame:
    """A noisy, decreasing history."""
    rng = np.random.default_rng(0)
    epoch = np.arange(1, epochs + 1)
    columns: dict[str, Any] = {"epoch": epoch}
    for part, level in (("train", 84.0), ("val", 86.0)):
        columns[f"{part}/reconstruction"] = level - 25 + 80 / epoch**0.7 + rng.normal(0, 0.1, epochs)
        columns[f"{part}/kl"] = 25 - 20 / epoch**0.5 + rng.normal(0, 0.05, epochs)
        columns[f"{part}/neg_elbo"] = columns[f"{part}/reconstruction"] + columns[f"{part}/kl"]
    return pd.DataFrame({**columns, "improved": epoch == epochs})


def long_history(sizes: Sizes) -> list[Row]:
    """Seconds to plot the training history: the fastest of a few times, since the first one loads the fonts."""
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        for epochs in (FEW_EPOCHS, sizes["history"]):
            times = []
            for _ in range(PLOTS):
                started = time.perf_counter()
                save(training_history(history_of(epochs)), Path(folder) / "history.png", RenderParams().dpi)
                times.append(time.perf_counter() - started)
            seconds[epochs] = min(times)
    size, figure, than = f"{sizes['history']} epochs", "training_history.png", f"{FEW_EPOCHS} epochs"
    return [row("long_history", size, figure, "s", seconds[sizes["history"]], than, seconds[FEW_EPOCHS])]


# A store with many runs


def crowded_store(sizes: Sizes) -> list[Row]:
    """A store with many runs: adding a run, the first page of the UI, and opening a run.

    A page has at most 100 runs; with ten runs it has ten.
    """
    taken = {}
    with empty_project():
        tracking.connect()
        with server() as url:
            for first, runs in ((0, FEW_RUNS), (FEW_RUNS, sizes["runs"])):
                adding = add_runs(first, runs)
                taken[runs] = adding, seconds_of_first_page(url), log_in_parallel(1, 1)[0].opening
    figures = ("adding a run with the client", "the UI's first page: runs/search", "opening a run, as a stage does")
    size, than = f"{sizes['runs']} runs", f"{FEW_RUNS} runs"
    return [
        row("crowded_store", size, figure, "s", value, than, base)
        for figure, value, base in zip(figures, taken[sizes["runs"]], taken[FEW_RUNS], strict=True)
    ]


def add_runs(first: int, last: int) -> float:
    """Add runs with parameters, curves and test metrics; returns the seconds per run."""
    client, experiment = store()
    params = [Param(name, str(value)) for name, value in Params().flat().items()]
    started = time.perf_counter()
    for number in range(first, last):
        run = client.create_run(experiment, run_name=f"run {number}", tags={"dataset": "MNIST"})
        now = int(1000 * time.time())
        curves = [
            Metric(name, value + number, now, epoch)
            for epoch in range(1, 4)
            for name, value in {**metrics_of(epoch), "test/nll": 85.0}.items()
        ]
        client.log_batch(run.info.run_id, curves, params)
        client.set_terminated(run.info.run_id)
    return (time.perf_counter() - started) / (last - first)


def store() -> tuple[MlflowClient, str]:
    """A client of the store, and the id of the experiment of the stages."""
    client = MlflowClient(tracking.tracking_uri())
    experiment = client.get_experiment_by_name(tracking.EXPERIMENT)
    assert experiment is not None
    return client, str(experiment.experiment_id)


def seconds_of_first_page(url: str) -> float:
    """The median of several requests, after a first one."""
    body = FIRST_PAGE | {"experiment_ids": [store()[1]]}
    times = []
    for _ in range(1 + REQUESTS):
        started = time.perf_counter()
        answer = requests.post(f"{url}/ajax-api/2.0/mlflow/runs/search", json=body, timeout=START_SECONDS)
        times.append(time.perf_counter() - started)
        answer.raise_for_status()
    return statistics.median(times[1:])


@contextmanager
def server() -> Iterator[str]:
    """The server that `make ui` starts, on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command, environment = [sys.executable, "-m", "vae.tracking", "ui"], {**os.environ, "MLFLOW_PORT": str(port)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            yield wait_until_healthy(f"http://127.0.0.1:{port}")
        finally:
            os.killpg(process.pid, signal.SIGTERM)


def wait_until_healthy(url: str) -> str:
    """The server's URL, as soon as it answers."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with suppress(requests.RequestException):
            if requests.get(f"{url}/health", timeout=1).ok:
                return url
        time.sleep(0.2)
    raise VAEError("the MLflow server did not start")


# Command line


@contextmanager
def empty_project() -> Iterator[None]:
    """An empty folder as the current one and as the project's root, so that this project's store is not used."""
    before, here = dict(os.environ), Path.cwd()
    for name in ("MLFLOW_TRACKING_URI", "OPTUNA_STORAGE", "MNIST_DIR"):
        os.environ.pop(name, None)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DVC_ROOT"] = folder
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(here)
            os.environ.clear()
            os.environ.update(before)


PARTS: Mapping[str, Callable[[Sizes], list[Row]]] = {
    "many_loggers": many_loggers,
    "long_study": long_study,
    "long_history": long_history,
    "crowded_store": crowded_store,
}


def parse(arguments: Sequence[str] | None) -> tuple[list[str], dict[str, int]]:
    """The parts to measure, and their sizes."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} [default: all]")
    for name, size in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=size, metavar="N", help=f"[default: {size}]")
    sizes = vars(parser.parse_args(arguments))
    parts = sizes.pop("parts") or list(PARTS)
    if unknown := [name for name in parts if name not in PARTS]:
        parser.error(f"unknown part {', '.join(unknown)}, allowed are {', '.join(PARTS)}")
    for name, size in sizes.items():
        if size < SMALLEST.get(name, 1):
            parser.error(f"--{name} is {size}, allowed is {SMALLEST.get(name, 1)} or more")
    return parts, sizes


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the chosen parts, print the table, and write it if all were measured at full size."""
    parts, sizes = parse(arguments)
    table = pd.DataFrame([row for part in parts for row in PARTS[part](sizes)])
    print("\n" + table.to_markdown(index=False))
    if sizes == SIZES and set(parts) == set(PARTS):
        write_atomically(OUTPUT, table.to_csv(index=False))


if __name__ == "__main__":
    with errors_in_one_line("the same command starts again"):
        main()
