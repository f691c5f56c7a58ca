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
from collections.abc import Sequence
from pathlib import Path

from ruamel.yaml import YAML

from vae.files import write_json
from vae.workflow.command_line import errors_in_one_line

PROJECT = Path(__file__).resolve().parents[1]
OUTPUT = PROJECT / "benchmarks" / "starting.json"
TURNS = 3
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


def seconds(command: Sequence[str], folder: Path) -> float:
    """The shortest time of a command."""
    times = []
    for _ in range(TURNS):
        started = time.perf_counter()
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - started)
    return round(min(times), 2)


def seconds_to_first_line(command: Sequence[str], folder: Path) -> float:
    """The shortest time until a Python program prints something; it is then ended."""
    times = []
    for _ in range(TURNS):
        started = time.perf_counter()
        program = [sys.executable, "-u", *command]
        with subprocess.Popen(program, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            next(iter(process.stdout or ()))
            times.append(time.perf_counter() - started)
            process.terminate()
            process.communicate()
    return round(min(times), 2)


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
        result = {
            "imports_seconds": {
                stage: seconds_to_first_line(["-c", imports, f"pipeline/{stage}.py"], ours) for stage in STAGES
            },
            "train-vae --help": seconds(["train-vae", "--help"], ours),
            "no-op dvc repro": (noop := seconds(["dvc", "repro", "-q"], ours)),
            "no-op dvc repro of five trivial stages": (least := seconds(["dvc", "repro", "-q"], trivial)),
            "noop_repro_ratio": round(noop / least, 2),
            "training_seconds": {
                "eager": seconds_to_training(ours, compiled=False),
                "compiled": seconds_to_training(ours, compiled=True),
            },
        }
    write_json(OUTPUT, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    with errors_in_one_line("nothing was written"):
        main()
