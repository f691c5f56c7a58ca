"""Two people on two clones, with the servers of stack/: they share data, models, runs and a search, by password."""

import subprocess
import sys
from contextlib import ExitStack

import pytest

import stack
from support import ENVIRONMENT, Project

pytestmark = pytest.mark.slow
PASSWORDS = {name: f"{name}-hunter2-secret" for name in ("admin", "mlflow", "optuna", "ann", "bob")}
SEARCH = (sys.executable, "pipeline/search/search.py")
# The scores of two black images, and the states of all runs.
USE_MODEL = """
import numpy
from vae.tracking import mlflow

model = mlflow.pyfunc.load_model("models:/vae-mnist@champion")
images = numpy.zeros((2, 28, 28), numpy.uint8)
print(len(model.predict(images, params={"task": "score"})), *mlflow.search_runs(experiment_names=["vae-mnist"]).status)
"""


class Person(Project):
    """A clone, and a home with the files in which the programs look for passwords."""

    def __init__(self, name, folder, url, postgres):
        super().__init__(folder / "project")
        home = folder / "home"
        host, port = "127.0.0.1", postgres.port
        files = {
            ".mlflow/credentials": f"[mlflow]\nmlflow_tracking_username={name}\n"
            f"mlflow_tracking_password={PASSWORDS[name]}\n",
            ".aws/credentials": "[default]\naws_access_key_id=key\naws_secret_access_key=hunter2\n",
            ".pgpass": f"{host}:{port}:optuna:optuna:{PASSWORDS['optuna']}\n",
        }
        for path, content in files.items():
            (home / path).parent.mkdir(parents=True, exist_ok=True)
            (home / path).write_text(content)
            (home / path).chmod(0o600)
        self.environment = {
            **{**ENVIRONMENT, "HOME": str(home), "MLFLOW_TRACKING_URI": url},
            "OPTUNA_STORAGE": f"postgresql://optuna@{host}:{port}/optuna",
        }
        self.printed = ""

    def start(self, *command, **environment):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, cwd=self.root, env=self.environment | environment, **pipes)

    def finish(self, process, code=0):
        printed = process.communicate()[0]
        self.printed += printed
        assert process.returncode == code, printed
        return printed

    def run(self, *command):
        return self.finish(self.start(*command))

    def python(self, *arguments):
        return self.run(sys.executable, *arguments)


@pytest.fixture(scope="module")
def people(reproduced, tmp_path_factory):
    """Ann, who has trained, registered and pushed, and Bob, who has cloned."""
    folder = tmp_path_factory.mktemp("team")
    with ExitStack() as servers:
        postgres, s3 = servers.enter_context(stack.postgresql()), servers.enter_context(stack.s3("vae"))
        url = servers.enter_context(stack.mlflow(postgres, s3, PASSWORDS, ("ann", "bob")))
        ann, bob = (Person(name, folder / name, url, postgres) for name in ("ann", "bob"))
        reproduced.copy(ann.root)
        ann.set({"search.n_trials": 8, "search.epochs": 3, "search.workers": 1, "search.finalists": 0})
        ann.set({"search.pruner": "none"})
        ann.python("-m", "vae.workflow.remote", "--url=s3://vae/dvc", f"--endpoint={s3}")
        ann.run("git", "commit", "--quiet", "--all", "--message=A remote and a search")
        ann.dvc("repro", "--force", "--single-item", "evaluate")  # logs the model
        ann.python("-m", "vae.workflow.registry", "register")
        ann.dvc("push")
        ann.run("git", "clone", "--quiet", ".", str(bob.root))
        bob.dvc("pull", "dvc.yaml")
        yield ann, bob


def test_one_has_the_others_results_without_computing_them(people):
    ann, bob = people
    assert "Data and pipelines are up to date" in bob.dvc("status", "dvc.yaml")
    assert ann.run("git", "status", "--porcelain") == bob.run("git", "status", "--porcelain") == ""


def test_one_sees_the_others_runs_and_uses_the_others_model(people):
    _, bob = people
    assert "vae-mnist version 1, champion" in bob.python("-m", "vae.workflow.registry", "why")
    assert bob.python("-c", USE_MODEL).split() == ["2", "FINISHED"]


def test_they_search_together(people):
    ann, bob = people
    workers = [person.start(*SEARCH, "--worker") for person in people]
    shares = [person.finish(worker).count("\ntrial ") for person, worker in zip(people, workers, strict=True)]
    assert min(shares) > 0 and sum(shares) == 8
    assert "8 of 8 trials done" in ann.run(*SEARCH)
    status = "from vae.tracking import mlflow; print(*mlflow.search_runs(experiment_names=['vae-mnist-search']).status)"
    assert bob.python("-c", status).split() == ["FINISHED"] * 9  # of the search and each trial, whoever ran it


@pytest.mark.parametrize("credentials", [{"HOME": "/nowhere"}, {"MLFLOW_TRACKING_PASSWORD": "hunter2-wrong"}])
def test_nobody_comes_in_without_a_password(people, credentials):
    ann, _ = people
    refused = ann.start(sys.executable, "-m", "vae.workflow.registry", "why", **credentials)
    (line,) = ann.finish(refused, code=1).splitlines()
    assert line.startswith("error: the MLflow store http://127.0.0.1:")
    assert "wants another user name and password" in line and "~/.mlflow/credentials" in line


def test_no_password_is_printed_or_stored(people):
    for person in people:
        texts = [path.read_bytes() for path in person.root.rglob("*") if path.is_file()]
        assert all(b"hunter2" not in text for text in [*texts, person.printed.encode()])
