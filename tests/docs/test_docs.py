"""The documentation: its code runs, its links lead somewhere, and README is short."""

import re
import subprocess
import sys

import pytest
import yaml

import serving
from support import ENVIRONMENT, ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def text_of(page):
    return page.read_text(encoding="utf-8")


def test_the_code_of_the_librarys_page_runs(tmp_path):  # that of extending.md: tests/models/test_extending.py
    blocks = re.findall(r"^```python\n(.*?)^```", text_of(ROOT / "docs" / "library.md"), re.M | re.S)
    (tmp_path / "page.py").write_text("\n".join(blocks), encoding="utf-8")
    environment = ENVIRONMENT | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "page.py"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_examples_of_the_serving_page_run(project):
    program = (
        "from vae import tracking; tracking.connect()\n"
        "from vae.tracking import mlflow\n"
        "client = mlflow.MlflowClient()\n"
        "(model,) = client.search_logged_models([client.get_experiment_by_name('vae-mnist').experiment_id])\n"
        "mlflow.register_model(f'models:/{model.model_id}', 'vae-mnist')\n"
        "client.set_registered_model_alias('vae-mnist', 'champion', '1')\n"
    )
    project.run(sys.executable, "-c", program)
    with serving.server(
        cwd=project.root, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as served:
        page = text_of(ROOT / "docs" / "serving.md").replace("http://127.0.0.1:5001", served[0])
        python, shell = (
            "".join(re.findall(rf"^```{name}\n(.*?)^```", page, re.M | re.S)) for name in ("python", "bash")
        )
        (project / "page.py").write_text(python, encoding="utf-8")
        assert project.run(sys.executable, "page.py").startswith("[{'neg_elbo': ")
        assert project.run("bash", "-ec", shell).startswith('{"predictions": [[')
    assert "FROM python:3" in (project / "docker" / "Dockerfile").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", text_of(page), flags=re.M | re.S)
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        file, _, anchor = link.replace("\n", " ").partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", text_of(target), re.M)
            assert anchor in {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in headings}, link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_and_make_targets_exist(page):
    targets = re.findall(r"^([a-z-]+):", text_of(ROOT / "Makefile"), re.M)
    for name in re.findall(r"`((?:tests|src|pipeline|benchmarks)/[\w/.-]+)`", text_of(page)):
        assert (ROOT / name).exists(), name
    for target in re.findall(r"(?:`|\$ )make ([a-z-]+)", text_of(page)):
        assert target in targets, target


def test_the_readme_has_at_most_200_lines():
    assert len(text_of(ROOT / "README.md").splitlines()) <= 200


def test_the_citation_file_has_what_the_format_requires():
    citation = yaml.safe_load(text_of(ROOT / "CITATION.cff"))
    assert citation["cff-version"] == "1.2.0"
    assert all(citation[key] for key in ("message", "title", "authors"))
