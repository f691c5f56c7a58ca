"""The search as processes that are stopped and killed: the next call resumes it, and the total is exact."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

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

import stack
from search_support import DATASET, small
from support import ENVIRONMENT, ROOT
from vae.errors import SearchError
from vae.search import workers
from vae.search.storage import open_storage
from vae.search.study import DEAD_SECONDS, counted
from vae.tracking.store import SEARCH_EXPERIMENT, mlflow

JOURNAL = "search/study.journal"
STOPPED = 10  # seconds within which Ctrl-C stops the workers
PATIENCE = 600  # seconds; trials take about one, on a fast machine
ENDLESS = "--n_trials=1000"
SEARCH = [sys.executable, "pipeline/search/search.py"]


@pytest.fixture
def tiny(project):
    """A project with a search by two workers whose trials take about a second."""
    project.set(
        {"search.n_trials": 3, "search.epochs": 1, "search.workers": 2, "search.pruner": "none", "search.finalists": 0}
    )
    return project


class Search(subprocess.Popen):
    """A running search. It leads a group of processes, as in a terminal, where Ctrl-C goes to the whole group."""

    def __init__(self, project, *flags, **environment):
        self.output = tempfile.TemporaryFile()  # noqa: SIM115
        pipes = {"stdout": self.output, "stderr": subprocess.STDOUT}
        env = ENVIRONMENT | environment
        super().__init__([*SEARCH, *flags], cwd=project.root, env=env, start_new_session=True, **pipes)

    def printed(self):
        return os.pread(self.output.fileno(), 2**20, 0).decode()  # leaves the position to the process

    def workers(self):
        """The worker processes, without multiprocessing's resource tracker."""
        return [child for child in psutil.Process(self.pid).children() if "spawn_main" in command_of(child)]

    def succeeds(self):
        assert self.wait(PATIENCE) == 0, self.printed()
        assert "Traceback" not in self.printed()
        return self.printed()

    def fails_with(self, error):
        """One line on the error, among those on trials and workers."""
        assert self.wait(PATIENCE) == 1, self.printed()
        assert "Traceback" not in self.printed()
        (line,) = [line for line in self.printed().splitlines() if line.startswith("error: ")]
        assert error in line


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
    """The storage, without creating its tables, and without keeping a connection open: a server allows a hundred."""
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
        if trial not in counts:  # it was run again with its values, those it had got when it was killed
            assert trial.state is TrialState.FAIL
            assert any(trial.params.items() <= again.params.items() for again in counts)


def wait_for(condition, what, seconds=PATIENCE):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"no {what} after {seconds} s"
        time.sleep(0.1)


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
    [("auto", 8, 64, 3, 3, 2), ("auto", 64, 8, 40, 5, 12), (2, 8, 64, 40, 2, 4), (4, 2, 64, 40, 4, 1)],
)
def test_threads_and_memory_are_divided_among_workers(monkeypatch, asked, threads, memory, missing, count, each):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr("psutil.virtual_memory", lambda: Mock(available=memory * 2**30))
    plan = workers.plan(small(workers=asked), missing)
    assert (plan.workers, plan.threads, list(plan.devices)) == (count, each, ["cpu"])


def test_a_worker_can_only_join_a_shared_search():
    with pytest.raises(SearchError, match="set OPTUNA_STORAGE"):
        workers.join(small(), DATASET, "data/raw")


@pytest.mark.slow
def test_the_stage_resumes_a_search_after_a_killed_worker_and_kill_9_and_writes_its_outputs(tiny):
    search = Search(tiny, ENDLESS)
    wait_for(lambda: finished(tiny), "finished trial")
    victim, survivor = search.workers()
    victim.kill()
    wait_for(lambda: "warning: a worker was killed by SIGKILL; 1 left" in search.printed(), "warning")
    search.kill()
    wait_for(lambda: none_left([victim, survivor]), "end of the workers")
    kept = finished(tiny)
    total = len(kept) + 2

    tiny.set({"search.n_trials": total})
    printed = tiny.dvc("repro", "pipeline/search/dvc.yaml")
    assert f"{len(kept)} of {total} trials done" in printed
    trials = trials_of(tiny)
    assert_exact(trials, total)
    assert [trial for trial in trials if trial.number in {each.number for each in kept}] == kept
    stage = YAML(typ="safe").load(tiny / "pipeline/search/dvc.yaml")["stages"]["search"]
    for entry in stage["outs"]:
        assert (tiny / next(iter(entry))).exists(), entry
    assert len(pd.read_csv(tiny / "search/trials.csv")) == total
    client, parent, children = runs_of_the_trials(tiny)
    assert sum(run.data.tags.get("state") == "COMPLETE" for run in children) == total
    assert {run.info.status for run in children} <= {"FINISHED", "KILLED"}
    best = YAML(typ="safe").load(tiny / "search/best_params.yaml")
    assert float(parent.data.tags["best/beta"]) == best["train"]["beta"]
    artifacts = {entry.path for entry in client.list_artifacts(parent.info.run_id)}
    assert {"trials.csv", "best_params.yaml", "pareto_front.png"} <= artifacts


