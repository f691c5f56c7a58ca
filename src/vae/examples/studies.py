"""Five small studies of what a VAE's parameters do: `python -m vae.examples 2 --quick`, or all with `make examples`.

Every network is trained by `VAETrainer` on the same images, its epoch chosen on validation images, and its figures are
those of test images that had no part in either. The terms of a table:

- neg_elbo, reconstruction, kl: nats per image at β = 1, whatever β was trained with, over all `test_images`;
- nll: the importance-weighted bound of Burda et al. 2016 with `importance_samples` an image, over `nll_images` of them;
- active_units: latent dimensions whose posterior mean varies by more than 0.01 over the test images;
- mmd: squared MMD between draws of the aggregate posterior and the prior (`vae.training.objectives.mmd`);
- seconds: training, without validation.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributions import Bernoulli
from torch.utils.data import DataLoader, TensorDataset

from vae.config import DataParams, EvaluateParams, ModelParams
from vae.data.binarization import binarize_once, to_float
from vae.data.datasets import FILES, Split, load, split_validation
from vae.data.download import fetch
from vae.errors import DataError
from vae.evaluation.likelihood import ACTIVE_UNIT_VARIANCE, Evaluation, evaluate
from vae.examples.techniques import FULL, QUICK, baseline, compared, techniques
from vae.files import write_atomically
from vae.models.distributions import gaussian_kl
from vae.models.vae import VAE, slerp
from vae.plots import comparisons, image_grids, latents
from vae.plots.figure import save
from vae.plots.visualize import (
    first_of_each_class,
    visualize_interpolation,
    visualize_latent_arithmetic,
    visualize_latent_manifold,
)
from vae.training.objectives import mmd
from vae.training.trainer import VAETrainer
from vae.workflow.command_line import ArgumentParser, errors_in_one_line
from vae.workflow.stages import RAW, mnist_dir, read_dataset

OUTPUT = Path("results/examples")
DPI = 110
COLUMNS = 10  # images a row
MMD_DRAWS = 2000
PROTOCOL = ["data", "train_images", "test_images", "nll_images", "importance_samples"]  # columns of every table


@dataclass(frozen=True)
class Example:
    """A study's results: a row for each network (or path), and the pictures by name."""

    table: pd.DataFrame
    figures: dict[str, Figure]


@dataclass(frozen=True)
class Trained:
    """A network after its training, its evaluation, and its row of the table."""

    model: VAE
    trainer: VAETrainer
    evaluation: Evaluation
    row: dict[str, float]


