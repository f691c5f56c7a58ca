"""Normalizing flows: invertible networks whose Jacobian determinant is cheap.

Shapes: ... any leading dimensions, L latent dimensions.
"""

import torch
from torch import Tensor, nn


class Coupling(nn.Module):
    """An affine coupling (Dinh et al. 2017, eqs. 4 to 8): one half of z scales and shifts the other half.

    It is the identity at first, and log-scales are limited to ±2, so that no step makes it badly conditioned.
    """

    mask: Tensor

    def __init__(self, mask: Tensor, width: int) -> None:
        super().__init__()
        self.register_buffer("mask", mask)  # [L], 1 where z is left unchanged
        dim = len(mask)
        self.network = nn.Sequential(
            *(nn.Linear(dim, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2 * dim))
        )
        for parameter in self.network[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z [..., L] -> its image [..., L], and the log-determinant of the Jacobian, [...]."""
        log_scale, shift = self._scale_and_shift(z)
        return z * log_scale.exp() + shift, log_scale.sum(-1)

    def inverse(self, z: Tensor) -> Tensor:
        """The z of which `forward` returns this image, [..., L] -> [..., L]."""
        log_scale, shift = self._scale_and_shift(z)
        return (z - shift) * torch.exp(-log_scale)

    def _scale_and_shift(self, z: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self.network(z * self.mask).chunk(2, -1)
        changed = 1 - self.mask
        return 2 * torch.tanh(log_scale / 2) * changed, shift * changed
