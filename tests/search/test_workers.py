"""The search as processes: really started, really killed; what they leave, and that the next call carries on."""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import optuna
import pandas as pd
import psutil
import pytest
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from ruamel.yaml import YAML

from support import ENVIRONMENT
from vae.search.study import JOURNAL, STALE_SECONDS, counted, finished
from vae.tracking.store import SEARCH_EXPERIMENT, mlflow

pytestmark = pytest.mark.slow

ENDED = 10  # seconds within which a search that is told to stop has left nothing behind
PATIENCE = 120
SEARCH = [sys.executable, "pipeline/search/search.py"]


@pytest.fixture
def small(project):
    """A project with a small search, whose trials take about a second."""
    project.set({"search.n_trials": 4, "search.epochs": 1, "search.workers": 2, "search.pruner": "none"})
    return project


def start(project, *flags, **environment):
    return subprocess.Popen(
        [*SEARCH, *flags],
        cwd=project.root,
        env=ENVIRONMENT | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # like a terminal's foreground: Ctrl-C goes to the whole group
    )


def outcome(process):
    out, _ = process.communicate(timeout=PATIENCE)
    return process.returncode, out


def trials_of(project):
    """The trials of the project's one study; an unreadable journal fails the test."""
    path = project / JOURNAL
    if not path.exists() or not path.stat().st_size:
        return []
    storage = JournalStorage(JournalFileBackend(str(path)))
    names = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=names[0], storage=storage).trials if names else []


def wait_for(condition, what, seconds=PATIENCE):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"no {what} after {seconds} s"
        time.sleep(0.05)


def workers_of(search):
    """The search's worker processes: not what keeps account of their semaphores, nor git, which they ask."""
    return [child for child in psutil.Process(search.pid).children() if "spawn_main" in command_of(child)]


def command_of(process):
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has ended meanwhile
        return ""


def is_alive(process):
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def none_left(processes):
    return not any(map(is_alive, processes))


def children_of_the_search(project):
    client = mlflow.MlflowClient(project.store)
    runs = client.search_runs([client.get_experiment_by_name(SEARCH_EXPERIMENT).experiment_id])
    (parent,) = [run for run in runs if run.info.run_name == "search"]
    children = [run for run in runs if run is not parent]
    assert all(run.data.tags["mlflow.parentRunId"] == parent.info.run_id for run in children)
    return client, parent, children


def test_the_stage_writes_its_outputs_and_a_larger_total_adds_the_difference(small):
    first = small.dvc("repro", "pipeline/search/dvc.yaml")
    assert "2 workers, 1 of 1 threads each, on cpu" in first
    stage = YAML(typ="safe").load(small / "pipeline/search/dvc.yaml")["stages"]["search"]
    for entry in stage["outs"] + stage["plots"]:
        assert (small / next(iter(entry))).exists(), entry
    client, parent, children = children_of_the_search(small)
    assert sorted(int(run.data.tags["trial"]) for run in children) == [0, 1, 2, 3]
    assert {run.data.tags["state"] for run in children} == {"COMPLETE"}
    best = YAML(typ="safe").load(small / "search/best_params.yaml")
    assert float(parent.data.tags["best/beta"]) == best["train"]["beta"]
    artifacts = {entry.path for entry in client.list_artifacts(parent.info.run_id)}
    assert {"trials.csv", "best_params.yaml", "pareto_front.png"} <= artifacts

    assert "didn't change" in small.dvc("repro", "pipeline/search/dvc.yaml")
    before = trials_of(small)
    more = small.run(*SEARCH, "--n_trials=6", "--workers=1")
    after = trials_of(small)
    assert after[:4] == before and len(after) == 6
    assert "4 of 6 trials done" in more and more.count(": −ELBO ") == 2
    assert len(pd.read_csv(small / "search/trials.csv")) == 6
    assert len(children_of_the_search(small)[2]) == 6