@pytest.mark.slow
def test_finals_that_are_killed_go_on_and_end_as_if_they_had_not_been(tiny):
    tiny.set({"search.finalists": 1, "search.epochs": 1, "train.epochs": 4, "search.workers": 1})
    search = Search(tiny)
    wait_for(lambda: "finals: 0 of 6" in search.printed() and search.printed().count("trial 0:") > 1, "finals")
    search.kill()
    search.wait()
    resumed = Search(tiny).succeeds()
    assert "finals: 0 of" not in resumed
    kept = (tiny / "search/finals.csv").read_text()
    (tiny / "search/study.journal").unlink()
    Search(tiny).succeeds()
    assert (tiny / "search/finals.csv").read_text() == kept


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
    tiny.set({"search.epochs": 20})  # few trials, as long as the experiments take
    tiny.run("git", "commit", "--quiet", "--all", "--message=Search")
    search = Search(tiny, ENDLESS)
    wait_for(lambda: finished(tiny), "finished trial")
    for flags in (["-S", "train.beta=3"], ["--temp", "-S", "train.beta=4"], ["--queue", "-S", "train.beta=5"]):
        tiny.dvc("exp", "run", *flags)
    tiny.dvc("exp", "run", "--run-all")
    tiny.dvc("checkout", "--force")
    assert search.poll() is None, search.printed()
    search.kill()
    search.wait()
    tiny.run("git", "checkout", "--", ".")
    # In a temporary copy of the project, the search resumes the project's own study.
    total = len(finished(tiny)) + 2
    tiny.dvc("exp", "run", "--temp", "pipeline/search/dvc.yaml", "-S", f"search.n_trials={total}")
    assert not list((tiny / ".dvc/tmp/exps").rglob("study.journal"))
    assert_exact(trials_of(tiny), total)


@pytest.mark.slow
def test_ctrl_c_stops_the_workers_at_once_and_queues_their_trials_again(tiny):
    search = Search(tiny, ENDLESS, "--epochs=6")
    wait_for(lambda: finished(tiny), "finished trial")
    family = search.workers()
    os.killpg(search.pid, signal.SIGINT)
    wait_for(lambda: none_left(family), "end of the workers", STOPPED)
    assert search.wait(PATIENCE) == 130
    assert "of 1000 trials are done; the same command resumes the search" in search.printed()
    assert "Traceback" not in search.printed() and "semaphore" not in search.printed()
    assert not [trial for trial in trials_of(tiny) if trial.state is TrialState.RUNNING]
    total = len(finished(tiny)) + 3
    Search(tiny, f"--n_trials={total}", "--epochs=6").succeeds()
    assert_exact(trials_of(tiny), total)


@pytest.mark.slow
def test_a_worker_that_is_stopped_for_a_minute_drops_its_trial_and_goes_on(tiny):
    search = Search(tiny, "--n_trials=6", "--epochs=8")
    wait_for(lambda: finished(tiny), "finished trial")
    stopped, _ = search.workers()
    stopped.suspend()
    time.sleep(3 * DEAD_SECONDS)
    stopped.resume()
    search.succeeds()
    assert_exact(trials_of(tiny), 6)


