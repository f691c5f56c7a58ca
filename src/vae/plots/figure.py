"""Colours and names in all figures, and how a figure is saved."""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps, font_manager, style
from matplotlib.figure import Figure

from vae.files import write_atomically

Array = npt.NDArray[Any]

# Petroff 2021 (arXiv:2107.02270): ten colours that are distinguishable with the common colour-vision deficiencies.
PALETTE = [entry["color"] for entry in style.library["petroff10"]["axes.prop_cycle"]]

LONGEST_NAME = 20  # characters of a class's name


def class_colours(count: int) -> Array:
    """A colour for each of `count` classes, [count, 3]: colours that are easy to tell apart, as far as there are."""
    # More saturated than PALETTE, for small points.
    listed = "tab10" if count <= 10 else "tab20"
    if count <= 20:
        return np.array(colormaps[listed].colors[:count])  # type: ignore[attr-defined]
    colours: Array = colormaps["turbo"](np.linspace(0.03, 0.97, count))[:, :3]
    return colours


def class_names(labels: Iterable[int], classes: Sequence[str] = ()) -> list[str]:
    """The names of the classes with these labels as figures show them; without `classes`, the labels.

    Long names are shortened. One with characters that the figures' font lacks is shown as its label.
    """
    font = font_manager.get_font(font_manager.findfont(font_manager.FontProperties()))
    names = []
    for label in labels:
        name = classes[label] if classes else ""
        name = name if all(map(font.get_char_index, map(ord, name))) and name else str(label)
        name = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
        names.append(name.replace("$", r"\$"))  # no formula
    return names


def save(figure: Figure, path: Path, dpi: int) -> Path:
    """Write `figure` as PNG. Equal figures give equal bytes: the file has no date and no version."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=dpi, format="png", bbox_inches="tight", metadata={"Software": None})
    write_atomically(path, buffer.getvalue())
    return path
