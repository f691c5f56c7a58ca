"""The search's processes: how many, starting them, watching them, and leaving none behind."""

import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import optuna
import psutil
import torch
from filelock import FileLock, Timeout
from optuna.trial import TrialState
from tqdm import tqdm

from vae.config import Params
from vae.device import resolve
from vae.errors import SearchError, VAEError
from vae.search import results
from vae.search.study import FOLDER, MLFLOW_RUN, finished, in_state, open_storage, open_study, retry_dead, storage_url
from vae.search.trial import Worker, failures, require_hope
from vae.tracking import store as tracking
from vae.tracking.run import tolerant

STOP_SECONDS = 5.0  # for workers to end after Ctrl-C, before they are killed; all of it is promised within ten
NAMING_SECONDS = 10.0  # within which a worker has surely put its name to a trial that it took
GIGABYTES_PER_WORKER = 1.5


@dataclass(frozen=True)
class Plan:
    """How many workers, with how many threads each, on which devices."""

    workers: int
    threads: int
    devices: Sequence[str]

    def __str__(self) -> str:
        plural = "" if self.workers == 1 else "s"
        return f"{self.workers} worker{plural}, {self.threads} of {torch.get_num_threads()} threads each, on " + (
            ", ".join(self.devices)
        )


def plan(params: Params, missing: int) -> Plan:
    """Divide this machine among workers.

    `auto` is one worker a GPU; on a CPU one a thread that torch would use, as far as memory goes: several small
    trainings side by side are faster than one after the other on all threads.
    """
    device, threads = resolve(params.train).device, torch.get_num_threads()
    devices = [str(device)]
    if device.type == "cuda" and device.index is None:
        devices = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if params.search.workers != "auto":
        count = params.search.workers
    elif device.type == "cpu":
        count = min(threads, int(psutil.virtual_memory().available / 2**30 / GIGABYTES_PER_WORKER))
    else:
        count = len(devices)
    count = max(1, min(count, missing))
    return Plan(count, max(1, threads // count), devices)


def search(params: Params, dataset: Mapping[str, Any], folder: Path) -> None:
    """Bring the study of `params` to `search.n_trials` trials, and write what was found to `search/`.

    Trials of an earlier call stay; those that died in it are run again. `folder` holds the images, `dataset` is
    their record. Raises SearchError where the storage, all workers or the first trials fail.
    """
    with _only_search_here():
        tracking.connect(tracking.SEARCH_EXPERIMENT)
        study = open_study(params, dataset, open_storage())
        died = retry_dead(study, set(), 0)
        done = finished(study.get_trials(deepcopy=False))
        missing = params.search.n_trials - len(done)
        print(f"study {study.study_name}: {len(done)} of {params.search.n_trials} trials done", end="")
        print(f", {died} died and will be run again" if died else "", flush=True)
        with tracking.run("search", run_id=study.user_attrs.get(MLFLOW_RUN)) as run:
            if study.user_attrs.get(MLFLOW_RUN) != run.id:
                study.set_user_attr(MLFLOW_RUN, run.id)
            if missing > 0:
                _run_trials(study, params, dataset, folder, plan(params, missing))
            written = results.write(study, params)
            tracking.log_search(run, results.summary(study, params), written)
        print(results.closing_table(study, params))


def join(params: Params, dataset: Mapping[str, Any], folder: Path) -> None:
    """Work on the study in this process, beside other machines, until it has all its trials.

    Raises SearchError where there is no database to share, or the first trials fail.
    """
    if not storage_url():
        raise SearchError(
            "--worker joins a search in a database that machines share: set OPTUNA_STORAGE=postgresql://… "
            "(on one machine, `make search WORKERS=2` starts the workers itself)"
        )
    # Not as KeyboardInterrupt, which Optuna would record as a failure of the trial: this one is to be run again.
    signal.signal(signal.SIGINT, lambda *_: sys.exit(128 + signal.SIGINT))
    tracking.connect(tracking.SEARCH_EXPERIMENT)
    name = f"{socket.gethostname()}:{os.getpid()}"
    worker = Worker(params, dataset, folder, name, zlib.crc32(name.encode()))
    print(f"study {worker.study.study_name}: {name} joins", flush=True)
    worker.run(on_trial=lambda trial: print(results.describe(trial), flush=True))
    print("no trials are left; `make search` writes the results")


@contextmanager
def _only_search_here() -> Iterator[None]:
    """Two searches in one folder would take each other's trials for dead ones: the second waits."""
    FOLDER.mkdir(exist_ok=True)
    lock = FileLock(FOLDER / ".search.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"another search is running in {FOLDER.resolve()}: waiting for it to end", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _run_trials(study: optuna.Study, params: Params, dataset: Mapping[str, Any], folder: Path, division: Plan) -> None:
    before = failures(study)
    try:
        with _processes(params, dataset, folder, division) as processes:
            print(division, flush=True)
            _watch(study, processes, params, before)
    except KeyboardInterrupt:
        kept = len(finished(study.get_trials(deepcopy=False)))
        raise KeyboardInterrupt(
            f"{kept} of {params.search.n_trials} trials are kept, and the same command carries on"
        ) from None
    finally:
        retry_dead(study, set(), 0)
    missing = params.search.n_trials - len(finished(study.get_trials(deepcopy=False)))
    if missing > 0:
        raise SearchError(
            f"all workers ended ({', '.join(_ending(process) for process in processes)}) with {missing} trials to "
            "go: the same command carries on"
        )


@contextmanager
def _processes(params: Params, dataset: Mapping[str, Any], folder: Path, division: Plan) -> Iterator[list[BaseProcess]]:
    """The running workers, all of them ended when the block is left."""
    context = multiprocessing.get_context("spawn")
    processes: list[BaseProcess] = []
    try:
        for number in range(division.workers):
            device = division.devices[number % len(division.devices)]
            process = context.Process(
                target=_work,
                args=(params.replaced({"train.device": device}), dataset, folder, number, division.threads),
                name=f"{socket.gethostname()}:{os.getpid()}:{number}",
                daemon=True,
            )
            # Ctrl-C reaches all processes of a terminal. Workers inherit that it is ignored: they are ended from here.
            # (A blocked signal wouldn't do: multiprocessing unblocks it when it starts its resource tracker.)
            handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
            process.start()
            signal.signal(signal.SIGINT, handler)
            processes.append(process)
        yield processes
    finally:
        _stop(processes)


def _stop(processes: Sequence[BaseProcess]) -> None:
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + STOP_SECONDS
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


def _work(params: Params, dataset: Mapping[str, Any], folder: Path, number: int, threads: int) -> None:
    """A worker process."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    tqdm.set_lock(threading.RLock())  # as in _watch: a worker that takes too long to end is killed
    torch.set_num_threads(threads)
    with tolerant():
        tracking.connect(tracking.SEARCH_EXPERIMENT)
    try:
        Worker(params, dataset, folder, multiprocessing.current_process().name, number).run()
    except SearchError:
        sys.exit(1)  # the process that watches says it, once for all
    except VAEError as error:
        sys.exit(f"error: {error}")


def _end_with_parent() -> None:
    """However the search ends, even by kill -9: no worker outlives it."""
    parent = multiprocessing.parent_process()
    if parent:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(STOP_SECONDS)
        os._exit(1)


def _watch(study: optuna.Study, processes: Sequence[BaseProcess], params: Params, failures_before: int) -> None:
    """Show each trial that ends, queue those of dead workers again, and return when all workers have ended."""
    shown = {trial.number for trial in finished(study.get_trials(deepcopy=False))}
    reported: set[str] = set()
    tqdm.set_lock(threading.RLock())  # its own lock, for several processes, would be left behind by an interruption
    with tqdm(total=params.search.n_trials, initial=len(shown), unit="trial", disable=None, dynamic_ncols=True) as bar:
        while True:
            alive = [process for process in processes if process.is_alive()]
            for process in processes:
                if process not in alive and process.exitcode and process.name not in reported:
                    reported.add(process.name)
                    _say(bar, f"warning: a worker {_ending(process)}, {len(alive)} left; its trial is run again")
            retry_dead(study, {process.name for process in alive}, NAMING_SECONDS)
            _show_ended(study, shown, bar)
            require_hope(study, failures_before)
            if not alive:
                return
            wait([process.sentinel for process in alive], timeout=0.5)


def _show_ended(study: optuna.Study, shown: set[int], bar: "tqdm[Any]") -> None:
    ended = finished(study.get_trials(deepcopy=False))
    for trial in ended:
        if trial.number not in shown:
            shown.add(trial.number)
            _say(bar, results.describe(trial))
            bar.update()
    running = len(in_state(study, TrialState.RUNNING))
    best = results.best_trial(ended)
    bar.set_postfix_str(f"{running} running" + (f", best −ELBO {results.neg_elbo(best):.2f}" if best else ""))


def _say(bar: "tqdm[Any]", line: str) -> None:
    """Print a line above the bar, at once also where the output is a file."""
    bar.write(line)
    sys.stdout.flush()


def _ending(process: BaseProcess) -> str:
    code = process.exitcode or 0
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
