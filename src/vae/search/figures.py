"""The pictures of a search: a table of trials in, matplotlib Figures out."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from vae.config import Params, Range
from vae.plots.figure import PALETTE

NEG_ELBO = "validation −ELBO, nats per image"
Curves = Mapping[int, Sequence[float]]


def every(rows: pd.DataFrame, curves: Curves, importances: Mapping[str, float], params: Params) -> dict[str, Figure]:
    """All figures of a search by file name, from `results.table`, the −ELBO by epoch and the importances."""
    complete = rows[rows["state"] == "COMPLETE"]
    names = list(params.search.space)
    logarithmic = {name for name, domain in params.search.space.items() if isinstance(domain, Range) and domain.log}
    beta = complete["beta"] if "beta" in complete else pd.Series(params.train.beta, complete.index)
    return {
        "optimization_history": optimization_history(rows),
        "param_importances": param_importances(importances),
        "slice": slices(complete, names, logarithmic),
        "parallel_coordinate": parallel_coordinate(complete, names, logarithmic),
        "intermediate_values": intermediate_values(rows, curves),
        "pareto_front": pareto_front(complete, beta),
    }


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    ax = figure.add_subplot()
    ax.grid(alpha=0.3)
    return figure, ax


def _focus(ax: Axes, values: "pd.Series[float]") -> None:
    """Let the better trials fill the picture: a few bad ones would flatten all others."""
    low, high = float(values.min()), float(values.quantile(0.9))
    margin = 0.08 * (high - low) or 1.0
    ax.set_ylim(low - margin, high + margin)


def optimization_history(rows: pd.DataFrame) -> Figure:
    """−ELBO of each trial, and the best so far."""
    figure, ax = _axes(8, 4)
    complete, pruned = (rows[rows["state"] == state] for state in ("COMPLETE", "PRUNED"))
    ax.step(complete["trial"], complete["neg_elbo"].cummin(), where="post", color=PALETTE[1], label="best so far")
    ax.plot(complete["trial"], complete["neg_elbo"], "o", color=PALETTE[0], label="complete")
    ax.plot(pruned["trial"], pruned["neg_elbo"], "x", color="0.55", label="pruned, when it was")
    current = complete[complete["current"]]
    ax.plot(current["trial"], current["neg_elbo"], "D", color=PALETTE[2], label="values of params.yaml")
    _focus(ax, complete["neg_elbo"])
    ax.set(
        title="Trials and the best so far (the worst tenth may lie above the frame)", xlabel="trial", ylabel=NEG_ELBO
    )
    ax.legend(frameon=False)
    return figure


def param_importances(importances: Mapping[str, float]) -> Figure:
    """How much of the difference between good and other trials each parameter explains (PED-ANOVA)."""
    figure, ax = _axes(7, 0.6 * max(len(importances), 2) + 1.2)
    names = list(importances)[::-1]
    bars = ax.barh(names, [importances[name] for name in names], color=PALETTE[0])
    ax.bar_label(bars, fmt="%.2f", padding=3)
    ax.set(
        title="Importance of each parameter for −ELBO (PED-ANOVA)", xlabel="share of what all explain", xlim=(0, 1.08)
    )
    if not importances:
        ax.text(0.5, 0.5, "too few complete trials", transform=ax.transAxes, ha="center")
    return figure


def slices(complete: pd.DataFrame, names: Sequence[str], logarithmic: set[str]) -> Figure:
    """−ELBO against each parameter, by trial number."""
    figure = Figure(figsize=(3.4 * len(names) + 0.8, 3.8), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for ax, name in zip(panels, names, strict=True):
        points = ax.scatter(
            _plottable(complete[name]),
            complete["neg_elbo"],
            c=complete["trial"],
            cmap="viridis",
            s=30,
            edgecolors="0.3",
            lw=0.4,
        )
        if name in logarithmic:
            ax.set_xscale("log")
            _plain_ticks(ax.xaxis, complete[name])
        ax.set_xlabel(name)
        ax.grid(alpha=0.3)
    _focus(panels[0], complete["neg_elbo"])
    panels[0].set_ylabel(NEG_ELBO)
    figure.colorbar(points, ax=list(panels), label="trial")
    figure.suptitle("Each parameter by itself", x=0.01, ha="left")
    return figure


def _plottable(values: "pd.Series[Any]") -> "pd.Series[Any]":
    """Numbers as they are; choices as their names."""
    return values if pd.api.types.is_numeric_dtype(values) and values.dtype != bool else values.astype(str)


def _plain_ticks(axis: Axis, values: "pd.Series[float]") -> None:
    """A few plain numbers along a logarithmic axis, also where it is shorter than an order of magnitude."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)) if values.max() > 10 * values.min() else MaxNLocator(4))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())
    axis.set_tick_params(labelsize="small")


