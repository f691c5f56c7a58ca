"""The search's processes: their number, starting and watching them, and ending all of them."""

import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import psutil
import torch
from filelock import FileLock, Timeout
from optuna.storages import BaseStorage
from optuna.trial import TrialState
from tqdm import tqdm

from vae import tracking
from vae.config import Params
from vae.device import resolve
from vae.errors import SearchError, VAEError
from vae.search import finals, report
from vae.search.space import current_values, with_values
from vae.search.storage import DATABASE_ERRORS, database_errors_in_one_line, open_storage, search_folder, storage_url
from vae.search.study import MLFLOW_RUN, check_failure_limit, finished, hand_back, in_state, open_study, score
from vae.search.trial import Worker
from vae.tracking.run import Run, ending

STOP_SECONDS = 5.0  # for workers to end after Ctrl-C, before they are killed
GIGABYTES_PER_WORKER = 1.5


@dataclass(frozen=True)
class Plan:
    """The number of workers, the threads of each, and the devices they share."""

    workers: int
    threads: int
    devices: Sequence[str]

    def __str__(self) -> str:
        plural = "" if self.workers == 1 else "s"
        devices = ", ".join(self.devices)
        return f"{self.workers} worker{plural}, {self.threads} of {torch.get_num_threads()} threads each, on {devices}"


