"""`make register`, `promote`, `rollback`, `why` and `restore`: what moves, what is refused, and what comes back."""

import re
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from dvc.repo import Repo
from ruamel.yaml import YAML

from mlflow_server import Server
from registry_support import HARDNESS, add_version
from support import ENVIRONMENT, ROOT, Outcome, Project, stage_process
from vae import tracking
from vae.files import sha256
from vae.tracking import registry
from vae.workflow.command_line import errors_in_one_line
from vae.workflow.registry import main, uncommitted

PROTOCOL = {"importance_samples": 500, "binarization": "dynamic", "split": "test", "images_sha256": "ab12" * 16}
BETTER, WORSE = -1.0, 1.0  # nats


@pytest.fixture
def command(tmp_path, empty_store, monkeypatch, called):
    """Runs a command in a project that has a store and params.yaml, where versions can be added: an `Outcome`."""
    (tmp_path / "mlruns").mkdir()
    shutil.copy(empty_store, tmp_path / "mlruns")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    tracking.connect()

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["registry", *arguments])
        return called(in_one_line)

    def in_one_line():
        with errors_in_one_line("again"):
            main()

    return run


def champion():
    return registry.look_up("vae-mnist").aliases.get("champion")


def test_a_better_challenger_becomes_champion_and_rollback_goes_back(command):
    add_version(b"a", **PROTOCOL)
    assert command("promote").succeeds().out == "no challenger; champion: vae-mnist version 1\n"
    add_version(b"b", shift=BETTER, **PROTOCOL)
    out = command("promote").succeeds().out
    table, last = out.rsplit("\n", 2)[0].splitlines(), out.splitlines()[-1]
    assert max(map(len, table)) <= 80
    (row,) = [line for line in table if line.startswith("challenger")]
    assert row.split()[:2] == ["challenger", "2"] and float(row.split()[3]) == pytest.approx(
        HARDNESS.mean() - 1, abs=0.1
    )
    mean, error = map(float, re.search(r"−(\d\.\d+) ± (\d\.\d+) nats, 200 images", out).groups())
    assert (mean, error) == (pytest.approx(1, abs=0.1), pytest.approx(0.3 * (2 / 200) ** 0.5, rel=0.2))
    assert last.startswith("champion: vae-mnist version 2, instead of version 1") and champion() == "2"
    assert registry.find("vae-mnist").tags["promoted.difference"] == f"−{mean:.3f} ± {error:.3f} nats from version 1"
    assert command("promote").succeeds().out == "no challenger; champion: vae-mnist version 2\n"
    command("rollback").succeeds()
    assert champion() == "1"
    command("rollback").fails_with("vae-mnist has no earlier champion than 1")


@pytest.mark.parametrize("shift", [WORSE, 0.0])  # with the same mean, the difference is within two standard errors
def test_a_challenger_that_is_not_better_stays_one_unless_a_reason_is_given_and_recorded(command, shift):
    add_version(b"a", **PROTOCOL)
    add_version(b"b", shift=shift, **PROTOCOL)
    command("promote").fails_with("version 2 stays challenger", "two standard errors", 'FORCE="reason"')
    assert champion() == "1"
    command("promote", "--force=half the size").succeeds()
    tags = registry.find("vae-mnist@champion").tags
    assert (champion(), tags["promoted.force"]) == ("2", "half the size")
    assert tags["promoted.difference"].endswith("nats from version 1")


@pytest.mark.parametrize(
    ("name", "value"),
    [("importance_samples", 100), ("binarization", "static"), ("split", "val"), ("images_sha256", "cd34" * 16)],
)
def test_another_protocol_is_refused_with_what_differs(command, name, value):
    add_version(b"a", **PROTOCOL)
    add_version(b"b", shift=BETTER, **PROTOCOL | {name: value})
    values = f"{name} ({str(value)[:20]} and {str(PROTOCOL[name])[:20]})"
    command("promote").fails_with(f"can't be compared, since they differ in {values}: ")
    assert champion() == "1"


def test_another_seed_of_the_importance_samples_is_compared(command):
    add_version(b"a", seed=0, **PROTOCOL)
    add_version(b"b", seed=1, shift=BETTER, **PROTOCOL)
    command("promote").succeeds()


def test_a_damaged_challenger_is_refused_whatever_the_reason(command, tmp_path):
    add_version(b"a", **PROTOCOL)
    add_version(b"b", shift=BETTER, **PROTOCOL)
    for path in tmp_path.glob("mlruns/artifacts/models/**/vae.safetensors"):
        path.write_bytes(b"c")
    command("promote", "--force=now").fails_with("models/vae.safetensors of vae-mnist version 2 is damaged")
    assert champion() == "1"


