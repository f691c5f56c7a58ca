"""The pipeline in a folder with an unusual name, with output in ASCII."""

import pytest

from support import ENVIRONMENT

NAME = """50% o'clock "a" #1 & b?"""


@pytest.mark.slow
def test_a_folder_with_an_unusual_name_and_output_in_ascii_stop_no_stage(reproduced, tmp_path, monkeypatch):
    monkeypatch.setitem(ENVIRONMENT, "PYTHONIOENCODING", "ascii")
    project = reproduced.copy(tmp_path / NAME)
    project.set({"train.epochs": 1, "render.dpi": 30})
    printed = project.dvc("repro", "--force")
    assert next(line for line in printed.splitlines() if line.startswith("epoch")).split()[2] == "?ELBO"
    assert "didn't change, skipping" not in printed
    assert (project / "mlruns" / "mlflow.db").exists()
    assert "NLL" in printed and "figures" in printed
