"""Hardware: the settings `device`, `precision` and `compile`, with `auto` resolved to what this machine has."""

import functools
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch

from vae.config import TrainParams
from vae.errors import ConfigError

# Images to train on, over all epochs: here, compiling on a CPU takes about as long as it saves (docs/speed.md).
COMPILE_FROM = 1_000_000


@dataclass(frozen=True)
class Hardware:
    """A device, the precision of its matrix products ("fp32" or "bf16"), and whether the training step is compiled.

    `eager_reason` says why `compile: auto` does not compile.
    """

    device: torch.device
    precision: str
    compile: bool
    eager_reason: str = ""

    def autocast(self) -> AbstractContextManager[None]:
        """Matrix products in bf16 if that is the precision; weights and sums stay in fp32."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    def __str__(self) -> str:
        name = f" ({torch.cuda.get_device_name(self.device)})" if self.device.type == "cuda" else ""
        count = torch.get_num_threads()
        threads = f", {count} thread{'s' * (count > 1)}" if self.device.type == "cpu" else ""
        mode = "compiled" if self.compile else "eager"
        reason = f" ({self.eager_reason})" if self.eager_reason else ""
        return f"{self.device}{name}{threads}, {self.precision}, {mode}{reason}"


def resolve(params: TrainParams, images: int = 0) -> Hardware:
    """Resolve `device`, `precision` and `compile` of `params`, for a training set of `images`.

    Raises ConfigError if this machine lacks what is asked for by name.
    """
    device = _device(params.device)
    reason = _against_compiling(device, params.epochs * images) if params.compile == "auto" else ""
    if params.compile and not reason:
        reason = _missing_for_compile(device)
        if reason and params.compile is True:
            raise ConfigError(f"train.compile is true, but {reason} (allowed is auto, which then runs without it)")
    return Hardware(device, _precision(params.precision, device), bool(params.compile) and not reason, reason)


@contextmanager
def full_fp32() -> Iterator[None]:
    """Compute fp32 matrix products and convolutions on CUDA in fp32, not in TF32 (which has 10 bits of mantissa).

    PyTorch convolves in TF32 unless told otherwise. The process-wide settings are restored on exit.
    """
    backends: Any = torch.backends
    settings = backends.cuda.matmul, backends.mkldnn.matmul, backends.cudnn.conv, backends.cudnn.rnn
    before = matmul, on_cpu, conv, _ = [setting.fp32_precision for setting in settings]
    torch.set_float32_matmul_precision("highest")
    backends.cudnn.allow_tf32 = False
    for setting in settings:
        setting.fp32_precision = "ieee"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("medium" if on_cpu == "bf16" else "high" if matmul == "tf32" else "highest")
        backends.cudnn.allow_tf32 = conv == "tf32"
        for setting, precision in zip(settings, before, strict=True):
            setting.fp32_precision = precision  # "none" (inherited), too, which the two lines above can't restore


def _device(name: str) -> torch.device:
    # torchrun starts several processes, numbered by LOCAL_RANK: each has a GPU of its own.
    number = os.environ.get("LOCAL_RANK")
    if number and name in ("auto", "cuda") and torch.cuda.is_available():
        name = f"cuda:{number}"
    available = ["cpu"]
    if torch.backends.mps.is_available():
        available[:0] = ["mps", "mps:0"]
    if torch.cuda.is_available():
        available[:0] = ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if name == "auto":
        return torch.device(available[0])
    if name not in available:
        raise ConfigError(f"train.device is '{name}', this machine has {', '.join(available)} (or say auto)")
    return torch.device(name)


def _precision(name: str, device: torch.device) -> str:
    if name == "auto":
        return "bf16" if _has_fast_bf16(device) else "fp32"
    if name == "bf16" and device.type == "mps":
        raise ConfigError("train.precision is 'bf16', on mps only fp32 is supported (or say auto)")
    return name


def _has_fast_bf16(device: torch.device) -> bool:
    """Whether the hardware computes in bf16; emulated, it is slower than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def _against_compiling(device: torch.device, images: int) -> str:
    """Why a training on `images` images is not worth compiling on `device`: "" if it is."""
    if device.type == "mps":
        return "on mps"
    if device.type == "cpu" and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        return "several processes"
    if device.type == "cpu" and images < COMPILE_FROM:
        return f"compiling pays off from {COMPILE_FROM:,} images"
    return ""


def _missing_for_compile(device: torch.device) -> str:
    """What torch.compile lacks on `device`: "" if nothing. It generates C++ for CPUs and Triton kernels for GPUs."""
    if device.type == "cuda":
        if not find_spec("triton"):
            return "Triton is not installed"
        capability = torch.cuda.get_device_capability(device)
        if not torch.version.hip and capability < (7, 0):
            return f"Triton needs a GPU of compute capability 7.0, this one has {capability[0]}.{capability[1]}"
        if not any(map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))):
            return "Triton found no C compiler (gcc, clang, or the environment variable CC)"
    if device.type == "cpu":
        compiler = os.environ.get("CXX") or {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
        if not shutil.which(compiler):
            return f"there is no C++ compiler '{compiler}' (the environment variable CXX names another one)"
        return _failure_to_compile()
    return ""


@functools.cache
def _failure_to_compile() -> str:
    """Why a compiled function does not run on the CPU: "" if it does. Python's or OpenMP's headers may be missing."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns where there is no GPU
    try:
        torch.compile(torch.neg)(torch.ones(8))
    except Exception as error:
        return f"torch.compile fails here: {str(error).strip().splitlines()[0]}"
    return ""
