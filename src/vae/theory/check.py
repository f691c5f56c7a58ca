"""A check compares two independent computations of the same number."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

ROUNDING = 1e-9  # allowed rounding error in float64
STANDARD_ERRORS = 4  # allowed sampling error: chance alone exceeds it once in 16,000 checks


@dataclass(frozen=True)
class Check:
    """A statement, its `value`, and an independent `reference`; `standard_error` is that of the value."""

    statement: str
    value: float
    reference: float
    standard_error: float = 0.0
    tolerance: float = ROUNDING

    @property
    def passed(self) -> bool:
        """Whether the two numbers agree within sampling error and tolerance."""
        return abs(self.value - self.reference) <= STANDARD_ERRORS * self.standard_error + self.tolerance

    @property
    def difference(self) -> str:
        """The difference in standard errors, or the tolerance that it is below."""
        difference = self.value - self.reference
        if self.standard_error:
            return f"{difference / self.standard_error:+.1f} standard errors".replace("-", "−")
        return f"below {self.tolerance:.0e}" if self.passed else f"{difference:+.1e}"

    def row(self) -> dict[str, str | float]:
        """The row of the page's table."""
        names = ("statement", "value", "reference", "difference")
        return {name: getattr(self, name) for name in names}


def mean_check(statement: str, samples: Tensor, reference: float) -> Check:
    """Compare the mean of independent samples [N] with its expectation."""
    return Check(statement, samples.mean().item(), reference, samples.std().item() / math.sqrt(len(samples)))


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal samples in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