def plan(params: Params, missing: int) -> Plan:
    """Divide this machine among workers.

    `auto` is one worker a GPU; on a CPU one a thread that torch would use, as far as memory goes: several small
    trainings side by side are faster than one after the other on all threads. With `train.nproc`, a worker takes that
    many GPUs or threads.
    """
    device, threads, nproc = resolve(params.train).device, torch.get_num_threads(), params.train.nproc
    devices = [str(device)]
    if device.type == "cuda":
        if device.index is None:
            devices = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        if len(devices) < nproc:
            raise SearchError(f"train.nproc is {nproc}, allowed are up to {len(devices)}: one for each CUDA device")
        devices = devices[: len(devices) - nproc + 1 : nproc]  # the first GPU of each worker
    if params.search.workers != "auto":
        count = params.search.workers
    elif device.type == "cpu":
        count = min(threads, int(psutil.virtual_memory().available / 2**30 / GIGABYTES_PER_WORKER)) // nproc
    else:
        count = len(devices)
    count = max(1, min(count, missing))
    return Plan(count, max(1, threads // count), devices)


def search(params: Params, dataset: Mapping[str, Any], folder: Path, results: Path) -> None:
    """Bring the study of `params` to `search.n_trials` trials, and write its results to the folder `results`.

    The finals follow. Trials of an earlier call are kept; those that were interrupted are run again. `folder` holds the
    images, `dataset` is their record. Raises SearchError if the storage fails, all workers die or trial after trial
    fails.
    """
    if "seed" in params.search.space:
        raise SearchError("search.space: seed can't be searched, it would find a lucky one: the finals compare seeds")
    with_values(params, current_values(params))  # raises ConfigError where trials can't have these params
    with _only_search_here(), database_errors_in_one_line():
        tracking.connect(tracking.SEARCH_EXPERIMENT)
        storage = open_storage()
        study = open_study(params, dataset, storage)
        done = len(finished(study))
        print(f"study {study.study_name}: {done} of {params.search.n_trials} trials done", flush=True)
        with tracking.open_run("search", study.user_attrs.get(MLFLOW_RUN, ""), tracking.SEARCH_EXPERIMENT) as run:
            if study.user_attrs.get(MLFLOW_RUN) != run.id:
                study.set_user_attr(MLFLOW_RUN, run.id)
            if done < params.search.n_trials:
                _run_trials(study, storage, params, dataset, folder)
            finalists = None
            if params.search.finalists and params.search.objective == "elbo":
                finalists = _run_finals(study, storage, params, dataset, folder, run.id)
            written = report.write(study, params, results, finalists)
            tracking.log_search(run, report.summary(study, params, finalists), written)
        tracking.sync()
        print(report.closing_table(study, params, results, finalists))


def join(params: Params, dataset: Mapping[str, Any], folder: Path) -> None:
    """Work on the study in this process, beside other machines, until it has all its trials.

    Raises SearchError if there is no shared database, or if trial after trial fails.
    """
    if not storage_url():
        raise SearchError(
            "--worker joins a search in a database that machines share: set OPTUNA_STORAGE=postgresql://… "
            "(on one machine, `make search WORKERS=2` starts the workers itself)"
        )
    with database_errors_in_one_line():
        tracking.connect(tracking.SEARCH_EXPERIMENT)
        name = f"{socket.gethostname()}:{os.getpid()}"
        worker = Worker(params, dataset, folder, name, zlib.crc32(name.encode()))
        print(f"study {worker.study.study_name}: worker {name}", flush=True)
        worker.run(on_trial=lambda trial: print(report.describe(trial, params), flush=True))
        print("no trials are left; `make search` writes the results")


@contextmanager
def _only_search_here() -> Iterator[None]:
    """Let one search run in a project at a time: a second one waits, then finds the trials of the first."""
    lock = FileLock(search_folder() / ".search.lock")
    try:
        acquired = lock.acquire(timeout=0)
    except Timeout:
        print(f"another search is running in {search_folder()}: waiting for it to end", flush=True)
        acquired = lock.acquire()
    with acquired:
        yield


def _run_finals(
    search: optuna.Study, storage: BaseStorage, params: Params, dataset: Mapping[str, Any], folder: Path, parent: str
) -> pd.DataFrame:
    study, final = finals.open_finals(search, params, dataset, storage, parent)
    done = len(finished(study))
    print(f"finals: {done} of {final.search.n_trials} trainings of {final.search.epochs} epochs done", flush=True)
    if done < final.search.n_trials:
        with ending(Run("finals", study.user_attrs.get(MLFLOW_RUN, ""), tracking.SEARCH_EXPERIMENT)):
            _run_trials(study, storage, final, dataset, folder)
    return finals.table(search, study, params)


def _run_trials(
    study: optuna.Study, storage: BaseStorage, params: Params, dataset: Mapping[str, Any], folder: Path
) -> None:
    earlier = {trial.number for trial in finished(study)}
    division = plan(params, params.search.n_trials - len(earlier))
    names = {_name(number) for number in range(division.workers)}
    try:
        with _processes(params, dataset, folder, division) as processes:
            print(division, flush=True)
            errors = _watch(study, processes, params, earlier)
    except KeyboardInterrupt:
        hand_back(study, storage, names)  # of a worker that had to be killed
        raise KeyboardInterrupt(
            f"{len(finished(study))} of {params.search.n_trials} trials are done; the same command resumes the search"
        ) from None
    missing = params.search.n_trials - len(finished(study))
    if missing > 0:
        raise SearchError(
            f"all workers ended with {missing} trials to go; the same command resumes the search. {'; '.join(errors)}"
        )


@contextmanager
def _processes(
    params: Params, dataset: Mapping[str, Any], folder: Path, division: Plan
) -> Iterator[dict[BaseProcess, Connection]]:
    """The running workers, each with the pipe that its error comes through. All are ended when the block is left."""
    context = multiprocessing.get_context("spawn")
    processes: dict[BaseProcess, Any] = {}
    try:
        for number in range(division.workers):
            device = division.devices[number % len(division.devices)]
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(
                target=_work,
                args=(params.replaced({"train.device": device}), dataset, folder, number, division.threads, sender),
                name=_name(number),
                daemon=True,
            )
            # Ctrl-C reaches all processes of a terminal. Workers inherit that it is ignored: they are ended from here.
            # (Blocking the signal wouldn't do: multiprocessing unblocks it when it starts its resource tracker.)
            handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
            process.start()
            signal.signal(signal.SIGINT, handler)
            sender.close()
            processes[process] = receiver
        yield processes
    finally:
        _stop([*processes])


def _name(number: int) -> str:
    """The name of a worker of this search, unique among machines."""
    return f"{socket.gethostname()}:{os.getpid()}:{number}"


def _stop(processes: Sequence[BaseProcess]) -> None:
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + STOP_SECONDS
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


def _work(
    params: Params, dataset: Mapping[str, Any], folder: Path, number: int, threads: int, errors: Connection
) -> None:
    """A worker process."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    tqdm.set_lock(threading.RLock())  # as in _watch: a worker that takes too long to end is killed
    torch.set_num_threads(threads)
    with tracking.tolerant():
        tracking.connect(tracking.SEARCH_EXPERIMENT)
    try:
        with database_errors_in_one_line():
            Worker(params, dataset, folder, multiprocessing.current_process().name, number).run()
    except (VAEError, OSError) as error:  # such as a full disk
        errors.send(str(error))
        sys.exit(1)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # this process is ending


def _end_with_parent() -> None:
    """End this worker if the search ends, even by kill -9."""
    parent = multiprocessing.parent_process()
    if parent:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(STOP_SECONDS)
        os._exit(1)


def _watch(
    study: optuna.Study, processes: Mapping[BaseProcess, Connection], params: Params, earlier: set[int]
) -> list[str]:
    """Show each trial that ends until all workers have ended; returns why those ended that did so too early."""
    shown = set(earlier)
    errors: dict[str, str] = {}
    tqdm.set_lock(threading.RLock())  # its own lock, for several processes, would be left behind by an interruption
    with tqdm(total=params.search.n_trials, initial=len(shown), unit="trial", disable=None, dynamic_ncols=True) as bar:
        while True:
            alive = [process for process in processes if process.is_alive()]
            with suppress(*DATABASE_ERRORS):  # the workers wait for the database, or end
                _show_finished(study, shown, bar, params)
                check_failure_limit(study, earlier)
            for process, pipe in processes.items():
                if process not in alive and process.exitcode and process.name not in errors:
                    errors[process.name] = error = _ending(process, pipe)
                    _say(bar, f"warning: a worker {error}; {len(alive)} left")
            if not alive:
                return list(dict.fromkeys(errors.values()))
            wait([process.sentinel for process in alive], timeout=0.5)


def _show_finished(study: optuna.Study, shown: set[int], bar: "tqdm[Any]", params: Params) -> None:
    trials = finished(study)
    for trial in trials:
        if trial.number not in shown:
            shown.add(trial.number)
            _say(bar, report.describe(trial, params))
            bar.update()
    running = len(in_state(study, TrialState.RUNNING))
    best = report.best_trial(trials)
    bar.set_postfix_str(f"{running} running" + (f", best {score(best):.2f}" if best else ""))


def _say(bar: "tqdm[Any]", line: str) -> None:
    """Print a line above the bar, at once also where the output is a file."""
    bar.write(line)
    sys.stdout.flush()


def _ending(process: BaseProcess, pipe: Connection) -> str:
    code = process.exitcode or 0
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    try:
        return f"ended: {pipe.recv()}" if pipe.poll() else f"ended with exit code {code}"
    except EOFError:
        return f"ended with exit code {code}"
