"""The search as processes: really started, stopped and killed; the next call resumes it with an exact total."""

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
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import optuna
import pandas as pd
import psutil
import pytest
import sqlalchemy
import torch
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from ruamel.yaml import YAML

from search_support import DATASET, small
from support import ENVIRONMENT
from vae.errors import SearchError
from vae.search import workers
from vae.search.storage import open_storage
from vae.search.study import DEAD_SECONDS, counted
from vae.tracking.store import SEARCH_EXPERIMENT, mlflow

JOURNAL = "search/study.journal"
ENDED = 10  # seconds after which a search that was told to stop has ended, with its workers
PATIENCE = 180
SEARCH = [sys.executable, "pipeline/search/search.py"]


@pytest.fixture
def tiny(project):
    """A project with a search by two workers whose trials take about a second."""
    project.set({"search.n_trials": 3, "search.epochs": 1, "search.workers": 2, "search.pruner": "none"})
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


def trials_of(project, url=None):
    """The trials of the project's one study; an unreadable journal fails the test."""
    path = project / JOURNAL
    if url is None and (not path.exists() or not path.stat().st_size):
        return []
    try:
        storage = opened(url) if url else JournalStorage(JournalFileBackend(str(path)))
        names = optuna.get_all_study_names(storage)
        return optuna.load_study(study_name=names[0], storage=storage).trials if names else []
    except Exception:
        if url:  # the workers are still creating the tables, or the database is restarting
            return []
        raise


def opened(url):
    """The storage once the search has created its study: opening it earlier would create the tables' versions twice.

    It leaves no connection open: a server allows a hundred.
    """
    with sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool).connect() as connection:
        assert connection.scalar(sqlalchemy.text("SELECT count(*) FROM studies"))
    return RDBStorage(url, engine_kwargs={"poolclass": sqlalchemy.NullPool}, skip_table_creation=True)


def finished(project, url=None):
    return [trial for trial in counted(trials_of(project, url)) if trial.state.is_finished()]


def assert_exact(trials, total):
    counts = counted(trials)
    assert [trial.state for trial in counts] == [TrialState.COMPLETE] * total
    assert max(Counter(tuple(trial.params.values()) for trial in counts).values()) == 1
    for trial in trials:
        if trial not in counts:  # it was run again with its values
            assert trial.state is TrialState.FAIL
            assert trial.params == {} or trial.params in [again.params for again in counts]


def wait_for(condition, what, seconds=PATIENCE):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"no {what} after {seconds} s"
        time.sleep(0.1)


def workers_of(search):
    """The search's worker processes, without multiprocessing's resource tracker."""
    return [child for child in psutil.Process(search.pid).children() if "spawn_main" in command_of(child)]


def command_of(process):
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has ended meanwhile
        return ""


def none_left(processes):
    def is_alive(process):
        try:
            return process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    return not any(map(is_alive, processes))


def runs_of_the_trials(project):
    client = mlflow.MlflowClient(project.store)
    runs = client.search_runs([client.get_experiment_by_name(SEARCH_EXPERIMENT).experiment_id])
    (parent,) = [run for run in runs if run.info.run_name == "search"]
    children = [run for run in runs if run is not parent]
    assert all(run.data.tags["mlflow.parentRunId"] == parent.info.run_id for run in children)
    return client, parent, children


@pytest.mark.parametrize(
    ("asked", "threads", "memory", "missing", "count", "each"),
    [
        ("auto", 8, 64, 40, 8, 1),
        ("auto", 8, 64, 3, 3, 2),
        ("auto", 64, 8, 40, 5, 12),
        (2, 8, 64, 40, 2, 4),
        (4, 2, 64, 40, 4, 1),
    ],
)
def test_threads_and_memory_are_divided_among_workers(monkeypatch, asked, threads, memory, missing, count, each):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": memory * 2**30}))
    plan = workers.plan(small(workers=asked), missing)
    assert (plan.workers, plan.threads, list(plan.devices)) == (count, each, ["cpu"])


def test_a_worker_can_only_join_a_shared_search(monkeypatch):
    monkeypatch.delenv("OPTUNA_STORAGE", raising=False)
    with pytest.raises(SearchError, match="set OPTUNA_STORAGE"):
        workers.join(small(), DATASET, "data/raw")