def test_a_search_survives_every_kind_of_end(small):
    chance = random.Random(0)
    flags = ("--n_trials=12", "--epochs=6")

    # One worker dies: the other one goes on, with its trial too.
    search = start(small, *flags)
    wait_for(lambda: finished(trials_of(small)), "finished trial")
    time.sleep(chance.random())
    workers = workers_of(search)
    victim = chance.choice(workers)
    victim.kill()
    survived = len(finished(trials_of(small)))
    wait_for(lambda: len(finished(trials_of(small))) >= survived + 2, "trials of the other worker")
    assert search.poll() is None

    # The search itself dies: its workers do not outlive it.
    time.sleep(chance.random())
    search.kill()
    _, printed = outcome(search)
    assert "a worker was killed by SIGKILL, 1 left" in printed
    wait_for(lambda: none_left(workers), "end of the workers", ENDED)
    kept = [trial for trial in trials_of(small) if trial.state is TrialState.COMPLETE]

    # Ctrl-C: it ends at once, says how to go on, and doesn't end in success.
    search = start(small, *flags)
    wait_for(lambda: len(finished(trials_of(small))) > len(kept), "finished trial")
    time.sleep(chance.random())
    workers = workers_of(search)
    interrupted = time.monotonic()
    os.killpg(search.pid, signal.SIGINT)
    code, printed = outcome(search)
    assert time.monotonic() - interrupted < ENDED
    assert code == 130 and "of 12 trials are kept, and the same command carries on" in printed, printed
    assert "Traceback" not in printed and "semaphore" not in printed
    assert none_left(workers)
    assert not [trial for trial in trials_of(small) if trial.state is TrialState.RUNNING]

    # The last call finds all that was done, and brings it to the total.
    code, printed = outcome(start(small, *flags, "--workers=1"))
    assert code == 0, printed
    trials = trials_of(small)
    assert [trial for trial in trials if trial.number in {t.number for t in kept}] == kept
    counts = counted(trials)
    assert [trial.state for trial in counts] == [TrialState.COMPLETE] * 12
    assert max(Counter(tuple(trial.params.values()) for trial in counts).values()) == 1
    died = [trial for trial in trials if trial not in counts]
    assert len(died) >= 2 and {trial.state for trial in died} == {TrialState.FAIL}
    for trial in died:  # each was run again with the values that it had
        assert trial.params == {} or trial.params in [again.params for again in counts]
    _, _, children = children_of_the_search(small)
    assert {run.info.status for run in children} == {"FINISHED", "KILLED"}
    assert sum(run.data.tags.get("state") == "COMPLETE" for run in children) == 12
    assert len(pd.read_csv(small / "search/trials.csv")) == 12


def test_two_searches_at_once_on_fresh_stores(small):
    shutil.rmtree(small / "mlruns")
    searches = [start(small, "--n_trials=3", "--workers=1") for _ in range(2)]
    outcomes = [outcome(search) for search in searches]
    assert [code for code, _ in outcomes] == [0, 0], outcomes
    assert sum("another search is running" in printed for _, printed in outcomes) == 1
    assert [trial.state for trial in trials_of(small)] == [TrialState.COMPLETE] * 3
    assert len(children_of_the_search(small)[2]) == 3


def test_bad_input_ends_in_one_line_and_loses_nothing(small):
    (small / JOURNAL).parent.mkdir()
    optuna.create_study(storage=JournalStorage(JournalFileBackend(str(small / JOURNAL)))).ask()
    before = (small / JOURNAL).read_bytes()
    code, printed = outcome(start(small, OPTUNA_STORAGE="postgresql://a:b@127.0.0.1:1/c"))
    assert code == 1 and len(printed.splitlines()) == 1, printed
    assert printed.startswith("error: OPTUNA_STORAGE postgresql://a:***@127.0.0.1:1/c can't be used")
    (small / JOURNAL).write_bytes(before.replace(b"{", b"[", 1))
    code, printed = outcome(start(small))
    assert code == 1 and len(printed.splitlines()) == 1, printed
    assert printed.startswith("error: search/study.journal is damaged")
    assert (small / JOURNAL).read_bytes() == before.replace(b"{", b"[", 1)


