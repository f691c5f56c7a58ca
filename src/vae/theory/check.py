"""A statement and its number found in two ways, and the random numbers for it."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

ROUNDING = 1e-9  # what float64 may lose on the way
ERRORS_ALLOWED = 4  # standard errors: chance alone would exceed them once in 16,000 checks


@dataclass(frozen=True)
class Check:
    """A statement and its number found in two ways; their difference is chance (`standard_error`) or `tolerance`."""

    statement: str
    measured: float
    expected: float
    standard_error: float = 0.0
    tolerance: float = ROUNDING

    @property
    def holds(self) -> bool:
        """Whether the two numbers agree."""
        return abs(self.measured - self.expected) <= ERRORS_ALLOWED * self.standard_error + self.tolerance

    @property
    def difference(self) -> str:
        """The difference as the page shows it: in standard errors, or below the tolerance."""
        gap = self.measured - self.expected
        if self.standard_error:
            return f"{gap / self.standard_error:+.1f} standard errors".replace("-", "−")
        return f"below {self.tolerance:.0e}" if self.holds else f"{gap:+.1e}"


def by_sampling(statement: str, samples: Tensor, expected: float, tolerance: float = ROUNDING) -> Check:
    """The mean of independent samples [N] against its expectation, with the mean's standard error."""
    return Check(statement, samples.mean().item(), expected, samples.std().item() / math.sqrt(len(samples)), tolerance)


def draws(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