@pytest.mark.slow
def test_the_stage_writes_its_outputs_and_survives_a_killed_worker_and_a_killed_search(tiny):
    # A worker and then the search itself are killed: no worker outlives the search.
    tiny.set({"search.epochs": 3})
    search = start(tiny)
    wait_for(lambda: finished(tiny), "finished trial")
    victim, survivor = workers_of(search)
    victim.kill()
    wait_for(lambda: none_left([victim]), "end of the worker")
    time.sleep(1)
    search.kill()
    _, printed = outcome(search)
    assert "warning: a worker was killed by SIGKILL; 1 left" in printed
    wait_for(lambda: none_left([survivor]), "end of the workers", ENDED)
    kept = finished(tiny)

    # The stage resumes: what was done is kept, what was interrupted is run again.
    printed = tiny.dvc("repro", "pipeline/search/dvc.yaml")
    assert f"{len(kept)} of 3 trials done" in printed
    trials = trials_of(tiny)
    assert_exact(trials, 3)
    assert [trial for trial in trials if trial.number in {each.number for each in kept}] == kept
    stage = YAML(typ="safe").load(tiny / "pipeline/search/dvc.yaml")["stages"]["search"]
    for entry in stage["outs"] + stage["plots"]:
        assert (tiny / next(iter(entry))).exists(), entry
    assert len(pd.read_csv(tiny / "search/trials.csv")) == 3
    client, parent, children = runs_of_the_trials(tiny)
    assert sum(run.data.tags.get("state") == "COMPLETE" for run in children) == 3
    assert {run.info.status for run in children} <= {"FINISHED", "KILLED"}
    assert {run.data.tags["trial"] for run in children} <= {str(trial.number) for trial in trials}
    best = YAML(typ="safe").load(tiny / "search/best_params.yaml")
    assert float(parent.data.tags["best/beta"]) == best["train"]["beta"]
    artifacts = {entry.path for entry in client.list_artifacts(parent.info.run_id)}
    assert {"trials.csv", "best_params.yaml", "pareto_front.png"} <= artifacts


@pytest.mark.slow
def test_dvc_and_git_leave_the_journal_of_an_interrupted_search_alone(tiny):
    (tiny / "search").mkdir(exist_ok=True)
    study = optuna.create_study(storage=JournalStorage(JournalFileBackend(str(tiny / JOURNAL))))
    study.tell(study.ask(), 1.0)
    study.ask()  # it was interrupted
    before = (tiny / JOURNAL).read_bytes()
    for command in (["exp", "run", "-S", "render.dpi=31"], ["checkout", "--force"], ["repro"]):
        tiny.dvc(*command)
        assert (tiny / JOURNAL).read_bytes() == before, command
    (tiny / "params.yaml").write_text((tiny / "params.yaml").read_text() + "# changed")
    (tiny / "note").touch()
    tiny.run("git", "stash", "--include-untracked")
    tiny.run("git", "stash", "pop")
    assert (tiny / JOURNAL).read_bytes() == before
    assert JOURNAL not in tiny.run("git", "status", "--porcelain")


@pytest.mark.slow
def test_experiments_beside_a_running_search_and_searches_in_experiments_share_one_exact_study(tiny):
    tiny.set({"search.epochs": 4})
    tiny.run("git", "commit", "--quiet", "--all", "--message=Search")
    search = start(tiny, "--n_trials=1000")
    wait_for(lambda: finished(tiny), "finished trial")
    for flags in (["-S", "train.beta=3"], ["--temp", "-S", "train.beta=4"], ["--queue", "-S", "train.beta=5"]):
        tiny.dvc("exp", "run", *flags)
        assert search.poll() is None
    tiny.dvc("exp", "run", "--run-all")
    tiny.dvc("checkout", "--force")
    search.kill()
    outcome(search)
    wait_for(lambda: finished(tiny), "journal")
    tiny.run("git", "checkout", "--", ".")
    # In a temporary copy of the project, the search resumes the project's own study.
    total = len(finished(tiny)) + 2
    tiny.dvc("exp", "run", "--temp", "pipeline/search/dvc.yaml", "-S", f"search.n_trials={total}")
    assert not list((tiny / ".dvc/tmp/exps").rglob("study.journal"))
    assert_exact(trials_of(tiny), total)


