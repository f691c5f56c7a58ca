"""The plots of a study: Optuna's own, with sizes, titles, units and ticks that suit a search of many trials."""

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
import optuna
from matplotlib import pyplot as plt
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from optuna.trial import FrozenTrial, TrialState, create_trial
from optuna.visualization import matplotlib as visualization

from vae.search.study import score

Target = Callable[[FrozenTrial], float]


def plot_study(study: optuna.Study, metric: str) -> dict[str, Figure]:
    """All plots by file name, for a study with a complete trial. `metric` is the name of the score.

    Outliers are clipped, so that a few bad trials don't squeeze all others together.
    """
    matplotlib.use("agg")  # never opens a window
    trials = study.get_trials(deepcopy=False)
    limit = _outlier_limit([score(trial) for trial in trials if trial.state is TrialState.COMPLETE])
    label = f"validation {metric}, nats per image"

    def clipped(trial: FrozenTrial) -> float:
        return min(score(trial), limit)

    with plt.rc_context({"figure.constrained_layout.use": True}):
        figures = {
            "optimization_history": _optimization_history(_copy(trials, clipped), label),
            "param_importances": _param_importances(study, metric),
            "slice": _slice(study, clipped, label),
            "parallel_coordinate": _parallel_coordinate(study, clipped, label),
            "intermediate_values": _intermediate_values(_copy(trials, score), label),
            "pareto_front": _pareto_front(
                _copy(trials, lambda trial: trial.user_attrs["kl"], lambda trial: trial.user_attrs["reconstruction"])
            ),
        }
    plt.close("all")
    return figures


def _outlier_limit(values: Sequence[float]) -> float:
    """Tukey's fence: values above it are outliers."""
    low, high = np.quantile(values, [0.25, 0.75])
    return float(high + 1.5 * (high - low))


def _copy(trials: Sequence[FrozenTrial], *objectives: Target) -> optuna.Study:
    """The same trials in a study in memory, with these objectives and without parameters."""
    copy = optuna.create_study(directions=["minimize"] * len(objectives))
    for trial in trials:
        known = trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
        complete = trial.state is TrialState.COMPLETE
        copy.add_trial(
            create_trial(
                state=trial.state if known else TrialState.FAIL,
                values=[objective(trial) for objective in objectives] if complete else None,
                intermediate_values=dict(enumerate(trial.user_attrs.get("curve", []), 1)),
            )
        )
    return copy


def _finish(figure: Any, title: str, width: float, height: float) -> Figure:
    figure.set_layout_engine("constrained")
    figure.set_size_inches(width, height)
    for location in ("center", "left"):
        figure.axes[0].set_title("", loc=location)
    figure.suptitle(title)
    return figure  # type: ignore[no-any-return]


def _optimization_history(study: optuna.Study, label: str) -> Figure:
    ax = visualization.plot_optimization_history(study, target_name=label)
    ax.legend(["complete trial", "best so far"])
    return _finish(ax.figure, "Complete trials and the best so far", 8, 4)


def _param_importances(study: optuna.Study, metric: str) -> Figure:
    title = f"Importance of each parameter for the {metric} (PED-ANOVA)"
    try:
        ax = visualization.plot_param_importances(study, target=score)
    except (ValueError, RuntimeError):  # fewer than two complete trials, or all with the same values
        ax = plt.subplots()[1]
        ax.text(0.5, 0.5, "too few complete trials", transform=ax.transAxes, ha="center")
        return _finish(ax.figure, title, 7, 3)
    ax.set_ylabel("")
    ax.legend().remove()
    return _finish(ax.figure, title, 7, 1.5 + 0.5 * len(ax.patches))


def _slice(study: optuna.Study, target: Target, label: str) -> Figure:
    panels: Any = np.ravel(np.asarray(visualization.plot_slice(study, target=target, target_name=label)))
    for ax in panels:
        ax.tick_params(labelsize="small")
        if ax.get_xscale() == "log":
            _plain_ticks(ax.xaxis)
        elif ax.xaxis.have_units():  # choices
            ax.tick_params(axis="x", rotation=20)
    return _finish(panels[0].figure, "Score by each parameter", 3.2 * len(panels) + 1, 4)


def _parallel_coordinate(study: optuna.Study, target: Target, label: str) -> Figure:
    ax = visualization.plot_parallel_coordinate(study, target=target, target_name=label)
    for axes in ax.figure.axes:
        axes.grid(visible=False)
        axes.set_facecolor("white")
        axes.spines[["left", "right"]].set_color("0.6")
        if axes.get_yscale() == "log":
            _plain_ticks(axes.yaxis)
        for tick in axes.get_yticklabels():  # lines cross them
            tick.set(size="small", color="black", bbox={"fc": "white", "ec": "none", "alpha": 0.8, "pad": 0.5})
    lines: Any = ax.collections[-1]
    lines.set_cmap("viridis")
    ax.plot(*lines.get_segments()[np.argmin(lines.get_array())].T, color="tab:red", lw=3)
    names = [text.get_text() for text in ax.get_xticklabels()]
    ax.set_xticks(range(len(names)), ["score", *names[1:]], rotation=0)
    return _finish(ax.figure, "Parameters of each complete trial, the best in red", 1.9 * len(names) + 1, 5)


def _plain_ticks(axis: Axis) -> None:
    """A few plain numbers along a logarithmic axis, also where it is shorter than an order of magnitude."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 10 * low else MaxNLocator(4))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def _intermediate_values(study: optuna.Study, label: str) -> Figure:
    ax = visualization.plot_intermediate_values(study)
    if legend := ax.get_legend():  # a line for each trial
        legend.remove()
    trials, best = study.get_trials(deepcopy=False), study.best_trial.number
    for line in ax.get_lines():
        trial = trials[int(str(line.get_label()).removeprefix("Trial"))]
        pruned = trial.state is TrialState.PRUNED
        line.set(color="0.6" if pruned else "tab:blue", alpha=0.6, linewidth=1, zorder=1 if pruned else 2)
        if trial.number == best:
            line.set(color="tab:red", alpha=1, linewidth=2.5, zorder=3)
    curves = [[*trial.intermediate_values.values()] for trial in trials]
    later = [value for curve in curves for value in curve[1:] or curve]
    ax.set_ylim(min(later) - 0.5, min(max(later), _outlier_limit(later)) + 0.5)
    ax.set(xlabel="epoch", ylabel=label)
    return _finish(ax.figure, "Trials by epoch: complete (blue), pruned (grey), the best (red)", 8, 4.5)


def _pareto_front(study: optuna.Study) -> Figure:
    names = ["rate: KL, nats per image", "distortion: reconstruction, nats per image"]
    ax = visualization.plot_pareto_front(study, target_names=names)
    handles = ax.get_legend_handles_labels()[0]
    ax.legend(handles, ["trial", "Pareto front"][-len(handles) :])
    distortions = [trial.values[1] for trial in study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])]
    ax.set_ylim(min(distortions) - 0.5, min(max(distortions), _outlier_limit(distortions)) + 0.5)
    return _finish(ax.figure, "Rate and distortion", 7, 5)