@pytest.mark.slow
def test_a_truncated_journal_ends_the_search_in_one_line_and_the_next_one_is_exact(tiny):
    search = Search(tiny, ENDLESS)
    wait_for(lambda: len(finished(tiny)) > 1, "finished trials")
    os.truncate(tiny / JOURNAL, (tiny / JOURNAL).stat().st_size // 2)
    search.fails_with("was truncated while a search was running")
    total = len(finished(tiny)) + 3
    Search(tiny, f"--n_trials={total}").succeeds()
    assert_exact(trials_of(tiny), total)


@pytest.mark.slow
def test_of_two_searches_in_one_project_the_second_waits(tiny):
    shutil.rmtree(tiny / "mlruns")
    searches = [Search(tiny, "--n_trials=3", "--workers=1") for _ in range(2)]
    printed = [search.succeeds() for search in searches]
    assert sum("another search is running" in text for text in printed) == 1
    assert_exact(trials_of(tiny), 3)
    assert len(runs_of_the_trials(tiny)[2]) == 3


# Several machines


@pytest.fixture
def postgresql():
    with stack.postgresql() as server:
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
            for storage in storages:  # the server allows a hundred connections
                storage.engine.dispose()


@pytest.mark.slow
def test_a_machine_takes_over_the_trial_of_a_dead_one_in_the_study_that_they_share(tiny, tmp_path, postgresql):
    tiny.set({"search.n_trials": 4, "search.epochs": 8})
    url = postgresql.url

    def is_at_work():
        return [each for each in trials_of(tiny, url) if each.state is TrialState.RUNNING and each.intermediate_values]

    first = Search(tiny.copy(tmp_path / "other"), "--worker", OPTUNA_STORAGE=url)
    wait_for(is_at_work, "trial of the first machine")
    first.kill()
    second = Search(tiny, "--worker", OPTUNA_STORAGE=url)
    assert "hunter2" not in second.succeeds() + first.printed()
    assert_exact(trials_of(tiny, url), 4)
    printed = Search(tiny, OPTUNA_STORAGE=url).succeeds()  # nothing is left to run: it writes the results
    assert "4 of 4 trials done" in printed and "hunter2" not in printed
    assert len(pd.read_csv(tiny / "search/trials.csv")) == 4


@pytest.mark.slow
def test_a_database_that_restarts_during_the_search_ends_nothing(tiny, postgresql):
    search = Search(tiny, "--n_trials=10", "--epochs=6", OPTUNA_STORAGE=postgresql.url)
    wait_for(lambda: finished(tiny, postgresql.url), "finished trial")
    postgresql.stop()
    time.sleep(15)
    postgresql.start()
    assert "hunter2" not in search.succeeds()
    assert_exact(trials_of(tiny, postgresql.url), 10)


@pytest.mark.slow
def test_a_database_that_does_not_come_back_ends_the_search_in_one_line(tiny, postgresql):
    search = Search(tiny, ENDLESS, OPTUNA_STORAGE=postgresql.url)
    wait_for(lambda: finished(tiny, postgresql.url), "finished trial")
    postgresql.stop()
    search.fails_with("the database in OPTUNA_STORAGE was lost")
    assert "hunter2" not in search.printed()
    postgresql.start()


@pytest.mark.slow
def test_workers_on_a_cluster_share_a_study_and_go_on_after_one_was_cancelled(tiny, postgresql, tmp_path):
    tiny.set({"search.n_trials": 6, "search.epochs": 8})
    shutil.copytree(ROOT / "slurm", tiny / "slurm")
    (tiny / ".venv/bin").mkdir(parents=True)
    (tiny / ".venv/bin/activate").touch()  # the suite's environment has the programs
    shared = {"OPTUNA_STORAGE": postgresql.url, "MLFLOW_TRACKING_URI": tiny.store}

    def is_at_work():
        trials = trials_of(tiny, postgresql.url)
        return len([each for each in trials if each.state is TrialState.RUNNING and each.intermediate_values]) == 2

    with stack.slurm(tmp_path) as cluster:
        environment = ENVIRONMENT | cluster | shared
        submit = ["sbatch", "--parsable", "--array=1-2", "slurm/search.sbatch"]
        job = subprocess.check_output(submit, cwd=tiny.root, env=environment, text=True).strip()
        wait_for(is_at_work, "two trials at once")
        subprocess.run(["scancel", f"{job}_1"], env=environment, check=True)
        queue = ["squeue", "--noheader", f"--job={job}"]
        wait_for(lambda: not subprocess.check_output(queue, env=environment), "end of the jobs")
    cancelled, survivor = ((tiny / f"slurm-{job}_{number}.out").read_text() for number in (1, 2))
    assert "no trials are left" in survivor and "no trials are left" not in cancelled
    assert "Traceback" not in survivor + cancelled and "hunter2" not in survivor + cancelled
    assert_exact(trials_of(tiny, postgresql.url), 6)