@pytest.mark.slow
def test_ctrl_c_ends_the_search_at_once_and_queues_its_trials_again(tiny):
    flags = ("--n_trials=8", "--epochs=6")
    search = start(tiny, *flags)
    wait_for(lambda: finished(tiny), "finished trial")
    time.sleep(random.Random(0).random())
    family = workers_of(search)
    interrupted = time.monotonic()
    os.killpg(search.pid, signal.SIGINT)
    code, printed = outcome(search)
    assert time.monotonic() - interrupted < ENDED
    assert code == 130 and "of 8 trials are done; the same command resumes the search" in printed, printed
    assert "Traceback" not in printed and "semaphore" not in printed
    assert none_left(family)
    assert not [trial for trial in trials_of(tiny) if trial.state is TrialState.RUNNING]
    code, printed = outcome(start(tiny, *flags, "--workers=1"))
    assert code == 0, printed
    assert_exact(trials_of(tiny), 8)


@pytest.mark.slow
def test_a_worker_that_is_stopped_for_a_minute_drops_its_trial_and_goes_on(tiny):
    search = start(tiny, "--n_trials=6", "--epochs=8")
    wait_for(lambda: finished(tiny), "finished trial")
    stopped, _ = workers_of(search)
    stopped.suspend()
    time.sleep(3 * DEAD_SECONDS)
    stopped.resume()
    code, printed = outcome(search)
    assert code == 0 and "Traceback" not in printed, printed
    assert_exact(trials_of(tiny), 6)


