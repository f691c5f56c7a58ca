"""The model registry's commands: `python -m vae.workflow.registry register | promote | rollback | why | restore`."""

import hashlib
import io
from datetime import UTC, datetime
from pathlib import Path
from textwrap import shorten
from typing import Any

import dvc.api
import numpy as np
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.utils.flatten import flatten
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from sqlalchemy.exc import SQLAlchemyError

from vae import tracking
from vae.config import Params, load_params
from vae.data.datasets import FILES
from vae.errors import RegistryError, one_line
from vae.evaluation.paired import PairedDifference, paired_difference
from vae.files import sha256, write_atomically
from vae.tracking import registry
from vae.tracking.kinds import git, runs_of, settings
from vae.tracking.registry import CHALLENGER, CHAMPION, WEIGHTS, model_name
from vae.workflow.command_line import ArgumentParser, errors_in_one_line
from vae.workflow.stages import METRICS, MODEL, read_dataset

PARAMS, LOCK = "params.yaml", "dvc.lock"
TEST_NLL = str(METRICS / "test_nll.npz")
SHOWN = ("nll", "nll_standard_error", "elbo", "reconstruction", "kl")  # metrics among a version's tags
PURPOSE = """A variational autoencoder of images: it encodes, reconstructs, samples and scores them.

Each version is a result of the pipeline. **challenger** is the newest one, **champion** the one to use: \
`mlflow.pyfunc.load_model("models:/NAME@champion")`. `make promote` makes the challenger champion if its NLL, compared \
image by image on the test set, is lower by more than two standard errors.

Tags: `test/…` are metrics in nats per test image (lower is better, but for the ELBO), `test.…` is their protocol, \
`….sha256` are checksums. `make why MODEL=NAME/1` says where version 1 comes from, `make restore` brings it back."""


def register(params: Params) -> None:
    """Register the model of models/ and metrics/, as the pipeline wrote them, with all that led to it."""
    files, dataset, weights = recorded_files(), read_dataset(), sha256(MODEL)
    with np.load(TEST_NLL) as content:
        evaluated = {f"test.{name}": str(value) for name, value in content.items() if value.ndim == 0}
    tracking.connect()
    tracking.sync()
    run = next((run for run in runs_of(weights) if run.data.tags.items() >= evaluated.items()), None)
    if not run:
        raise RegistryError(
            f"{tracking.shown_store()} has no run of {MODEL} with this evaluation: "
            "`dvc repro --force --single-item evaluate` logs one"
        )
    del evaluated["test.weights_sha256"]
    checksums = dataset["sha256"]
    images = checksums.get("test-images") or checksums[FILES["test"][0]]
    evaluated |= {"test.images_sha256": images, "model.sha256": weights}
    metrics = {f"test/{name}": str(run.data.metrics[f"test/{name}"]) for name in SHOWN}
    copied = ("dvc.experiment", "git.commit", "git.dirty", "data.sha256")
    code = {name: run.data.tags[name] for name in copied if run.data.tags.get(name)}
    tags = {"run": run.info.run_name, **metrics, **evaluated, **code, "dvc.lock": git("hash-object", LOCK)}
    note = (
        f"{run.data.tags['mlflow.note.content']}\n\nIn nats per test image. Tags: metrics, protocol, origin, checksums."
    )
    name = model_name(params)
    purpose = PURPOSE.replace("NAME", name)
    version = registry.register(name, purpose, run.info.run_id, note, tags, evaluated.keys(), files)
    print(f"{named(version)}: {run.info.run_name}")


def recorded_files() -> list[str]:
    """params.yaml, dvc.lock, and what train and evaluate wrote. Raises RegistryError if dvc.lock has it otherwise."""
    yaml = YAML(typ="safe", pure=True)
    try:
        recorded = yaml.load(Path(LOCK))["stages"]
        stages = [recorded[name] for name in ("train", "evaluate")]
        params = [stage["params"][PARAMS] for stage in stages]
        outs = {out["path"]: out["md5"] for stage in stages for out in stage["outs"]}
    except (OSError, KeyError):
        raise RegistryError(f"{LOCK} records no training and evaluation: `make repro` runs them") from None
    except (YAMLError, TypeError):  # TypeError: an empty file
        raise RegistryError(
            f"{LOCK} is damaged, perhaps by a merge conflict: `git checkout HEAD {LOCK}` brings back the committed "
            "one, `make repro` completes it"
        ) from None
    for stage_params in params:
        if different := differences(stage_params, yaml.load(Path(PARAMS))):
            raise RegistryError(f"{LOCK} records other params, {different}: `make repro` brings them together")
    for path, md5 in outs.items():
        if not Path(path).exists() or hashlib.md5(Path(path).read_bytes()).hexdigest() != md5:
            raise RegistryError(f"{path} is not what {LOCK} records: `make repro` brings them together")
    return [PARAMS, LOCK, *outs]


