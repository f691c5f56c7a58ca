"""Train the VAE: data/raw -> models/vae.safetensors, metrics/train.json, metrics/history.csv."""

import os
from pathlib import Path
from typing import Any

from vae.config import Params
from vae.device import resolve
from vae.files import project_root, rounded, sha256, write_json
from vae.training.distributed import is_first, launch, process_group
from vae.workflow.command_line import RESUMED, run_stage
from vae.workflow.stages import METRICS, MODEL, RAW, RUN, checkpoint_folder, read_dataset, run_facts
from vae.workflow.tracked_training import take_part, tracked_training


def main(params: Params) -> None:
    """Train, save the weights of the best epoch, and open the MLflow run that later stages add to."""
    if launch(params.train):
        return
    # What torch.compile generates is kept, so that the next training starts sooner.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(project_root() / ".ckpt" / "inductor"))
    dataset = read_dataset()
    hardware = resolve(params.train, dataset["counts"]["train"])
    checkpoints = checkpoint_folder("train", params, hardware)
    with process_group(hardware.device, params.train.timeout):
        if is_first():
            train(params, dataset, checkpoints)
        else:
            take_part(params, dataset, RAW)


def train(params: Params, dataset: dict[str, Any], checkpoints: Path) -> None:
    """Train, and write what comes out."""
    with tracked_training(params, dataset, RAW, MODEL, METRICS / "history.csv", checkpoints=checkpoints) as training:
        write_json(METRICS / "train.json", rounded(training.summary) | {"weights_sha256": sha256(MODEL)[:12]})
        write_json(RUN, {"run_id": training.run.id, **run_facts(params)})
        print(f"weights: {MODEL}; each epoch: {METRICS / 'history.csv'}")


if __name__ == "__main__":
    run_stage(main, __doc__, interrupted=RESUMED)