@pytest.mark.slow
def test_a_truncated_journal_ends_the_search_in_one_line_and_the_next_one_is_exact(tiny):
    search = start(tiny, "--n_trials=20")
    wait_for(lambda: len(finished(tiny)) > 1, "finished trials")
    os.truncate(tiny / JOURNAL, (tiny / JOURNAL).stat().st_size // 2)
    code, printed = outcome(search)
    assert code == 1 and "Traceback" not in printed, printed
    (error,) = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert "was truncated while a search was running" in error
    code, printed = outcome(start(tiny, "--n_trials=4"))
    assert code == 0, printed
    assert_exact(trials_of(tiny), 4)


@pytest.mark.slow
def test_of_two_searches_in_one_project_the_second_waits(tiny):
    shutil.rmtree(tiny / "mlruns")
    searches = [start(tiny, "--n_trials=3", "--workers=1") for _ in range(2)]
    outcomes = [outcome(search) for search in searches]
    assert [code for code, _ in outcomes] == [0, 0], outcomes
    assert sum("another search is running" in printed for _, printed in outcomes) == 1
    assert_exact(trials_of(tiny), 3)
    assert len(runs_of_the_trials(tiny)[2]) == 3


@pytest.mark.slow
def test_bad_storage_ends_in_one_line_and_nothing_is_lost(tiny):
    (tiny / JOURNAL).parent.mkdir()
    (tiny / JOURNAL).write_bytes(b"[]\n")
    for url, error in (
        ("postgresql://a:secret@127.0.0.1:1/c", "OPTUNA_STORAGE postgres"),
        ("", f"{tiny / JOURNAL} is"),
    ):
        code, printed = outcome(start(tiny, OPTUNA_STORAGE=url))
        assert code == 1 and len(printed.splitlines()) == 1, printed
        assert printed.startswith(f"error: {error}") and "secret" not in printed
    assert (tiny / JOURNAL).read_bytes() == b"[]\n"


# Several machines


class PostgreSQL:
    """A PostgreSQL server of its own on loopback, with an empty database at `url`."""

    def __init__(self, folder):
        self.programs = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path("nowhere"))
        if not (self.programs / "initdb").exists():
            pytest.skip("PostgreSQL is not installed (Debian, Ubuntu: apt install postgresql)")
        user = "postgres" if os.getuid() == 0 else None  # it refuses to run as root
        if user:
            shutil.chown(folder, user)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder, self.url = folder, f"postgresql://optuna:hunter2@127.0.0.1:{self.port}/postgres"
        self.options = {"user": user, "cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
        initialize = [self.programs / "initdb", "-D", folder / "data", "-U", "optuna", "--auth=trust"]
        subprocess.run(initialize, check=True, **self.options)

    def start(self):
        settings = ["-c", "listen_addresses=127.0.0.1", "-p", str(self.port), "-k", self.folder, "-c", "fsync=off"]
        program = [self.programs / "postgres", "-D", self.folder / "data", *settings]
        self.server = subprocess.Popen(program, **self.options)
        ready = [self.programs / "pg_isready", "-h", "127.0.0.1", "-p", str(self.port)]
        wait_for(lambda: subprocess.run(ready, **self.options).returncode == 0, "PostgreSQL", 30)

    def stop(self):
        self.server.send_signal(signal.SIGINT)  # cuts all connections
        self.server.wait()


@pytest.fixture
def postgresql():
    @contextmanager
    def running():
        folder = Path(tempfile.mkdtemp(prefix="vae-postgresql-"))
        try:
            server = PostgreSQL(folder)
            server.start()
            yield server
            server.stop()
        finally:
            shutil.rmtree(folder)

    with running() as server:
        yield server


@pytest.mark.slow
def test_processes_that_create_the_tables_at_once_all_get_a_storage(postgresql, monkeypatch):
    server = sqlalchemy.create_engine(postgresql.url, isolation_level="AUTOCOMMIT")
    with server.connect() as connection, ThreadPoolExecutor(8) as pool:
        for name in ("a", "b", "c", "d", "e"):
            connection.execute(sqlalchemy.text(f"CREATE DATABASE {name}"))
            monkeypatch.setenv("OPTUNA_STORAGE", postgresql.url.removesuffix("postgres") + name)
            storages = [future.result() for future in [pool.submit(open_storage) for _ in range(8)]]
            assert all(storage.get_all_studies() == [] for storage in storages)


@pytest.mark.slow
def test_machines_share_a_study_and_one_takes_over_from_a_dead_one(tiny, tmp_path, postgresql):
    tiny.set({"search.n_trials": 6, "search.epochs": 8})
    url = postgresql.url
    machines = [tiny.copy(tmp_path / "other"), tiny]  # only the database keeps the two from the same trial
    first, second = (start(machine, "--worker", OPTUNA_STORAGE=url) for machine in machines)

    def at_work():
        running = [trial for trial in trials_of(tiny, url) if trial.state is TrialState.RUNNING]
        return {trial.user_attrs["worker"] for trial in running if trial.intermediate_values}

    wait_for(lambda: any(name.endswith(f":{first.pid}") for name in at_work()), "trial of the first worker")
    first.kill()
    assert outcome(first)[0] == -signal.SIGKILL
    code, printed = outcome(second)
    assert code == 0 and "hunter2" not in printed, printed
    assert_exact(trials_of(tiny, url), 6)
    code, printed = outcome(start(tiny, OPTUNA_STORAGE=url))  # nothing is left to run: it writes the results
    assert code == 0 and "6 of 6 trials done" in printed and "hunter2" not in printed, printed
    assert len(pd.read_csv(tiny / "search/trials.csv")) == 6


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0, 15])
def test_a_database_that_restarts_during_the_search_ends_nothing(tiny, postgresql, seconds):
    search = start(tiny, "--n_trials=10", "--epochs=6", OPTUNA_STORAGE=postgresql.url)
    wait_for(lambda: finished(tiny, postgresql.url), "finished trial")
    postgresql.stop()
    time.sleep(seconds)
    postgresql.start()
    code, printed = outcome(search)
    assert code == 0 and "Traceback" not in printed and "hunter2" not in printed, printed
    assert_exact(trials_of(tiny, postgresql.url), 10)


@pytest.mark.slow
def test_a_database_that_does_not_come_back_ends_the_search_in_one_line(tiny, postgresql):
    search = start(tiny, "--n_trials=10", "--epochs=6", OPTUNA_STORAGE=postgresql.url)
    wait_for(lambda: finished(tiny, postgresql.url), "finished trial")
    postgresql.stop()
    code, printed = outcome(search)
    postgresql.start()
    assert code == 1 and "Traceback" not in printed and "hunter2" not in printed, printed
    (error,) = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert "the database in OPTUNA_STORAGE was lost" in error
