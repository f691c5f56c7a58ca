"""Coloured shapes: what is drawn is what factors.csv says."""

import colorsys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from vae.examples.shapes import BACKGROUND, GRAIN, main


def test_pictures_show_their_factors(tmp_path, capsys):
    folder = tmp_path / "shapes"
    main([str(folder), "--count=30", "--height=40", "--width=64"])
    assert "30 pictures of 40×64" in capsys.readouterr().out
    table = pd.read_csv(folder / "factors.csv")
    assert table["shape"].value_counts().to_dict() == {"disc": 10, "square": 10, "triangle": 10}
    areas = {"disc": np.pi / 4, "square": 1.0, "triangle": 0.5}
    for _, row in table.iterrows():
        assert row["file"].startswith(row["shape"])
        pixels = np.asarray(Image.open(folder / row["file"]), float)
        assert pixels.shape == (40, 64, 3)
        colour = 255 * np.array(colorsys.hsv_to_rgb(row["hue"], 0.75, 0.95))
        share = ((pixels - BACKGROUND) @ (colour - BACKGROUND)) / ((colour - BACKGROUND) ** 2).sum()
        side = 40 * row["size"]
        assert abs(share.sum() - areas[row["shape"]] * side**2) < 0.12 * side**2  # an edge more at four times the size
        grain = (pixels - BACKGROUND)[np.abs(share) < 0.1]
        assert grain.std() == pytest.approx(GRAIN, rel=0.1)
        rows, columns = (np.flatnonzero(share.max(axis) > 0.3) for axis in (1, 0))
        assert abs(columns[0] - (64 - side) * row["x"]) < 1.5
        assert abs(rows[-1] + 1 - (40 - side) * row["y"] - side) < 1.5


def test_equal_arguments_give_equal_files(tmp_path):
    for name in ("a", "b"):
        main([str(tmp_path / name), "--count=3"])
    for path in (tmp_path / "a").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