def differences(recorded: dict[str, Any], params: dict[str, Any]) -> str:
    """`train.beta: 1.0 (params.yaml: 4.0), …`: the values that differ. Sections are recorded whole or by dotted key."""
    then, now = flatten(recorded), flatten(params)
    now = {name: value for name, value in now.items() if {name, name.split(".")[0]} & recorded.keys()}
    pairs = {name: (then.get(name, "missing"), now.get(name, "missing")) for name in then | now}
    return ", ".join(f"{name}: {one} ({PARAMS}: {other})" for name, (one, other) in pairs.items() if one != other)


def promote(params: Params, reason: str | None) -> None:
    """Compare challenger and champion, and make the challenger champion if it is better, or for a reason.

    Raises RegistryError where it stays challenger.
    """
    tracking.connect()
    with registry.exclusive():
        model = registry.look_up(model_name(params))
        challenger, champion = (model.versions.get(model.aliases.get(alias, "")) for alias in (CHALLENGER, CHAMPION))
        if not challenger:
            print(f"no challenger; champion: {named(champion) if champion else 'none'}")
            return
        registry.read_file(challenger, WEIGHTS)  # refused if damaged
        tags = {"promoted": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")}
        tags |= {"promoted.force": reason} if reason else {}
        try:
            if champion:
                difference = compare(challenger, champion)
                tags["promoted.difference"] = f"{shown(difference)} from version {champion.version}"
                if difference.mean >= -2 * difference.standard_error:
                    raise RegistryError(
                        f"{named(challenger)} stays challenger: its NLL is not lower by two standard errors "
                        '(FORCE="reason" makes it champion all the same)'
                    )
        except RegistryError:
            if not reason:
                raise
        registry.move_champion(model, [*model.history, str(challenger.version)], tags)
    before = f", instead of version {champion.version} (`make rollback` goes back)" if champion else ""
    print(f"champion: {named(challenger)}{before}")


def compare(challenger: ModelVersion, champion: ModelVersion) -> PairedDifference:
    """Print the NLLs of two versions; return challenger − champion. Raises RegistryError if they can't be compared."""
    one, other = protocol(challenger), protocol(champion)
    different = [name for name in sorted(one | other) if one.get(name) != other.get(name)]
    if values := [f"{name} ({one.get(name, '?')[:20]} and {other.get(name, '?')[:20]})" for name in different]:
        raise RegistryError(
            f"{named(challenger)} and version {champion.version} can't be compared, since they differ in "
            f'{", ".join(values)}: evaluate both alike, or say FORCE="reason"'
        )
    nlls = []
    for version in (challenger, champion):
        with np.load(io.BytesIO(registry.read_file(version, TEST_NLL))) as images:
            nlls.append(images["nll"])
    print(f"{'':10}  version   −ELBO     NLL  run")
    for alias, version in ((CHAMPION, champion), (CHALLENGER, challenger)):
        neg_elbo, nll = -float(version.tags["test/elbo"]), float(version.tags["test/nll"])
        run = shorten(version.tags["run"], 44, placeholder=" …")
        print(f"{alias:10}  {version.version:>7}  {neg_elbo:6.2f}  {nll:6.2f}  {run}")
    difference = paired_difference(nlls[0], nlls[1])
    print(f"NLL of the challenger − champion: {shown(difference)}, {len(nlls[0]):,} images")
    return difference


def protocol(version: ModelVersion) -> dict[str, str]:
    """How a version was evaluated, but for the seed of the importance samples, which metrics are compared across."""
    tags = {name: value for name, value in version.tags.items() if name.startswith("test.")}
    return {name.removeprefix("test."): value for name, value in tags.items() if name != "test.seed"}


def shown(difference: PairedDifference) -> str:
    """A difference with its standard error."""
    return f"{difference.mean:+.3f} ± {difference.standard_error:.3f} nats".replace("-", "−")


def roll_back(params: Params) -> None:
    """Make the version that was champion before the present one champion again."""
    tracking.connect()
    with registry.exclusive():
        model = registry.look_up(model_name(params))
        if len(model.history) < 2:
            raise RegistryError(f"{model.name} has no earlier champion than {', '.join(model.history) or 'none'}")
        registry.move_champion(model, model.history[:-1], {})
    print(f"champion: {model.name} version {model.history[-2]}, instead of version {model.history[-1]}")


def why(params: Params, spec: str) -> None:
    """Print where a version comes from, and in what it differs from the project as it is now."""
    tracking.connect()
    version = registry.find(spec)
    registry.checksums(version)  # refused if it is none of `register`
    model, number, tags = registry.look_up(version.name), str(version.version), version.tags
    past = model.history[: model.history.index(number)] if number in model.history else []
    commits = tags.get("git.commit", ""), commit_of(version)
    lines = [commit and (git("log", "-1", "--format=%h %s", commit)[:60] or commit) for commit in commits]
    here = MODEL.exists() and sha256(MODEL) == tags["model.sha256"]
    facts = {
        "run": f"{tags['run']}\n{'':11}{version.run_id}",
        "commit": f"{lines[0] or 'none'}{', and uncommitted changes' if tags.get('git.dirty') == 'true' else ''}",
        "dvc.lock": lines[1] or "in no commit here",
        "data": f"{tags['test.dataset']}, training images' SHA-256 {tags['data.sha256'][:12]}",
        "weights": f"SHA-256 {tags['model.sha256'][:12]}, {'' if here else 'not '}those of {MODEL}",
        "test": str(version.description).split("\n")[0],
        "promoted": ", ".join(value for name, value in tags.items() if name.startswith("promoted")),
        "before": f"version {past[-1]}" if past else "",
    }
    print(", ".join([named(version), *(alias for alias, pointed in model.aliases.items() if pointed == number)]))
    print("\n".join(f"  {name:8} {fact}" for name, fact in facts.items() if fact))
    then, now = tracking.mlflow.get_run(str(version.run_id)).data.params, settings(params)
    different = [f"    {name} {value} (now {now.get(name)})" for name, value in then.items() if now.get(name) != value]
    print("\n".join([f"  params   {'differ from' if different else 'those of'} {PARAMS}", *different]))


def restore(spec: str) -> None:
    """Bring weights, params.yaml, dvc.lock and metrics of a version into the project.

    They come from the commit with its dvc.lock and from DVC's cache, or else from the registry. Raises RegistryError,
    and writes nothing, if a file is nowhere as it was registered, or if uncommitted changes would be lost.
    """
    tracking.connect()
    version = registry.find(spec)
    expected, ours = registry.checksums(version), {MODEL.parent, METRICS}  # others may have written the tags
    paths = [path for path in expected if path in (PARAMS, LOCK) or Path(path).parent in ours]
    paths = [path for path in paths if not Path(path).exists() or sha256(path) != expected[path]]
    if lost := uncommitted(paths):
        raise RegistryError(
            f"changes in {', '.join(lost)} would be lost: `git commit` and `dvc commit` keep them, "
            "`git checkout` and `dvc checkout` discard them"
        )
    commit, contents, origins = commit_of(version), {}, {}
    for path in paths:
        contents[path], origins[path] = read_committed(path, commit), f"commit {commit[:7]}"
        if hashlib.sha256(contents[path]).hexdigest() != expected[path]:
            contents[path], origins[path] = registry.read_file(version, path), "the registry"
    for path, content in contents.items():
        write_atomically(path, content)
        print(f"{path}  from {origins[path]}")
    print(f"{named(version)} is here")
    if paths:
        print(f"`make repro` plots its figures; `git checkout {PARAMS} {LOCK} {METRICS} && dvc checkout` goes back")


def commit_of(version: ModelVersion) -> str:
    """The commit that brought the version's dvc.lock, on any branch or of an experiment; "" if it is not here."""
    blob = version.tags["dvc.lock"]
    return git("log", "--all", "--reverse", "--format=%H", f"--find-object={blob}").split("\n")[0] if blob else ""


def read_committed(path: str, commit: str) -> bytes:
    """A file of a commit, from git, DVC's cache or its remote; nothing if they don't have it or can't be reached."""
    try:
        return bytes(dvc.api.read(path, rev=commit, mode="rb")) if commit else b""
    except Exception:  # the clients of remotes raise errors of their own
        return b""


def uncommitted(paths: list[str]) -> list[str]:
    """Those of the files that exist, but neither in git's last commit nor in DVC's cache as they are."""
    if not git("rev-parse", "HEAD"):
        raise RegistryError("here is no Git repository with a commit, which would keep what is overwritten")
    with Repo() as repo:
        status = repo.data_status()
    changed = status["uncommitted"]
    lost = [*status["not_in_cache"], *changed.get("modified", []), *changed.get("added", [])]
    lost += [line.split()[-1] for line in git("status", "--porcelain", "--", *paths).splitlines()] if paths else []
    return [path for path in paths if path in lost and Path(path).exists()]


def named(version: ModelVersion) -> str:
    """`vae-mnist version 3`."""
    return f"{version.name} version {version.version}"


def main() -> None:
    """Run the command that the command line names."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("command", choices=["register", "promote", "rollback", "why", "restore"])
    parser.add_argument("--model", help="of `why` and `restore`: vae-mnist@champion or vae-mnist/3")
    parser.add_argument("--force", metavar="REASON", help="of `promote`: whatever the comparison says")
    given, params = parser.parse_args(), load_params()
    spec = given.model or model_name(params)
    commands = {
        "register": lambda: register(params),
        "promote": lambda: promote(params, given.force),
        "rollback": lambda: roll_back(params),
        "why": lambda: why(params, spec),
        "restore": lambda: restore(spec),
    }
    try:
        commands[given.command]()
    except (MlflowException, SQLAlchemyError, DvcException) as error:
        raise RegistryError(f"{given.command} failed: {one_line(error)}") from None


if __name__ == "__main__":
    with errors_in_one_line("the same command completes it"):
        main()
