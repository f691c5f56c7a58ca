"""`make adopt`: write the best values of the last finished search into params.yaml."""

import difflib
import io
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from vae.config import load_params
from vae.errors import SearchError
from vae.files import write_atomically
from vae.search.report import BEST
from vae.workflow.command_line import errors_in_one_line

PARAMS = Path("params.yaml")


def adopt() -> str:
    """Write the values of `search/best_params.yaml` into params.yaml; returns the difference, empty if there is none.

    Comments and order are kept. Raises SearchError if there is no finished search, ConfigError if params.yaml or the
    values are invalid; nothing is written then.
    """
    best = _read_best()
    load_params(PARAMS, overrides=best)
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 200
    yaml.representer.add_representer(
        type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
    )
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


def _read_best() -> dict[str, Any]:
    try:
        best = YAML(typ="safe", pure=True).load(BEST.read_text(encoding="utf-8"))
        return {f"{section}.{name}": value for section, values in best.items() for name, value in values.items()}
    except FileNotFoundError:
        raise SearchError(f"{BEST} not found: no search has finished, `make search` runs one") from None
    except (OSError, YAMLError, ValueError, AttributeError) as error:
        raise SearchError(f"{BEST} can't be read ({' '.join(str(error).split())}): `make search` writes it") from None


if __name__ == "__main__":
    with errors_in_one_line("params.yaml is as it was, or complete"):
        print(adopt() or "params.yaml already has the best values")
