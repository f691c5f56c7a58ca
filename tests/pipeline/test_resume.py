"""Training killed at any moment and started again ends as if it had never been killed: `make torture` for longer."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager

import pandas as pd
import pytest
import torch

from support import ENVIRONMENT
from vae.config import load_params
from vae.device import Hardware
from vae.files import sha256
from vae.tracking.run import mlflow
from vae.workflow.stages import checkpoint_folder

KILLS = int(os.environ.get("KILLS", "20"))
EPOCHS = 12
# Everything that a checkpoint has to hold: momenta of two optimisers, schedules, the best epoch, random states.
TRAINED = {
    "train.epochs": EPOCHS,
    "train.optimizer": "muon",
    "train.lr_schedule": "one_cycle",
    "train.learning_rate": 0.1,  # high enough for epochs that are not better
    "train.muon_learning_rate": 0.2,
    "train.early_stopping_patience": EPOCHS,
    "model.prior": "gaussian_mixture",
    "model.prior_components": 20,
}

# Imports take seconds: one process has them behind it, and each attempt is a fork of that one, killed for real.
LAUNCHER = """
import json, os, runpy, signal, sys, time
import vae.tracked
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
    """A function that runs the train stage once, disturbed as it is told: exit status and seconds."""
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


def trained(project):
    """What a training leaves, without its times: weights' checksum, history, summary."""
    history = pd.read_csv(project / "metrics/history.csv")
    summary = json.loads((project / "metrics/train.json").read_text())
    return (
        sha256(project / "models/vae.safetensors"),
        history.drop(columns=[name for name in history if "second" in name]).to_csv(),
        {name: value for name, value in summary.items() if "seconds" not in name},
    )


def the_run(project):
    """The training's run as it is in the store: status, epochs in their order, files."""
    client = mlflow.MlflowClient(project.store)
    run_id = json.loads((project / "models/run.json").read_text())["run_id"]
    steps = [point.step for point in client.get_metric_history(run_id, "val/neg_elbo")]
    files = {file.path for file in client.list_artifacts(run_id)}
    return client.get_run(run_id).info.status, steps, files


def whole_run(epochs=EPOCHS):
    return "FINISHED", list(range(1, epochs + 1)), {"vae.safetensors", "history.csv"}


@pytest.mark.slow
def test_a_training_killed_at_any_moment_ends_as_if_it_had_not_been(project):
    """Also in the middle of a write: at the n-th flush of a file or folder, of a checkpoint, weights or the history."""
    project.set(TRAINED)
    moments = random.Random(0)
    killed, trainings = 0, 0
    with launcher(project) as attempt:
        status, seconds = attempt()
        assert status == 0, (project / "attempts.log").read_text()
        expected = trained(project)
        assert (project / "metrics/history.csv").read_text().count(",0\n")  # not every epoch was better
        while killed < KILLS:
            for output in ("models", "metrics"):  # DVC deletes a stage's outputs before it runs it
                shutil.rmtree(project / output)
            while killed < KILLS:
                number = moments.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
                if moments.random() < 0.5:
                    status, _ = attempt(signal=number, write=moments.randint(1, 40))
                else:
                    status, _ = attempt(signal=number, seconds=moments.uniform(0.1, 0.7) * seconds)
                if status == 0:
                    break
                killed += 1
            else:
                status, _ = attempt()
            trainings += 1
            assert status == 0, (project / "attempts.log").read_text()
            assert trained(project) == expected
            assert the_run(project) == whole_run()
            assert not list((project / ".ckpt/train").iterdir())
    print(f"killed {killed} times, in {trainings} trainings of {seconds:.1f} s")


@pytest.mark.slow
def test_checkpoints_are_those_of_the_parameters_data_and_code_that_dvc_lists(project, monkeypatch):
    monkeypatch.chdir(project.root)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    params, cpu = load_params(project / "params.yaml"), Hardware(torch.device("cpu"), "fp32", compile=False)

    def folder(hardware=cpu, **values):
        return checkpoint_folder(
            "train", params.replaced({name.replace("__", "."): values[name] for name in values}), hardware
        )

    ours = folder()
    assert ours.parent == project.root / ".ckpt/train"
    assert folder(evaluate__importance_samples=9, render__dpi=50, search__n_trials=7) == ours
    others = [
        folder(train__beta=2.0),
        folder(seed=1),
        folder(model__latent_dim=3),
        folder(data__validation_size=400),
        folder(Hardware(torch.device("cpu"), "bf16", compile=False)),
    ]
    (project / "src/vae/tracking.py").write_text("# nothing that dvc.yaml lists for the stage")
    assert folder() == ours
    for file in ("src/vae/objective.py", "data/raw/train-labels-idx1-ubyte.gz", "data/dataset.json"):
        (project / file).write_bytes((project / file).read_bytes() + b"\n")
        others.append(folder())
    assert len({ours, *others}) == 9


@pytest.mark.slow
def test_dvc_repro_goes_on_in_the_same_run(project):
    project.set({"train.epochs": 40})
    stage = project.start(sys.executable, "-m", "dvc", "repro", "train", until="epoch   5/40")
    os.killpg(stage.pid, signal.SIGKILL)  # as when the machine goes down
    stage.communicate()
    (folder,) = (project / ".ckpt/train").iterdir()
    run_id = (folder / "run_id").read_text()
    assert len(list(folder.glob("*.pt"))) == 2

    project.set({"evaluate.importance_samples": 9})  # which is nothing to the training
    printed = project.dvc("repro", "train")
    assert "going on after epoch" in printed
    assert "epoch   2/40" not in printed
    assert json.loads((project / "models/run.json").read_text())["run_id"] == run_id
    assert the_run(project) == whole_run(40)
    assert not list((project / ".ckpt/train").iterdir())


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on_and_a_second_process_leaves_the_checkpoints_alone(project):
    project.set({"train.epochs": 400})
    command = [sys.executable, "pipeline/train.py"]
    first = project.start(*command, until="epoch   3/400")
    second = project.start(*command, until="epoch   1/400")
    second.kill()
    assert "another process is at the same training" in second.communicate()[1]
    first.send_signal(signal.SIGINT)
    _, errors = first.communicate(timeout=60)
    assert first.returncode == 130
    assert errors == "interrupted: the same command resumes it\n"
