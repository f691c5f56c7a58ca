"""What a search found: the table of trials, the best values, the figures, and the lines on the terminal."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from ruamel.yaml import YAML

from vae.config import Params, searched_section
from vae.errors import SearchError
from vae.files import write_atomically
from vae.search.study import FOLDER, current_values, finished, journal, reason, with_values

TRIALS = FOLDER / "trials.csv"
BEST = FOLDER / "best_params.yaml"
SHOWN = 5  # of the best trials, on the terminal
DPI = 110


def neg_elbo(trial: FrozenTrial) -> float:
    """Validation −ELBO at β = 1, nats per image, of a trial's best epoch; NaN where there was none."""
    return float(min(trial.user_attrs.get("curve") or [math.nan]))


def best_trial(trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
    """The complete trial with the lowest validation −ELBO; with two objectives, too, that of distortion + rate."""
    complete = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    return min(complete, key=neg_elbo, default=None)


def table(study: optuna.Study, params: Params) -> pd.DataFrame:
    """A row for each trial that counts and has ended: figures in nats per validation image, times in seconds."""
    current = current_values(params)
    return pd.DataFrame([_row(trial, current) for trial in finished(study.get_trials(deepcopy=False))])


def _row(trial: FrozenTrial, current: dict[str, Any]) -> dict[str, Any]:
    attributes = trial.user_attrs
    return {
        "trial": trial.number,
        "state": trial.state.name,
        "neg_elbo": neg_elbo(trial),
        "reconstruction": attributes.get("reconstruction"),
        "kl": attributes.get("kl"),
        **trial.params,
        "epochs": len(attributes.get("curve", [])),
        "best_epoch": attributes.get("best_epoch"),
        "seconds": attributes.get("seconds"),
        "current": trial.params == current,
        "reason": attributes.get("reason"),
    }


def write(study: optuna.Study, params: Params) -> list[Path]:
    """Write `search/`: trials.csv, best_params.yaml and the figures; returns their paths.

    Raises SearchError where no trial is complete.
    """
    from vae.plots.figure import save  # matplotlib takes a second to import: workers, which draw nothing, do without
    from vae.search import figures

    trials = finished(study.get_trials(deepcopy=False))
    best = best_trial(trials)
    if best is None:
        raise SearchError(f"none of the {len(trials)} trials is complete, so that there is nothing to take over")
    rows = table(study, params)
    write_atomically(TRIALS, rows.to_csv(index=False))
    write_atomically(BEST, _best_params(best, len(trials), params, study.study_name))
    written = [TRIALS, BEST]
    curves = {trial.number: trial.user_attrs.get("curve", []) for trial in trials}
    for name, figure in figures.every(rows, curves, _importances(study), params).items():
        written.append(save(figure, FOLDER / f"{name}.png", DPI))
    _keep_copy(study)
    return written


def _best_params(best: FrozenTrial, trials: int, params: Params, study: str) -> str:
    """The best values in the shape of params.yaml."""
    chosen = with_values(params, best.params)
    sections: dict[str, dict[str, Any]] = {}
    for name in best.params:
        section = searched_section(name)
        value = getattr(getattr(chosen, section), name)
        sections.setdefault(section, {})[name] = list(value) if isinstance(value, tuple) else value
    buffer = io.StringIO()
    YAML().dump(sections, buffer)
    return (
        f"# Trial {best.number}, the best of {trials} (study {study}): validation −ELBO {neg_elbo(best):.2f} nats per "
        f"image after {params.search.epochs} epochs.\n# `make adopt` takes these values over into params.yaml.\n"
        + buffer.getvalue()
    )


def _importances(study: optuna.Study) -> dict[str, float]:
    """PED-ANOVA importance of each parameter for −ELBO; empty where there are too few trials to tell."""
    try:
        return optuna.importance.get_param_importances(study, target=neg_elbo)
    except (ValueError, RuntimeError):  # fewer than two complete trials, or all with the same values
        return {}


def _keep_copy(study: optuna.Study) -> None:
    """A study in a database that other machines share, copied into the journal, so that it stays with its results."""
    if not isinstance(getattr(study._storage, "_backend", None), RDBStorage):
        return
    copy = journal()
    if study.study_name in optuna.get_all_study_names(copy):
        optuna.delete_study(study_name=study.study_name, storage=copy)
    optuna.copy_study(from_study_name=study.study_name, from_storage=study._storage, to_storage=copy)


def summary(study: optuna.Study, params: Params) -> dict[str, Any]:
    """What the search's run in MLflow carries: how many trials, the best one, and its values."""
    trials = finished(study.get_trials(deepcopy=False))
    states = [trial.state for trial in trials]
    best, current = best_trial(trials), _current(trials, params)
    assert best is not None
    found = {
        "trials": len(trials),
        "pruned": states.count(TrialState.PRUNED),
        "failed": states.count(TrialState.FAIL),
        "best/trial": best.number,
        "best/neg_elbo": neg_elbo(best),
        **{f"best/{name}": value for name, value in best.params.items()},
    }
    return found | ({"current/neg_elbo": neg_elbo(current)} if current else {})


def _current(trials: Sequence[FrozenTrial], params: Params) -> FrozenTrial | None:
    """The complete trial with the values of params.yaml."""
    values = current_values(params)
    return next((trial for trial in trials if trial.params == values and trial.state is TrialState.COMPLETE), None)


def describe(trial: FrozenTrial) -> str:
    """One line on a trial that has ended."""
    values = ", ".join(f"{name} {_short(value)}" for name, value in trial.params.items())
    seconds = f"{trial.user_attrs['seconds']:.0f} s" if "seconds" in trial.user_attrs else "?"
    outcome = f"−ELBO {neg_elbo(trial):.2f}"
    if trial.state is TrialState.PRUNED:
        outcome += f", pruned after {len(trial.user_attrs['curve'])} epochs"
    if trial.state is TrialState.FAIL:
        outcome = f"failed: {reason(trial)}"
    return f"trial {trial.number}: {outcome} ({values}; {seconds})"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def closing_table(study: optuna.Study, params: Params) -> str:
    """The best trials, what they beat, and what it took, for the terminal."""
    trials = finished(study.get_trials(deepcopy=False))
    current, best = _current(trials, params), best_trial(trials)
    rows = table(study, params)
    top = rows[rows["state"] == "COMPLETE"].nsmallest(SHOWN, "neg_elbo")
    columns = ["trial", "neg_elbo", "reconstruction", "kl", *params.search.space, "best_epoch", "seconds"]
    lines = [top[columns].to_string(index=False, float_format=lambda value: f"{value:.4g}")]
    if current and best:
        lines.append(_comparison(current, best))
    states = rows["state"].value_counts()
    lines.append(
        f"{len(rows)} trials, {states.get('PRUNED', 0)} pruned, {states.get('FAIL', 0)} failed; "
        f"{rows['seconds'].sum() / 3600:.2f} hours of training. `make adopt` takes the best values over."
    )
    return "\n".join(lines)


def _comparison(current: FrozenTrial, best: FrozenTrial) -> str:
    if best.number == current.number:
        return f"nothing was better than params.yaml's values (trial {best.number})"
    gain = neg_elbo(current) - neg_elbo(best)
    return (
        f"trial {best.number} beats params.yaml's values (trial {current.number}, {neg_elbo(current):.2f}) "
        f"by {gain:.2f} nats per image"
    )
