"""A training killed at any moment and started again ends as if it had not been killed. (`make torture` kills more.)"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch

from support import ENVIRONMENT
from vae.config import load_params
from vae.device import Hardware
from vae.tracking.store import mlflow
from vae.workflow.stages import checkpoint_folder

KILLS = int(os.environ.get("KILLS", "6"))
EPOCHS = 12
# A checkpoint must hold all of it: the state of two optimizers and schedules, the best epoch, random states.
TRAINED = {
    "train.epochs": EPOCHS,
    "train.optimizer": "muon",
    "train.lr_schedule": "one_cycle",
    "train.learning_rate": 0.1,  # high enough that some epochs are no better than the best
    "train.muon_learning_rate": 0.2,
    "train.early_stopping_patience": EPOCHS,
    "model.prior": "gaussian_mixture",
    "model.prior_components": 20,
}
EXIT_CODES = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 128 + signal.SIGTERM, signal.SIGINT: 130}

# Imports take seconds: one process does them once, and each attempt is a fork of it, which is really killed.
LAUNCHER = """
import json, os, runpy, sys, time
import vae.workflow.tracked_training
import mlflow.store.tracking.sqlalchemy_store, sklearn.model_selection, torch._dynamo

for line in sys.stdin:
    order = json.loads(line)
    started = time.monotonic()
    child = os.fork()
    if not child:
        log = os.open("attempts.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        fsync, calls = os.fsync, 0
        def counted(descriptor):
            global calls
            calls += 1
            if calls == order.get("write"):
                os.kill(os.getpid(), order["signal"])
            fsync(descriptor)
        os.fsync = counted
        sys.argv = ["pipeline/train.py"]
        runpy.run_path("pipeline/train.py", run_name="__main__")
        sys.exit()
    if "seconds" in order:
        time.sleep(order["seconds"])
        os.kill(child, order["signal"])
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), time.monotonic() - started, flush=True)
"""


@contextmanager
def launcher(project):
    """A function that runs the train stage once and interrupts it as ordered: exit status and seconds."""
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER],
        cwd=project.root,
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def attempt(**order):
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()
        status, seconds = process.stdout.readline().split()
        return int(status), float(seconds)

    try:
        yield attempt
    finally:
        process.stdin.close()
        process.wait()


def outputs(project):
    paths = ("models/vae.safetensors", "metrics/history.csv", "metrics/train.json")
    return {path: (project / path).read_bytes() for path in paths}


def assert_one_whole_run(project, epochs):
    """The training's run in the store is finished, with each epoch once and all files; no checkpoints are left."""
    client = mlflow.MlflowClient(project.store)
    run_id = json.loads((project / "models/run.json").read_text())["run_id"]
    assert client.get_run(run_id).info.status == "FINISHED"
    points = client.get_metric_history(run_id, "val/neg_elbo")
    assert [point.step for point in points] == list(range(1, epochs + 1))
    assert {file.path for file in client.list_artifacts(run_id)} == {"vae.safetensors", "history.csv", "images"}
    assert not list((project / ".ckpt/train").iterdir())
    return run_id


@pytest.mark.slow
def test_a_training_killed_at_any_moment_ends_as_if_it_had_not_been(project):
    # Half of the kills are in the middle of a write: at the n-th flush of a file or folder.
    project.set(TRAINED)
    moments = random.Random(0)
    signals = [signal.SIGTERM, signal.SIGINT, signal.SIGKILL, signal.SIGKILL]
    killed, trainings = 0, 0
    with launcher(project) as attempt:
        status, seconds = attempt()
        log = project / "attempts.log"
        assert status == 0, log.read_text()
        expected = outputs(project)
        assert b",0\n" in expected["metrics/history.csv"]  # not every epoch was better
        while killed < KILLS:
            for folder in ("models", "metrics"):  # DVC deletes the outputs of a stage before it runs it
                shutil.rmtree(project / folder)
            while killed < KILLS:
                number = signals[killed % len(signals)]
                if moments.random() < 0.5:
                    status, _ = attempt(signal=number, write=moments.randint(1, 40))
                else:
                    status, _ = attempt(signal=number, seconds=moments.uniform(0.1, 0.7) * seconds)
                if status == 0:
                    break
                # Python restores the default handlers when it starts and ends: the signal itself then ends the process.
                assert status in (EXIT_CODES[number], -number), log.read_text()
                killed += 1
            else:
                status, _ = attempt()
            trainings += 1
            assert status == 0, log.read_text()
            assert outputs(project) == expected
            assert_one_whole_run(project, EPOCHS)
        assert "Traceback" not in log.read_text()
    print(f"killed {killed} times, in {trainings} trainings of {seconds:.1f} s")


def test_checkpoints_belong_to_the_params_data_and_code_that_dvc_lists(project, monkeypatch):
    monkeypatch.chdir(project.root)
    params, cpu = load_params(project / "params.yaml"), Hardware(torch.device("cpu"), "fp32", compile=False)

    def folder(hardware=cpu, **values):
        changed = params.replaced({name.replace("__", "."): value for name, value in values.items()})
        return checkpoint_folder("train", changed, hardware)

    ours = folder()
    assert ours.parent == project.root / ".ckpt/train"
    assert folder(evaluate__importance_samples=9, render__dpi=50, search__n_trials=7) == ours
    others = [folder(train__beta=2.0), folder(seed=1), folder(model__latent_dim=3), folder(data__validation_size=400)]
    others.append(folder(Hardware(torch.device("cpu"), "bf16", compile=False)))
    for file in ("src/vae/tracking/store.py", "src/vae/plots/report.py"):
        (project / file).write_text("# not listed in dvc.yaml for this stage")
    assert folder() == ours
    for file in ("src/vae/training/objectives.py", "data/raw/train-labels-idx1-ubyte.gz", "data/dataset.json"):
        (project / file).write_bytes((project / file).read_bytes() + b"\n")
        others.append(folder())
    assert len({ours, *others}) == 9


@pytest.mark.slow
def test_dvc_repro_resumes_a_killed_training_in_the_same_run(project):
    project.set({"train.epochs": 40})
    stage = project.start(sys.executable, "-m", "dvc", "repro", "train", until="epoch   5/40")
    os.killpg(stage.pid, signal.SIGKILL)  # as when the machine goes down
    stage.communicate()
    (folder,) = (project / ".ckpt/train").iterdir()
    run_id = (folder / "run_id").read_text()
    assert len(list(folder.glob("*.pt"))) == 2

    project.set({"evaluate.importance_samples": 9})  # which the training doesn't depend on
    printed = project.dvc("repro", "train")
    assert "epoch   2/40" not in printed
    assert "epoch  40/40" in printed
    assert assert_one_whole_run(project, 40) == run_id


@pytest.mark.slow
def test_ctrl_c_says_how_to_resume_and_a_second_process_leaves_the_checkpoints_alone(project, runs_of):
    project.set({"train.epochs": 400})
    command = [sys.executable, "pipeline/train.py"]
    first = project.start(*command, until="epoch   3/400")
    second = project.start(*command, until="epoch   1/400")
    second.kill()
    assert "can't be resumed" in second.communicate()[1]
    first.send_signal(signal.SIGINT)
    _, errors = first.communicate(timeout=180)
    assert first.returncode == 130
    assert errors == "interrupted: the same command resumes it\n"
    (run,) = [run for run in runs_of(project) if run.info.status == "KILLED"]
    assert run.data.metrics["val/neg_elbo"] > 0
