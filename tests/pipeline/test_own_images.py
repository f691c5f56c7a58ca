"""DVC and a folder of pictures as the data set."""

import numpy as np
import pytest
from PIL import Image

from support import new_project


@pytest.fixture
def fresh(tmp_path):
    """A project in which nothing has run, of which the download stage is needed, and a folder of pictures in it."""
    project = new_project(tmp_path / "project")
    project.run("git", "init", "--quiet")
    for number in range(20):
        folder = project / "Bilder" / ("cats", "dogs")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (4, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return project


def raw(project):
    return {path.name: path.read_bytes() for path in (project / "data/raw").iterdir()}


@pytest.mark.slow
def test_repro_notices_a_changed_folder_and_a_data_set_comes_back_as_it_was(fresh):
    def repro():
        return "Running stage" in fresh.dvc("repro", "download")

    own = {"data.source": "folder", "data.path": "Bilder", "data.binarization": "none"}
    fresh.set({"data.source": "bundled"})
    assert repro()
    digits = raw(fresh)
    fresh.set(own)
    assert repro() and not repro()
    pictures = raw(fresh)
    assert set(pictures) == {"train.safetensors", "test.safetensors"}
    Image.new("RGB", (6, 4)).save(fresh / "Bilder/cats/late.png")
    assert repro()
    assert raw(fresh) != pictures
    (fresh / "Bilder/cats/late.png").unlink()
    assert repro()
    assert raw(fresh) == pictures
    fresh.set({"data.source": "bundled", "data.path": "data/images"})
    assert repro()
    assert raw(fresh) == digits
    assert "up to date" in fresh.dvc("status", "download")
