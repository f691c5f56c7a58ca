"""Coloured shapes with known factors, as a folder of pictures: `python -m vae.examples.shapes FOLDER`.

Each picture shows a disc, a square or a triangle, its class, of which hue, size and position are drawn at random.
`FOLDER/factors.csv` has these by file. Equal arguments give equal files.

Pictures have a grain, as photographs do. Without it, the exact values of the background would be worth more to a
likelihood of 256 levels than all that the pictures show.
"""

import colorsys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image, ImageDraw

from vae.workflow.command_line import ArgumentParser, errors_in_one_line

SHAPES = ("disc", "square", "triangle")
SCALE = 4  # drawn larger by this factor: the edges are smooth then
BACKGROUND = (48, 48, 64)
GRAIN = 8  # standard deviation, in levels of 256, independent in each value

Factors = dict[str, Any]
Pixels = npt.NDArray[np.uint8]


def draw_factors(count: int, seed: int = 0) -> Iterator[Factors]:
    """Shape, hue in [0, 1], size and position of `count` pictures; the last three are fractions of the picture's."""
    random = np.random.default_rng(seed)
    for number in range(count):
        size = random.uniform(0.3, 0.6)  # of the shorter side
        hue, x, y = random.uniform(size=3)
        yield {"shape": SHAPES[number % len(SHAPES)], "hue": hue, "size": size, "x": x, "y": y}


def picture(factors: Factors, height: int, width: int, random: np.random.Generator) -> Pixels:
    """A picture of these factors, [height, width, 3]; the shape is inside of it, wherever x and y in [0, 1] are."""
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
    pixels = np.asarray(large.resize((width, height), Image.Resampling.BOX))
    return (pixels + random.normal(0, GRAIN, pixels.shape)).round().clip(0, 255).astype(np.uint8)


def draw(count: int, height: int, width: int, seed: int = 0) -> Iterator[tuple[Factors, Pixels]]:
    """The factors of `count` pictures, and the pictures."""
    grain = np.random.default_rng((seed, 1))
    return ((factors, picture(factors, height, width, grain)) for factors in draw_factors(count, seed))


def write(folder: Path, count: int, height: int, width: int, seed: int = 0) -> None:
    """Write `count` pictures to a folder for each shape in `folder`, and their factors to factors.csv."""
    rows = []
    for number, (factors, pixels) in enumerate(draw(count, height, width, seed)):
        path = Path(factors["shape"], f"{number:06d}.png")
        (folder / path.parent).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / path)
        rows.append({"file": str(path), **factors})
    pd.DataFrame(rows).to_csv(folder / "factors.csv", index=False, float_format="%.4f")


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the pictures."""
    parser = ArgumentParser((__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="is made if need be")
    parser.add_argument("--count", type=int, default=6000, help="pictures [default: 6000]")
    parser.add_argument("--height", type=int, default=24, help="in pixels [default: 24]")
    parser.add_argument("--width", type=int, default=32, help="in pixels [default: 32]")
    parser.add_argument("--seed", type=int, default=0, help="of the factors [default: 0]")
    values = parser.parse_args(arguments)
    with errors_in_one_line("the same command writes all pictures again"):
        write(values.folder, values.count, values.height, values.width, values.seed)
        print(f"{values.count:,} pictures of {values.height}×{values.width} in {values.folder}")


if __name__ == "__main__":
    main()
