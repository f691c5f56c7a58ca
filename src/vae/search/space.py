"""The search space: params.yaml's ranges and choices as Optuna distributions, and a trial's values as Params."""

import json
from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from vae.config import Params, Range, searched_name


def distributions(params: Params) -> dict[str, BaseDistribution]:
    """The Optuna distribution of each searched parameter. The current value is added to a list of choices."""
    current = current_values(params)
    return {name: _distribution(domain, current[name]) for name, domain in params.search.space.items()}


def _distribution(domain: Range | tuple[Any, ...], current: Any) -> BaseDistribution:
    if not isinstance(domain, Range):
        return CategoricalDistribution(list(dict.fromkeys([*map(_encode, domain), current])))
    if isinstance(domain.low, int) and isinstance(domain.high, int):
        return IntDistribution(domain.low, domain.high, log=domain.log)
    return FloatDistribution(domain.low, domain.high, log=domain.log)


def dotted_names(params: Params) -> dict[str, str]:
    """Each searched parameter's name in params.yaml, such as `train.beta` for `beta`."""
    return {name: searched_name(name) for name in params.search.space}


def current_values(params: Params) -> dict[str, Any]:
    """The values of the searched parameters in params.yaml, as Optuna stores them."""
    values = params.flat()
    return {name: _encode(values[dotted]) for name, dotted in dotted_names(params).items()}


def with_values(params: Params, values: Mapping[str, Any]) -> Params:
    """`params` with a trial's values and `search.epochs` epochs. Raises ConfigError where they can't be combined."""
    named = {searched_name(name): _decode(value) for name, value in values.items()}
    # Compiling pays off in a long training, not in a short trial of another model; the finals are computed as trials.
    compiled = {"train.compile": False} if params.train.compile == "auto" else {}
    return params.replaced(compiled | named | {"train.epochs": params.search.epochs})


def _encode(value: Any) -> Any:
    """Lists as JSON text: Optuna stores scalars only."""
    return json.dumps(value) if isinstance(value, tuple) else value


def _decode(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) and value.startswith("[") else value