class VAEExamples:
    """The five studies, on MNIST: each returns its `Example` and saves it under `output`.

    `data` are training and test images; without them, they come from MNIST_DIR, the pipeline's download or the mirrors,
    and where there is no way to any of these from the 5,000 bundled digits. `quick` takes those digits and tiny
    networks, seconds a study: to look at, not to learn from.
    """

    def __init__(
        self,
        device: torch.device | str = "auto",
        quick: bool = False,
        output: Path | str = OUTPUT,
        data: tuple[Split, Split] | None = None,
    ) -> None:
        self.device, self.output = device, Path(output)
        self.scale = QUICK if quick else FULL
        train, test, self.data_name = (*data, "given") if data else _mnist(quick)
        kept, held = split_validation(train, 0.1)  # shuffled and stratified, so that the first are like all
        self.train, self.validation = _first(kept, self.scale.train_images), _first(held, self.scale.validation_images)
        self.test = test
        self.targets = Split(binarize_once(test.images, "dynamic"), test.labels)
        # For the NLL, spread over all of them: MNIST's first test images are easier than the rest.
        self.some = slice(None, None, max(1, len(test) // self.scale.nll_images))

    def example_1_basic_training(self) -> Example:
        """One network, twice as long as the others: its curves, figures and pictures."""
        trained = self._trained("basic training", epochs=2 * self.scale.epochs)
        mu, logvar = trained.evaluation.mu, trained.evaluation.logvar
        kl = gaussian_kl(torch.from_numpy(mu), torch.from_numpy(logvar)).mean(0).numpy()
        images, inputs = self.test.images[:COLUMNS], self.targets.images[:COLUMNS]
        pictures = {
            "history": trained.trainer.plot_history(),
            "reconstructions": image_grids.reconstructions(
                to_float(images).numpy(), to_float(inputs).numpy(), _reconstructed(trained.model, inputs).numpy()
            ),
            "samples": image_grids.generated_samples(_sampled(trained.model, COLUMNS * COLUMNS).numpy(), COLUMNS),
            "latent_space": latents.latent_space(mu, self.test.labels.numpy()),
            "kl_per_dimension": latents.kl_per_dimension(kl, ACTIVE_UNIT_VARIANCE, mu.var(axis=0, ddof=1)),
        }
        return self._saved("1_basic_training", pd.DataFrame([trained.row]), pictures)

    def example_2_beta_vae_comparison(self) -> Example:
        """What β trades (Higgins et al. 2017; Alemi et al. 2018, "Fixing a broken ELBO"): rate against distortion.

        `pixel_entropy` measures blur: the entropy of the reconstructions' pixels, nats per image. That samples get
        worse again as β falls below 1 is in the NLL, which judges prior and decoder together.
        """
        by_beta = {beta: self._trained(f"β = {beta:g}", beta=beta) for beta in self.scale.betas}
        inputs = self.targets.images[self.some]
        table = pd.DataFrame(
            {"beta": beta, **trained.row, "pixel_entropy": _pixel_entropy(_reconstructed(trained.model, inputs))}
            for beta, trained in by_beta.items()
        )
        models = {f"β = {beta:g}": trained.model for beta, trained in by_beta.items()}
        pictures = {"rate_distortion": comparisons.rate_distortion(table), **self._galleries(models)}
        return self._saved("2_beta_vae_comparison", table, pictures)

    def example_3_latent_space_interpolation(self) -> Example:
        """From one digit to another along the line and along the great circle, and sums of the digits' mean latents.

        The line cuts through the origin's neighbourhood (`shortest_z`, to compare with `ends_z`), where its pixels are
        undecided: `middle_entropy` against `ends_entropy`. `largest_step` is the largest change between neighbouring
        images as a multiple of the mean one: 1 is an even walk.
        """
        trained = self._trained("interpolation")
        model, device = trained.model, trained.trainer.hardware.device
        labels, names = self.test.labels, self.test.labels.unique().tolist()
        first = first_of_each_class(labels)
        digits = to_float(self.targets.images[first])
        loader = DataLoader(TensorDataset(digits, labels[first]), batch_size=len(first))
        inputs = to_float(binarize_once(self.train.images, "dynamic"))
        everything = DataLoader(TensorDataset(inputs, self.train.labels), batch_size=1000)
        pictures = {
            "linear": visualize_interpolation(model, loader, device, COLUMNS),
            "spherical": visualize_interpolation(model, loader, device, COLUMNS, spherical=True),
            "arithmetic_8-3+1": visualize_latent_arithmetic(model, everything, device, (8, 3, 1)),
            "arithmetic_9-4+6": visualize_latent_arithmetic(model, everything, device, (9, 4, 6)),
        }
        with torch.no_grad():
            mu = model.encode(digits.to(device))[0]
            rows = [
                {"from": names[a], "to": names[b], "path": path, **_walk(model, mu[a], mu[b], path == "spherical")}
                for a, b in zip(range(0, len(first) - 1, 2), range(1, len(first), 2), strict=True)
                for path in ("linear", "spherical")
            ]
        return self._saved("3_latent_space_interpolation", pd.DataFrame(rows), pictures)

    def example_4_different_latent_dimensions(self) -> Example:
        """How many latent dimensions pay: −ELBO, NLL and KL level off, and beyond that not all of them are active."""
        by_size = {size: self._trained(f"{size} latent", latent_dim=size) for size in self.scale.latent_dims}
        table = pd.DataFrame({"latent_dim": size, **trained.row} for size, trained in by_size.items())
        models = {f"{size} latent": trained.model for size, trained in by_size.items()}
        pictures = {"active_units": comparisons.latent_dimensions(table), **self._galleries(models)}
        if 2 in by_size:
            plane = by_size[2]
            pictures["manifold"] = visualize_latent_manifold(plane.model, plane.trainer.hardware.device)
            pictures["latent_space_2"] = latents.latent_space(plane.evaluation.mu, self.test.labels.numpy())
        return self._saved("4_different_latent_dimensions", table, pictures)

    def example_5_advanced_techniques(self) -> Example:
        """What each technique buys: one change at a time from one baseline, over several seeds.

        `difference` is that of neg_elbo to the baseline with the same seed, `spread` its standard deviation over the
        seeds. The `verdict` is "within noise" below `noise`, which is three standard errors of the changes' median
        spread (a single spread of two or three seeds says little), and below its own spread. What the MMD term buys is
        not in neg_elbo but in `mmd`: an aggregate posterior closer to the prior.
        """
        runs, curves = [], []
        for group, changes in techniques(self.scale).items():
            for change, options in changes.items():
                for seed in range(self.scale.seeds):
                    trained = self._trained(f"{change}, seed {seed}", seed, **options)
                    runs.append({"group": group, "change": change, "seed": seed, **trained.row})
                    curves.append(trained.trainer.history.assign(group=group, change=change, seed=seed))
        table, each = compared(pd.DataFrame(runs))
        pictures = {
            "differences": comparisons.differences(each, table["noise"].iloc[0]),
            "validation_curves": comparisons.validation_curves(pd.concat(curves)),
        }
        return self._saved("5_advanced_techniques", table, pictures)

    def _trained(self, name: str, seed: int = 0, **changes: Any) -> Trained:
        """Train and evaluate the baseline with `changes`, which are parameters of `ModelParams` and `TrainParams`."""
        options = baseline(self.scale) | changes
        network = {key: options.pop(key) for key in list(options) if key in ModelParams.model_fields}
        epochs = options.pop("epochs")
        model = VAE.from_params(ModelParams(**network), seed)
        model.initialize_from_data(self.train.images)
        # Compiling takes longer than trainings as short as these.
        trainer = VAETrainer(model, self.device, seed=seed, compile=False, **options)
        history = trainer.train(self.train, self.validation, epochs, progress=False)
        evaluation, row = self._evaluated(model, trainer.hardware.device)
        row |= {"epochs": len(history), "seconds": history["train/seconds"].sum()}
        print(
            f"  {name}: −ELBO {row['neg_elbo']:.2f}, {row['active_units']} active, {row['seconds']:.1f} s", flush=True
        )
        return Trained(model, trainer, evaluation, row)

    def _evaluated(self, model: VAE, device: torch.device) -> tuple[Evaluation, dict[str, float]]:
        targets = self.targets.to(device)
        whole = evaluate(model, targets.images, targets.labels, EvaluateParams(importance_samples=1))
        samples = EvaluateParams(importance_samples=self.scale.importance_samples)
        part = evaluate(model, targets.images[self.some], targets.labels[self.some], samples).metrics()
        metrics = whole.metrics()
        generator = torch.Generator().manual_seed(0)
        step = max(1, len(targets) // MMD_DRAWS)  # spread, too: the first images are not distributed like all
        mu, logvar = (torch.from_numpy(values[::step]) for values in (whole.mu, whole.logvar))
        noise, prior = (torch.randn(mu.shape, generator=generator) for _ in range(2))
        return whole, {
            "neg_elbo": -metrics["elbo"],
            "reconstruction": metrics["reconstruction"],
            "kl": metrics["kl"],
            "nll": part["nll"],
            "active_units": int(metrics["active_units"]),
            "mmd": mmd(model.reparameterize(mu, logvar, noise), prior).item(),
        }

    def _galleries(self, models: dict[str, VAE]) -> dict[str, Figure]:
        """The same test images and the same draws of the prior (as far as sizes let them be), a row a model."""
        inputs = self.targets.images[:COLUMNS]
        reconstructions = torch.cat([to_float(inputs), *(_reconstructed(model, inputs) for model in models.values())])
        samples = torch.cat([_sampled(model, COLUMNS) for model in models.values()])
        title = "Reconstructions of test images"
        return {
            "reconstructions": image_grids.image_rows(reconstructions.numpy(), ["input", *models], title),
            "samples": image_grids.image_rows(samples.numpy(), list(models), "Samples from the prior, z ~ N(0, I)"),
        }

    def _saved(self, name: str, table: pd.DataFrame, pictures: dict[str, Figure]) -> Example:
        nll_images, samples = len(self.targets.labels[self.some]), self.scale.importance_samples
        protocol: list[Any] = [self.data_name, len(self.train), len(self.test), nll_images, samples]
        for column, value in zip(PROTOCOL, protocol, strict=True):
            table[column] = value
        folder = self.output / name
        write_atomically(folder / "table.csv", table.to_csv(index=False, float_format="%.6g"))
        for picture, figure in pictures.items():
            save(figure, folder / f"{picture}.png", DPI)
        return Example(table, pictures)


def _walk(model: VAE, start: Tensor, end: Tensor, spherical: bool) -> dict[str, float]:
    """What can be measured of a path between two latents [L]: its distance from the origin, its images."""
    weight = torch.linspace(0, 1, COLUMNS + 1, device=start.device)[:, None]  # an odd number has a middle
    points = slerp(start, end, weight) if spherical else torch.lerp(start, end, weight)
    images = model.images(points)
    steps = images.diff(dim=0).norm(dim=1)
    return {
        "ends_z": points[[0, -1]].norm(dim=1).mean().item(),
        "shortest_z": points.norm(dim=1).min().item(),
        "ends_entropy": _pixel_entropy(images[[0, -1]]),
        "middle_entropy": _pixel_entropy(images[[COLUMNS // 2]]),
        "largest_step": (steps.max() / steps.mean()).item(),
    }


def _pixel_entropy(images: Tensor) -> float:
    """Entropy of the pixels' Bernoulli distributions [N, D], summed over pixels: nats per image. Grey costs, black
    and white don't."""
    entropy: Tensor = Bernoulli(probs=images).entropy()
    return entropy.sum(1).mean().item()


def _reconstructed(model: VAE, images: Tensor) -> Tensor:
    """uint8 [N, D] -> pixel probabilities [N, D], on the CPU."""
    return model.reconstruct(to_float(images).to(model.output_bias.device)).cpu()


def _sampled(model: VAE, n: int) -> Tensor:
    """`n` images from the same draws each time, on the CPU."""
    device = model.output_bias.device
    return model.sample(n, torch.Generator(device).manual_seed(0)).cpu()


def _first(split: Split, n: int) -> Split:
    return Split(split.images[:n], split.labels[:n])


def _mnist(quick: bool) -> tuple[Split, Split, str]:
    """Training and test images and the data set's name, verified; they leave no files behind."""
    with TemporaryDirectory() as folder:
        params = DataParams(source="bundled" if quick else "auto")
        record = fetch(params, mnist_dir() or _downloaded(), Path(folder), None)
        return load(folder, "train"), load(folder, "test"), record["name"]


def _downloaded() -> Path | None:
    """The folder of the pipeline's download, where that is the real MNIST."""
    try:
        is_mnist = read_dataset()["name"] == "MNIST"
    except DataError:
        return None
    return RAW if is_mnist and all((RAW / f"{name}.gz").is_file() for pair in FILES.values() for name in pair) else None


EXAMPLES = {
    "1": VAEExamples.example_1_basic_training,
    "2": VAEExamples.example_2_beta_vae_comparison,
    "3": VAEExamples.example_3_latent_space_interpolation,
    "4": VAEExamples.example_4_different_latent_dimensions,
    "5": VAEExamples.example_5_advanced_techniques,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the chosen studies, all without a choice, and print their tables."""
    parser = ArgumentParser((__doc__ or "").splitlines()[0])
    parser.add_argument("numbers", nargs="*", metavar="1-5", help="which studies to run: all without one")
    parser.add_argument("--quick", action="store_true", help="bundled digits and tiny networks: seconds a study")
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:1 | mps")
    parser.add_argument("--output", default=OUTPUT, type=Path, metavar="DIR", help=f"where to save: {OUTPUT}")
    chosen = parser.parse_args(arguments)
    wrong = [number for number in chosen.numbers if number not in EXAMPLES]
    if wrong:
        sys.exit(f"error: there is no example {', '.join(wrong)}: allowed are {', '.join(EXAMPLES)}")
    with errors_in_one_line("the finished examples are saved"):
        examples = VAEExamples(chosen.device, chosen.quick, chosen.output)
        for number in chosen.numbers or EXAMPLES:
            study = EXAMPLES[number]
            print(f"{study.__name__} on {examples.data_name}", flush=True)
            table = study(examples).table
            print(", ".join(f"{name}: {table[name].iloc[0]}" for name in PROTOCOL))
            print(table.drop(columns=PROTOCOL).to_string(index=False, float_format="{:.4g}".format), end="\n\n")
