"""The results of a search: the tables of trials and finals, the best values, the plots, the lines on the terminal."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from optuna.trial import FrozenTrial, TrialState
from ruamel.yaml import YAML

from vae.config import Params
from vae.errors import SearchError
from vae.files import write_atomically
from vae.search import finals
from vae.search.space import current_values, dotted_names, with_values
from vae.search.study import failure_reason, finished, score

FOLDER = Path("search")  # outs of the search stage, in the working directory
BEST = "best_params.yaml"
SHOWN = 5  # of the best trials, on the terminal
DPI = 110


def best_trial(trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
    """The complete trial with the lowest score, with two objectives too."""
    complete = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    return min(complete, key=score, default=None)


def _current_trial(trials: Sequence[FrozenTrial], params: Params) -> FrozenTrial | None:
    """The complete trial with the values of params.yaml."""
    values = current_values(params)
    return next((trial for trial in trials if trial.params == values and trial.state is TrialState.COMPLETE), None)


def table(trials: Sequence[FrozenTrial], params: Params) -> pd.DataFrame:
    """A row for each trial: metrics in nats per validation image, times in seconds."""
    current = current_values(params)
    metrics = ["neg_elbo", *(["neg_bound"] if params.train.objective == "iwae" else []), "reconstruction", "kl"]
    rows = [
        {
            "trial": trial.number,
            "state": trial.state.name,
            **{name: trial.user_attrs.get(name) for name in metrics},
            **trial.params,
            "epochs": len(trial.user_attrs.get("curve", [])),
            **{name: trial.user_attrs.get(name) for name in ("best_epoch", "seconds")},
            "current": trial.params == current,
            "reason": trial.user_attrs.get("reason"),
        }
        for trial in trials
    ]
    return pd.DataFrame(rows)


def write(
    study: optuna.Study, params: Params, folder: Path = FOLDER, finalists: pd.DataFrame | None = None
) -> list[Path]:
    """Write trials.csv, finals.csv, best_params.yaml and the plots to `folder`; returns their paths.

    Raises SearchError where no trial is complete.
    """
    from vae.plots.figure import save  # imports matplotlib, which takes a second: workers do without it
    from vae.search.plots import plot_study

    trials = finished(study)
    best = best_trial(trials)
    if best is None:
        raise SearchError(f"none of the {len(trials)} trials is complete, so there are no results to write")
    write_atomically(folder / "trials.csv", table(trials, params).to_csv(index=False))
    rows = pd.DataFrame(columns=finals.columns(params)) if finalists is None else finalists
    write_atomically(folder / "finals.csv", rows.to_csv(index=False, float_format="%.6g"))
    write_atomically(folder / BEST, _best_params(trials, params, study.study_name, finalists))
    figures = plot_study(study, _score_name(params))
    plots = [save(figure, folder / f"{name}.png", DPI) for name, figure in figures.items()]
    return [folder / "trials.csv", folder / "finals.csv", folder / BEST, *plots]


def _chosen(trials: Sequence[FrozenTrial], params: Params, finalists: pd.DataFrame | None) -> FrozenTrial | None:
    """The trial whose values are the result: the best one, or after finals their winner.

    Without a winner, it is that of params.yaml; None if there is no such trial.
    """
    if finalists is None:
        return best_trial(trials)
    number = finals.winner(finalists)
    if number is None:
        return _current_trial(trials, params)
    return next(trial for trial in trials if trial.number == number)


def _best_params(trials: Sequence[FrozenTrial], params: Params, study: str, finalists: pd.DataFrame | None) -> str:
    """The best values in the shape of params.yaml, below what is known of them."""
    best = _chosen(trials, params, finalists)
    chosen = with_values(params, best.params if best else current_values(params)).flat()
    sections: dict[str, dict[str, Any]] = {}
    for name, dotted in dotted_names(params).items():
        value = chosen[dotted]
        section = sections.setdefault(dotted.split(".")[0], {})
        section[name] = list(value) if isinstance(value, tuple) else value
    buffer = io.StringIO()
    YAML().dump(sections, buffer)
    if best is None:
        found = f"The values of params.yaml, which no complete trial has (study {study})"
    else:
        found = f"Trial {best.number} of {len(trials)} (study {study}): validation {_score_name(params)}"
        found += f" {score(best):.2f} nats per image"
    lines = [found, *_standing(trials, params, finalists)]
    return "".join(f"# {line}\n" for line in lines) + buffer.getvalue()


def _standing(trials: Sequence[FrozenTrial], params: Params, finalists: pd.DataFrame | None) -> list[str]:
    """How the best trial compares with params.yaml, and how far that can be trusted."""
    if finalists is not None:
        return [_outcome(finalists, params)]
    best, current = best_trial(trials), _current_trial(trials, params)
    epochs = f"{params.search.epochs} epochs (train.epochs: {params.train.epochs})"
    lines = [f"warning: one seed, {epochs}: 0.2 nats may be noise"]
    if best and current and best.number == current.number:
        return [f"no trial beats the values of params.yaml (trial {current.number})"]
    if best and current:
        gain = f"(trial {current.number}, {score(current):.2f}) by {score(current) - score(best):.2f} nats per image"
        lines.insert(0, f"trial {best.number} beats params.yaml {gain}")
    return lines


def _outcome(finalists: pd.DataFrame, params: Params) -> str:
    """Which values the finals speak for."""
    trained = f"finals of {params.train.epochs} epochs, {finals.SEEDS} seeds"
    winner = finals.winner(finalists)
    if winner is None:
        return f"{trained}: no values beat those of params.yaml by more than the spread of seeds"
    means = [f"{row['mean']:.2f} ± {row['spread']:.2f}" for _, row in finalists.iterrows()]
    own = [mean for mean, current in zip(means, finalists["current"], strict=True) if current]
    return f"{trained}: trial {winner} {means[0]}, params.yaml {own[0] if own else 'failed'}"


def _score_name(params: Params) -> str:
    return "−bound" if params.train.objective == "iwae" else "−ELBO"


def summary(study: optuna.Study, params: Params, finalists: pd.DataFrame | None = None) -> dict[str, Any]:
    """The search's metrics and tags in MLflow: the number of trials, the chosen one, and its values."""
    trials = finished(study)
    states = [trial.state for trial in trials]
    best, current = _chosen(trials, params, finalists), _current_trial(trials, params)
    values = best.params if best else current_values(params)
    # Both in any case: a search that goes on would keep those of an earlier result.
    number, neg_elbo = (best.number, best.user_attrs["neg_elbo"]) if best else ("params.yaml", math.nan)
    return {
        "trials": len(trials),
        "pruned": states.count(TrialState.PRUNED),
        "failed": states.count(TrialState.FAIL),
        "best/trial": number,
        "best/neg_elbo": neg_elbo,
        **{f"best/{name}": value for name, value in values.items()},
        **({"current/neg_elbo": current.user_attrs["neg_elbo"]} if current else {}),
    }


