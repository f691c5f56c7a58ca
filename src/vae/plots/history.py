"""The training history: metrics by epoch."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vae.plots.figure import PALETTE

TRAIN, VALIDATION = PALETTE[0], PALETTE[1]


def training_history(history: pd.DataFrame) -> Figure:
    """−ELBO, reconstruction and KL by epoch, of training and validation images, in nats per image.

    The marked epoch is the one whose weights were kept: the last with `improved` = 1. It was chosen by the
    importance-weighted bound where the history has it (`val/neg_bound`), by the −ELBO otherwise.
    """
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    best = history[history["improved"] == 1].iloc[[-1]]
    # With thousands of epochs, the noise of thick lines would fill the panel.
    line = {"lw": 1.8 if len(history) < 500 else 0.6, "marker": "." if len(history) < 5 else None}
    panels = (("neg_elbo", "−ELBO"), ("reconstruction", "reconstruction"), ("kl", "KL"))
    for ax, (key, title) in zip(figure.subplots(1, 3), panels, strict=True):
        curves = {"training": (f"train/{key}", TRAIN, "-"), "validation": (f"val/{key}", VALIDATION, "--")}
        if key == "neg_elbo" and "val/neg_bound" in history:
            curves["validation, −importance-weighted bound"] = ("val/neg_bound", PALETTE[2], ":")
        for label, (column, colour, dash) in curves.items():
            ax.plot(history["epoch"], history[column], dash, color=colour, label=label, **line)
        chosen_by = list(curves.values())[-1][0]  # in the first panel
        ax.plot(best["epoch"], best[chosen_by], "o", mfc="white", mec="black", label="kept weights")
        values = history[[column for column, _, _ in curves.values()]].to_numpy()
        low, high = values.min(), np.quantile(values, 0.97)  # the first epoch would flatten all others
        if high > low:
            ax.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
        ax.set(title=title, xlabel="epoch", ylabel="nats per image")
        ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True))  # as many ticks as fit
        ax.grid(alpha=0.3)
    criterion = "importance-weighted bound" if "val/neg_bound" in history else "validation −ELBO"
    figure.suptitle(f"Kept weights: epoch {best['epoch'].item():.0f}, with the best {criterion}", x=0.01, ha="left")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=4)
    return figure
