"""Versions, aliases and the champion's history, in SQLite and behind a server, also for processes at once."""

import json
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mlflow_server import Server
from registry_support import add_version, log_model
from support import ENVIRONMENT, ROOT, stage_process
from vae import tracking
from vae.config import DataParams, Params
from vae.errors import RegistryError
from vae.tracking import registry
from vae.tracking.registry import CHALLENGER, CHAMPION


@pytest.fixture(params=["sqlite", pytest.param("server", marks=pytest.mark.slow)])
def connected(request, tmp_path, empty_store, monkeypatch):
    """A store that MLflow is connected to; the working directory is a project with it."""
    monkeypatch.chdir(tmp_path)
    with ExitStack() as stack:
        if request.param == "server":
            server = stack.enter_context(Server(tmp_path, empty_store))
            monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
        tracking.connect()
        yield


def state():
    model = registry.look_up("vae-mnist")
    return [*model.versions], model.aliases, model.history


@pytest.mark.usefixtures("connected")
def test_the_name_of_any_folder_gives_the_name_of_a_model():
    assert registry.model_name(Params()) == "vae-mnist"
    name = registry.model_name(Params(data=DataParams(source="folder", path="/x/Vögel: 'neue' @2")))
    assert name == "vae-vögel-neue-2"
    MlflowClient().create_registered_model(name)
    assert registry.look_up(name).versions == {}


@pytest.mark.usefixtures("connected")
def test_the_first_version_is_champion_and_later_ones_are_challengers_until_they_move_up():
    assert add_version(b"a", samples=1).version == add_version(b"a", samples=1).version
    assert state() == (["1"], {CHAMPION: "1"}, ["1"])
    second = add_version(b"b", samples=1)
    shown = MlflowClient().get_logged_model(second.source.removeprefix("models:/")).tags["mlflow.modelVersions"]
    assert json.loads(shown) == [{"name": "vae-mnist", "version": "2"}]
    add_version(b"a", samples=2)  # the weights of version 1 under another protocol
    assert state() == (["1", "2", "3"], {CHAMPION: "1", CHALLENGER: "3"}, ["1"])
    add_version(b"b", samples=1)
    assert state()[1] == {CHAMPION: "1", CHALLENGER: "2"}
    model = registry.look_up("vae-mnist")
    registry.move_champion(model, [*model.history, "2"], {"promoted": "today"})
    assert state() == (["1", "2", "3"], {CHAMPION: "2"}, ["1", "2"])
    assert registry.find("vae-mnist").tags["promoted"] == "today"
    add_version(b"b", samples=1)
    assert state()[1] == {CHAMPION: "2"}


@pytest.mark.usefixtures("store")
def test_the_history_follows_an_alias_that_was_moved_by_hand_and_forgets_deleted_versions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for weights in (b"a", b"b", b"c"):
        add_version(weights)
    client = MlflowClient()
    for number, history in {"2": ["1", "2"], "3": ["1", "2", "3"], "1": ["1"]}.items():
        registry.move_champion(registry.look_up("vae-mnist"), ["1", "2"], {})
        client.set_registered_model_alias("vae-mnist", CHAMPION, number)
        assert state()[2] == history
    registry.move_champion(registry.look_up("vae-mnist"), ["1", "2", "3"], {})
    client.delete_model_version("vae-mnist", "2")
    assert state() == (["1", "3"], {CHAMPION: "3"}, ["1", "3"])


@pytest.mark.usefixtures("store")
def test_a_version_is_named_by_alias_or_number_and_what_is_not_there_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RegistryError, match=r"no registered model vae-mnist \(there: none\): `make register`"):
        registry.find("vae-mnist@champion")
    add_version(b"a")
    add_version(b"b")
    names = ("vae-mnist", "vae-mnist@champion", "vae-mnist/2", "models:/vae-mnist@challenger")
    assert [str(registry.find(name).version) for name in names] == ["1", "1", "2", "2"]
    there = r"; of vae-mnist there are 1, 2, challenger \(2\), champion \(1\)"
    for name, message in {
        "vae-mnist/3": f"there is no vae-mnist/3{there}",
        "vae-mnist@champ": f"there is no vae-mnist@champ{there}",
        "vae-kmnist/1": r"no registered model vae-kmnist \(there: vae-mnist\)",
        "vae-mnist/1/2": "names no version",
        "it's/1": "no registered model it's",
    }.items():
        with pytest.raises(RegistryError, match=message):
            registry.find(name)


@pytest.mark.usefixtures("connected")
def test_a_file_that_is_gone_or_damaged_is_refused(tmp_path):
    version = add_version(b"a", samples=1)
    assert registry.read_file(version, "models/vae.safetensors") == b"a"
    assert registry.read_file(version, "metrics/test_nll.npz") == Path("metrics/test_nll.npz").read_bytes()
    (weights,) = tmp_path.glob("**/m-*/**/vae.safetensors")
    (bounds,) = tmp_path.glob("**/registered/metrics/test_nll.npz")
    weights.write_bytes(b"b")
    bounds.unlink()
    with pytest.raises(RegistryError, match=r"models/vae.safetensors of vae-mnist version 1 is damaged"):
        registry.read_file(version, "models/vae.safetensors")
    with pytest.raises(RegistryError, match=r"metrics/test_nll.npz of vae-mnist version 1 can't be read from "):
        registry.read_file(version, "metrics/test_nll.npz")


@pytest.mark.usefixtures("store")
def test_a_run_without_a_model_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = log_model(b"a")
    with tracking.open_run("without") as run:
        pass
    arguments[2] = run.id
    with pytest.raises(RegistryError, match=f"run {run.id} has no model: `dvc repro --force"):
        registry.register(*arguments)


@pytest.mark.slow
@pytest.mark.usefixtures("connected")
def test_processes_that_register_the_same_run_at_once_make_one_version(tmp_path):
    add_version(b"first")
    arguments = log_model(b"a", samples=1)
    program = (
        "from vae import tracking\nfrom vae.tracking import registry\n"
        "tracking.connect(); print('ready', flush=True); input()\n"
        f"print(registry.register(*{arguments!r}).version)\n"
    )
    with ExitStack() as running:
        options = {"cwd": tmp_path, "stdin": subprocess.PIPE, "env": {**ENVIRONMENT, **uri()}}
        processes = [running.enter_context(stage_process("-c", program, **options)) for _ in range(3)]
        assert [process.stdout.readline() for process in processes] == ["ready\n"] * 3
        for process in processes:
            print("go", file=process.stdin, flush=True)
        outcomes = [process.communicate(timeout=240) for process in processes]
    assert [error for _, error in outcomes] == [""] * 3
    numbers = {out.strip() for out, _ in outcomes}
    versions, aliases, _ = state()
    assert len(numbers) == 1 and versions == ["1", *numbers]
    assert aliases == {CHAMPION: "1", CHALLENGER: versions[-1]}


def uri():
    return {"MLFLOW_TRACKING_URI": tracking.tracking_uri(), "PYTHONPATH": str(ROOT / "src")}
