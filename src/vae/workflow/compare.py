"""`make compare`: the commit and its DVC experiments in one table."""

from collections.abc import Mapping
from typing import Any

import dvc.api
from dvc.exceptions import DvcException
from rich.console import Console
from rich.table import Table

from vae import tracking
from vae.errors import DataError, one_line
from vae.workflow.command_line import errors_in_one_line

SECTIONS = ("seed", "data", "model", "train", "evaluate")  # of params.yaml: what the metrics depend on


def compare() -> Table:
    """A table of the commit, its experiments, and the workspace if its params or results are none of theirs.

    It has test metrics in nats per image, the minutes of each training whose run is in MLflow, and the params that
    differ from the commit's. Raises DataError where there is no DVC project in a Git repository.
    """
    try:
        workspace, commit, *rows = dvc.api.exp_show()
    except (DvcException, ValueError) as error:
        raise DataError(f"there is no Git repository with a DVC project and a commit here: {one_line(error)}") from None
    rows.insert(0, commit)
    if all((_params(row), row.get("nll")) != (_params(workspace), workspace.get("nll")) for row in rows):
        rows.insert(0, workspace)
    minutes = _training_minutes()
    table = Table(box=None, pad_edge=False)
    table.add_column("experiment", overflow="fold")
    for name in ("test NLL ± s.e.", "−ELBO", "KL", "minutes"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column(f"differs from {commit['rev']} in", overflow="fold")
    for row in rows:
        found = [value for sha256, value in minutes.items() if sha256.startswith(row.get("weights_sha256") or "none")]
        figures = [row.get(name) for name in ("nll", "nll_standard_error", "elbo", "kl")] + found[:1]
        nll, spread, elbo, kl, *took = ["" if figure is None else f"{abs(figure):.2f}" for figure in figures]
        different = [param for param in _params(row) if param not in _params(commit)]
        bounds = f"{nll} ± {spread}" if nll else row["State"]
        table.add_row(row["Experiment"] or row["rev"], bounds, elbo, kl, "".join(took), "\n".join(different))
    return table


def _params(row: Mapping[str, Any]) -> list[str]:
    """The parameters as `dvc exp run -S` takes them."""
    values = {name: value for name, value in row.items() if name.split(".")[0] in SECTIONS}
    return [f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in values.items()]


def _training_minutes() -> dict[str, float]:
    """The minutes of each training in MLflow, the newest first, by the SHA-256 of its weights."""
    with tracking.tolerant():
        tracking.connect()
        query = "metrics.`summary/seconds` > 0"
        runs = tracking.mlflow.search_runs(filter_string=query, order_by=["start_time DESC"], output_format="list")
        return {run.data.tags.get("model.sha256", ""): run.data.metrics["summary/seconds"] / 60 for run in runs}
    return {}


if __name__ == "__main__":
    with errors_in_one_line("nothing was changed"):
        Console(markup=False, highlight=False).print(compare())
