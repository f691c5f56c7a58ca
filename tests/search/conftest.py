import shutil

import pytest

from search_support import Folder


@pytest.fixture
def here(tmp_path, bundled, empty_store, monkeypatch):
    """A `Folder`, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlruns").mkdir()
    shutil.copy(empty_store, tmp_path / "mlruns/mlflow.db")
    return Folder(tmp_path, *bundled)
