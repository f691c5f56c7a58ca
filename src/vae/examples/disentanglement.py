"""Does a larger β put each factor in a latent dimension of its own? `python -m vae.examples.disentanglement`.

A VAE is trained on coloured shapes (`vae.examples.shapes`) of 16×16 with several β and seeds. The posterior means of
10,000 other shapes are compared with the factors by which these were drawn.
"""

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from vae.config import ModelParams
from vae.data.datasets import Split
from vae.evaluation.disentanglement import information_gaps
from vae.examples.shapes import draw
from vae.files import write_atomically
from vae.models.vae import VAE
from vae.plots.figure import save
from vae.plots.image_grids import latent_traversals, shaped
from vae.plots.report import REACH, kl_by_dimension, traversals
from vae.training.trainer import VAETrainer
from vae.workflow.command_line import ArgumentParser, errors_in_one_line

OUTPUT = Path("results/examples/disentanglement")
SIDE = 16
COLUMNS, DPI = 11, 110
MODEL = ModelParams(
    hidden_dims=(256, 256),
    latent_dim=8,
    prior="standard",
    likelihood="discretized_logistic",
    likelihood_components=1,
)


def shapes(count: int, seed: int) -> tuple[Split, pd.DataFrame]:
    """Images, and their factors as numbers."""
    factors, pixels = zip(*draw(count, SIDE, SIDE, seed), strict=True)
    table = pd.DataFrame(factors)
    table["shape"] = table["shape"].astype("category").cat.codes
    return Split(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).flatten(1), None), table


def trained(beta: float, seed: int, train: Split, validation: Split, epochs: int) -> tuple[VAE, pd.DataFrame]:
    """The model with the weights of its best epoch, and the history."""
    model = VAE.from_params(MODEL, seed, image_shape=(3, SIDE, SIDE))
    model.initialize_from_data(train.images)
    trainer = VAETrainer(model, "cpu", beta=beta, seed=seed, batch_size=64, binarization="none", compile=False)
    return model, trainer.train(train, validation, epochs, progress=False)


@torch.no_grad()
def traversed(model: VAE, mu: Tensor, logvar: Tensor) -> Figure:
    """All latent dimensions, by their KL, varied from the posterior mean of the first image."""
    dimensions = kl_by_dimension(model, mu, logvar)[0].argsort(descending=True).tolist()
    images = model.images(traversals(mu, mu[:1], dimensions, COLUMNS))
    return latent_traversals(shaped(images, model.image_shape), COLUMNS, dimensions, REACH)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train with each β and seed; print the means, write all rows and the traversals of each β's first seed."""
    parser = ArgumentParser((__doc__ or "").splitlines()[0])
    parser.add_argument("--betas", type=float, nargs="+", default=[1, 10, 100], help="[default: 1 10 100]")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each [default: 3]")
    parser.add_argument("--epochs", type=int, default=20, help="of each training [default: 20]")
    parser.add_argument("--count", type=int, default=6000, help="training images [default: 6000]")
    values = parser.parse_args(arguments)
    if min(values.seeds, values.count) < 1:
        parser.error("--seeds and --count must be 1 or more")
    with errors_in_one_line("nothing was written"):
        (train, _), (validation, _), (test, factors) = shapes(values.count, 0), shapes(1000, 1), shapes(10_000, 2)
        rows = []
        for beta, seed in product(values.betas, range(values.seeds)):
            model, history = trained(beta, seed, train, validation, values.epochs)
            best = history.sort_values("val/neg_elbo").iloc[0]
            with torch.no_grad():
                mu, logvar = model.encode(test.images)
            gaps = dict(zip(factors.columns, information_gaps(mu.numpy(), factors.to_numpy()), strict=True))
            terms = {name: best[f"val/{name}"] for name in ("neg_elbo", "reconstruction", "kl")}
            rows.append({"beta": beta, "seed": seed, "mig": np.mean([*gaps.values()]), **gaps, **terms})
            print(f"β = {beta:g}, seed {seed}: MIG {rows[-1]['mig']:.3f}, KL {best['val/kl']:.1f}", flush=True)
            if not seed:
                save(traversed(model, mu, logvar), OUTPUT / f"traversals_beta_{beta:g}.png", DPI)
        table = pd.DataFrame(rows)
        write_atomically(OUTPUT / "table.csv", table.to_csv(index=False, float_format="%.4g"))
        summary = table.drop(columns="seed").groupby("beta").agg(["mean", "std"])
        print(summary.T.round(2).to_string())


if __name__ == "__main__":
    main()
