"""Train, evaluate and draw in one command, without DVC and params.yaml: every parameter is a flag."""

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from pydantic import BaseModel
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from vae.config import Params
from vae.errors import ConfigError, DataError, VAEError
from vae.workflow.command_line import errors_in_one_line

# The defaults of config.py but for two. A fraction to validate on suits the 5,000 bundled digits as well. One sample
# gives reconstruction and KL; as many as an NLL needs take minutes without a GPU, with convolutions hours.
DEFAULTS = Params().replaced({"data.validation_size": 0.05, "evaluate.importance_samples": 1})
WITHOUT_FLAGS = {"search"}
LONG_FLAGS = {"train.importance_samples", "evaluate.precision"}  # with the section's name: another has one, too
WEIGHTS = "vae_model_final.safetensors"

KINDS = {"integer": "an integer", "number": "a number", "boolean": "true or false", "string": "text", "null": "null"}
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}

Schema = Mapping[str, Any]  # JSON schema, as pydantic derives it from a field's annotation


def main(arguments: Sequence[str] | None = None) -> None:
    """The command `train-vae`: exit code 2 for a bad flag, else as the stages' (`errors_in_one_line`)."""
    params, output, data = parse(arguments)
    with errors_in_one_line(f"the weights of the best finished epoch, if any, are in {output / WEIGHTS}"):
        try:
            train(params, output, data)
        except VAEError as error:
            sys.exit(f"error: {_as_flags(str(error))}")


def train(params: Params, output: Path, data: Path) -> None:
    """Train on the images in `data`/raw, fetched if need be, evaluate, and draw; everything goes to `output`."""
    import pandas as pd

    from vae.data.binarization import binarize_once
    from vae.data.datasets import load
    from vae.evaluation import likelihood as evaluation
    from vae.files import write_json
    from vae.plots.report import save_figures
    from vae.tracking import store as tracking
    from vae.workflow.stages import fetch_dataset
    from vae.workflow.tracked_training import tracked_training

    output.mkdir(parents=True, exist_ok=True)
    raw, dataset = data / "raw", data / "dataset.json"
    _require_own_folder(params, raw, dataset)
    record = fetch_dataset(params.data, raw, dataset)
    with tracked_training(params, record, raw, output / WEIGHTS, output / "history.csv") as training:
        test = load(raw, "test")
        targets = binarize_once(test.images, params.data.binarization).to(training.hardware.device)
        result = evaluation.evaluate(
            training.model, targets, test.labels, params.evaluate, seed=params.seed, progress=True
        )
        metrics = result.metrics()
        if params.evaluate.importance_samples == 1:
            for name in ("nll", "nll_standard_error", "elbo_gap"):  # it is the −ELBO then
                del metrics[name]
        print(evaluation.describe(metrics, params))
        tests = {f"test/{name}": value for name, value in metrics.items()}
        write_json(output / "metrics.json", {"dataset": record["name"], **training.summary, **tests})
        history = pd.DataFrame(training.fitted.history)
        figures = save_figures(training.model.cpu(), test, result.mu, result.logvar, history, params, output)
        training.run.log_metrics(tests)
        for path in figures:
            training.run.log_artifact(path, "figures")
    print(f"{output / WEIGHTS}, for VAE.load; beside it {len(figures)} figures, metrics.json and history.csv")
    print(f"run {training.run.id} of {tracking.EXPERIMENT} in {tracking.tracking_uri()}")


def _require_own_folder(params: Params, raw: Path, dataset: Path) -> None:
    """Refuse a folder with another data set, which the download would replace."""
    from vae.data.download import BUNDLED_NAME, wanted_name
    from vae.workflow.stages import read_dataset

    try:
        held = read_dataset(dataset)["name"]
    except DataError:
        held = None
    wanted = wanted_name(params.data)
    if held not in (None, wanted, BUNDLED_NAME):
        raise DataError(f"{raw} holds {held}, not {wanted}: name another folder with --data_dir")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (train-vae --help lists the flags)\n")