def parallel_coordinate(complete: pd.DataFrame, names: Sequence[str], logarithmic: set[str]) -> Figure:
    """A line a trial through its values, each axis from its lowest to its highest; good trials are dark."""
    figure, ax = _axes(1.9 * (len(names) + 1) + 1.5, 4.2)
    ordered = complete.sort_values("neg_elbo", ascending=False)  # the best on top
    columns = [*names, "neg_elbo"]
    heights = np.empty((len(ordered), len(columns)))
    for place, name in enumerate(columns):
        heights[:, place], low, high = _height(ordered[name], name in logarithmic)
        for level, label in ((-0.04, low), (1.04, high)):
            ax.text(place, level, label, ha="center", va="center", size="small")
    best, worst = float(ordered["neg_elbo"].min()), float(ordered["neg_elbo"].quantile(0.9))
    colours = Normalize(best, worst if worst > best else best + 1)
    lines = [np.column_stack([range(len(columns)), row]) for row in heights]
    collection = LineCollection(
        lines, array=ordered["neg_elbo"].to_numpy(), cmap="viridis", norm=colours, lw=1.4, alpha=0.8
    )
    ax.add_collection(collection)
    ax.set(xlim=(-0.3, len(columns) - 0.7), ylim=(-0.09, 1.09), yticks=[])
    ax.set_xticks(range(len(columns)), [*names, "−ELBO"])
    ax.set_title("Trials through their values", loc="left")
    ax.spines[["left", "right", "top"]].set_visible(False)
    figure.colorbar(collection, ax=ax, label=NEG_ELBO, extend="max")
    return figure


def _height(values: "pd.Series[Any]", logarithmic: bool) -> tuple[Any, str, str]:
    """Values as heights from 0 to 1, and what the two ends stand for."""
    values = _plottable(values)
    if values.dtype == object or pd.api.types.is_string_dtype(values):
        names = sorted(set(values))
        positions = values.map({name: place for place, name in enumerate(names)}).astype(float)
        low, high = names[0], names[-1]
    else:
        positions = values.astype(float).map(math.log if logarithmic else float)
        low, high = (f"{end:.4g}" for end in (values.min(), values.max()))
    spread = positions.max() - positions.min()
    return ((positions - positions.min()) / spread if spread else positions * 0 + 0.5), low, high


def intermediate_values(rows: pd.DataFrame, curves: Curves) -> Figure:
    """−ELBO by epoch of each trial; those that were pruned end in a cross."""
    figure, ax = _axes(8, 4.2)
    complete = rows[rows["state"] == "COMPLETE"]
    best = complete.sort_values("neg_elbo")["trial"].iloc[0]
    for label, state, colour in (("complete", "COMPLETE", PALETTE[0]), ("pruned", "PRUNED", "0.55")):
        shown = [curves[number] for number in rows.loc[rows["state"] == state, "trial"]]
        if shown:  # as one artist: thousands of them would take a minute to draw
            lines = [np.column_stack([range(1, len(curve) + 1), curve]) for curve in shown]
            ax.add_collection(LineCollection(lines, color=colour, lw=0.9, alpha=0.6, label=label))
        if state == "PRUNED":
            ax.plot([len(curve) for curve in shown], [curve[-1] for curve in shown], "x", color=colour, ms=6)
    curve = curves[best]
    ax.plot(range(1, len(curve) + 1), curve, color=PALETTE[1], lw=2.2, marker=".", label=f"best: trial {best}")
    lengths = [len(curve) for curve in curves.values()]
    ends = [value for curve in curves.values() for value in curve[1:] or curve]
    ax.set_ylim(min(ends) - 0.03 * np.ptp(ends) - 0.1, np.quantile(ends, 0.97) + 0.1)
    ax.set_xticks(range(1, max(lengths) + 1, max(1, max(lengths) // 10)))
    ax.set(title="Validation −ELBO by epoch", xlabel="epoch", ylabel=NEG_ELBO)
    ax.legend(frameon=False, loc="upper right")
    return figure


def pareto_front(complete: pd.DataFrame, beta: "pd.Series[float]") -> Figure:
    """Rate against distortion of each trial, coloured by β; the trials that no other beats in both are joined."""
    figure, ax = _axes(7, 5)
    front = complete[undominated(complete[["kl", "reconstruction"]].to_numpy())].sort_values("kl")
    ax.step(front["kl"], front["reconstruction"], where="post", color="0.5", lw=1, label="Pareto front", zorder=1)
    norm = LogNorm() if beta.min() > 0 and beta.min() < beta.max() else None
    points = ax.scatter(
        complete["kl"], complete["reconstruction"], c=beta, norm=norm, cmap="viridis", s=40, edgecolors="0.3", lw=0.5
    )
    total = complete["neg_elbo"].min()
    rates = np.array(ax.get_xlim())
    ax.plot(rates, total - rates, "--", color=PALETTE[1], lw=1, label=f"−ELBO {total:.2f}, the lowest", zorder=0)
    ax.set_xlim(*rates)
    distortions = complete["reconstruction"]
    margin = 0.08 * (distortions.max() - distortions.min()) or 1.0
    ax.set_ylim(distortions.min() - margin, distortions.max() + margin)
    ax.set(
        title="Rate and distortion",
        xlabel="rate: KL, nats per image",
        ylabel="distortion: reconstruction, nats per image",
    )
    ax.legend(frameon=False)
    bar = figure.colorbar(points, ax=ax, label="β in training")
    if norm:
        _plain_ticks(bar.ax.yaxis, beta)
    return figure


def undominated(points: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Which rows of [N, 2] no other row beats: lower in one column, not higher in the other."""
    lower = (points[:, None] <= points[None]).all(2) & (points[:, None] < points[None]).any(2)
    return np.asarray(~lower.any(0))
