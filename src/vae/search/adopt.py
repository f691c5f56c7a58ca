"""`make adopt`: write the best values of a finished search into params.yaml."""

import difflib
import json
import re
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from vae.config import load_params
from vae.errors import SearchError
from vae.files import write_atomically
from vae.search.report import BEST, FOLDER
from vae.workflow.command_line import errors_in_one_line

PARAMS = Path("params.yaml")


def adopt(folder: Path = FOLDER) -> str:
    """Write the best values of the search in `folder` into params.yaml, floats with four significant digits.

    Nothing else changes. Returns what is known of the values, and the difference. Raises SearchError if no search has
    finished there, ConfigError if params.yaml or the values are invalid; nothing is written then.
    """
    comment, best = _read_best(folder / BEST)
    load_params(PARAMS, overrides=best)
    before = after = PARAMS.read_text(encoding="utf-8")
    earlier = _values(before)
    for name, value in best.items():
        section, key = name.split(".")
        if earlier.get(name) != value:
            after = _replaced(after, section, key, value)
    if _values(after) != earlier | best:
        raise SearchError(f"{PARAMS} has a form that can't be edited line by line: write {best} into it by hand")
    write_atomically(PARAMS, after)
    lines = difflib.unified_diff(before.splitlines(True), after.splitlines(True), str(PARAMS), f"{PARAMS} (adopted)")
    return comment + ("".join(lines) or f"{PARAMS} already has these values\n")


def _values(text: str) -> dict[str, Any]:
    """The values of params.yaml under their dotted names; no values where the text isn't such a file."""
    try:
        sections = YAML(typ="safe", pure=True).load(text)
        named = {name: values for name, values in sections.items() if not isinstance(values, dict)}
        for section in sections.keys() - named.keys():
            named |= {f"{section}.{name}": value for name, value in sections[section].items()}
        return named
    except (YAMLError, AttributeError, ValueError):
        return {}


def _read_best(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
        sections = YAML(typ="safe", pure=True).load(text).items()
        best = {f"{section}.{name}": value for section, values in sections for name, value in values.items()}
    except FileNotFoundError:
        raise SearchError(f"{path} not found: no search has finished, `make search` runs one") from None
    except (OSError, YAMLError, ValueError, AttributeError) as error:
        raise SearchError(f"{path} can't be read ({' '.join(str(error).split())}): `make search` writes it") from None
    rounded = {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in best.items()}
    return "".join(re.findall(r"^# (.*\n)", text, re.MULTILINE)), rounded


def _replaced(text: str, section: str, key: str, value: Any) -> str:
    """params.yaml with another value of a key; a comment on its line stays in its column, a list keeps its style."""
    # The lines of the section up to the key, the old value, the comment, and the lines of a list, one an element.
    pattern = rf"(?m)(^{section}:.*\n(?:(?:[ #].*)?\n)*?)( +{key}:)([^#\n]*)(#.*)?((?:\n +- .*)*)"

    def replace(match: re.Match[str]) -> str:
        before, name, old, comment, listed = match.groups()
        elements = "".join(f"{listed[: listed.index('-')]}- {each}" for each in value) if listed and value else ""
        line = name if elements else f"{name} {value if isinstance(value, str) else json.dumps(value)}"
        return before + (f"{line}  ".ljust(len(name + old)) + comment if comment else line) + elements

    text, count = re.subn(pattern, replace, text, count=1)
    if not count:
        raise SearchError(f"{PARAMS} has no line of its own for {section}.{key}: add it to {section}, for {value}")
    return text


if __name__ == "__main__":
    with errors_in_one_line("params.yaml is as it was, or complete"):
        print(adopt(*map(Path, sys.argv[1:2])), end="")
