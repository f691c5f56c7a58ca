"""Five small studies of the parameters of a VAE: `python -m vae.examples 2 --quick`, or all with `make examples`.

All networks are trained by `VAETrainer` on the same images. The best epoch is selected on validation images, and the
metrics are those of the test images. The columns of the tables:

- neg_elbo, reconstruction, kl: nats per image at β = 1, for any β in training, over all `test_images`;
- nll: the negative importance-weighted bound (Burda et al. 2016) with `importance_samples` per image, `nll_images`;
- active_units: latent dimensions whose posterior mean varies by more than 0.01 over the test images;
- mmd: squared MMD between samples of the aggregate posterior and of the prior (`vae.training.objectives.mmd`);
- seconds: training, without validation.
"""

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
from vae.plots.figure import Array, save
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
COLUMNS = 10  # images per row
MMD_SAMPLES = 2000
PROTOCOL = ["data", "train_images", "test_images", "nll_images", "importance_samples"]  # columns of every table


@dataclass(frozen=True)
class Example:
    """The results of a study: a table with one row per network (or path), and figures by name."""

    table: pd.DataFrame
    figures: dict[str, Figure]


@dataclass(frozen=True)
class Trained:
    """A trained network, its evaluation, and its row of the table."""

    model: VAE
    trainer: VAETrainer
    evaluation: Evaluation
    row: dict[str, float]


