"""The finals of a search: its best trials and the values of params.yaml, trained in full, with several seeds.

They are a study of their own, whose trials are `train.epochs` long and never pruned; its space also has the seeds.
"""

import math
from collections.abc import Mapping
from typing import Any

import optuna
import pandas as pd
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from vae.config import Params
from vae.search.space import current_values
from vae.search.storage import exclusive_lock
from vae.search.study import counted, finished, in_state, open_study, score

SEEDS = 3


def open_finals(
    search: optuna.Study, params: Params, dataset: Mapping[str, Any], storage: BaseStorage, parent: str
) -> tuple[optuna.Study, Params]:
    """The study of the finals, with all of its trials queued, and the parameters that its workers run it with."""
    space = params.model_dump()["search"]["space"] | {"seed": [params.seed + number for number in range(SEEDS)]}
    final = {"search.epochs": params.train.epochs, "search.space": space, "search.pruner": "none"}
    study = open_study(params.replaced(final | {"search.n_trials": 1}), dataset, storage, parent=parent)
    with exclusive_lock(storage):
        for values in candidates(search, params).values():
            for seed in space["seed"]:
                study.enqueue_trial(values | {"seed": seed}, skip_if_exists=True)
    trials = len(counted(study.get_trials(deepcopy=False)))
    return study, params.replaced(final | {"search.n_trials": trials})


def candidates(search: optuna.Study, params: Params) -> dict[int, dict[str, Any]]:
    """The values of params.yaml, and those of the `search.finalists` best complete trials with others, by trial."""
    current = current_values(params)
    own = [trial.number for trial in finished(search) if trial.params == current]
    chosen = {own[0] if own else -1: current}
    for trial in sorted(in_state(search, TrialState.COMPLETE), key=score):
        if len(chosen) <= params.search.finalists and trial.params not in chosen.values():
            chosen[trial.number] = trial.params
    return chosen


def table(search: optuna.Study, finals: optuna.Study, params: Params) -> pd.DataFrame:
    """A row for each candidate, in nats per validation image: the mean over seeds, best first, and their spread.

    `spread` is the standard deviation. A candidate of which a training failed is left out.
    """
    rows = []
    for number, values in candidates(search, params).items():
        trials = [trial for trial in in_state(finals, TrialState.COMPLETE) if trial.params.items() >= values.items()]
        scores = pd.Series([score(trial) for trial in trials])
        if len(scores) == SEEDS:
            current = values == current_values(params)
            rows.append([number, *values.values(), scores.mean(), scores.std(), current])
    return pd.DataFrame(rows, columns=columns(params)).sort_values("mean", ignore_index=True)


def columns(params: Params) -> list[str]:
    """The columns of `table`."""
    return ["trial", *params.search.space, "mean", "spread", "current"]


def winner(table: pd.DataFrame) -> int | None:
    """The trial of the best candidate, if its mean beats that of params.yaml by more than either's spread over seeds.

    It also wins where the trainings of params.yaml failed.
    """
    current = table[table["current"].astype(bool)]
    if table.empty or table["current"][0]:
        return None
    lead = math.inf if current.empty else current["mean"].iloc[0] - table["mean"][0]
    return int(table["trial"][0]) if lead > max([table["spread"][0], *current["spread"]]) else None
