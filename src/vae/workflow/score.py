"""`python -m vae.workflow.score IMAGES`: the likelihood bounds of images, one by one."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vae import tracking
from vae.errors import DataError
from vae.evaluation.likelihood import SECONDS_BETWEEN_CHECKPOINTS
from vae.files import fingerprint, project_root, write_atomically
from vae.plots.figure import save
from vae.plots.image_grids import lowest_and_highest
from vae.progress import Progress
from vae.serving.artifacts import image_shape
from vae.serving.images import Source, find_images
from vae.serving.lookup import model_folder
from vae.serving.pyfunc import MAX_DECODED
from vae.workflow.command_line import RESUMED, ArgumentParser, errors_in_one_line

CHUNK = 100  # images between two updates of the progress, or fewer where the model takes fewer at a time
SHOWN = 10  # images with the lowest and with the highest NLL
FOLDER = Path("results/scores")


def score(images: Path, model: str | None, label: int | None, fit: bool) -> None:
    """Score images, and write a table of all and a figure of those with the lowest and the highest NLL.

    A conditional model scores all of them as of the class `label`. An interrupted scoring of the same images with the
    same weights is resumed.
    """
    folder = model_folder(model)
    sources = find_images(images, image_shape(folder), fit=fit)
    saved = project_root() / ".ckpt" / "score" / f"{fingerprint([fit, label], [images, folder / 'artifacts'])}.csv"
    table = _scores(sources, folder, label, saved)
    path = FOLDER / f"{images.absolute().name}.csv"
    write_atomically(path, _csv(table))
    saved.unlink()
    for name, error in table.loc[table["nll"].isna(), ["file", "error"]].itertuples(index=False):
        print(f"warning: {name} is left out: {error}", file=sys.stderr)
    scored = table.dropna(subset="nll")
    if scored.empty:
        raise DataError(f"none of the {len(table):,} images in {images} can be scored")
    shown = np.concatenate([table["nll"].nsmallest(SHOWN).index, table["nll"].nlargest(SHOWN).index]).reshape(2, -1)
    pixels = np.stack([[sources[row].read() / 255 for row in rows] for rows in shown])
    figure = save(lowest_and_highest(pixels, table["nll"].to_numpy()[shown]), path.with_suffix(".png"), dpi=110)
    means = f"mean −ELBO {scored['neg_elbo'].mean():.2f}, NLL {scored['nll'].mean():.2f} nats"
    print(f"{len(scored):,} of {len(table):,} images: {means}\n{path}, {figure}")


def _scores(sources: Sequence[Source], folder: Path, label: int | None, saved: Path) -> pd.DataFrame:
    """A row for each image: file, neg_elbo, nll, percentile, or an error. What is done is kept in the file `saved`."""
    model = tracking.mlflow.pyfunc.load_model(str(folder))
    chunk = _chunk_size(model)
    params = {"task": "score"} | _label_param(model, label)
    tables = [pd.read_csv(saved)] if saved.exists() else []
    done = sum(map(len, tables))
    kept = time.monotonic()
    try:
        with Progress(show=True, desc="score", total=len(sources), initial=done, unit=" images") as bar:
            for start in range(done, len(sources), chunk):
                tables.append(_score_chunk(model, sources[start : start + chunk], params))
                bar.update(len(tables[-1]))
                if time.monotonic() - kept > SECONDS_BETWEEN_CHECKPOINTS:
                    write_atomically(saved, _csv(pd.concat(tables)))
                    kept = time.monotonic()
    finally:
        if tables:
            write_atomically(saved, _csv(pd.concat(tables)))
    return pd.read_csv(saved)


def _chunk_size(model: Any) -> int:
    """The images of one call. Raises DataError where the model was evaluated with more samples than it scores with."""
    params = model.metadata.get_params_schema()
    samples: int = next(param.default for param in params if param.name == "importance_samples")
    if samples > MAX_DECODED:
        raise DataError(
            f"the model was evaluated with {samples:,} importance samples, and scoring takes at most {MAX_DECODED:,}: "
            "lower evaluate.importance_samples and say `make repro`"
        )
    return min(CHUNK, MAX_DECODED // samples)


def _label_param(model: Any, label: int | None) -> dict[str, int]:
    """The param that tells the class. Raises DataError for a missing or needless label, or one out of range."""
    classes = model.unwrap_python_model().vae.classes
    if not classes and label is None:
        return {}
    if not classes:
        raise DataError("the model isn't conditional: leave out the label")
    if label is None or not 0 <= label < classes:
        given = "no label is given" if label is None else f"label is {label}"
        allowed = f"allowed is 0 to {classes - 1}, the class of all images"
        raise DataError(f"the model is conditional, and {given}: {allowed}")
    return {"label": label}


def _score_chunk(model: Any, sources: Sequence[Source], params: dict[str, Any]) -> pd.DataFrame:
    pixels, rows, errors = [], [], {}
    for row, source in enumerate(sources):
        try:
            pixels.append(source.read())
            rows.append(row)
        except DataError as error:
            errors[row] = str(error)
    table = pd.DataFrame({"file": [source.name for source in sources]})
    if pixels:
        found = model.predict(np.stack(pixels).reshape(len(pixels), -1), params=params)
        table = table.join(found.set_index(pd.Index(rows)))
    columns = ["file", "neg_elbo", "nll", "percentile", "error"]
    return table.reindex(columns=columns).assign(error=pd.Series(errors, dtype=object))


def _csv(table: pd.DataFrame) -> str:
    return table.to_csv(index=False, float_format="%.4f")


if __name__ == "__main__":
    with errors_in_one_line(RESUMED):
        parser = ArgumentParser(__doc__)
        parser.add_argument("images", type=Path, help="a folder of pictures, or a picture, IDX, .npy, .npz")
        parser.add_argument("--model", help="such as vae-mnist@champion (the default), vae-mnist/3, runs:/ID/vae")
        parser.add_argument("--label", type=int, help="the class of all images, for a conditional model")
        parser.add_argument("--fit", action="store_true", help="fit images of any size to the model's")
        score(**vars(parser.parse_args()))
