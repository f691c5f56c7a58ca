"""The stages' command line: flags override params.yaml, a user error is one line, and exit codes."""

import io
import os
import shutil
import signal
import subprocess
import sys

import pytest

from support import ROOT
from vae.errors import DataError
from vae.workflow.command_line import DEBUG, errors_in_one_line, run_stage

FLAGS = ("train.epochs", "train.learning_rate", "search.workers")


@pytest.fixture
def stage(called, tmp_path, monkeypatch):
    """Runs a stage with command-line arguments: an `Outcome`, and what its `main` was called with."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["stage.py", *arguments])
        got = {}

        def main(params, **switches):
            got.update(params=params, **switches)

        return called(run_stage, main, "A stage.", FLAGS), got

    return run


def raising(error):
    with errors_in_one_line("again"):
        raise error


@pytest.mark.parametrize("flag", ["--learning_rate=1e-4", "--learning-rate=1e-4"])
def test_a_flag_overrides_params_yaml(stage, flag):
    _, got = stage(flag, "--workers", "auto")
    assert (got["params"].train.learning_rate, got["params"].search.workers) == (1e-4, "auto")
    assert stage()[1]["params"].train.learning_rate == 3e-3


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (["--bogus=1"], 2, "unknown flag --bogus ("),
        (["--epoch=1"], 2, "unknown flag --epoch: did you mean --epochs?"),
        (["--epochs"], 2, "--epochs"),
        (["--epochs=0"], 1, "train.epochs is 0, allowed is greater than or equal to 1"),
        (["--epochs=1e300"], 1, "train.epochs is 1e+300"),
        (["--epochs=" + "[" * 1000], 1, "train.epochs is '[[["),
        (["--epochs=" + "9" * 5000], 1, "train.epochs is '999"),
        (["--workers=all"], 1, "search.workers is 'all'"),
    ],
)
def test_an_invalid_flag_is_refused_in_one_line(stage, arguments, code, named):
    outcome, got = stage(*arguments)
    outcome.fails_with(named, code=code)
    assert not got


@pytest.mark.parametrize("error", [DataError("one\ntwo"), OSError("one\ntwo")])
def test_a_user_error_ends_in_one_line(called, error):
    called(raising, error).fails_with("error: one two\n")


def test_a_defect_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        raising(ZeroDivisionError())


def test_debug_shows_the_traceback_of_a_user_error(stage, monkeypatch):
    with pytest.raises(ValueError, match=r"train\.epochs is 0"):
        stage("--epochs=0", "--debug")
    assert os.environ.pop(DEBUG) == "1"  # child processes inherit it
    monkeypatch.setenv(DEBUG, "1")
    with pytest.raises(DataError):
        raising(DataError("damaged"))


@pytest.mark.parametrize(
    ("number", "code", "line"), [(signal.SIGINT, 130, "interrupted: again\n"), (signal.SIGTERM, 143, "")]
)
def test_an_interruption_has_its_exit_code(called, number, code, line):
    def interrupted():
        with errors_in_one_line("again"):
            signal.raise_signal(number)

    outcome = called(interrupted)
    assert (outcome.code, outcome.err) == (code, line)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_of_pythons_own_cleanup_shows_no_traceback(number):
    program = (
        "import atexit, signal\nfrom vae.workflow.command_line import errors_in_one_line\n"
        f"atexit.register(signal.raise_signal, {int(number)})\nwith errors_in_one_line('again'):\n    pass"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (-number, "", "")


@pytest.mark.parametrize(
    ("number", "code", "line"), [(signal.SIGINT, 130, "interrupted: again\n"), (signal.SIGTERM, 143, "")]
)
def test_an_interruption_in_the_callback_of_a_weak_reference_is_not_lost(number, code, line):
    """Python drops exceptions there. torch.compile makes many such references."""
    program = (
        "import signal, time, weakref\nfrom vae.workflow.command_line import errors_in_one_line\n"
        f"def callback(_): signal.raise_signal({int(number)})\n"
        "with errors_in_one_line('again'):\n"
        "    referred = set()\n    reference = weakref.ref(referred, callback)\n    del referred\n    time.sleep(60)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, "", line)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_the_minus_sign_stops_nothing(monkeypatch, encoding):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr(sys, "stdout", terminal)
    with errors_in_one_line("again"):
        print("validation −ELBO", flush=True)
    assert terminal.buffer.getvalue() == b"validation ?ELBO\n"
