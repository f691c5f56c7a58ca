"""The kinds of runs (a training's, a search's, a trial's) and what each of them carries."""

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow

from vae.config import CONTINUED, Params, searched_name
from vae.errors import hide_passwords
from vae.files import PACKAGE, fingerprint
from vae.tracking.run import Run, ending, open_run, sync, tolerant
from vae.tracking.store import SEARCH_EXPERIMENT

if TYPE_CHECKING:
    from vae.device import Hardware  # which imports torch: it takes seconds

PARENT = "mlflow.parentRunId"
# Left out of a run's name: what its first part says already, and what changes no result.
UNNAMED = {"model.architecture", "model.hidden_dims", "model.latent_dim", "data.source", "data.mirrors"}
UNNAMED |= {"train.device", "train.precision", "train.compile", "train.nproc", "train.timeout", "evaluate.chunk_size"}
SHORT = dict.fromkeys(("data.dataset", "model.prior", "train.optimizer", "train.objective", "train.lr_schedule"), "{}")
SHORT |= {"train.beta": "β{}", "train.learning_rate": "lr{}", "train.importance_samples": "k={}"}
SHORT |= {"train.epochs": "{} epochs", "evaluate.importance_samples": "{} NLL samples"}
COUNTS = {"n_test", "linear_probe_images", "classifier_images"}  # are no results: tags, not charts
CODE = ["src", "pipeline", "params.yaml", "dvc.yaml", "pyproject.toml", "requirements.lock"]


@contextmanager
def resume(
    params: Params, hardware: "Hardware", dataset: Mapping[str, Any], model_sha256: str, run_id: str = ""
) -> Iterator[Run]:
    """Open the run of these weights, params, code and DVC experiment, or a new one below the run of the training.

    What a run shows thus belongs together. How the weights were trained is known from the training's run, which is
    found by its tags. If MLflow can't be searched, the run is `run_id`, or a new one. It raises no error.
    """
    shown, found = settings(params), run_id
    tags = {**_tags(hardware, dataset), "model.sha256": model_sha256}
    with tolerant():
        sync()  # the training's run may be without its tag
        runs = runs_of(model_sha256)
        if trained := next((run for run in runs if "best_epoch" in run.data.tags), None):
            shown |= {name: value for name, value in trained.data.params.items() if name.startswith("train.")}
            tags |= {PARENT: trained.info.run_id, "training.run": trained.info.run_id}
        code = {tag: tags[tag] for tag in ("code.fingerprint", "dvc.experiment")}
        same_code = [run for run in runs if run.data.tags.items() >= code.items()]
        found = next((run.info.run_id for run in same_code if run.data.params.items() >= shown.items()), "")
    with open_run(run_name(params), found, required=False) as opened:
        if not found:
            opened.log_params(shown)
            opened.log_tags(tags)
        yield opened


def runs_of(model_sha256: str) -> list[mlflow.entities.Run]:
    """The runs of these weights, newest first. Raises one of MLFLOW_ERRORS."""
    query = f"tags.`model.sha256` = '{model_sha256}'"
    return mlflow.search_runs(filter_string=query, order_by=["start_time DESC"], output_format="list")


@contextmanager
def trial_run(
    number: int, parent: str | None, params: Params, hardware: "Hardware", dataset: Mapping[str, Any]
) -> Iterator[Run]:
    """Open a run for a search's trial, as a child of the search's run. Trouble with MLflow raises no error."""
    values = [_shown(params, searched_name(name)) for name in params.search.space]
    opened = Run(" · ".join([f"trial {number}", *values]), experiment=SEARCH_EXPERIMENT)
    with ending(opened):
        opened.log_tags({"trial": number} | ({PARENT: parent} if parent else {}))
        log_settings(opened, params, hardware, dataset)
        yield opened


def end_dead_trial(number: int, parent: str) -> None:
    """End the run of a trial whose process died, even if the process died before it knew the run's ID."""
    query = f"tags.`{PARENT}` = '{parent}' and tags.trial = '{number}'"
    client = mlflow.MlflowClient()
    for found in mlflow.search_runs(filter_string=query, output_format="list"):
        client.set_tag(found.info.run_id, "state", "KILLED")
        client.set_terminated(found.info.run_id, "KILLED")