def describe(trial: FrozenTrial, params: Params) -> str:
    """One line on a trial that has ended."""
    values = ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in trial.params.items()
    )
    outcome = f"{_score_name(params)} {score(trial):.2f}"
    if trial.state is TrialState.PRUNED:
        epochs = len(trial.user_attrs["curve"])
        outcome += f", pruned after {epochs} epoch{'s' * (epochs > 1)}"
    if trial.state is TrialState.FAIL:
        outcome = f"failed: {failure_reason(trial)}"
    seconds = f"{trial.user_attrs['seconds']:.0f} s" if "seconds" in trial.user_attrs else "?"
    return f"trial {trial.number}: {outcome} ({values}; {seconds})"


def closing_table(
    study: optuna.Study, params: Params, folder: Path = FOLDER, finalists: pd.DataFrame | None = None
) -> str:
    """The best trials, the finals, the comparison with params.yaml, and the time it took, for the terminal."""
    trials = finished(study)
    complete = sorted((trial for trial in trials if trial.state is TrialState.COMPLETE), key=score)
    columns = ["trial", "neg_elbo", "reconstruction", "kl", *params.search.space, "seconds"]
    top = table(complete[:SHOWN], params)[columns]
    rows = table(trials, params)
    states = rows["state"].value_counts()
    adopt = "make adopt" if folder == FOLDER else f"make adopt FROM={folder}"
    lines = [
        top.to_string(index=False, float_format=lambda value: f"{value:.4g}"),
        *([] if finalists is None else ["finals:", finalists.to_string(index=False, float_format="{:.4g}".format)]),
        *_standing(trials, params, finalists),
        f"{len(rows)} trials, {states.get('PRUNED', 0)} pruned, {states.get('FAIL', 0)} failed; "
        f"{rows['seconds'].sum() / 3600:.2f} hours of training",
        f"results: {folder}/",
        f"best values into params.yaml: {adopt}",
    ]
    return "\n".join(lines)