def parse(arguments: Sequence[str] | None = None) -> tuple[Params, Path, Path]:
    """The parameters, the output folder and the data folder that the command line asks for; exits with 2 otherwise."""
    parser = flags()
    values = vars(parser.parse_args(arguments))
    output, data = values.pop("output_dir"), values.pop("data_dir")
    try:
        return DEFAULTS.replaced(values), output, data
    except ConfigError as error:
        parser.error(_as_flags(str(error)))


def flags() -> argparse.ArgumentParser:
    """A flag for each field of `Params`' sections, by its name there, and two for folders."""
    parser = _Parser("train-vae", "%(prog)s [--flag value ...]", __doc__, allow_abbrev=False)
    folders = {
        "output_dir": ("results", "Folder for weights, figures and metrics"),
        "data_dir": ("data", "Folder with raw/ and dataset.json; the images are fetched there if need be"),
    }
    for name, (folder, text) in folders.items():
        help_text = f"{text} [default: {folder}]"
        parser.add_argument(*_spellings(name), type=Path, default=folder, metavar="FOLDER", help=help_text)
    for name, value in DEFAULTS:
        if isinstance(value, BaseModel) and name not in WITHOUT_FLAGS:
            section = parser.add_argument_group(name, type(value).__doc__)
            for key, schema in type(value).model_json_schema()["properties"].items():
                _add_flag(section, f"{name}.{key}", schema, getattr(value, key))
        elif name not in WITHOUT_FLAGS:
            _add_flag(parser, name, Params.model_json_schema()["properties"][name], value)
    return parser


def _add_flag(parser: argparse._ActionsContainer, name: str, schema: Schema, default: Any) -> None:
    """Add the flag of the parameter with this dotted name; left out, it sets nothing."""
    text = f"{schema.get('description', '').removesuffix('.')} [{allowed(schema)}; default: {_shown(default)}]"
    options: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": text.replace("%", "%%")}
    if schema.get("type") == "boolean":
        options["action"] = argparse.BooleanOptionalAction
    else:
        # Values out of range are refused by the models, all in the same words.
        options |= {"type": _scalar, "metavar": schema.get("items", schema).get("type", "value").upper()}
    if schema.get("type") == "array":
        options["nargs"] = "+" if schema.get("minItems") else "*"
    parser.add_argument(*_spellings(_flag(name)), **options)


def allowed(schema: Schema) -> str:
    """What a value may be: `an integer ≥ 1`, `auto, fp32, bf16`, `a number > 0 or null`."""
    if "anyOf" in schema:
        return " or ".join(map(allowed, schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return ", ".join(schema.get("enum", [schema.get("const")]))
    if schema["type"] == "array":
        return f"each {allowed(schema['items'])}"
    pattern = f" like {schema['pattern']}" if "pattern" in schema else ""
    bounds = [f"{sign} {schema[key]}" for key, sign in BOUNDS.items() if key in schema]
    return " ".join([KINDS[schema["type"]] + pattern, " and ".join(bounds)]).strip()


def _flag(name: str) -> str:
    """What follows the two dashes for the parameter with this dotted name."""
    return name.replace(".", "_") if name in LONG_FLAGS else name.rpartition(".")[2]


def _spellings(name: str) -> list[str]:
    return list(dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}")))


def _shown(value: Any) -> str:
    """A value as the command line takes it."""
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    return value if isinstance(value, str) else json.dumps(value)


def _scalar(text: str) -> Any:
    """What params.yaml would hold with this text: 1e-4 and 5 are numbers, true and null what they say."""
    try:
        return YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError):
        return text


def _as_flags(message: str) -> str:
    """The message with flags where it names parameters, as words of their own: not in a file's path."""
    names = "|".join(map(re.escape, DEFAULTS.flat()))
    return re.sub(rf"(?<![\w/.-])(?:{names})(?![\w/-])", lambda found: f"--{_flag(found[0])}", message)


if __name__ == "__main__":
    main()
