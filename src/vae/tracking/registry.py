"""MLflow's model registry: versions of a model, with their files and tags, and the aliases `challenger` and `champion`.

A version's weights are in its logged model, its other files in its run's artifacts, below `registered/`. Its tags have
the checksums of all. Each function may raise one of MLFLOW_ERRORS.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from vae.config import Params
from vae.errors import RegistryError, one_line
from vae.files import sha256
from vae.tracking.store import LOCK_SECONDS, MLFLOW_ERRORS, database, shown_store

CHAMPION, CHALLENGER = "champion", "challenger"
HISTORY = "champion.history"  # a tag of the model: the versions that were champion, the present one last
CHECKSUMS = "files.sha256"  # a tag of a version, as `sha256sum` prints them
FOLDER = "registered"  # of a run's artifacts
WEIGHTS = "models/vae.safetensors"  # the file that is not there, but in the logged model, in `artifacts/`


@dataclass(frozen=True)
class Registered:
    """A registered model: its versions by number, oldest first, the numbers that aliases name, and past champions."""

    name: str
    versions: dict[str, ModelVersion]
    aliases: dict[str, str]
    history: list[str]


def model_name(params: Params) -> str:
    """The registered model of this data set, `vae-mnist`; folders may have characters that MLflow's names don't."""
    return "vae-" + re.sub(r"[^-.\w]+", "-", params.data.name.lower())


def look_up(name: str) -> Registered:
    """Return a registered model as it is now. Raises RegistryError if there is none of this name."""
    client = MlflowClient()
    try:
        model = client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        names = ", ".join(sorted(other.name for other in client.search_registered_models())) or "none"
        message = f"{shown_store()} has no registered model {name} (there: {names}): `make register` makes one"
        raise RegistryError(message) from None
    found = sorted(client.search_model_versions(f"name = '{name}'"), key=lambda version: int(version.version))
    versions = {str(version.version): version for version in found}
    aliases = {alias: str(number) for alias, number in model.aliases.items()}
    history = [number for number in model.tags.get(HISTORY, "").split(", ") if number in versions]
    # The alias is what counts: it may have been moved by hand, or an interrupted move may have left the tag behind.
    champion = aliases.get(CHAMPION)
    while champion in history and history[-1] != champion:
        history.pop()
    if champion and history[-1:] != [champion]:
        history.append(champion)
    return Registered(name, versions, aliases, history)


def find(model: str) -> ModelVersion:
    """Return the version that `NAME@ALIAS`, `NAME/NUMBER` or `NAME` (its champion) names, or raise RegistryError."""
    named = re.fullmatch(r"(?:models:/)?([^/@]+)(?:/(\d+)|@([^/@]+))?", model)
    if not named:
        raise RegistryError(f"{model} names no version of a model: say vae-mnist@{CHAMPION} or vae-mnist/3")
    name, number, alias = named.groups()
    registered = look_up(name)
    number = number or registered.aliases.get(alias or CHAMPION)
    if number not in registered.versions:
        there = [*registered.versions, *(f"{alias} ({number})" for alias, number in registered.aliases.items())]
        raise RegistryError(f"there is no {model}; of {name} there are {', '.join(there) or 'no versions'}")
    return registered.versions[number]


def exclusive() -> AbstractContextManager[object]:
    """Keep other processes from changing the registry in a SQLite database. A server has no such lock."""
    path = database()
    return FileLock(path.with_name(f".{path.name}.registry.lock"), timeout=LOCK_SECONDS) if path else nullcontext()


def register(
    name: str,
    purpose: str,
    run_id: str,
    description: str,
    tags: Mapping[str, str],
    identity: Iterable[str],
    files: Iterable[str],
) -> ModelVersion:
    """Make a run's logged model a version with these tags and files, unless one has equal tags `identity`; return it.

    It becomes challenger; the first version of a model becomes champion. `purpose` is the description of a new model.
    Raises RegistryError where the run has no logged model.
    """
    client = MlflowClient()

    def same() -> list[str]:
        own = {key: tags[key] for key in identity}.items()
        return [number for number, version in look_up(name).versions.items() if version.tags.items() >= own]

    with exclusive():
        with suppress(MlflowException):  # it exists, or the next line says what is wrong
            client.create_registered_model(name, description=purpose)
        if not same():
            outputs = client.get_run(run_id).outputs
            if not (outputs and outputs.model_outputs):
                raise RegistryError(f"run {run_id} has no model: `dvc repro --force --single-item evaluate` logs it")
            for path in files:
                if path != WEIGHTS:
                    client.log_artifact(run_id, path, str(Path(FOLDER, path).parent))
            model_id = outputs.model_outputs[-1].model_id
            checksums = {CHECKSUMS: "\n".join(f"{sha256(path)}  {path}" for path in files)}
            new = client.create_model_version(
                name,
                f"models:/{model_id}",
                run_id,
                {**tags, **checksums},
                description=description,
                await_creation_for=0,  # it is ready at once, and waiting prints a line
                model_id=model_id,
            )
            if str(new.version) != same()[0]:  # another machine has registered it on the server meanwhile
                client.delete_model_version(name, str(new.version))
            # As MLflow's server does; without it, the page of the run's model says that it is not registered.
            registered = json.dumps([{"name": name, "version": same()[0]}])
            client.set_logged_model_tags(model_id, {"mlflow.modelVersions": registered})
        model, number = look_up(name), same()[0]
        if CHAMPION not in model.aliases and number == next(iter(model.versions)):
            client.set_registered_model_alias(name, CHAMPION, number)
        elif model.aliases.get(CHAMPION) != number:
            client.set_registered_model_alias(name, CHALLENGER, number)
        return model.versions[number]


def checksums(version: ModelVersion) -> dict[str, str]:
    """The SHA-256 of each file of a version. Raises RegistryError if the version is not one of `register`."""
    if CHECKSUMS not in version.tags:
        raise RegistryError(f"{version.name} version {version.version} was not made by `make register`")
    return {line[66:]: line[:64] for line in version.tags[CHECKSUMS].splitlines()}


def read_file(version: ModelVersion, path: str) -> bytes:
    """Read a file of a version. Raises RegistryError if it is gone or damaged."""
    owner, stored = f"{version.name} version {version.version}", f"runs:/{version.run_id}/{FOLDER}/{path}"
    if path == WEIGHTS:
        stored = f"models:/{version.name}/{version.version}/artifacts/{Path(path).name}"
    with TemporaryDirectory() as folder:
        try:
            file = Path(mlflow.artifacts.download_artifacts(stored, dst_path=folder))
            if sha256(file) == checksums(version).get(path):
                return file.read_bytes()
        except MLFLOW_ERRORS as error:
            raise RegistryError(f"{path} of {owner} can't be read from {shown_store()}: {one_line(error)}") from None
    raise RegistryError(f"{path} of {owner} is damaged in {shown_store()}: its SHA-256 is not the registered one")


def move_champion(model: Registered, history: Sequence[str], tags: Mapping[str, str]) -> None:
    """Make the last version of a new history champion, which is then not challenger, with tags that say why."""
    client, number = MlflowClient(), history[-1]
    for key, value in tags.items():
        client.set_model_version_tag(model.name, number, key, value)
    client.set_registered_model_alias(model.name, CHAMPION, number)
    client.set_registered_model_tag(model.name, HISTORY, ", ".join(history))
    if model.aliases.get(CHALLENGER) == number:
        client.delete_registered_model_alias(model.name, CHALLENGER)
    if (now := look_up(model.name).aliases.get(CHAMPION)) != number:  # on a server, which has no lock
        raise RegistryError(f"another process has made version {now} of {model.name} champion meanwhile")
