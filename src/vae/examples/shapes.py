"""Coloured shapes with known factors, as a folder of pictures: `python -m vae.examples.shapes FOLDER`.

Each picture shows a disc, a square or a triangle, its class, of which hue, size and position are drawn at random.
`FOLDER/factors.csv` has these by file. Equal arguments give equal files.
"""

import colorsys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from vae.workflow.command_line import ArgumentParser, errors_in_one_line

SHAPES = ("disc", "square", "triangle")
SCALE = 4  # drawn larger by this factor: the edges are smooth then
BACKGROUND = (24, 24, 32)

Factors = dict[str, Any]


def draw_factors(count: int, seed: int = 0) -> Iterator[Factors]:
    """Shape, hue in [0, 1], size and position of `count` pictures; the last three are fractions of the picture's."""
    random = np.random.default_rng(seed)
    for number in range(count):
        size = random.uniform(0.25, 0.6)  # of the shorter side
        hue, x, y = random.uniform(size=3)
        yield {"shape": SHAPES[number % len(SHAPES)], "hue": hue, "size": size, "x": x, "y": y}


def picture(factors: Factors, height: int, width: int) -> Image.Image:
    """The picture of these factors, in RGB; the shape is inside of it, wherever x and y in [0, 1] are."""
    large = Image.new("RGB", (width * SCALE, height * SCALE), BACKGROUND)
    side = factors["size"] * min(large.size)
    left, top = ((length - side) * factors[axis] for length, axis in zip(large.size, ("x", "y"), strict=True))
    right, bottom = left + side, top + side
    red, green, blue = (round(255 * value) for value in colorsys.hsv_to_rgb(factors["hue"], 0.75, 0.95))
    pen, colour = ImageDraw.Draw(large), (red, green, blue)
    if factors["shape"] == "disc":
        pen.ellipse((left, top, right, bottom), colour)
    elif factors["shape"] == "square":
        pen.rectangle((left, top, right, bottom), colour)
    else:
        pen.polygon([(left, bottom), (right, bottom), ((left + right) / 2, top)], colour)
    return large.resize((width, height), Image.Resampling.BOX)


def write(folder: Path, count: int, height: int, width: int, seed: int = 0) -> None:
    """Write `count` pictures to a folder for each shape in `folder`, and their factors to factors.csv."""
    rows = []
    for number, factors in enumerate(draw_factors(count, seed)):
        path = Path(factors["shape"], f"{number:06d}.png")
        (folder / path.parent).mkdir(parents=True, exist_ok=True)
        picture(factors, height, width).save(folder / path)
        rows.append({"file": str(path), **factors})
    pd.DataFrame(rows).to_csv(folder / "factors.csv", index=False, float_format="%.4f")


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the pictures."""
    parser = ArgumentParser((__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="is made if need be")
    parser.add_argument("--count", type=int, default=6000, help="pictures [default: 6000]")
    parser.add_argument("--height", type=int, default=32, help="in pixels [default: 32]")
    parser.add_argument("--width", type=int, default=48, help="in pixels [default: 48]")
    parser.add_argument("--seed", type=int, default=0, help="of the factors [default: 0]")
    values = parser.parse_args(arguments)
    with errors_in_one_line("the same command writes all pictures again"):
        write(values.folder, values.count, values.height, values.width, values.seed)
        print(f"{values.count:,} pictures of {values.height}×{values.width} in {values.folder}")


if __name__ == "__main__":
    main()
