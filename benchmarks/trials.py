"""What a search asks of the servers that machines share: of PostgreSQL, and of MLflow's server.

`make trials` runs workers whose trainings take no time, with the servers of docs/team.md on this machine, which
OPTUNA_STORAGE and MLFLOW_TRACKING_URI name. It prints what a trial costs them, and writes benchmarks/trials.json.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import optuna
import psutil
import requests
from sqlalchemy import NullPool, create_engine, make_url, text

from vae import tracking
from vae.config import Params
from vae.files import write_json
from vae.search.space import distributions
from vae.search.trial import Worker
from vae.tracking.store import tracking_uri
from vae.training.loop import OnEpoch
from vae.workflow.command_line import errors_in_one_line
from vae.workflow.stages import RAW, read_dataset

OUTPUT = Path(__file__).with_name("trials.json")
CLIENTS = 4
METRICS = (  # of an epoch
    *("train/loss", "train/reconstruction", "train/kl", "train/neg_elbo", "train/beta", "train/learning_rate"),
    *("train/seconds", "train/images_per_second", "val/reconstruction", "val/kl", "val/neg_elbo", "val/seconds"),
)
TRIALS = (40, 80)  # in all, after each part of the measurement
COUNTS = "xact_commit, tup_inserted + tup_updated, pg_database_size(datname)"


def worker(trials: int, number: int) -> None:
    """Work on the study until it has so many trials, and print the number of requests to MLflow."""
    params, requested = params_of(trials), 0
    send = requests.Session.send

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal requested
        requested += 1
        return send(*arguments, **options)

    def fit(model: Any, *_: Any, on_epoch: OnEpoch, **options: Any) -> None:
        for epoch in range(1, params.search.epochs + 1):
            on_epoch({"epoch": epoch, **dict.fromkeys(METRICS, 100 / epoch + number), "improved": 1})

    with patch("vae.search.group.fit", fit), patch("requests.Session.send", counted):
        tracking.connect(tracking.SEARCH_EXPERIMENT)
        Worker(params, read_dataset(), RAW, f"client-{number}", number).run()
    print(requested)


def params_of(trials: int) -> Params:
    """The default search with so many trials, none of which is pruned: each reports all of its epochs."""
    return Params().replaced({"search.n_trials": trials, "search.pruner": "none"})


def cpu_seconds(port: int) -> float:
    """CPU time of the server that listens on a port of this machine, with all of its processes."""
    listening = {c.pid for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr.port == port}
    servers = [psutil.Process(pid) for pid in listening if pid]
    times = [each.cpu_times() for server in servers[:1] for each in (server, *server.children(recursive=True))]
    return float(sum(t.user + t.system + t.children_user + t.children_system for t in times))


def counts() -> SimpleNamespace:
    """Counts since the servers started: of each database, and CPU time."""
    time.sleep(2)  # PostgreSQL counts what a connection did when it has been idle for a second
    storage = make_url(os.environ["OPTUNA_STORAGE"])
    with create_engine(storage, poolclass=NullPool).connect() as connection:
        query = text(f"SELECT datname, {COUNTS} FROM pg_stat_database WHERE datname IN ('optuna', 'mlflow')")
        databases = {row[0]: row[1:] for row in connection.execute(query)}
    ports = {"postgresql": storage.port or 5432, "mlflow": make_url(tracking_uri()).port or 80}
    return SimpleNamespace(databases=databases, cpu={name: cpu_seconds(port) for name, port in ports.items()})


def sampler_seconds(trials: int) -> float:
    """CPU time in which the sampler chooses values, after so many trials in this process's memory."""
    space = distributions(Params())
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    for _ in range(trials):
        trial = study.ask(space)
        study.tell(trial, trial.number)
    study.sampler = optuna.samplers.TPESampler(seed=0)
    study.ask(space)
    started = time.process_time()
    study.ask(space)
    return time.process_time() - started


def main() -> None:
    """Measure, print, and write benchmarks/trials.json."""
    sampler = {trials: round(sampler_seconds(trials), 4) for trials in (100, 1000, 10_000)}
    print(f"CPU seconds of the sampler, by the number of earlier trials: {sampler}", flush=True)
    tracking.connect(tracking.SEARCH_EXPERIMENT)
    result: dict[str, Any] = {"epochs": Params().search.epochs, "clients": CLIENTS, "sampler": sampler, "a_trial": {}}
    done = 0
    for trials in TRIALS:
        before, started = counts(), time.perf_counter()
        commands = [[sys.executable, __file__, str(trials), str(number)] for number in range(CLIENTS)]
        clients = [subprocess.Popen(command, stdout=subprocess.PIPE) for command in commands]
        requested = sum(int(client.communicate()[0].splitlines()[-1]) for client in clients)
        seconds, after, new = time.perf_counter() - started, counts(), trials - done
        facts = {"requests to MLflow": requested / new}
        for name, values in after.databases.items():
            difference = [(now - then) / new for now, then in zip(values, before.databases[name], strict=True)]
            units = ("transactions", "rows written", "bytes")
            facts |= {f"{name} {unit}": value for unit, value in zip(units, difference, strict=True)}
        facts |= {f"CPU seconds of {name}": (now - before.cpu[name]) / new for name, now in after.cpu.items()}
        result["a_trial"][f"{done}-{trials}"] = {name: round(value, 3) for name, value in facts.items()}
        print(f"trials {done} to {trials} in {seconds:.0f} s, each on average:", flush=True)
        print("".join(f"  {name:32}{value:>12,.2f}\n" for name, value in facts.items()), end="", flush=True)
        done = trials
    write_json(OUTPUT, result)


if __name__ == "__main__":
    with errors_in_one_line("nothing was written"):
        worker(*map(int, sys.argv[1:])) if len(sys.argv) > 1 else main()