# Several machines


@contextmanager
def postgresql():
    """A PostgreSQL server of its own on loopback; yields the URL of an empty database."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin")) or [Path(shutil.which("initdb") or "nowhere").parent]
    if not (programs[-1] / "initdb").exists():
        pytest.skip("PostgreSQL is not installed (Debian, Ubuntu: apt install postgresql)")
    user = "postgres" if os.getuid() == 0 else None  # it refuses to run as root
    folder = Path(tempfile.mkdtemp(prefix="vae-postgresql-"))
    try:
        if user:
            shutil.chown(folder, user)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        options = {"user": user, "cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
        data = folder / "data"
        subprocess.run([programs[-1] / "initdb", "-D", data, "-U", "optuna", "--auth=trust"], check=True, **options)
        settings = ["-c", "listen_addresses=127.0.0.1", "-p", str(port), "-k", folder, "-c", "fsync=off"]
        server = subprocess.Popen([programs[-1] / "postgres", "-D", data, *settings], **options)
        try:
            ready = [programs[-1] / "pg_isready", "-h", "127.0.0.1", "-p", str(port)]
            wait_for(lambda: subprocess.run(ready, **options).returncode == 0, "PostgreSQL", 30)
            yield f"postgresql://optuna@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(signal.SIGINT)
            server.wait()
    finally:
        shutil.rmtree(folder)


def test_machines_share_a_study_and_one_takes_over_from_a_dead_one(small, tmp_path):
    small.set({"search.n_trials": 6, "search.epochs": 8})
    other = small.copy(tmp_path / "other")  # of its own: only the database keeps the two from the same trial
    with postgresql() as url:
        first, second = (start(machine, "--worker", OPTUNA_STORAGE=url) for machine in (other, small))
        storage = None

        def trials():
            nonlocal storage
            try:
                storage = storage or RDBStorage(url, skip_compatibility_check=True, skip_table_creation=True)
                (name,) = optuna.get_all_study_names(storage)
                return optuna.load_study(study_name=name, storage=storage).trials
            except Exception:  # the workers are still making the tables
                return []

        def at_work():
            running = [trial for trial in trials() if trial.state is TrialState.RUNNING]
            return {trial.user_attrs["worker"] for trial in running if trial.intermediate_values}  # an epoch, at least

        wait_for(lambda: len(at_work()) == 2, "trials of both workers")
        wait_for(lambda: any(name.endswith(f":{first.pid}") for name in at_work()), "trial of the first worker")
        first.kill()
        killed = time.monotonic()
        assert outcome(first)[0] == -signal.SIGKILL
        code, printed = outcome(second)
        assert code == 0, printed
        assert time.monotonic() - killed < STALE_SECONDS + 60
        counts = counted(trials())
        assert [trial.state for trial in counts] == [TrialState.COMPLETE] * 6
        (dead,) = [trial for trial in trials() if trial not in counts]
        assert dead.user_attrs["worker"].endswith(f":{first.pid}")
        (again,) = [trial for trial in counts if trial.system_attrs.get("retry_history") == [dead.number]]
        assert again.params == dead.params and again.user_attrs["worker"].endswith(f":{second.pid}")

        # The search on one of the machines finds nothing left to run, and writes the results.
        code, printed = outcome(start(small, OPTUNA_STORAGE=url))
        assert code == 0 and "6 of 6 trials done" in printed, printed
        assert [trial.params for trial in counted(trials_of(small))] == [trial.params for trial in counts]
        if storage:
            storage.engine.dispose()
    assert len(pd.read_csv(small / "search/trials.csv")) == 6
