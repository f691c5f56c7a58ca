"""Train the VAE: data/raw -> models/vae.safetensors, models/run.json, metrics/train.json, metrics/history.csv."""

from vae import tracking
from vae.config import Params
from vae.files import write_json
from vae.stages import METRICS, MODEL, RAW, RUN, read_dataset, run_stage
from vae.tracked import tracked_training


def main(params: Params) -> None:
    """Train, keep the best epoch's weights, and open the run that the later stages add to."""
    with tracked_training(params, read_dataset(), RAW, MODEL, METRICS / "history.csv") as training:
        write_json(METRICS / "train.json", training.summary)
        write_json(RUN, {"experiment": tracking.EXPERIMENT, "run_id": training.run_id})


if __name__ == "__main__":
    run_stage(main, __doc__)
