"""How long one waits before anything happens: the stages' imports, a training's first epoch, a `dvc repro` of nothing.

`make bench` measures in a copy of this project with the bundled digits. Writes benchmarks/starting.json.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from vae.files import write_json
from vae.workflow.command_line import errors_in_one_line

PROJECT = Path(__file__).resolve().parents[1]
OUTPUT = PROJECT / "benchmarks" / "starting.json"
TURNS = 4
PARTS = ("pipeline", "src", "data/images", "params.yaml", "dvc.yaml", ".dvcignore", ".gitignore")
STAGES = ("download", "train", "evaluate", "render", "explorer")


def prepare(ours: Path, trivial: Path) -> None:
    """Run this project's pipeline, in a short form, in `ours`, and one of five stages that copy a file in `trivial`."""
    for name in PARTS:
        copy = shutil.copytree if (PROJECT / name).is_dir() else shutil.copy
        (ours / name).parent.mkdir(parents=True, exist_ok=True)
        copy(PROJECT / name, ours / name)
    params = YAML().load(PROJECT / "params.yaml")
    params["data"]["source"], params["train"]["epochs"], params["evaluate"]["importance_samples"] = "bundled", 1, 5
    YAML().dump(params, ours / "params.yaml")
    trivial.mkdir()
    (trivial / "0.txt").write_text("0")
    stages = {
        f"stage{n}": {"cmd": f"cp {n}.txt {n + 1}.txt", "deps": [f"{n}.txt"], "outs": [f"{n + 1}.txt"]}
        for n in range(5)
    }
    (trivial / "dvc.yaml").write_text(json.dumps({"stages": stages}))
    for repo in (ours, trivial):
        for command in (["git", "init", "-q"], ["dvc", "init", "-q", "-f"], ["dvc", "repro", "-q"]):
            subprocess.run(command, cwd=repo, check=True, stdout=subprocess.DEVNULL)


def shortest(contenders: Mapping[str, Callable[[], float]]) -> dict[str, float]:
    """The shortest time of each contender, measured alternately, so that all meet the same load."""
    turns = [{name: measure() for name, measure in contenders.items()} for _ in range(TURNS)]
    return {name: round(min(turn[name] for turn in turns), 2) for name in contenders}


def seconds(command: Sequence[str], folder: Path) -> float:
    """The time of a command."""
    started = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def seconds_to_first_line(command: Sequence[str], folder: Path) -> float:
    """The time until a Python program prints something; it is then ended."""
    started = time.perf_counter()
    program = [sys.executable, "-u", *command]
    with subprocess.Popen(program, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        next(iter(process.stdout or ()))
        elapsed = time.perf_counter() - started
        process.terminate()
        process.communicate()
    return elapsed


def seconds_to_training(folder: Path, *, compiled: bool) -> float:
    """Until the training prints what it trains on, before its first epoch."""
    yaml, path = YAML(), folder / "params.yaml"
    params = yaml.load(path)
    params["train"]["compile"] = compiled
    yaml.dump(params, path)
    return seconds_to_first_line(["pipeline/train.py"], folder)


def main() -> None:
    """Measure, print, and write benchmarks/starting.json."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    os.environ["DVC_NO_ANALYTICS"] = "1"
    with tempfile.TemporaryDirectory() as name:
        ours, trivial = Path(name) / "ours", Path(name) / "trivial"
        prepare(ours, trivial)
        imports = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='imported'); print()"
        noop = "no-op dvc repro"
        least = f"{noop} of five trivial stages"
        result: dict[str, Any] = {
            "imports_seconds": shortest(
                {
                    stage: partial(seconds_to_first_line, ["-c", imports, f"pipeline/{stage}.py"], ours)
                    for stage in STAGES
                }
            ),
            **shortest({"train-vae --help": partial(seconds, ["train-vae", "--help"], ours)}),
            **shortest(
                {
                    name: partial(seconds, ["dvc", "repro", "-q"], repo)
                    for name, repo in ((noop, ours), (least, trivial))
                }
            ),
        }
        result["noop_repro_ratio"] = round(result[noop] / result[least], 2)
        result["training_seconds"] = shortest(
            {name: partial(seconds_to_training, ours, compiled=name == "compiled") for name in ("eager", "compiled")}
        )
    write_json(OUTPUT, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    with errors_in_one_line("nothing was written"):
        main()