@pytest.mark.slow
@pytest.mark.parametrize("on_server", [False, True])
def test_promotions_at_once_move_the_champion_once(command, tmp_path, empty_store, monkeypatch, on_server):
    with ExitStack() as running:
        if on_server:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", running.enter_context(Server(tmp_path, empty_store)).url)
            tracking.connect()
        add_version(b"a", **PROTOCOL)
        add_version(b"b", shift=BETTER, **PROTOCOL)
        environment = {**ENVIRONMENT, "PYTHONPATH": str(ROOT / "src"), "MLFLOW_TRACKING_URI": tracking.tracking_uri()}
        options = {"cwd": tmp_path, "env": environment}
        arguments = ("-m", "vae.workflow.registry", "promote")
        processes = [running.enter_context(stage_process(*arguments, **options)) for _ in range(2)]
        outcomes = sorted(process.communicate(timeout=240)[0].splitlines()[-1] for process in processes)
        assert registry.look_up("vae-mnist").history == ["1", "2"]
        command("rollback").succeeds()
        assert champion() == "1"
    moved, unmoved = (
        "champion: vae-mnist version 2, instead of version 1",
        "no challenger; champion: vae-mnist version 2",
    )
    assert outcomes[0].startswith(moved)
    assert outcomes[1] == unmoved or (on_server and outcomes[1].startswith(moved))  # a server has no lock


def test_what_is_missing_is_named_in_one_line(command, monkeypatch):
    command("promote").fails_with("no registered model vae-mnist")
    command("register").fails_with("dvc.lock records no training and evaluation: `make repro` runs them")
    command("why", "--model=vae-mnist/2").fails_with("no registered model vae-mnist")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    command("promote").fails_with("http://***@127.0.0.1:9")


@pytest.mark.parametrize(
    ("recorded", "different"),
    [
        ({"train.beta": 4.0}, "train.beta: 4.0 (params.yaml: 1.0)"),
        ({"model.hidden_dims": [512, 256]}, "model.hidden_dims: [512, 256] (params.yaml: [512, 512, 512])"),
        ({"data.binarization": "static"}, "data.binarization: static (params.yaml: dynamic)"),
        ({"model.a_retired_key": None}, "model.a_retired_key: None (params.yaml: missing)"),
        ({"seed": 1, "render.dpi": 1}, "seed: 1 (params.yaml: 0): `make repro` brings"),  # dpi: another stage's
    ],
)
def test_params_edited_since_the_training_are_refused_with_both_values(command, recorded, different):
    yaml = YAML()
    params = yaml.load(Path("params.yaml"))
    for name, value in recorded.items():
        section, _, key = name.rpartition(".")
        (params[section] if section else params)[key] = value
    keys = {"seed": params["seed"], "data.binarization": params["data"]["binarization"], "model": params["model"]}
    stage = {"params": {"params.yaml": {**keys, "train": params["train"]}}, "outs": []}
    yaml.dump({"stages": {"train": stage, "evaluate": stage}}, Path("dvc.lock"))
    command("register").fails_with(f"dvc.lock records other params, {different}")


@pytest.mark.parametrize("text", ["", "stages:\n<<<<<<< HEAD\n  train:\n=======\n  train: {}\n>>>>>>> longer\n"])
def test_a_damaged_lock_is_refused(command, text):
    Path("dvc.lock").write_text(text)
    command("register").fails_with("dvc.lock is damaged, perhaps by a merge conflict: `git checkout HEAD dvc.lock`")


def test_weights_that_only_the_project_has_would_be_lost(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = "models/vae.safetensors"
    Path("models").mkdir()
    Path(weights).write_bytes(b"weights")
    Path(".gitignore").write_text("models\n")
    Path("dvc.yaml").write_text(f"stages:\n  train:\n    cmd: train\n    outs:\n      - {weights}\n")
    subprocess.run(["git", "init", "--quiet"], check=True)
    with Repo.init() as repo:
        repo.scm.commit("Empty")
        assert uncommitted([weights]) == [weights]  # no dvc.lock
        repo.commit(force=True)
    assert uncommitted([weights]) == []
    shutil.rmtree(".dvc/cache")
    assert uncommitted([weights]) == [weights]
    with Repo() as repo:
        repo.commit()  # as the message advises
    assert uncommitted([weights]) == []


FILES = ("params.yaml", "dvc.lock", "models/vae.safetensors", "metrics/test_nll.npz", "metrics/evaluate.json")


class Registered(Project):
    """A project in which the targets of the Makefile can be run."""

    def make(self, *arguments):
        command = ["make", "--silent", *arguments]
        done = subprocess.run(command, cwd=self.root, env=ENVIRONMENT, capture_output=True, text=True)
        own = "".join(line for line in done.stderr.splitlines(True) if not line.startswith("make: "))
        return Outcome(done.returncode, done.stdout, own)

    def copy(self, root):
        return Registered(super().copy(root).root)


@pytest.fixture(scope="module")
def two_versions(reproduced, tmp_path_factory):
    """A project whose version 1 was committed before it was registered, and whose better version 2 was not."""
    project = Registered(reproduced.copy(tmp_path_factory.mktemp("registered") / "first").root)
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, project / name)
    (project / ".venv").mkdir()
    (project / ".venv/.ready").touch()
    project.make("register").succeeds()
    project.set({"train.epochs": 6})
    project.dvc("repro", "evaluate")
    project.make("register").succeeds()
    return project


