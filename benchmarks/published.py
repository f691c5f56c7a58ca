"""Compare our test NLLs with published ones: `make published` trains the recipes of recipes.py.

An interrupted recipe resumes from its last epoch, and a finished one is not trained again: `results/published/` holds
the weights, history and result of each seed. Writes benchmarks/published.csv, except for recipes that run with
`--epochs` or `--importance_samples`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

import vae
from recipes import RECIPES, Recipe
from vae.checkpoints import Checkpoints
from vae.config import Params
from vae.data.binarization import binarize_once
from vae.data.datasets import load, split_validation
from vae.errors import ConfigError
from vae.evaluation.likelihood import evaluate
from vae.files import fingerprint, sha256, write_atomically, write_json
from vae.models.vae import VAE
from vae.workflow.command_line import ArgumentParser, errors_in_one_line
from vae.workflow.stages import RAW, fetch_dataset
from vae.workflow.tracked_training import tracked_training

OUTPUT = Path("benchmarks/published.csv")
RESULTS = Path("results/published")
EXPERIMENT = "published"
CODE = [Path(vae.__file__).parent / name for name in ("data", "models", "training", "evaluation")]

Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the chosen recipes, print the table, and write it if they ran unchanged."""
    chosen, changes = parse(arguments)
    rows = pd.DataFrame([of_all_seeds(recipe, changed(recipe.params, changes)) for recipe in chosen])
    columns = ["recipe", "published", "ours", "standard_error", "seeds", "importance_samples", "epochs", "minutes"]
    print("\n" + rows[columns].to_markdown(index=False))
    if changes:
        print(f"\nnot in {OUTPUT}: run with {', '.join(f'{name}={value}' for name, value in changes.items())}")
        return
    earlier = pd.read_csv(OUTPUT) if OUTPUT.is_file() else None
    table = pd.concat([earlier, rows]).drop_duplicates("recipe", keep="last").set_index("recipe")
    ordered = table.loc[[recipe.name for recipe in RECIPES if recipe.name in table.index]]
    write_atomically(OUTPUT, ordered.to_csv())


def parse(arguments: Sequence[str] | None) -> tuple[list[Recipe], dict[str, Any]]:
    """The recipes to run, and the parameters that the command line changes."""
    parser = ArgumentParser(__doc__)
    names = {recipe.name: recipe for recipe in RECIPES}
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help=f"{', '.join(names)} [default: all but the long]")
    parser.add_argument("--epochs", dest="train.epochs", type=int, help="number of epochs, instead of the recipe's")
    parser.add_argument("--importance_samples", dest="evaluate.importance_samples", type=int, help="the same")
    values = vars(parser.parse_args(arguments))
    wanted = values.pop("recipes") or [recipe.name for recipe in RECIPES if not recipe.optional]
    if unknown := [name for name in wanted if name not in names]:
        parser.error(f"unknown recipe {', '.join(unknown)}, allowed are {', '.join(names)}")
    changes = {name: value for name, value in values.items() if value is not None}
    try:
        Params().replaced(changes)
    except ConfigError as error:
        parser.error(str(error))
    return [names[name] for name in wanted], changes


def changed(params: Params, changes: dict[str, Any]) -> Params:
    """A recipe's parameters with those of the command line; its epochs with the ELBO keep their share."""
    epochs = changes.get("train.epochs", params.train.epochs)
    elbo_epochs = params.train.elbo_epochs * epochs // params.train.epochs
    return params.replaced(changes | {"train.elbo_epochs": elbo_epochs})


def of_all_seeds(recipe: Recipe, params: Params) -> Row:
    """The recipe's row of the table: means over its seeds; `spread` is the standard deviation of `ours` over them.

    `active_units` and `weights_sha256` are those of the first seed.
    """
    rows = [run(recipe, params.replaced({"seed": params.seed + number})) for number in range(recipe.seeds)]
    table = pd.DataFrame(rows)
    means = {name: round(float(table[name].mean()), 2) for name in ("ours", "neg_elbo", "minutes")}
    spread = round(float(table["ours"].std()), 2) if recipe.seeds > 1 else None
    return rows[0] | means | {"spread": spread, "seeds": recipe.seeds}


def run(recipe: Recipe, params: Params) -> Row:
    """The result of one seed: read from its folder, or computed by training and evaluating."""
    folder = result_folder(recipe, params)
    result = folder / "row.json"
    if result.is_file():
        row: Row = json.loads(result.read_text())
        return row
    print(f"\n{recipe.name}: {recipe.source}")
    dataset = fetch_dataset(params.data)
    if dataset["source"] == "bundled":
        raise ConfigError("published results are for all of MNIST, but only the bundled digits are available")
    files = weights, _ = folder / "model.safetensors", folder / "history.csv"
    with tracked_training(
        params, dataset, RAW, *files, experiment=EXPERIMENT, name=recipe.name, checkpoints=folder / "checkpoints"
    ) as training:
        metrics = test_metrics(training.model, params, Checkpoints(folder / "checkpoints" / "evaluation"))
        training.run.log_metrics(metrics, prefix="test/")
        training.run.log_tags({"recipe": recipe.name, "published": recipe.published, "source": recipe.source})
    row = {
        "recipe": recipe.name,
        "source": recipe.source,
        "published": recipe.published,
        "published_samples": recipe.published_samples,
        "architecture": params.model.architecture,
        "prior": params.model.prior,
        "stochastic_layers": 1 + len(params.model.lower_latent_dims),
        "parameters": training.summary["parameters"],
        "training_images": len(split_validation(load(RAW, "train"), params.data.validation_size)[0]),
        "ours": round(metrics["nll"], 2),
        "standard_error": round(metrics["nll_standard_error"], 2),
        "importance_samples": params.evaluate.importance_samples,
        "binarization": params.data.binarization,
        "epochs": params.train.epochs,
        "minutes": round(training.seconds / 60, 1),
        "device": str(training.hardware),
        "neg_elbo": round(-metrics["elbo"], 2),
        "active_units": metrics["active_units"],
        "weights_sha256": sha256(weights),
    }
    write_json(result, row)
    return row


def result_folder(recipe: Recipe, params: Params) -> Path:
    """Where results are kept, by all values, defaults included, and by the code that they depend on."""
    values = params.model_dump(mode="json", exclude={"search", "render"})
    return RESULTS / f"{recipe.name}-{fingerprint(values, CODE)}"


def test_metrics(model: VAE, params: Params, checkpoints: Checkpoints | None = None) -> dict[str, float]:
    """The metrics of the test set, binarized once."""
    test = load(RAW, "test")
    targets = binarize_once(test.images, params.data.binarization).to(model.output_bias.device)
    return evaluate(
        model, targets, test.require_labels(), params.evaluate, seed=params.seed, progress=True, checkpoints=checkpoints
    ).metrics()


if __name__ == "__main__":
    with errors_in_one_line("the same command resumes from the last epoch"):
        main()
