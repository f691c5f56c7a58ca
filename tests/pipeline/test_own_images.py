"""A copy of the project with your own images: one edited section of params.yaml, and `dvc repro` does the rest."""

import json
import re
import sys
from base64 import b64decode

import numpy as np
import pandas as pd
import pytest
import requests
from PIL import Image, ImageDraw

import serving
from support import ENVIRONMENT, TINY, new_project
from vae.models.vae import VAE

pytestmark = pytest.mark.slow

CLASSES = {"Kreis ○": "red", "a square": "cyan", "Ünicode": "yellow"}
SIZE = 48, 32  # width and height
SHORT = {name: value for name, value in TINY.items() if not name.startswith("data.")}
SHORT |= {"model.hidden_dims": [64], "train.epochs": 40, "train.batch_size": 16}


def draw_pictures(folder, count):
    """Colour pictures of a shape for each class, at any place."""
    random = np.random.default_rng(0)
    for number in range(count):
        name, colour = list(CLASSES.items())[number % len(CLASSES)]
        picture = Image.new("RGB", SIZE, (20, 20, 40))
        x, y = (int(random.integers(side - 14)) for side in SIZE)
        draw = ImageDraw.Draw(picture)
        [draw.ellipse, draw.rectangle, draw.line][number % 3]([x, y, x + 12, y + 12], fill=colour)
        place = folder(name)
        place.mkdir(parents=True, exist_ok=True)
        picture.save(place / f"{number:03}.png")


@pytest.fixture(scope="module", params=["classes", "no labels"])
def own(request, tmp_path_factory):
    """The project, what `dvc repro` printed, and whether there are classes. If not, pictures are grey and binarized."""
    project = new_project(tmp_path_factory.mktemp("own") / "project")
    project.set(SHORT)
    labelled = request.param == "classes"
    pictures = project / "my pictures"
    draw_pictures((lambda name: pictures / name) if labelled else (lambda _: pictures), 300 if labelled else 120)
    section = {"source": "folder", "path": "my pictures", "binarization": "none" if labelled else "threshold"}
    section |= {} if labelled else {"channels": 1}
    project.set({f"data.{name}": value for name, value in section.items()})
    project.run("git", "init", "--quiet", "--initial-branch=main")
    return project, project.dvc("repro"), labelled


def test_the_pipeline_ends_with_metrics_figures_and_a_page_for_these_images(own):
    project, printed, labelled = own
    record = json.loads((project / "data/dataset.json").read_text())
    assert record["image_shape"] == ([3, 32, 48] if labelled else [1, 32, 48])
    assert record["classes"] == (sorted(CLASSES) if labelled else [])
    metrics = json.loads((project / "metrics/evaluate.json").read_text())
    assert metrics["nll"] < -metrics["elbo"] + 0.1
    if labelled:
        bits = metrics["nll"] / np.log(2) / np.prod(record["image_shape"])
        assert metrics["bits_per_dimension"] == pytest.approx(bits, rel=1e-4)
        assert bits < 6  # it has learned something: noise has 8
    assert ("left out: the linear probe" in printed) != labelled
    assert ("linear_probe_accuracy" in metrics) == ("sample_frechet_distance" in metrics) == labelled
    per_class = pd.read_csv(project / "metrics/per_class.csv")["class"].tolist()
    assert per_class == (sorted(CLASSES) if labelled else ["all"])
    for path in (project / "figures").glob("*.png"):
        colours = np.asarray(Image.open(path).convert("RGB")).astype(int)
        if path.stem in ("reconstructions", "generated_samples", "nearest_training_images", "interpolation"):
            assert (np.ptp(colours, axis=2).max() > 60) == labelled, path
    assert len(list((project / "figures").glob("*.png"))) == 10
    assert ("left out: classes" in printed) != labelled
    page = (project / "explorer/index.html").read_text()
    payload = b64decode(re.search(r'id="payload"[^>]*>([^<]+)<', page)[1])
    assert (b"Kreis" in payload) == (b"explorer.labels" in payload) == labelled


def test_the_model_is_registered_served_and_scores_pictures(own):
    project, _, labelled = own
    project.run("git", "add", "--all")
    project.run("git", "commit", "--quiet", "--message=Own images")
    registered = project.run(sys.executable, "-m", "vae.workflow.registry", "register")
    assert registered.startswith("vae-my-pictures version 1")
    pictures = sorted((project / "my pictures").rglob("*.png"))[:3]
    images = np.stack([np.asarray(Image.open(path).convert("RGB" if labelled else "L")) for path in pictures])
    flat = images.transpose(0, 3, 1, 2).reshape(3, -1) if labelled else images.reshape(3, -1)
    expected = VAE.load(project / "models/vae.safetensors").reconstruct(flat).numpy()
    with serving.server(cwd=project.root, env=ENVIRONMENT) as (url, _):
        answer = requests.post(f"{url}/invocations", json={"inputs": images.tolist()}, timeout=120).json()
    found = np.array(answer["predictions"])
    found = found.transpose(0, 3, 1, 2).reshape(3, -1) if labelled else found
    np.testing.assert_allclose(found, expected, atol=1e-5)
    scored = project.run(sys.executable, "-m", "vae.workflow.score", "my pictures")
    assert f"{300 if labelled else 120} of {300 if labelled else 120} images" in scored
    assert Image.open(project / "results/scores/my pictures.png").size[0] > 200


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


def test_training_images_of_one_class_beside_test_images_of_two_are_evaluated(tmp_path):
    project = new_project(tmp_path / "project")
    parts = project / "parts"
    draw_pictures(lambda _: parts / "train/good", 60)
    draw_pictures(lambda name: parts / "test" / ("good" if name == "a square" else "cracked"), 30)
    section = {"data.source": "folder", "data.path": "parts", "data.binarization": "none"}
    project.set(SHORT | section | {"train.epochs": 1})
    project.run("git", "init", "--quiet", "--initial-branch=main")
    assert "left out: the linear probe" in project.dvc("repro", "evaluate")
    assert json.loads((project / "metrics/evaluate.json").read_text())["nll"]
