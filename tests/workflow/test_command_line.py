"""Flags over params.yaml, one line for every error of a user's, and exit codes."""

import io
import os
import shutil
import signal
import sys

import pytest

from support import ROOT
from vae.errors import DataError
from vae.workflow.command_line import DEBUG, errors_in_one_line, run_stage

FLAGS = ("train.epochs", "train.learning_rate", "search.workers")


@pytest.fixture(autouse=True)
def project_root(tmp_path, monkeypatch):
    on_termination = signal.getsignal(signal.SIGTERM)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    yield
    signal.signal(signal.SIGTERM, on_termination)


@pytest.fixture
def stage(monkeypatch):
    """Runs a stage with command-line arguments; returns what its `main` got."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["stage.py", *arguments])
        got = {}
        run_stage(lambda params, **switches: got.update(params=params, **switches), "A stage.", FLAGS, worker="Join.")
        return got

    return run


def exit_of(stop, capsys):
    """The exit code, and the one line on stderr."""
    code, printed = stop.value.code, capsys.readouterr().err
    if isinstance(code, str):
        code, printed = 1, f"{code}\n"
    assert printed.count("\n") == 1, printed
    return code, printed


@pytest.mark.parametrize("flag", ["--learning_rate=1e-4", "--learning-rate=1e-4"])
def test_a_flag_wins_over_params_yaml(stage, flag):
    got = stage(flag, "--workers", "auto", "--worker")
    assert (got["params"].train.learning_rate, got["params"].search.workers, got["worker"]) == (1e-4, "auto", True)
    assert stage()["params"].train.learning_rate == 3e-3


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (["--bogus=1"], 2, "--bogus=1"),
        (["--epoch=1"], 2, "--epoch=1"),
        (["--epochs"], 2, "--epochs"),
        (["--epochs=0"], 1, "train.epochs is 0, allowed is greater than or equal to 1"),
        (["--epochs=two"], 1, "train.epochs is 'two', allowed is a valid integer"),
        (["--epochs=1.5"], 1, "train.epochs is 1.5"),
        (["--epochs=1e300"], 1, "train.epochs is 1e+300"),
        (["--epochs=" + "[" * 1000], 1, "train.epochs is '[[["),
        (["--epochs=" + "9" * 5000], 1, "train.epochs is '999"),
        (["--learning_rate=.nan"], 1, "train.learning_rate is nan"),
        (["--workers=all"], 1, "search.workers is 'all'"),
    ],
)
def test_a_bad_flag_is_named_in_one_line(stage, capsys, arguments, code, named):
    with pytest.raises(SystemExit) as stop:
        stage(*arguments)
    found, printed = exit_of(stop, capsys)
    assert (found, printed.startswith("error: ")) == (code, True)
    assert named in printed


@pytest.mark.parametrize("error", [DataError("one\ntwo"), OSError("one\ntwo")])
def test_a_user_error_ends_in_one_line(capsys, error):
    with pytest.raises(SystemExit) as stop, errors_in_one_line("again"):
        raise error
    assert exit_of(stop, capsys) == (1, "error: one two\n")


def test_a_defect_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), errors_in_one_line("again"):
        _ = 1 / 0


def test_debug_shows_the_traceback_behind_a_line(stage, monkeypatch):
    with pytest.raises(ValueError, match=r"train\.epochs is 0"):
        stage("--epochs=0", "--debug")
    assert os.environ.pop(DEBUG) == "1"  # child processes inherit it
    monkeypatch.setenv(DEBUG, "1")
    with pytest.raises(DataError), errors_in_one_line("again"):
        raise DataError("damaged")


@pytest.mark.parametrize(
    ("number", "code", "line"), [(signal.SIGINT, 130, "interrupted: again\n"), (signal.SIGTERM, 143, "")]
)
def test_an_interruption_has_its_exit_code(capsys, number, code, line):
    with pytest.raises(SystemExit) as stop, errors_in_one_line("again"):
        signal.raise_signal(number)
    assert stop.value.code == code
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_a_minus_sign_stops_nothing(monkeypatch, encoding):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr(sys, "stdout", terminal)
    with errors_in_one_line("again"):
        print("validation −ELBO", flush=True)
    assert terminal.buffer.getvalue() == b"validation ?ELBO\n"
