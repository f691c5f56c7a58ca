"""Colours of all figures, and how a figure is saved."""

import io
from pathlib import Path
from typing import Any

import numpy.typing as npt
from matplotlib import style
from matplotlib.figure import Figure

from vae.files import write_atomically

Array = npt.NDArray[Any]

# Petroff 2021 (arXiv:2107.02270): ten colours that are distinguishable with the common colour-vision deficiencies.
PALETTE = [entry["color"] for entry in style.library["petroff10"]["axes.prop_cycle"]]


def save(figure: Figure, path: Path, dpi: int) -> Path:
    """Write `figure` as PNG. Equal figures give equal bytes: the file has no date and no version."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=dpi, format="png", bbox_inches="tight", metadata={"Software": None})
    write_atomically(path, buffer.getvalue())
    return path
