"""The train stage with `train.nproc`: the same files and run as with one process, also after one was killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest

import stack
from support import ENVIRONMENT, ROOT, Project

pytestmark = pytest.mark.slow
TRAIN = [sys.executable, "pipeline/train.py"]


def workers(process):
    """The training processes, the one that logs first."""
    found = [child for child in psutil.Process(process.pid).children() if "pipeline/train.py" in child.cmdline()]
    return sorted(found, key=lambda child: int(child.environ()["RANK"]))


def test_dvc_repro_with_two_processes_and_a_kill(project, tmp_path, runs_of):
    project.set({"train.epochs": 30})
    alone = project.copy(tmp_path / "alone")
    alone.run(*TRAIN)
    earlier = {run.info.run_id for run in runs_of(project)}
    project.set({"train.nproc": 2})
    stage = project.start(*TRAIN, until="epoch   3/30")
    _, second = workers(stage)
    second.kill()
    _, errors = stage.communicate(timeout=180)
    assert stage.returncode == 1
    assert errors.endswith("error: process 1 of 2 was killed (SIGKILL)\n")
    assert errors.count("error: ") == 1
    assert "Traceback" not in errors

    project.set({"train.nproc": 1})  # resumes with another number of processes
    printed = project.run(*TRAIN)
    assert "resuming after epoch" in printed
    (run,) = [run for run in runs_of(project) if run.info.run_id not in earlier]
    assert run.info.status == "FINISHED"
    assert run.info.run_id == json.loads((project / "models/run.json").read_text())["run_id"]
    ours, theirs = (json.loads((each / "metrics/train.json").read_text()) for each in (project, alone))
    assert ours["val/neg_elbo"] == pytest.approx(theirs["val/neg_elbo"], rel=2e-3)


def test_torchrun_restarts_a_training_whose_processes_are_killed(project, tmp_path):
    project.set({"train.epochs": 30, "seed": 1})
    undisturbed = project.copy(tmp_path / "undisturbed")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--max-restarts=2"]
    undisturbed.run(*torchrun, *TRAIN[1:])
    stage = project.start(*torchrun, *TRAIN[1:], until="epoch   3/30")
    for victim in (1, 0):
        workers(stage)[victim].kill()
        assert any(line.startswith("resuming after epoch") for line in stage.stdout)
        assert any(line.startswith("epoch") for line in stage.stdout)
    _, errors = stage.communicate(timeout=180)
    assert stage.returncode == 0, errors
    assert "Traceback" not in errors
    for output in ("models/vae.safetensors", "metrics/history.csv", "metrics/train.json"):
        assert (project / output).read_bytes() == (undisturbed / output).read_bytes(), output


@pytest.fixture
def two_hosts():
    """Two network namespaces, joined by a cable, as the commands that run a program in them."""
    hosts, ends = [f"vae{os.getpid()}-{number}" for number in (1, 2)], ["vae-end-1", "vae-end-2"]
    ip = shutil.which("ip", path=f"{os.environ['PATH']}:/usr/sbin")
    if not ip:
        pytest.skip("the program ip is missing: apt install iproute2")
    try:
        commands = [["netns", "add", host] for host in hosts]
        commands += [["link", "add", ends[0], "netns", hosts[0], "type", "veth", "peer", ends[1], "netns", hosts[1]]]
        for number, (host, end) in enumerate(zip(hosts, ends, strict=True), 1):
            commands += [["-n", host, "address", "add", f"10.77.0.{number}/24", "dev", end]]
            commands += [["-n", host, "link", "set", name, "up"] for name in (end, "lo")]
        for command in commands:
            if error := subprocess.run([ip, *command], capture_output=True, text=True).stderr:
                pytest.skip(f"no network namespaces can be made here: {error}")
        yield [
            [ip, "netns", "exec", host, "env", f"GLOO_SOCKET_IFNAME={end}"]
            for host, end in zip(hosts, ends, strict=True)
        ]
    finally:
        for host in hosts:
            subprocess.run([ip, "netns", "delete", host], capture_output=True)


def test_torchrun_on_two_hosts_trains_the_weights_of_one(project, tmp_path, two_hosts):
    project.set({"seed": 2})
    one_host = project.copy(tmp_path / "one")
    one_host.run(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", *TRAIN[1:])
    flags = ["--nnodes=2", "--rdzv-backend=c10d", "--rdzv-endpoint=10.77.0.1:29400", "--rdzv-id=test"]
    agents = []
    for number, host in enumerate(two_hosts, 1):
        # torchrun would find the store's host by the machine's name, which both share.
        own = [f"--local-addr=10.77.0.{number}", f"--rdzv-conf=is_host={number == 1}"]
        command = [*host, sys.executable, "-m", "torch.distributed.run", *flags, *own, *TRAIN[1:]]
        agents.append(subprocess.Popen(command, cwd=project.root, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True))
    errors = [agent.communicate(timeout=180)[1] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], errors
    for output in ("models/vae.safetensors", "metrics/history.csv", "metrics/train.json"):
        assert (project / output).read_bytes() == (one_host / output).read_bytes(), output


def test_a_process_that_hangs_ends_in_an_error(project: Project):
    project.set({"train.epochs": 4000, "train.nproc": 2, "train.timeout": 20.0})
    stage = project.start(*TRAIN, until="epoch   3/4000")
    _, second = workers(stage)
    second.suspend()
    started = time.monotonic()
    _, errors = stage.communicate(timeout=240)
    assert time.monotonic() - started > 19
    assert stage.returncode == 1
    assert "error: process 0 of 2 lost the others: " in errors
    assert "did not answer for 20 s (train.timeout)\n" in errors
    assert "Traceback" not in errors


def test_ctrl_c_ends_all_processes_and_says_how_to_resume(project):
    project.set({"train.epochs": 4000, "train.nproc": 2})
    stage = project.start(*TRAIN, until="epoch   3/4000")
    both = workers(stage)
    os.killpg(stage.pid, signal.SIGINT)
    _, errors = stage.communicate(timeout=180)
    assert stage.returncode == 130
    assert "interrupted: the same command resumes it\n" in errors
    assert "Traceback" not in errors
    assert not any(each.is_running() for each in both)


def test_an_evaluation_by_several_processes_is_that_of_one(project):
    command = [sys.executable, "pipeline/evaluate.py"]
    metrics = ("evaluation.json", "per_class.csv")
    project.run(*command)
    alone = [(project / "metrics" / name).read_bytes() for name in metrics]
    project.set({"train.nproc": 3})
    project.run(*command)
    assert [(project / "metrics" / name).read_bytes() for name in metrics] == alone


def test_a_training_on_a_cluster(project, tmp_path):
    shutil.copytree(ROOT / "slurm", project / "slurm")
    (project / ".venv/bin").mkdir(parents=True)
    (project / ".venv/bin/activate").touch()  # the suite's environment has the programs
    project.set({"seed": 1})
    with stack.slurm(tmp_path) as cluster:
        submit = ["sbatch", "--wait", "--cpus-per-task=1", "slurm/train.sbatch"]
        job = subprocess.run(submit, cwd=project.root, env=ENVIRONMENT | cluster | {"NPROC": "2"}, check=False)
    (output,) = project.root.glob("slurm-*.out")
    assert job.returncode == 0, output.read_text()
    assert output.read_text().count("best epoch") == 1
    assert (project / "models/run.json").stat().st_mtime > (project / "params.yaml").stat().st_mtime
