"""`make adopt`: the best values of the last finished search, written into params.yaml."""

import difflib
import io
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from vae.config import load_params
from vae.errors import SearchError
from vae.files import write_atomically
from vae.search.results import BEST
from vae.workflow.command_line import errors_in_one_line

PARAMS = Path("params.yaml")


def adopt() -> str:
    """Write the values of `search/best_params.yaml` into params.yaml; returns the difference, empty if there is none.

    Comments and order stay. Raises SearchError where there is no finished search, ConfigError where params.yaml
    or the values are refused; nothing is written then.
    """
    best = {f"{section}.{name}": value for section, values in _best().items() for name, value in values.items()}
    load_params(PARAMS, overrides=best)
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 200
    yaml.representer.add_representer(type(None), _null)
    before = PARAMS.read_text(encoding="utf-8")
    params = yaml.load(before)
    for path, value in best.items():
        section, name = path.split(".")
        if params[section].get(name) != value:
            params[section][name] = value
    buffer = io.StringIO()
    yaml.dump(params, buffer)
    after = buffer.getvalue()
    write_atomically(PARAMS, after)
    lines = difflib.unified_diff(before.splitlines(True), after.splitlines(True), str(PARAMS), f"{PARAMS} (adopted)")
    return "".join(lines)


def _best() -> dict[str, dict[str, Any]]:
    try:
        best = YAML(typ="safe", pure=True).load(BEST.read_text(encoding="utf-8"))
        return {section: dict(values) for section, values in best.items()}
    except FileNotFoundError:
        raise SearchError(f"{BEST} not found: there is no finished search to adopt, `make search` runs one") from None
    except (OSError, YAMLError, ValueError, AttributeError, TypeError) as error:
        raise SearchError(f"{BEST} can't be read ({' '.join(str(error).split())}): `make search` writes it") from None


def _null(representer: Any, _: None) -> Any:
    return representer.represent_scalar("tag:yaml.org,2002:null", "null")


if __name__ == "__main__":
    with errors_in_one_line("params.yaml is as it was, or complete"):
        print(adopt() or "params.yaml already has the best values")
