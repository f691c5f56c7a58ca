"""Command lines: flags that override parameters, and one line for every error that a user can cause."""

import argparse
import atexit
import difflib
import io
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from vae.config import load_params
from vae.errors import VAEError, hide_passwords, one_line

DEBUG = "VAE_DEBUG"  # an environment variable, so that child processes inherit it
INTERRUPTED = "`dvc repro` runs this stage again"
RESUMED = "the same command resumes it"
FLAGS = ("train.epochs", "train.batch_size", "model.latent_dim", "train.beta", "train.learning_rate", "train.nproc")


def run_stage(
    main: Callable[..., None],
    description: str | None,
    flags: Sequence[str] = FLAGS,
    interrupted: str = INTERRUPTED,
    **switches: str,
) -> None:
    """Run a stage's `main` with the parameters of params.yaml, as overridden by command-line flags.

    `flags` are dotted names of parameters. `switches` are flags without a value, as name and help; `main` gets them
    as keyword arguments. `interrupted` is the message after Ctrl-C.
    """
    with errors_in_one_line(interrupted):
        parser = ArgumentParser(description)
        for name in flags:
            parser.add_argument(*spellings(name.split(".")[1]), dest=name, type=scalar, help=f"{name} for this run")
        for name, text in switches.items():
            parser.add_argument(f"--{name}", action="store_true", help=text)
        values = {name: value for name, value in vars(parser.parse_args()).items() if value is not None}
        chosen = {name: values.pop(name) for name in switches}
        main(load_params().replaced(values), **chosen)


@contextmanager
def errors_in_one_line(interrupted: str) -> Iterator[None]:
    """Print user errors as one line and exit with 1; exit with 130 after Ctrl-C and with 143 after SIGTERM.

    The exit code is never 0, or DVC would commit half-written outputs. `--debug` or VAE_DEBUG=1 shows the traceback.
    `interrupted` is the message after Ctrl-C.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.unraisablehook = _signal_again
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal in latin-1 has no minus sign; a pipe shows a line when it is printed.
        sys.stdout.reconfigure(errors="replace", line_buffering=True)
    try:
        yield
    except (VAEError, OSError, ModuleNotFoundError, MemoryError, RuntimeError) as error:
        message = _message(error)
        if os.environ.get(DEBUG) or not message:
            raise
        sys.exit(f"error: {message}")
    except KeyboardInterrupt as interruption:
        print(f"interrupted: {interruption if interruption.args else interrupted}", file=sys.stderr)
        sys.exit(130)
    finally:
        # When Python ends, a signal ends it at once; a handler would raise in the cleanup of some module.
        for number in (signal.SIGINT, signal.SIGTERM):
            atexit.register(signal.signal, number, signal.SIG_DFL)


def _signal_again(dropped: "sys.UnraisableHookArgs") -> None:
    """Send a signal again whose exception Python has dropped, as it does in the callback of a weak reference."""
    numbers = {KeyboardInterrupt: signal.SIGINT, SystemExit: signal.SIGTERM}
    if dropped.exc_type in numbers:
        thread = threading.get_ident()  # the main one: signals are handled there
        threading.Timer(0.1, signal.pthread_kill, [thread, numbers[dropped.exc_type]]).start()
    else:
        sys.__unraisablehook__(dropped)


def _message(error: BaseException) -> str | None:
    """The line for a user error; None for a defect, which keeps its traceback."""
    if isinstance(error, VAEError | OSError):
        return hide_passwords(" ".join(str(error).splitlines()))
    if isinstance(error, ModuleNotFoundError):
        own = (error.name or "vae").startswith("vae")
        return None if own else f"{error.name} is not installed: pip install 'vae-mnist-pipeline[pipeline]'"
    # PyTorch raises a plain RuntimeError where the CPU's memory doesn't suffice.
    if isinstance(error, MemoryError) or "memory" in str(error):
        return f"out of memory, try a smaller model, batch_size or chunk_size: {one_line(error)}"
    return None


class ArgumentParser(argparse.ArgumentParser):
    """argparse's parser with `--debug`, without abbreviated flags, and with errors in one line (exit code 2)."""

    def __init__(self, description: str | None, prog: str | None = None, usage: str | None = None) -> None:
        super().__init__(prog, usage, description, allow_abbrev=False)
        text = f"show the traceback behind an error (as {DEBUG}=1 does)"
        self.add_argument("--debug", action=_Debug, nargs=0, default=argparse.SUPPRESS, help=text)

    def error(self, message: str) -> NoReturn:
        """Print one line, for an unknown flag with a known one that is close, and exit with 2."""
        if found := re.match(r"unrecognized arguments: ([^\s=]+)", message):
            close = difflib.get_close_matches(found[1], self._option_string_actions, n=1)
            message = f"unknown flag {found[1]}" + (f": did you mean {close[0]}?" if close else "")
        self.exit(2, f"error: {hide_passwords(message)} ({self.prog} --help lists the flags)\n")


class _Debug(argparse.Action):
    def __call__(self, *_: Any) -> None:
        os.environ[DEBUG] = "1"


def spellings(name: str) -> list[str]:
    """The flag with underscores and with dashes."""
    return list(dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}")))


def scalar(text: str) -> Any:
    """The value that this text has in params.yaml: 1e-4 and 5 are numbers, `true` and `null` constants."""
    try:
        return YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError, RecursionError):
        return text
