"""Trials of several processes each: the same results, pruned and ended like others, failures in one line."""

import json
import subprocess
import sys

import psutil
import pytest

from search_support import small
from vae.errors import ProcessError
from vae.search import workers
from vae.search.group import train_in_processes, visible_gpus

TWO = {"train__nproc": 2, "train__optimizer": "adam"}


def children():
    return psutil.Process().children(recursive=True)


@pytest.fixture
def before():
    """The processes of earlier tests, such as those that torch.compile keeps."""
    return children()


@pytest.mark.slow
def test_trials_of_two_processes_have_the_values_of_one(here, before):
    params = small(n_trials=2, **TWO)
    alone = here.search(params.replaced({"train.nproc": 1}))
    together = here.search(params)
    assert [trial.params for trial in together.trials] == [trial.params for trial in alone.trials]
    for trial, reference in zip(together.trials, alone.trials, strict=True):
        assert trial.user_attrs["curve"] == pytest.approx(reference.user_attrs["curve"], rel=1e-4)
    assert set(children()) <= set(before)


@pytest.mark.slow
def test_a_callback_that_raises_ends_all_processes(here, before):
    def prune(record):
        assert record["epoch"] == 1
        raise KeyError("pruned")

    with pytest.raises(KeyError, match="pruned"):
        train_in_processes(small(epochs=50, **TWO), here.dataset, here.raw, prune)
    assert set(children()) <= set(before)


@pytest.mark.slow
def test_a_process_that_is_killed_fails_the_trial_in_one_line(here, before):
    def kill(record):
        if record["epoch"] == 1:
            (launcher,) = [child for child in psutil.Process().children() if child not in before]
            launcher.children()[-1].kill()

    params = small(**TWO).replaced({"train.epochs": 50})
    with pytest.raises(ProcessError, match=r"^process \d of 2 was killed \(SIGKILL\)"):
        train_in_processes(params, here.dataset, here.raw, kill)
    assert set(children()) <= set(before)


@pytest.mark.slow
def test_the_processes_end_with_a_worker_that_is_killed(here):
    program = (
        "import json, sys\nfrom vae.config import Params\nfrom vae.search.group import train_in_processes\n"
        "params, dataset, folder = json.loads(sys.argv[1])\n"
        "train_in_processes(Params.model_validate(params), dataset, folder, lambda record: print(record, flush=True))"
    )
    params = small(**TWO).replaced({"train.epochs": 10_000})
    given = json.dumps([params.model_dump(mode="json"), here.dataset, str(here.raw)])
    with subprocess.Popen([sys.executable, "-c", program, given], stdout=subprocess.PIPE) as worker:
        worker.stdout.readline()
        processes = psutil.Process(worker.pid).children(recursive=True)
        worker.kill()
    assert len(processes) >= 3
    assert not psutil.wait_procs(processes, timeout=60)[1]


def test_a_worker_takes_as_many_threads_or_gpus_as_a_trial_has_processes(monkeypatch):
    monkeypatch.setattr(workers.torch, "get_num_threads", lambda: 8)
    assert workers.plan(small(workers="auto", train__nproc=4), 10).workers == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert visible_gpus(2, 2) == "6,7"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert visible_gpus(2, 2) == "2,3"
