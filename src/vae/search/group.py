"""A trial's training in `train.nproc` processes, for models that need several GPUs.

The worker of the trial starts them, as torchrun would, and reads a line of JSON from the first one for each epoch. It
ends them if the trial is pruned or interrupted.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vae.config import Params
from vae.data.datasets import Split, load, split_validation
from vae.device import Hardware, resolve
from vae.errors import ProcessError
from vae.training.distributed import launch, process_group
from vae.training.loop import OnEpoch, fit, new_model
from vae.workflow.command_line import errors_in_one_line


def train_here(
    params: Params, hardware: Hardware, dataset: Mapping[str, Any], parts: tuple[Split, Split], on_epoch: OnEpoch
) -> None:
    """Train in this process, or this process's share if there are several; `parts` are for training and validation."""
    train, validation = parts
    fit(
        new_model(params, dataset, train.images),
        train,
        validation,
        params.train,
        hardware,
        binarization=params.data.binarization,
        seed=params.seed,
        on_epoch=on_epoch,
    )


def train_in_processes(params: Params, dataset: Mapping[str, Any], folder: Path, on_epoch: OnEpoch) -> None:
    """Train in `train.nproc` processes, which end with this call. Raises ProcessError if one of them fails."""
    device, environment = resolve(params.train).device, dict(os.environ)
    environment["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // params.train.nproc))
    if device.type == "cuda":
        params = params.replaced({"train.device": "cuda"})
        environment["CUDA_VISIBLE_DEVICES"] = visible_gpus(device.index or 0, params.train.nproc)
    given = {"params": params.model_dump(mode="json"), "dataset": dict(dataset), "folder": str(folder)}
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            [sys.executable, __file__, json.dumps(given)],
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            text=True,
        ) as group,
    ):
        try:
            for line in group.stdout or ():
                on_epoch(json.loads(line))
            code = group.wait()
        except BaseException:
            group.terminate()
            raise
        errors.seek(0)
        if code:
            lines = errors.read().splitlines() or [f"exit code {code}"]
            raise ProcessError(lines[-1].removeprefix("error: "))


def visible_gpus(first: int, count: int) -> str:
    """CUDA_VISIBLE_DEVICES for `count` of the GPUs that this process sees, from number `first` on."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = seen.split(",") if seen else list(map(str, range(first + count)))
    return ",".join(names[first : first + count])


def main() -> None:
    """One of the processes, or at first the one that starts them."""
    given = json.loads(sys.argv[1])
    params, dataset = Params.model_validate(given["params"]), given["dataset"]
    if launch(params.train):
        return
    hardware = resolve(params.train)
    with process_group(hardware.device, params.train.timeout):
        parts = split_validation(load(Path(given["folder"]), "train"), params.data.validation_size)
        train_here(params, hardware, dataset, parts, lambda record: print(json.dumps(record), flush=True))


if __name__ == "__main__":
    with errors_in_one_line("the trial was ended"):
        main()
