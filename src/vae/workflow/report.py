"""`make report BASE=main`: params, metrics and model of the project against those of a commit, for a pull request."""

import base64
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dvc.api
import numpy as np
import pandas as pd
import torch
from dvc.exceptions import DvcException
from dvc.utils.flatten import flatten
from markdown_it import MarkdownIt

from vae.config import Params, load_params
from vae.data.binarization import binarize_once, to_float
from vae.data.datasets import load
from vae.errors import DataError, WeightsError
from vae.evaluation.paired import paired_difference
from vae.files import write_atomically
from vae.models.vae import VAE
from vae.plots.comparisons import validation_curves
from vae.plots.figure import save
from vae.plots.image_grids import image_rows, shaped
from vae.tracking.kinds import git
from vae.workflow.command_line import ArgumentParser, errors_in_one_line
from vae.workflow.registry import TEST_NLL, read_committed, shown
from vae.workflow.stages import DATASET, METRICS, MODEL, RAW, evenly_spaced

FOLDER = Path("results/report")
IMAGES = 10
PAGE = """<!doctype html><meta charset="utf-8"><title>Report</title>
<style>body {{ font: 16px sans-serif; max-width: 60em; margin: 2em auto }} img {{ max-width: 100% }}
table {{ border-collapse: collapse }} td, th {{ padding: .2em .8em; border-bottom: 1px solid #ccc }}</style>
{body}"""


def report(base: str, params: Params) -> None:
    """Write report.md with its figures, and report.html with them inside, to results/report/.

    What `base` lacks, such as weights that are neither in DVC's cache nor in its remote, is left out and said. Raises
    DataError if there is no such commit.
    """
    commit = git("rev-parse", "--verify", "--quiet", f"{base}^{{commit}}")
    if not commit:
        raise DataError(f"there is no commit {base} here: BASE= names a branch, a tag or a commit")
    sections = [
        f"## This project against {base} ({commit[:7]})",
        table("param", *read(dvc.api.params_show, commit)),
        table("metric", *read(dvc.api.metrics_show, commit)),
        nll_difference(base, commit),
        *figures(base, commit, params),
    ]
    markdown = "\n\n".join(sections) + "\n"
    write_atomically(FOLDER / "report.md", markdown)
    body = MarkdownIt("commonmark").enable("table").render(markdown)
    for path in FOLDER.glob("*.png"):
        encoded = base64.b64encode(path.read_bytes()).decode()
        body = body.replace(f'src="{path.name}"', f'src="data:image/png;base64,{encoded}"')
    write_atomically(FOLDER / "report.html", PAGE.format(body=body))
    print(f"{FOLDER}/report.md\n{FOLDER}/report.html")


def read(show: Any, commit: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The values of a commit and of the project, by dotted name; none where there are none."""
    found = []
    for revision in (commit, None):
        try:
            found.append(flatten(show(rev=revision)))
        except DvcException:
            found.append({})
    return found[0], found[1]


def table(name: str, then: dict[str, Any], now: dict[str, Any]) -> str:
    """A Markdown table of the values that differ."""
    rows = []
    for key in sorted(then | now):
        one, other = then.get(key, ""), now.get(key, "")
        if one != other:
            are_numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (one, other))
            rows.append(f"| {key} | {one} | {other} | {f'{other - one:+.5g}' if are_numbers else ''} |")
    head = [f"| {name} | base | here | change |", "|---|---:|---:|---:|"]
    return "\n".join([*head, *rows]) if rows else f"No {name} changed."


def nll_difference(base: str, commit: str) -> str:
    """A sentence on the difference of the NLLs, image by image, or why there is none."""
    then = read_committed(TEST_NLL, commit)
    if not then or not Path(TEST_NLL).exists():
        return f"No NLL of each image {'here' if then else f'of {base}'}: `dvc pull` or `dvc repro` brings it."
    with np.load(io.BytesIO(then)) as one, np.load(TEST_NLL) as other:
        facts = [{key: str(value) for key, value in file.items() if not value.ndim} for file in (one, other)]
        different = [key for key, value in facts[0].items() if facts[1].get(key) != value]
        different = [key for key in different if key not in ("weights_sha256", "seed")]
        if different or read_committed(str(DATASET), commit) != DATASET.read_bytes():
            return f"The NLLs can't be compared: they differ in {', '.join(different) or 'the images'}."
        difference = paired_difference(other["nll"], one["nll"])
        count = len(one["nll"])
    return f"NLL here − {base}, image by image: **{shown(difference)}** (± standard error), {count:,} images."


def figures(base: str, commit: str, params: Params) -> Iterator[str]:
    """Save the curves and pictures of both, and yield them as Markdown, or why there are none."""
    history = METRICS / "history.csv"
    if then := read_committed(str(history), commit):
        tables = {"baseline": pd.read_csv(io.BytesIO(then)), "here": pd.read_csv(history)}
        curves = pd.concat(table.assign(group=f"baseline: {base}", change=name) for name, table in tables.items())
        save(validation_curves(curves), FOLDER / "curves.png", params.render.dpi)
        yield "![Validation −ELBO by epoch](curves.png)"
    weights = read_committed(str(MODEL), commit)
    if not weights or not MODEL.exists():
        yield f"No weights {'here' if weights else f'of {base}'}: `dvc pull` or `dvc repro` brings them."
        return
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(weights)
        try:
            models = {base: VAE.load(file.name), "here": VAE.load(MODEL)}
        except WeightsError as error:  # of other code
            yield f"No pictures: {error}".replace(file.name, f"{MODEL} of {base}")
            return
    shapes = {model.image_shape for model in models.values()}
    if len(shapes) > 1:
        yield f"No pictures: images are {' and '.join(map(str, shapes))}."
        return
    test = load(RAW, "test")
    chosen = evenly_spaced(len(test), IMAGES)
    inputs = to_float(binarize_once(test.images, params.data.binarization)[chosen])
    classes = None if test.labels is None else test.labels[chosen]
    rebuilt = [model.reconstruct(inputs, classes) for model in models.values()]
    samples = [model.sample(IMAGES, torch.Generator().manual_seed(params.seed)) for model in models.values()]
    for name, title, labels, rows in (
        ("reconstructions", "Reconstructions of the same test images", ["input", *models], [inputs, *rebuilt]),
        ("samples", "Samples from the prior, with the same random numbers", [*models], samples),
    ):
        images = shaped(torch.cat(rows), *shapes)
        save(image_rows(images, labels, title), FOLDER / f"{name}.png", params.render.dpi)
        yield f"![{title}]({name}.png)"


if __name__ == "__main__":
    with errors_in_one_line("the same command writes it"):
        parser = ArgumentParser(__doc__)
        parser.add_argument("--base", default="main", help="a branch, a tag or a commit")
        report(parser.parse_args().base, load_params())
