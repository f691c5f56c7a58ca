"""What `dvc repro`, `dvc exp` and `dvc plots` run, restore and reproduce."""

import ast
import csv
import io
import json
import os
import re
import signal
import sys

import grimp
import pytest
from ruamel.yaml import YAML

from support import ENVIRONMENT, ROOT
from vae.files import sha256

MODEL = "models/vae.safetensors"

# Code on which no output depends: a change in it retrains nothing.
NO_OUTPUT_DEPENDS_ON = {"vae.errors", "vae.files", "vae.tracking", "vae.workflow.command_line", "vae.workflow.stages"}
NO_OUTPUT_DEPENDS_ON |= {"vae.progress", "vae.serving.artifacts", "vae.serving.pyfunc"}
NO_OUTPUT_DEPENDS_ON |= {"vae.training.distributed"}  # an evaluation is the same in any number of processes


def stages_run(printed):
    return [line.split("'")[1] for line in printed.splitlines() if line.startswith("Running stage")]


def imported_by(script, graph):
    """The modules of `vae` that a script imports, directly or indirectly, also inside functions."""
    direct = {node.module for node in ast.walk(ast.parse(script.read_text())) if isinstance(node, ast.ImportFrom)}
    named = {name if name in graph.modules else name.rpartition(".")[0] for name in direct if name.startswith("vae")}
    return named.union(*(graph.find_upstream_modules(name) for name in named))