class VAEExamples:
    """The five studies on MNIST: each returns an `Example` and saves it in `output`.

    `data` are the training and test images. By default they come from MNIST_DIR, the pipeline's download, a mirror, or
    else the 5,000 bundled digits. `quick` uses the bundled digits and tiny networks: seconds per study, but the results
    mean little.
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
        kept, held = split_validation(train, 0.1)  # shuffled and stratified
        self.train, self.validation = _first(kept, self.scale.train_images), _first(held, self.scale.validation_images)
        self.test = test
        self.targets = Split(binarize_once(test.images, "dynamic"), test.require_labels())
        # For the NLL, evenly spaced: the first test images of MNIST are easier than the others.
        self.some = slice(None, None, max(1, len(test) // self.scale.nll_images))

    def example_1_basic_training(self) -> Example:
        """One network, trained twice as long as the others: history, metrics and figures."""
        trained = self._trained("basic training", epochs=2 * self.scale.epochs)
        mu, logvar = trained.evaluation.mu, trained.evaluation.logvar
        kl = gaussian_kl(torch.from_numpy(mu), torch.from_numpy(logvar)).mean(0).numpy()
        images, inputs = self.test.images[:COLUMNS], self.targets.images[:COLUMNS]
        plots = {
            "history": trained.trainer.plot_history(),
            "reconstructions": image_grids.reconstructions(
                _shaped(to_float(images)), _shaped(to_float(inputs)), _shaped(_reconstructed(trained.model, inputs))
            ),
            "samples": image_grids.generated_samples(_shaped(_sampled(trained.model, COLUMNS * COLUMNS)), COLUMNS),
            "latent_space": latents.latent_space(mu, self.test.require_labels().numpy()),
            "kl_per_dimension": latents.kl_per_dimension(kl, ACTIVE_UNIT_VARIANCE, mu.var(axis=0, ddof=1)),
        }
        return self._saved("1_basic_training", pd.DataFrame([trained.row]), plots)

    def example_2_beta_vae_comparison(self) -> Example:
        """β trades rate against distortion (Higgins et al. 2017; Alemi et al. 2018, "Fixing a broken ELBO").

        `pixel_entropy` measures blur: the entropy of the reconstructed pixels, in nats per image. The NLL, which
        measures prior and decoder together, shows that samples get worse if β is below 1.
        """
        by_beta = {beta: self._trained(f"β = {beta:g}", beta=beta) for beta in self.scale.betas}
        inputs = self.targets.images[self.some]
        table = pd.DataFrame(
            {"beta": beta, **trained.row, "pixel_entropy": _pixel_entropy(_reconstructed(trained.model, inputs))}
            for beta, trained in by_beta.items()
        )
        models = {f"β = {beta:g}": trained.model for beta, trained in by_beta.items()}
        plots = {"rate_distortion": comparisons.rate_distortion(table), **self._galleries(models)}
        return self._saved("2_beta_vae_comparison", table, plots)

    def example_3_latent_space_interpolation(self) -> Example:
        """Linear and spherical interpolation between digits, and arithmetic with the mean latents of digits.

        The line passes near the origin (compare `shortest_z` with `ends_z`), where pixels are uncertain (compare
        `middle_entropy` with `ends_entropy`). `largest_step` is the largest change between neighbouring images,
        divided by the mean change: 1 is an even path.
        """
        trained = self._trained("interpolation")
        model, device = trained.model, trained.trainer.hardware.device
        labels, names = self.test.require_labels(), self.test.require_labels().unique().tolist()
        first = first_of_each_class(labels)
        digits = to_float(self.targets.images[first])
        loader = DataLoader(TensorDataset(digits, labels[first]), batch_size=len(first))
        inputs = to_float(binarize_once(self.train.images, "dynamic"))
        everything = DataLoader(TensorDataset(inputs, self.train.require_labels()), batch_size=1000)
        plots = {
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
        return self._saved("3_latent_space_interpolation", pd.DataFrame(rows), plots)

    def example_4_different_latent_dimensions(self) -> Example:
        """The number of latent dimensions: −ELBO, NLL and KL level off, and further dimensions are inactive."""
        by_size = {size: self._trained(f"{size} latent", latent_dim=size) for size in self.scale.latent_dims}
        table = pd.DataFrame({"latent_dim": size, **trained.row} for size, trained in by_size.items())
        models = {f"{size} latent": trained.model for size, trained in by_size.items()}
        plots = {"active_units": comparisons.latent_dimensions(table), **self._galleries(models)}
        if 2 in by_size:
            plane = by_size[2]
            plots["manifold"] = visualize_latent_manifold(plane.model, plane.trainer.hardware.device)
            plots["latent_space_2"] = latents.latent_space(plane.evaluation.mu, self.test.require_labels().numpy())
        return self._saved("4_different_latent_dimensions", table, plots)

    def example_5_advanced_techniques(self) -> Example:
        """The effect of common techniques: one change of the baseline at a time, with several seeds.

        `difference` is that of neg_elbo to the baseline with the same seed, `spread` its standard deviation over
        seeds. The `verdict` is "within noise" if the difference is below `noise`, three standard errors of the median
        spread (the spread of two or three seeds alone is unreliable), or below its own spread. The MMD term aims at
        `mmd`, an aggregate posterior closer to the prior, and not at neg_elbo.
        """
        runs, curves = [], []
        for group, changes in techniques(self.scale).items():
            for change, options in changes.items():
                for seed in range(self.scale.seeds):
                    trained = self._trained(f"{change}, seed {seed}", seed, **options)
                    runs.append({"group": group, "change": change, "seed": seed, **trained.row})
                    curves.append(trained.trainer.history.assign(group=group, change=change, seed=seed))
        table, each = compared(pd.DataFrame(runs))
        plots = {
            "differences": comparisons.differences(each, table["noise"].iloc[0]),
            "validation_curves": comparisons.validation_curves(pd.concat(curves)),
        }
        return self._saved("5_advanced_techniques", table, plots)

    def _trained(self, name: str, seed: int = 0, **changes: Any) -> Trained:
        """Train and evaluate the baseline with `changes`, which are fields of `ModelParams` and `TrainParams`."""
        options = baseline(self.scale) | changes
        network = {key: options.pop(key) for key in list(options) if key in ModelParams.model_fields}
        epochs = options.pop("epochs")
        model = VAE.from_params(ModelParams(**network), seed)
        model.initialize_from_data(self.train.images)
        # Compilation takes longer than these short trainings.
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
        whole = evaluate(model, targets.images, targets.require_labels(), EvaluateParams(importance_samples=1))
        samples = EvaluateParams(importance_samples=self.scale.importance_samples)
        part = evaluate(model, targets.images[self.some], targets.require_labels()[self.some], samples).metrics()
        metrics = whole.metrics()
        generator = torch.Generator().manual_seed(0)
        step = max(1, len(targets) // MMD_SAMPLES)  # evenly spaced, as for the NLL
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
        """Reconstructions of the same test images, and samples from the same seed, one row per model."""
        inputs = self.targets.images[:COLUMNS]
        reconstructions = torch.cat([to_float(inputs), *(_reconstructed(model, inputs) for model in models.values())])
        samples = torch.cat([_sampled(model, COLUMNS) for model in models.values()])
        title = "Reconstructions of test images"
        return {
            "reconstructions": image_grids.image_rows(_shaped(reconstructions), ["input", *models], title),
            "samples": image_grids.image_rows(_shaped(samples), list(models), "Samples from the prior, z ~ N(0, I)"),
        }

    def _saved(self, name: str, table: pd.DataFrame, plots: dict[str, Figure]) -> Example:
        nll_images, samples = len(self.targets.images[self.some]), self.scale.importance_samples
        protocol: list[Any] = [self.data_name, len(self.train), len(self.test), nll_images, samples]
        for column, value in zip(PROTOCOL, protocol, strict=True):
            table[column] = value
        folder = self.output / name
        write_atomically(folder / "table.csv", table.to_csv(index=False, float_format="%.6g"))
        for plot, figure in plots.items():
            save(figure, folder / f"{plot}.png", DPI)
        return Example(table, plots)


def _walk(model: VAE, start: Tensor, end: Tensor, spherical: bool) -> dict[str, float]:
    """Measures of the path between two latents [L]: its distance from the origin, and its images."""
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
    """Mean entropy of Bernoulli pixels with these probabilities [N, D], in nats per image: high for grey pixels."""
    entropy: Tensor = Bernoulli(probs=images).entropy()
    return entropy.sum(1).mean().item()


def _reconstructed(model: VAE, images: Tensor) -> Tensor:
    """uint8 [N, D] -> pixel probabilities [N, D], on the CPU."""
    return model.reconstruct(to_float(images).to(model.output_bias.device)).cpu()


def _shaped(images: Tensor) -> Array:
    return image_grids.shaped(images, (1, 28, 28))


def _sampled(model: VAE, n: int) -> Tensor:
    """`n` samples with a fixed seed, on the CPU."""
    device = model.output_bias.device
    return model.sample(n, torch.Generator(device).manual_seed(0)).cpu()


def _first(split: Split, n: int) -> Split:
    return split.rows(slice(n))


def _mnist(quick: bool) -> tuple[Split, Split, str]:
    """Verified training and test images, and the name of the data set; leaves no files behind."""
    with TemporaryDirectory() as folder:
        params = DataParams(source="bundled" if quick else "auto")
        record = fetch(params, mnist_dir() or _downloaded(), Path(folder), None)
        return load(folder, "train"), load(folder, "test"), record["name"]


def _downloaded() -> Path | None:
    """The folder of the pipeline's download, if that is the full MNIST."""
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
    """Run the chosen studies (by default all) and print their tables."""
    parser = ArgumentParser((__doc__ or "").splitlines()[0])
    parser.add_argument("numbers", nargs="*", metavar="1-5", help="studies to run [default: all]")
    parser.add_argument("--quick", action="store_true", help="bundled digits and tiny networks: seconds per study")
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:1 | mps")
    parser.add_argument("--output", default=OUTPUT, type=Path, metavar="DIR", help=f"output folder [default: {OUTPUT}]")
    chosen = parser.parse_args(arguments)
    wrong = [number for number in chosen.numbers if number not in EXAMPLES]
    if wrong:
        parser.error(f"unknown example {', '.join(wrong)}, allowed are {', '.join(EXAMPLES)}")
    with errors_in_one_line("the finished examples are saved"):
        examples = VAEExamples(chosen.device, chosen.quick, chosen.output)
        for number in chosen.numbers or EXAMPLES:
            study = EXAMPLES[number]
            print(f"{study.__name__} on {examples.data_name}", flush=True)
            table = study(examples).table
            print(", ".join(f"{name}: {table[name].iloc[0]}" for name in PROTOCOL))
            print(table.drop(columns=PROTOCOL).to_string(index=False, float_format="{:.4g}".format), end="\n\n")