@pytest.fixture
def registered(two_versions, tmp_path):
    """A copy of it in another folder."""
    return two_versions.copy(tmp_path / "project")


def contents(project):
    return {path: sha256(project / path) for path in FILES}


@pytest.mark.slow
def test_a_version_knows_where_it_comes_from_and_is_restored_from_git_and_dvc(registered, reproduced):
    registered.make("register").succeeds()  # the same one
    assert "champion: vae-mnist version 2" in registered.make("promote").succeeds().out
    commit = registered.run("git", "rev-parse", "--short", "HEAD").strip()
    second = registered.make("why").succeeds().out
    assert second.startswith("vae-mnist version 2, champion\n") and "before   version 1" in second
    assert f"commit   {commit} Reproduce, and uncommitted changes" in second and "dvc.lock in no commit" in second
    first = registered.make("why", "MODEL=vae-mnist/1").succeeds().out
    assert f"dvc.lock {commit} Reproduce" in first and "not those of models/vae.safetensors" in first
    assert "differ from params.yaml\n    train.epochs 2 (now 6)\n" in first
    registered.make("restore", "MODEL=vae-mnist/1").fails_with("changes in params.yaml, dvc.lock, ", code=2)
    registered.run("git", "commit", "--quiet", "--all", "--message=Longer")
    after = contents(registered)
    shutil.rmtree(registered / "mlruns/artifacts")
    out = registered.make("restore", "MODEL=vae-mnist/1").succeeds().out
    assert f"models/vae.safetensors  from commit {commit}\n" in out and "the registry" not in out
    assert contents(registered) == contents(reproduced) != after
    assert "Data and pipelines are up to date" in registered.dvc("status", "train", "evaluate")
    registered.run("git", "checkout", "--quiet", "params.yaml", "dvc.lock", "metrics")
    registered.dvc("checkout")
    assert contents(registered) == after


@pytest.mark.slow
def test_what_git_and_dvc_have_lost_comes_from_the_registry_or_is_refused(registered):
    after = contents(registered)
    registered.run("git", "checkout", "--quiet", "params.yaml", "dvc.lock", "metrics")
    registered.dvc("checkout")
    shutil.rmtree(registered / ".dvc/cache")
    registered.make("restore", "MODEL=vae-mnist@challenger").fails_with("models/vae.safetensors, ", code=2)
    registered.run("git", "clean", "--quiet", "-X", "--force", "models", "metrics")  # as in a new clone
    out = registered.make("restore", "MODEL=vae-mnist@challenger").succeeds().out
    assert out.count("  from the registry\n") >= len(FILES) and "from commit" not in out
    assert contents(registered) == after
    assert "is here" in registered.make("restore", "MODEL=vae-mnist@challenger").succeeds().out


@pytest.mark.slow
def test_weights_and_metrics_that_do_not_belong_together_are_not_registered(registered):
    (registered / "models/vae.safetensors").write_bytes(b"other weights")
    registered.make("register").fails_with("models/vae.safetensors is not what dvc.lock records", code=2)
    registered.dvc("checkout", "--force")
    registered.set({"train.beta": 4.0})
    registered.make("register").fails_with("dvc.lock records other params, train.beta: 1.0 (params.yaml: 4.0)", code=2)
    registered.set({"train.beta": 1.0})
    client = tracking.mlflow.MlflowClient(registered.store)
    for run in client.search_runs([client.get_experiment_by_name(tracking.EXPERIMENT).experiment_id]):
        client.delete_run(run.info.run_id)
    registered.make("register").fails_with("has no run of models/vae.safetensors with this evaluation", code=2)
