"""`make report`: what differs from a commit, and what a commit lacks."""

import re
import shutil

import numpy as np
import pytest

from vae.config import load_params
from vae.errors import DataError
from vae.files import write_arrays
from vae.workflow.report import report


@pytest.fixture
def changed(project, monkeypatch):
    """A project whose params, metrics and NLLs are not those of its commit."""
    monkeypatch.chdir(project.root)
    project.set({"train.beta": 2.0})
    with np.load("metrics/test_nll.npz") as file:
        arrays = dict(file)
    sign = np.where(np.arange(len(arrays["nll"])) % 2, 1, -1)
    arrays["nll"] = arrays["nll"] + 0.5 + 0.1 * sign
    write_arrays("metrics/test_nll.npz", **arrays)
    metrics = project / "metrics/evaluate.json"
    metrics.write_text(re.sub(r'"active_units": \d+', '"active_units": 17', metrics.read_text()))
    return project


def read(project):
    return (project / "results/report/report.md").read_text(), (project / "results/report/report.html").read_text()


def test_the_report_has_what_differs_and_a_page_of_one_file(changed):
    report("main", load_params())
    markdown, page = read(changed)
    assert "| train.beta | 1.0 | 2.0 | +1 |" in markdown and "train.epochs" not in markdown
    assert re.search(r"\| active_units \| \d+ \| 17 \|", markdown)
    count = len(np.load("metrics/test_nll.npz")["nll"])
    error = 0.1 / np.sqrt(count - 1)  # the standard deviation of ±0.1 with n − 1, over √n
    assert f"NLL here − main, image by image: **+0.500 ± {error:.3f} nats**" in markdown
    assert re.findall(r"\((\w+)\.png\)", markdown) == ["curves", "reconstructions", "samples"]
    assert page.count('src="data:image/png;base64,') == 3 and "<td" in page and ".png" not in page


def test_what_a_commit_lacks_is_left_out_and_said(changed):
    shutil.rmtree(changed / ".dvc/cache")
    report("main", load_params())
    markdown, _ = read(changed)
    assert "No NLL of each image of main" in markdown and "No weights of main: `dvc pull`" in markdown
    assert "| train.beta |" in markdown and "(curves.png)" in markdown and "(samples.png)" not in markdown


def test_nlls_of_other_protocols_are_not_compared(changed):
    with np.load("metrics/test_nll.npz") as file:
        write_arrays("metrics/test_nll.npz", **{**file, "importance_samples": 9})
    report("main", load_params())
    assert "The NLLs can't be compared: they differ in importance_samples." in read(changed)[0]


def test_an_unknown_commit_is_refused(changed):
    with pytest.raises(DataError, match=r"no commit mian here: BASE="):
        report("mian", load_params())
