"""The finals of a search: its best trials and the values of params.yaml, trained in full, with several seeds.

They are a study of their own, whose trials are `train.epochs` long and never pruned; its space also has the seeds.
"""

from collections.abc import Mapping
from typing import Any

import optuna
import pandas as pd
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

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
        for values in candidates(search, params):
            for seed in space["seed"]:
                study.enqueue_trial(values | {"seed": seed}, skip_if_exists=True)
    trials = len(counted(study.get_trials(deepcopy=False)))
    return study, params.replaced(final | {"search.n_trials": trials})


def candidates(search: optuna.Study, params: Params) -> list[dict[str, Any]]:
    """The values of params.yaml, and those of the `search.finalists` best complete trials with others."""
    current = current_values(params)
    others = [trial.params for trial in sorted(in_state(search, TrialState.COMPLETE), key=score)]
    return [current, *[values for values in others if values != current][: params.search.finalists]]


def table(search: optuna.Study, finals: optuna.Study, params: Params) -> pd.DataFrame:
    """A row for each candidate, in nats per validation image: the mean over seeds, best first, and their spread.

    `spread` is the standard deviation. A candidate of which all trials failed is left out.
    """
    rows = []
    for values in candidates(search, params):
        scores = [score(trial) for trial in finished(finals) if _values(trial) == values and _complete(trial)]
        if scores:
            each = pd.Series(scores)
            current = values == current_values(params)
            rows.append({**values, "mean": each.mean(), "spread": each.std(), "seeds": len(scores), "current": current})
    return pd.DataFrame(rows).sort_values("mean", ignore_index=True)


def winner(table: pd.DataFrame) -> Mapping[Any, Any] | None:
    """The row of the best candidate, if its mean beats that of params.yaml by more than either's spread over seeds."""
    best, current = table.iloc[0], table[table["current"]]
    if best["current"] or current.empty:
        return None
    lead = current["mean"].iloc[0] - best["mean"]
    return best.to_dict() if lead > max(best["spread"], current["spread"].iloc[0]) else None


def _values(trial: FrozenTrial) -> dict[str, Any]:
    return {name: value for name, value in trial.params.items() if name != "seed"}


def _complete(trial: FrozenTrial) -> bool:
    return trial.state is TrialState.COMPLETE
