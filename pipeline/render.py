"""Draw the figures: model, history and evaluation -> figures/*.png."""

import numpy as np
import pandas as pd

from vae import tracking
from vae.config import Params
from vae.data import load
from vae.device import resolve
from vae.drawing import draw
from vae.stages import FIGURES, METRICS, RAW, load_model, read_run_id, run_stage


def main(params: Params) -> None:
    """Draw every figure, write it, and add it to the training's run."""
    model = load_model(params, "cpu")  # a few hundred images: no accelerator needed
    with np.load(METRICS / "latents.npz") as latents:
        mu, logvar = latents["mu"], latents["logvar"]
    tracking.connect()
    history = pd.read_csv(METRICS / "history.csv")
    drawn = draw(model, load(RAW, "test"), mu, logvar, history, params, FIGURES)
    print(f"{len(drawn)} figures in {FIGURES}/: {', '.join(path.stem for path in drawn)}")
    with tracking.resume(params, resolve(params.train), read_run_id()) as run:
        for path in drawn:
            run.log_artifact(path, "figures")


if __name__ == "__main__":
    run_stage(main, __doc__)
