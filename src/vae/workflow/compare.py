"""`make compare`: the commit and its DVC experiments in one table."""

from collections.abc import Mapping
from typing import Any

import dvc.api
from dvc.exceptions import DvcException
from rich.console import Console
from rich.table import Column, Table

from vae import tracking
from vae.errors import DataError, one_line
from vae.workflow.command_line import errors_in_one_line


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
    trained = []
    with tracking.tolerant():
        tracking.connect()
        trained = tracking.mlflow.search_runs(
            filter_string="metrics.`summary/seconds` > 0",
            order_by=["attributes.start_time ASC"],  # of the same weights, the last training's minutes are shown
            output_format="list",
        )
    minutes = {run.data.tags.get("model.sha256", "")[:12]: run.data.metrics["summary/seconds"] / 60 for run in trained}
    numbers = [Column(name, justify="right", no_wrap=True) for name in ("test NLL ± s.e.", "−ELBO", "KL", "minutes")]
    name, params = Column("experiment", overflow="fold"), Column(f"differs from {commit['rev']} in", overflow="fold")
    table = Table(name, *numbers, params, box=None, pad_edge=False)
    for row in rows:
        values = [*map(row.get, ("nll", "nll_standard_error", "elbo", "kl")), minutes.get(row.get("weights_sha256"))]
        nll, spread, *others = ["" if value is None else f"{abs(value):.2f}" for value in values]
        different = [param for param in _params(row) if param not in _params(commit)]
        bounds = f"{nll} ± {spread}" if nll else row["State"]
        label = row["Experiment"] or row["rev"]
        label = label if isinstance(label, str) else f"{label:.0f}"  # DVC makes numbers of names such as `64`
        table.add_row(label, bounds, *others, "\n".join(different))
    return table


def _params(row: Mapping[str, Any]) -> list[str]:
    """The parameters that metrics depend on, as `dvc exp run -S` takes them."""
    sections = ("seed", "data", "model", "train", "evaluate")
    values = {name: value for name, value in row.items() if name.split(".")[0] in sections}
    return [f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in values.items()]


if __name__ == "__main__":
    with errors_in_one_line("nothing was changed"):
        Console(markup=False, highlight=False).print(compare())
