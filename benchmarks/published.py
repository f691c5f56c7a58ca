"""Our test NLLs beside published ones: `make published` trains the recipes of `recipes.py`, each once.

Every recipe goes on where it was stopped, and is not trained again once it has a result; `results/published/` holds its
weights, history and result (delete its folder there to train anew). Writes benchmarks/published.csv, where a recipe run
with other epochs or samples than its own (`--epochs`, `--importance_samples`) has no place.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from recipes import RECIPES, Recipe
from vae.checkpoints import Checkpoints
from vae.config import Params
from vae.data.binarization import binarize_once
from vae.data.datasets import load
from vae.errors import ConfigError
from vae.evaluation.likelihood import evaluate
from vae.files import sha256, write_atomically, write_json
from vae.workflow.command_line import ArgumentParser, errors_in_one_line
from vae.workflow.stages import RAW, fetch_dataset
from vae.workflow.tracked_training import tracked_training

OUTPUT = Path("benchmarks/published.csv")
RESULTS = Path("results/published")
EXPERIMENT = "published"

Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line names, print the table, and write it where the recipes ran whole."""
    chosen, changes = parse(arguments)
    rows = [run(recipe, recipe.params.replaced(changes)) for recipe in chosen]
    print("\n" + table(pd.DataFrame(rows)))
    if changes:
        print(f"\nnot in {OUTPUT}: run with {', '.join(f'{name}={value}' for name, value in changes.items())}")
    else:
        write_atomically(OUTPUT, merged(rows).to_csv(index=False))


def parse(arguments: Sequence[str] | None) -> tuple[list[Recipe], dict[str, Any]]:
    """The recipes to run, and the values that shorten them."""
    parser = ArgumentParser(__doc__)
    names = {recipe.name: recipe for recipe in RECIPES}
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help=f"{', '.join(names)} [default: all but the long]")
    parser.add_argument("--epochs", dest="train.epochs", type=int, help="train that long, not as the recipe says")
    parser.add_argument("--importance_samples", dest="evaluate.importance_samples", type=int, help="likewise")
    values = vars(parser.parse_args(arguments))
    wanted = values.pop("recipes") or [recipe.name for recipe in RECIPES if not recipe.optional]
    if unknown := [name for name in wanted if name not in names]:
        parser.error(f"unknown recipe {', '.join(unknown)}: there are {', '.join(names)}")
    changes = {name: value for name, value in values.items() if value is not None}
    try:
        Params().replaced(changes)
    except ConfigError:
        parser.error("epochs and samples are whole numbers from 1")
    return [names[name] for name in wanted], changes


def run(recipe: Recipe, params: Params) -> Row:
    """The recipe's row of the table: from its folder, or by training and evaluating now."""
    folder = RESULTS / f"{recipe.name}-{fingerprint(params)}"
    result = folder / "row.json"
    if result.is_file():
        row: Row = json.loads(result.read_text())
        return row
    print(f"\n{recipe.name}: {recipe.source}")
    dataset = fetch_dataset(params.data)
    if dataset["source"] == "bundled":
        raise ConfigError("the published figures are for all of MNIST, and only the bundled digits are there")
    weights = folder / "model.safetensors"
    files = weights, folder / "history.csv"
    with tracked_training(
        params, dataset, RAW, *files, experiment=EXPERIMENT, name=recipe.name, checkpoints=folder / "checkpoints"
    ) as training:
        test = load(RAW, "test")
        targets = binarize_once(test.images, params.data.binarization).to(training.hardware.device)
        evaluation = evaluate(
            training.model,
            targets,
            test.labels,
            params.evaluate,
            seed=params.seed,
            progress=True,
            checkpoints=Checkpoints(folder / "checkpoints" / "evaluation"),
        )
        metrics = evaluation.metrics()
        training.run.log_metrics(metrics, prefix="test/")
        training.run.log_tags({"recipe": recipe.name, "published": recipe.published, "source": recipe.source})
    row = {
        "recipe": recipe.name,
        "source": recipe.source,
        "published": recipe.published,
        "ours": round(metrics["nll"], 2),
        "standard_error": round(metrics["nll_standard_error"], 2),
        "importance_samples": params.evaluate.importance_samples,
        "binarization": params.data.binarization,
        "epochs": params.train.epochs,
        "minutes": round(training.summary["seconds"] / 60, 1),
        "device": str(training.hardware),
        "neg_elbo": round(-metrics["elbo"], 2),
        "active_units": metrics["active_units"],
        "weights_sha256": sha256(weights),
    }
    write_json(result, row)
    return row


def fingerprint(params: Params) -> str:
    """What makes a result this recipe's: its parameters but those at their defaults, so that new ones do no harm."""
    facts = params.model_dump_json(exclude={"search", "render"}, exclude_defaults=True)
    return hashlib.sha256(facts.encode()).hexdigest()[:8]


def merged(rows: Sequence[Row]) -> pd.DataFrame:
    """The rows in the recipes' order, with those of earlier calls."""
    earlier: list[Any] = pd.read_csv(OUTPUT).to_dict("records") if OUTPUT.is_file() else []
    by_name: dict[str, Mapping[Any, Any]] = {str(row["recipe"]): row for row in [*earlier, *rows]}
    return pd.DataFrame([by_name[recipe.name] for recipe in RECIPES if recipe.name in by_name])


def table(rows: pd.DataFrame) -> str:
    """The rows in Markdown."""
    lines = [
        "| recipe | published | ours | standard error | samples | epochs | minutes |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows.itertuples():
        lines.append(
            f"| {row.recipe} | {row.published:.2f} | {row.ours:.2f} | {row.standard_error:.2f} "
            f"| {row.importance_samples:,} | {row.epochs:,} | {row.minutes:.1f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    with errors_in_one_line("the same command resumes from the last epoch"):
        main()
