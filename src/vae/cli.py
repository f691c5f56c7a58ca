"""Train, evaluate and plot in one command, without DVC and params.yaml: every parameter is a flag."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from vae.config import Params
from vae.errors import ConfigError, DataError
from vae.workflow.command_line import ArgumentParser, errors_in_one_line, scalar, spellings

WITHOUT_FLAGS = {"search"}
LONG_FLAGS = {"train.importance_samples", "evaluate.precision"}  # another section has a parameter of the same name
WEIGHTS = "vae_model_final.safetensors"

KINDS = {"integer": "an integer", "number": "a number", "boolean": "true or false", "string": "text", "null": "null"}
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}

Schema = Mapping[str, Any]  # JSON schema, as pydantic derives it from a field's annotation


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `train-vae`. The exit code is 2 for a bad flag, otherwise that of `errors_in_one_line`."""
    with errors_in_one_line("the weights of the best epoch so far, if any, are in the output folder"):
        train(*parse(arguments))


def train(params: Params, output: Path, data: Path) -> None:
    """Train on the images in `data`/raw, downloaded if need be, evaluate and plot; all results go to `output`."""
    from vae.device import resolve
    from vae.training.distributed import is_first, launch, of_the_first, process_group
    from vae.workflow.stages import fetch_dataset
    from vae.workflow.tracked_training import take_part

    raw, dataset = data / "raw", data / "dataset.json"
    output.mkdir(parents=True, exist_ok=True)
    _check_folder(params, raw, dataset)
    if launch(params.train):
        return
    with process_group(resolve(params.train).device, params.train.timeout):
        record = of_the_first(fetch_dataset(params.data, raw, dataset) if is_first() else {})
        if is_first():
            train_and_evaluate(params, record, raw, output)
        else:
            take_part(params, record, raw)


def train_and_evaluate(params: Params, record: Mapping[str, Any], raw: Path, output: Path) -> None:
    """Train on the images in `raw`, which `record` describes, and write everything to `output`."""
    import pandas as pd

    from vae.data.binarization import binarize_once
    from vae.data.datasets import load
    from vae.evaluation.likelihood import describe, evaluate, protocol_of
    from vae.files import sha256, write_atomically, write_json
    from vae.plots.report import save_figures
    from vae.serving.explorer.build import explorer_page
    from vae.serving.pyfunc import save_model
    from vae.tracking.kinds import log_test
    from vae.workflow.tracked_training import tracked_training

    with tracked_training(params, record, raw, output / WEIGHTS, output / "history.csv") as training:
        test = load(raw, "test")
        targets = binarize_once(test.images, params.data.binarization).to(training.hardware.device)
        result = evaluate(training.model, targets, test.labels, params.evaluate, seed=params.seed, progress=True)
        metrics = result.metrics()
        print(describe(metrics, params))
        tests = {f"test/{name}": value for name, value in metrics.items()}
        write_json(output / "metrics.json", {"dataset": record["name"], **training.summary, **tests})
        bounds, protocol = output / "test_nll.npz", protocol_of(params, record, sha256(output / WEIGHTS))
        result.write_bounds(bounds, protocol)
        log_test(training.run, params, record, metrics)
        example, shape = targets[:2].cpu().numpy(), training.model.image_shape
        training.run.log_model(lambda path: save_model(path, output / WEIGHTS, bounds, example, shape))
        history = pd.DataFrame(training.fitted.history)
        parts = (load(raw, "train"), test)
        figures = save_figures(training.model.cpu(), *parts, result, history, params, output, record["classes"])
        for path in figures:
            training.run.log_artifact(path, "figures")
        page = output / "explorer.html"
        facts = ({**metrics, **protocol}, params, None, record["classes"])
        write_atomically(page, explorer_page(training.model, targets, result, *facts))
        training.run.log_artifact(page, "explorer")
    others = "explorer.html, metrics.json, test_nll.npz and history.csv"
    print(f"{output / WEIGHTS}, for VAE.load;\nbeside it {len(figures)} figures, {others}")


