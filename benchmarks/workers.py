"""What the search's workers gain, and what a trial costs besides its training.

`make bench` runs the same trials with one worker on all threads, and with the workers that `auto` chooses, in turns in
one run: the ratio of their times says more than either. Writes benchmarks/workers.json.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import optuna
from ruamel.yaml import YAML

from vae.config import Params, load_params
from vae.files import write_json
from vae.search import workers
from vae.search.storage import journal_path, open_journal
from vae.search.trial import Worker
from vae.tracking import store as tracking
from vae.training.loop import Fitted, OnEpoch, Record, fit
from vae.workflow.command_line import errors_in_one_line
from vae.workflow.stages import RAW, read_dataset

PROJECT = Path(__file__).resolve().parents[1]
OUTPUT = PROJECT / "benchmarks" / "workers.json"
TURNS = 2
# The same trials, of the same length: nothing is pruned, and β, which costs no time, is all that differs.
TRIALS, EPOCHS, BETAS = 4, 2, [1.0, 1.1, 1.2, 1.3]


def prepare(folder: Path) -> None:
    """A project in `folder` with the images of this one and a search of a few trials."""
    for part in ("pipeline", "data", "params.yaml"):
        source = PROJECT / part
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / part)
    yaml = YAML()
    tree = yaml.load(folder / "params.yaml")
    tree["search"] |= {"n_trials": TRIALS, "epochs": EPOCHS, "pruner": "none", "space": {"beta": BETAS}}
    yaml.dump(tree, folder / "params.yaml")


def seconds_of_search(workers: int | str) -> tuple[float, float]:
    """Seconds from the first trial's start to the last one's end, and of the whole command."""
    journal_path().unlink(missing_ok=True)
    started = time.perf_counter()
    subprocess.run([sys.executable, "pipeline/search/search.py", f"--workers={workers}"], check=True)
    whole = time.perf_counter() - started
    trials = optuna.load_study(study_name=None, storage=open_journal()).trials
    first = min(trial.datetime_start for trial in trials if trial.datetime_start)
    last = max(trial.datetime_complete for trial in trials if trial.datetime_complete)
    return (last - first).total_seconds(), whole


def measure_workers(params: Params) -> dict[str, Any]:
    """Seconds with one worker and with `auto`, best of the turns, and their ratio."""
    seconds: dict[str, float] = {}
    for turn in range(TURNS):
        for asked in (1, "auto"):
            trials, whole = seconds_of_search(asked)
            print(
                f"turn {turn + 1}/{TURNS}, workers {asked}: {trials:.1f} s of trials, {whole:.1f} s in all", flush=True
            )
            for name, value in ((f"trials_{asked}", trials), (f"whole_{asked}", whole)):
                seconds[name] = min(value, seconds.get(name, value))
    return {
        "auto": str(workers.plan(params, TRIALS)),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "ratio": round(seconds["trials_auto"] / seconds["trials_1"], 2),
        "ratio_of_whole_command": round(seconds["whole_auto"] / seconds["whole_1"], 2),
    }


def measure_overhead(params: Params) -> float:
    """Seconds that a trial costs besides its training: Optuna, MLflow, the new model. The first isn't counted."""
    journal_path().unlink(missing_ok=True)
    tracking.connect(tracking.SEARCH_EXPERIMENT)
    training: list[float] = []

    def timed(*arguments: Any, on_epoch: OnEpoch, **options: Any) -> Fitted:
        inside = 0.0

        def timed_callback(record: Record) -> None:
            nonlocal inside
            started = time.perf_counter()
            on_epoch(record)
            inside += time.perf_counter() - started

        started = time.perf_counter()
        fitted = fit(*arguments, on_epoch=timed_callback, **options)
        training.append(time.perf_counter() - started - inside)
        return fitted

    ends: list[float] = []
    with patch("vae.search.trial.fit", timed):
        Worker(params, read_dataset(), RAW, "bench", 0).run(on_trial=lambda _: ends.append(time.perf_counter()))
    return (ends[-1] - ends[0] - sum(training[1:])) / (len(ends) - 1)


def main() -> None:
    """Measure, print, and write benchmarks/workers.json."""
    if not (PROJECT / RAW).exists():
        sys.exit(f"error: {RAW} not found: `dvc repro download` fetches it")
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
        f"auto ({result['auto']}) takes {result['ratio']} of the time of one worker on all threads; "
        f"a trial costs {result['overhead_seconds_per_trial']} s besides its training"
    )


if __name__ == "__main__":
    with errors_in_one_line("nothing was written"):
        main()
