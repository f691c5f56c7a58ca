"""Comparing speeds on a shared machine, where single timings are noisy."""

import time
from collections.abc import Callable, Mapping

import torch


def rate(work: Callable[[], int], device: torch.device, seconds: float) -> float:
    """Units per second: `work` is repeated for at least `seconds` and returns how many units it did."""
    units, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        units += work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return units / elapsed


def best_rates(contenders: Mapping[str, Callable[[], float]], turns: int, unit: str) -> dict[str, float]:
    """The best rate of each contender, measured alternately, so that all meet the same load."""
    best = dict.fromkeys(contenders, 0.0)
    for turn in range(turns):
        for name, measure in contenders.items():
            best[name] = max(best[name], measure())
            print(f"turn {turn + 1}/{turns}  {name:14} {best[name]:>12,.0f} {unit}/s at best", flush=True)
    return best
