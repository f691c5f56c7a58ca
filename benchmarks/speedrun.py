"""Time to quality: the wall time of `fit()` until the test NLL is as low as published figures.

`make speedrun` trains the quick recipe at several lengths, each with its learning rate's whole schedule, until the last
target is reached, and the plain recipe (784-400-20, Adam at 1e-3) once, measured on its way. An NLL is that of the
whole test set with SAMPLES importance samples; its computation is not in the time. A length that has been run is not
run again. Writes benchmarks/speedrun.csv and docs/speedrun.png.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from recipes import PLAIN, QUICK
from vae.config import Params
from vae.data.binarization import binarize_once
from vae.data.datasets import Split, load, split_validation
from vae.device import resolve
from vae.evaluation.likelihood import evaluate
from vae.files import write_atomically
from vae.models.vae import VAE
from vae.plots.figure import PALETTE, save
from vae.training.loop import Record, fit
from vae.workflow.command_line import ArgumentParser, errors_in_one_line
from vae.workflow.stages import RAW, fetch_dataset

OUTPUT = Path("benchmarks/speedrun.csv")
PICTURE = Path("docs/speedrun.png")
TARGETS = (88.0, 86.76, 85.5, 84.5, 83.5)
LENGTHS = (4, 8, 16, 32, 64)  # epochs; last comes the recipe's own number
SAMPLES = 200  # fewer make an NLL larger on average, so a time is never too short for it
DPI = 110

Row = dict[str, Any]
OnEpoch = Callable[[VAE, list[Record]], None]


def main() -> None:
    """Measure what isn't measured yet, print the table of targets, and draw the curves."""
    dataset = fetch_dataset(QUICK.data)
    train, validation = split_validation(load(RAW, "train"), QUICK.data.validation_size)
    test = load(RAW, "test")
    rows: list[Any] = pd.read_csv(OUTPUT).to_dict("records") if OUTPUT.is_file() else []

    def add(row: Row) -> None:
        rows.append(row)
        print(f"{row['recipe']:6} {row['epochs']:>4} epochs {row['seconds']:>6.0f} s  NLL {row['nll']:.2f}", flush=True)
        write_atomically(OUTPUT, pd.DataFrame(rows).to_csv(index=False))

    def measure_on_the_way(model: VAE, records: list[Record]) -> None:
        if len(records) in (*LENGTHS, PLAIN.train.epochs):
            add(row_of("plain", records, nll(copy.deepcopy(model), test, PLAIN)))

    if not any(row["recipe"] == "plain" for row in rows):
        trained(PLAIN, train, validation, measure_on_the_way)
    for epochs in (*LENGTHS, QUICK.train.epochs):
        quick = [row for row in rows if row["recipe"] == "quick"]
        if any(row["nll"] <= TARGETS[-1] for row in quick):
            break
        if not any(row["epochs"] == epochs for row in quick):
            params = QUICK.replaced({"train.epochs": epochs})
            model, records = trained(params, train, validation)
            add(row_of("quick", records, nll(model, test, params)))
    table = pd.DataFrame(rows)
    print(f"\n{dataset['name']}, {resolve(QUICK.train)}\n\n{times(table)}")
    save(curves(table), PICTURE, DPI)


def trained(
    params: Params, train: Split, validation: Split, on_epoch: OnEpoch = lambda model, records: None
) -> tuple[VAE, list[Record]]:
    """The model of `params` after `fit()`, and its records; `on_epoch` sees both after each epoch."""
    model = VAE.from_params(params.model, params.seed)
    model.initialize_from_data(train.images)
    records: list[Record] = []

    def note(record: Record) -> None:
        records.append(record)
        on_epoch(model, records)

    fit(model, train, validation, params.train, resolve(params.train), seed=params.seed, on_epoch=note)
    return model, records


def nll(model: VAE, test: Split, params: Params) -> float:
    """The test NLL, nats per image."""
    device = next(model.parameters()).device
    targets = binarize_once(test.images, params.data.binarization).to(device)
    options = params.evaluate.model_copy(update={"importance_samples": SAMPLES})
    return evaluate(model, targets, test.labels, options, seed=params.seed, progress=True).metrics()["nll"]


def row_of(recipe: str, records: list[Record], value: float) -> Row:
    """A point of a curve: seconds of training and validation, and the NLL then."""
    seconds = sum(record["train/seconds"] + record["val/seconds"] for record in records)
    return {"recipe": recipe, "epochs": len(records), "seconds": round(seconds, 1), "nll": round(value, 3)}


def times(table: pd.DataFrame) -> str:
    """The shortest training that reaches each target, in Markdown."""
    lines = ["| test NLL | plain | quick |", "|---:|---:|---:|"]
    for target in TARGETS:
        cells = []
        for recipe in ("plain", "quick"):
            there = table[(table["recipe"] == recipe) & (table["nll"] <= target)].sort_values("seconds")
            first = there.iloc[0] if len(there) else None
            cells.append("not reached" if first is None else f"{first['seconds']:.0f} s ({first['epochs']} epochs)")
        lines.append(f"| ≤ {target} | {' | '.join(cells)} |")
    return "\n".join(lines)


def curves(table: pd.DataFrame) -> Figure:
    """NLL over seconds, both recipes, with the targets as lines."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    ax = figure.add_subplot()
    names = {"plain": "plain: 784-400-20, Adam 1e-3, one training", "quick": "quick recipe, a training a point"}
    for number, (recipe, label) in enumerate(names.items()):
        points = table[table["recipe"] == recipe].sort_values("seconds")
        ax.plot(points["seconds"], points["nll"], "o-", color=PALETTE[number], label=label, ms=4)
    for target in TARGETS:
        ax.axhline(target, color="0.75", lw=0.8, zorder=0)
        ax.annotate(f"{target:g}", (1, target), xycoords=("axes fraction", "data"), fontsize=8, va="center")
    ax.set_xscale("log")
    ax.set(xlabel="seconds of training", ylabel="test NLL, nats per image", title="Time to quality")
    ax.set_ylim(min(TARGETS) - 1, 102)
    ax.legend(frameon=False)
    return figure


if __name__ == "__main__":
    with errors_in_one_line("the same command continues with the next length"):
        ArgumentParser(__doc__).parse_args()
        main()
