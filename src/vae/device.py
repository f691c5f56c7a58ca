"""Where and how precisely to compute: `auto` resolved to what this machine has."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from vae.config import TrainParams
from vae.errors import ConfigError


@dataclass(frozen=True)
class Hardware:
    """A device, the precision of its matrix products, and whether the training step is compiled."""

    device: torch.device
    precision: str  # "fp32" or "bf16"
    compile: bool

    def autocast(self) -> AbstractContextManager[None]:
        """Matrix products in bf16 where the precision says so; weights and sums stay in fp32."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    def __str__(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else ""
        threads = f", {torch.get_num_threads()} threads" if self.device.type == "cpu" else ""
        compiled = ", compiled" if self.compile else ""
        return f"{self.device}{f' ({name})' if name else ''}{threads}, {self.precision}{compiled}"


def resolve(params: TrainParams) -> Hardware:
    """Resolve `device`, `precision` and `compile` of `params`.

    Raises ConfigError where a device or precision is asked for by name and is not there.
    """
    device = _device(params.device)
    compiled = device.type == "cuda" if params.compile == "auto" else params.compile
    return Hardware(device, _precision(params.precision, device), compiled)


def _device(name: str) -> torch.device:
    available = ["cpu"]
    if torch.backends.mps.is_available():
        available.insert(0, "mps")
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
    """Whether bf16 is in the hardware; elsewhere it is emulated, and slower than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False