@pytest.mark.parametrize("stage", ["train", "evaluate", "render", "explorer"])
def test_the_deps_of_a_stage_are_the_code_that_it_imports(stage):
    graph = grimp.build_graph("vae", exclude_type_checking_imports=True, cache_dir=None)
    script = f"pipeline/{stage}.py"
    listed = [path for path in YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"][stage]["deps"] if ".json" not in path]
    code = {path.removesuffix(".py").removeprefix("src/").replace("/", ".") for path in listed if "src/" in path}
    used = imported_by(ROOT / script, graph)

    def covers(name, module):
        return f"{module}.".startswith(f"{name}.")

    assert script in listed
    without_output = NO_OUTPUT_DEPENDS_ON | ({"vae.plots"} if stage == "train" else set())  # its pictures are in MLflow
    missing = {module for module in used if not any(covers(name, module) for name in code | without_output)}
    assert missing <= {"vae", "vae.training", "vae.workflow"}  # packages whose __init__ computes nothing
    assert [name for name in code if not any(covers(name, module) for module in used)] == []


def test_a_second_repro_runs_nothing(project):
    before, lock = project.outputs(), (project / "dvc.lock").read_bytes()
    printed = project.dvc("repro")
    assert printed.count("didn't change, skipping") == 5
    assert stages_run(printed) == []
    assert project.outputs() == before
    assert (project / "dvc.lock").read_bytes() == lock


def test_a_changed_resolution_plots_again_and_other_code_changes_nothing(project):
    project.set({"render.dpi": 60})
    for path in ("src/vae/tracking/store.py", "src/vae/workflow/command_line.py", "src/vae/files.py"):
        with (project / path).open("a") as file:
            file.write("# changed\n")
    assert stages_run(project.dvc("repro", "--dry")) == ["render"]


@pytest.mark.slow
def test_a_forced_repro_gives_the_same_bytes_in_a_folder_with_an_unusual_name_and_output_in_ascii(
    reproduced, tmp_path, monkeypatch, runs_of
):
    monkeypatch.setitem(ENVIRONMENT, "PYTHONIOENCODING", "ascii")
    project = reproduced.copy(tmp_path / """50% o'clock "a" #1 & b?""")
    before, lock = project.outputs(), (project / "dvc.lock").read_bytes()
    printed = project.dvc("repro", "--force")
    assert stages_run(printed) == ["download", "train", "evaluate", "render", "explorer"]
    assert "epoch   1/2  ?ELBO" in printed
    assert (project / "dvc.lock").read_bytes() == lock
    changed = {path for path, checksum in project.outputs().items() if before[path] != checksum}
    assert changed == {project / "models/run.json", project / "metrics/timing.json"}
    assert len(runs_of(project)) == 2


@pytest.fixture(scope="module")
def experiment(reproduced, tmp_path_factory):
    """A copy of the project in which an experiment with one epoch and beta 4 has run."""
    project = reproduced.copy(tmp_path_factory.mktemp("experiment") / "project")
    printed = project.dvc("exp", "run", "-n", "strong-kl", "-S", "train.epochs=1", "-S", "train.beta=4")
    assert stages_run(printed) == ["train", "evaluate", "render", "explorer"]
    return project


@pytest.mark.slow
def test_an_experiment_is_listed_beside_its_baseline_and_is_a_run_of_its_own(experiment, runs_of):
    table = csv.DictReader(io.StringIO(experiment.dvc("exp", "show", "--csv")))
    rows = {row["Experiment"] or row["rev"]: row for row in table}
    listed = [(rows[name]["train.epochs"], float(rows[name]["train.beta"])) for name in ("main", "strong-kl")]
    assert listed == [("2", 1.0), ("1", 4.0)]
    assert float(rows["strong-kl"]["kl"]) < float(rows["main"]["kl"])
    assert "# weight of the KL" in (experiment / "params.yaml").read_text()
    run, first = runs_of(experiment)
    assert run.data.tags["dvc.experiment"] == "strong-kl"
    assert (run.info.status, run.data.params["train.beta"]) == ("FINISHED", "4.0")
    assert "test/nll" in run.data.metrics
    assert first.data.tags["dvc.experiment"] == ""


@pytest.mark.slow
def test_plots_are_a_page_with_curves_and_figures_of_both_versions_that_works_offline(experiment, tmp_path):
    (experiment / "search").mkdir()
    experiment.run("cp", "figures/interpolation.png", "search/slice.png")  # of the search, which is of other models
    experiment.dvc("plots", "diff", "main", "--out", str(tmp_path / "page"))
    page = (tmp_path / "page/index.html").read_text()
    titles = [json.loads(text) for text in re.findall(r'"title": {"text": ("[^"]+"), "anchor"', page)]
    by_epoch = ["Reconstruction by epoch", "KL by epoch", "validation −ELBO by epoch"]
    assert sorted(titles) == sorted([*by_epoch, "NLL by class"])
    assert set(re.findall('"rev": "([^"]+)"', page)) == {"workspace", "main"}
    assert not re.search(r"(src|href) *= *.https?:", page)
    assert "function vegaEmbed" in page  # which DVC's page would load
    images = [path.name for path in (tmp_path / "page/static").iterdir()]
    assert images and all("_figures_" in name and name.endswith(".png") for name in images)


@pytest.mark.slow
def test_earlier_params_restore_their_results_and_the_run_of_the_restored_weights_gets_what_follows(
    experiment, reproduced, tmp_path, stage_in, runs_of
):
    project = experiment.copy(tmp_path / "project")
    assert sha256(project / MODEL) != sha256(reproduced / MODEL)
    project.run("git", "checkout", "--quiet", "params.yaml")
    assert stages_run(project.dvc("repro")) == []
    for path in (MODEL, "metrics/train.json", "metrics/evaluate.json", "metrics/test_nll.npz"):
        assert (project / path).read_bytes() == (reproduced / path).read_bytes()
    strong_kl, first = runs_of(project)
    assert json.loads((project / "models/run.json").read_text())["run_id"] == strong_kl.info.run_id
    stage_in(project, "evaluate").succeeds()
    *opened, strong_kl_after, first_after = runs_of(project)
    assert strong_kl_after.data.metrics == strong_kl.data.metrics
    assert strong_kl_after.info.end_time == strong_kl.info.end_time
    assert not opened
    assert first_after.info.end_time > first.info.end_time


@pytest.mark.slow
def test_an_experiment_in_a_temporary_folder_is_tracked_in_the_project(project, runs_of):
    before = project.outputs()
    project.dvc("exp", "run", "--temp", "-n", "elsewhere", "-S", "train.epochs=1", "train")
    run, _ = runs_of(project)
    assert (run.data.tags["dvc.experiment"], run.info.status) == ("elsewhere", "FINISHED")
    assert project.outputs() == before


@pytest.mark.slow
def test_results_that_are_in_no_cache_are_computed_again(project, reproduced):
    lock = project / "dvc.lock"
    (md5,) = re.findall(r"path: models/vae.safetensors\n      hash: md5\n      md5: (\w+)", lock.read_text())[:1]
    lock.write_text(lock.read_text().replace(md5, "0123456789abcdef" * 2))
    (project / MODEL).unlink()
    assert stages_run(project.dvc("repro", "train")) == ["train"]
    assert sha256(project / MODEL) == sha256(reproduced / MODEL)


@pytest.mark.slow
def test_an_interrupted_repro_commits_nothing(project, reproduced, runs_of):
    lock = (project / "dvc.lock").read_bytes()
    project.set({"train.epochs": 5000})
    process = project.start(sys.executable, "-m", "dvc", "repro", until="epoch   2/")
    os.killpg(process.pid, signal.SIGINT)
    rest, errors = process.communicate(timeout=180)
    assert process.returncode != 0
    assert "Traceback" not in errors and "evaluate" not in rest
    assert (project / "dvc.lock").read_bytes() == lock
    assert runs_of(project)[0].info.status == "KILLED"
    project.run("git", "checkout", "--quiet", "params.yaml")
    assert stages_run(project.dvc("repro", "train")) == []  # the earlier model comes back from the cache
    assert sha256(project / MODEL) == sha256(reproduced / MODEL)