def new_search(params: Params, dataset: Mapping[str, Any], parent: str = "") -> str:
    """Create the run that the runs of a search's trials belong to; returns its ID. Raises one of MLFLOW_ERRORS.

    With the search's run as `parent`, it is the run of its finals.
    """
    search = Run("finals" if parent else "search", experiment=SEARCH_EXPERIMENT)
    search.create()
    search.log_params(settings(params, without=CONTINUED))
    search.log_tags({**_data_tags(dataset), **_code_tags()} | ({PARENT: parent} if parent else {}))
    return search.id


def log_search(run: Run, summary: Mapping[str, Any], artifacts: Sequence[Path]) -> None:
    """Log what a search found: numbers as metrics, all values as tags, files as artifacts."""
    run.log_metrics(summary)
    run.log_tags(summary)
    for path in artifacts:
        run.log_artifact(path)


def log_settings(run: Run, params: Params, hardware: "Hardware", dataset: Mapping[str, Any]) -> None:
    """Log a training's parameters under dotted names, and its resolved hardware settings, data and code as tags."""
    run.log_params(settings(params))
    run.log_tags(_tags(hardware, dataset))


def settings(params: Params, without: tuple[str, ...] = ("search.",)) -> dict[str, str]:
    """The parameters as MLflow shows them; those that begin with one of `without` are left out."""
    lists = {name: list(value) if isinstance(value, tuple) else value for name, value in params.flat().items()}
    return {name: hide_passwords(str(value)) for name, value in lists.items() if not name.startswith(without)}


def _tags(hardware: "Hardware", dataset: Mapping[str, Any]) -> dict[str, str]:
    resolved = {"device": str(hardware.device), "precision": hardware.precision, "compile": str(hardware.compile)}
    return resolved | _data_tags(dataset) | _code_tags()


def _data_tags(dataset: Mapping[str, Any]) -> dict[str, str]:
    checksum = next(iter(dataset["sha256"].values()))  # of the training images
    return {"dataset": dataset["name"], "dataset.source": dataset["source"], "data.sha256": checksum}


def _code_tags() -> dict[str, str]:
    """The code's fingerprint, the commit, whether the code was changed since, and DVC's experiment, if it is one."""
    commit = git("rev-parse", "HEAD")
    dirty = str(bool(git("status", "--porcelain", "--", *CODE))).lower() if commit else ""
    tags = {name: value for name, value in {"git.commit": commit, "git.dirty": dirty}.items() if value}
    code = fingerprint(None, [PACKAGE, *sorted(Path("pipeline").glob("*.py"))])
    # Empty, too: it replaces that of an experiment whose interrupted training is resumed outside of it.
    return tags | {"code.fingerprint": code, "dvc.experiment": os.environ.get("DVC_EXP_NAME", "")}


def git(*arguments: str) -> str:
    """What git prints, without spaces around it; "" where it fails."""
    try:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def run_name(params: Params) -> str:
    """The model, and what differs from the defaults: `mlp512x3-z40 · vampprior · 2 epochs · β4 · seed 1`."""
    model, values, defaults = params.model, params.flat(), Params().flat()
    widths = list(model.hidden_dims)
    shown = f"{widths[0]}x{len(widths)}" if len(set(widths)) == 1 else "-".join(map(str, widths))
    names = [name for name in settings(params) if values[name] != defaults[name] and name not in UNNAMED]
    names.sort(key=lambda name: name.startswith(("seed", "data.")))  # last
    parts = [_shown(params, name) for name in names]
    return " · ".join([f"{model.architecture}{shown}-z{model.latent_dim}", *parts])


def _shown(params: Params, name: str) -> str:
    """A parameter, by its dotted name, and its value, in short."""
    value = params.flat()[name]
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    shown = SHORT.get(name, f"{name.rpartition('.')[2]} {{}}").format(text)
    return shown.removesuffix("s") if value == 1 else shown


def log_test(run: Run, params: Params, dataset: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
    """Log the metrics of the test images, and as the run's description what came out and what was trained."""
    run.log_metrics({name: value for name, value in metrics.items() if name not in COUNTS}, prefix="test/")
    error = f" ± {metrics['nll_standard_error']:.2f}" if "nll_standard_error" in metrics else ""
    outcome = f"NLL {metrics['nll']:.2f}{error}, −ELBO {-metrics['elbo']:.2f}"
    note = f"{outcome}; {params.evaluate.importance_samples} samples\n\n{run_name(params)} on {dataset['name']}"
    run.log_tags({f"test.{name}": metrics[name] for name in COUNTS & metrics.keys()} | {"mlflow.note.content": note})
