"""How much faster several search workers are than one, and what a trial costs besides its training.

`make bench` runs the same trials alternately with one worker on all threads and with the workers that `auto` selects.
Writes benchmarks/workers.json.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import optuna
from ruamel.yaml import YAML

from vae import tracking
from vae.config import Params, load_params
from vae.errors import DataError
from vae.files import write_json
from vae.search import workers
from vae.search.storage import journal_path, open_journal
from vae.search.trial import Worker
from vae.training.loop import Fitted, OnEpoch, Record, fit
from vae.workflow.command_line import errors_in_one_line
from vae.workflow.stages import RAW, read_dataset

PROJECT = Path(__file__).resolve().parents[1]
OUTPUT = PROJECT / "benchmarks" / "workers.json"
TURNS = 2
# All trials take the same time: nothing is pruned, and they differ in β only.
TRIALS, EPOCHS, BETAS = 4, 2, [1.0, 1.1, 1.2, 1.3]


def prepare(folder: Path) -> None:
    """Copy this project's stages and images to `folder`, with a short search."""
    for part in ("pipeline", "data", "params.yaml"):
        source = PROJECT / part
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / part)
    yaml = YAML()
    tree = yaml.load(folder / "params.yaml")
    tree["search"] |= {"n_trials": TRIALS, "epochs": EPOCHS, "pruner": "none", "finalists": 0, "space": {"beta": BETAS}}
    yaml.dump(tree, folder / "params.yaml")


def seconds_of_search(workers: int | str) -> dict[str, float]:
    """Seconds until the first trial starts, from then to the end of the last one, and of the whole command."""
    journal_path().unlink(missing_ok=True)
    started = datetime.now()
    subprocess.run([sys.executable, "pipeline/search/search.py", f"--workers={workers}"], check=True)
    whole = datetime.now() - started
    trials = optuna.load_study(study_name=None, storage=open_journal()).trials
    first = min(trial.datetime_start for trial in trials if trial.datetime_start)
    last = max(trial.datetime_complete for trial in trials if trial.datetime_complete)
    spans = {"start": first - started, "trials": last - first, "whole": whole}
    return {f"{name}_{workers}": span.total_seconds() for name, span in spans.items()}


def measure_workers(params: Params) -> dict[str, Any]:
    """Best seconds with one worker and with `auto`, and their ratio."""
    seconds: dict[str, float] = {}
    for turn in range(TURNS):
        for asked in (1, "auto"):
            found = seconds_of_search(asked)
            print(f"turn {turn + 1}/{TURNS}: {', '.join(f'{k} {v:.1f} s' for k, v in found.items())}", flush=True)
            seconds |= {name: min(value, seconds.get(name, value)) for name, value in found.items()}
    return {
        "auto": str(workers.plan(params, TRIALS)),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "ratio": round(seconds["trials_auto"] / seconds["trials_1"], 2),
        "ratio_of_whole_command": round(seconds["whole_auto"] / seconds["whole_1"], 2),
    }


def measure_overhead(params: Params) -> float:
    """Seconds per trial besides its training: Optuna, MLflow, creating the model. The first trial is not counted."""
    journal_path().unlink(missing_ok=True)
    tracking.connect(tracking.SEARCH_EXPERIMENT)
    training: list[float] = []

    def timed_fit(*arguments: Any, on_epoch: OnEpoch, **options: Any) -> Fitted:
        in_callback = 0.0

        def timed_callback(record: Record) -> None:
            nonlocal in_callback
            started = time.perf_counter()
            on_epoch(record)
            in_callback += time.perf_counter() - started

        started = time.perf_counter()
        fitted = fit(*arguments, on_epoch=timed_callback, **options)
        training.append(time.perf_counter() - started - in_callback)
        return fitted

    ends: list[float] = []
    with patch("vae.search.group.fit", timed_fit):
        Worker(params, read_dataset(), RAW, "bench", 0).run(on_trial=lambda _: ends.append(time.perf_counter()))
    return (ends[-1] - ends[0] - sum(training[1:])) / (len(ends) - 1)


def main() -> None:
    """Measure, print, and write benchmarks/workers.json."""
    if not (PROJECT / RAW).exists():
        raise DataError(f"{RAW} not found: `dvc repro download` fetches it")
    os.environ.pop("OPTUNA_STORAGE", None)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        os.chdir(folder)
        params = load_params()
        result = measure_workers(params) | {"overhead_seconds_per_trial": round(measure_overhead(params), 3)}
        os.chdir(PROJECT)
    write_json(OUTPUT, {"dataset": read_dataset()["name"], "trials": TRIALS, "epochs": EPOCHS, **result})
    print(
        f"auto ({result['auto']}) takes {result['ratio']} times as long as one worker on all threads; "
        f"a trial costs {result['overhead_seconds_per_trial']} s besides its training"
    )


if __name__ == "__main__":
    with errors_in_one_line("nothing was written"):
        main()