def _check_folder(params: Params, raw: Path, dataset: Path) -> None:
    """Raise DataError where the folder has another data set, which the download would replace."""
    from vae.data.download import BUNDLED_NAME, wanted_name
    from vae.workflow.stages import read_dataset

    try:
        held = read_dataset(dataset)["name"]
    except DataError:
        held = None
    wanted = wanted_name(params.data)
    if held not in (None, wanted, BUNDLED_NAME):
        raise DataError(f"{raw} holds {held}, not {wanted}: name another folder with --data_dir")


def parse(arguments: Sequence[str] | None = None) -> tuple[Params, Path, Path]:
    """The parameters, the output folder and the data folder of a command line. Exits with 2 where it is wrong."""
    parser = make_parser()
    values = vars(parser.parse_args(arguments))
    output, data = values.pop("output_dir"), values.pop("data_dir")
    try:
        return Params().replaced(values), output, data
    except ConfigError as error:
        parser.error(str(error))


def make_parser() -> ArgumentParser:
    """A parser with a flag for each field of `Params`' sections, and two for folders."""
    parser = ArgumentParser(__doc__, "train-vae", "%(prog)s [--flag value ...]")
    folders = {
        "output_dir": ("results", "Folder for weights, figures and metrics"),
        "data_dir": ("data", "Folder with raw/ and dataset.json; the images are downloaded there if need be"),
    }
    for name, (folder, text) in folders.items():
        help_text = f"{text} [default: {folder}]"
        parser.add_argument(*spellings(name), type=_folder, default=folder, metavar="FOLDER", help=help_text)
    for name, value in Params():
        if isinstance(value, BaseModel) and name not in WITHOUT_FLAGS:
            section = parser.add_argument_group(name, type(value).__doc__)
            for key, schema in type(value).model_json_schema()["properties"].items():
                _add_flag(section, f"{name}.{key}", schema, getattr(value, key))
        elif name not in WITHOUT_FLAGS:
            _add_flag(parser, name, Params.model_json_schema()["properties"][name], value)
    return parser


def _folder(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("a folder has no name")
    return Path(text)


def _add_flag(parser: argparse._ActionsContainer, name: str, schema: Schema, default: Any) -> None:
    """Add the flag of the parameter with this dotted name; left out, it sets nothing."""
    text = f"{schema.get('description', '').removesuffix('.')} [{allowed(schema)}; default: {_shown(default)}]"
    options: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": text.replace("%", "%%")}
    if schema.get("type") == "boolean":
        options["action"] = argparse.BooleanOptionalAction
    else:  # values out of range are refused by `Params`
        options |= {"type": scalar, "metavar": schema.get("items", schema).get("type", "value").upper()}
    if schema.get("type") == "array":
        options["nargs"] = "+" if schema.get("minItems") else "*"
    flag = name.replace(".", "_") if name in LONG_FLAGS else name.rpartition(".")[2]
    parser.add_argument(*spellings(flag), **options)


def allowed(schema: Schema) -> str:
    """The allowed values in words: `an integer ≥ 1`, `auto, fp32, bf16`, `a number > 0 or null`."""
    if "anyOf" in schema:
        return " or ".join(map(allowed, schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return ", ".join(map(str, schema.get("enum", [schema.get("const")])))
    if schema["type"] == "array":
        return f"each {allowed(schema['items'])}"
    example = f" such as {schema['examples'][0]}" if "examples" in schema else ""
    bounds = [f"{sign} {schema[key]}" for key, sign in BOUNDS.items() if key in schema]
    return " ".join([KINDS[schema["type"]] + example, " and ".join(bounds)]).strip()


def _shown(value: Any) -> str:
    """A value as the command line takes it."""
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    return value if isinstance(value, str) else json.dumps(value)


if __name__ == "__main__":
    main()
