"""A second stochastic layer, in the decoder: latents y with a prior p(y|z) and a posterior q(y|x, z).

As in the ladder VAE (Sønderby et al. 2016) the posterior is found on the way down: it shares the decoder's path with
the prior and adds what the encoder saw. With convolutions there are latents at each position of the feature maps.

Shapes: B images, K samples of each, M latents of this layer, all positions counted.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vae.config import ModelParams
from vae.models.distributions import gaussian_kl_between, normal_log_density
from vae.models.networks import ACTIVATIONS, Conv, ConvBlock, Dense, feature_sides


class LowerDraws(NamedTuple):
    """Samples y, and the moments of q(y|x, z) and p(y|z): [B, K, M] each."""

    y: Tensor
    mu: Tensor
    logvar: Tensor
    prior_mu: Tensor
    prior_logvar: Tensor

    def kl(self) -> Tensor:
        """KL(q(y|x, z) ‖ p(y|z)) at each z, [B, K]."""
        return gaussian_kl_between(self.mu, self.logvar, self.prior_mu, self.prior_logvar).sum(-1)

    def log_ratio(self) -> Tensor:
        """log q(y|x, z) − log p(y|z), [B, K]."""
        ours = normal_log_density(self.y, self.mu, self.logvar)
        return ours - normal_log_density(self.y, self.prior_mu, self.prior_logvar)


class LowerLayer(nn.Module):
    """From the decoder's features to those with y added; features are [B, W], or [B, C, 7, 7] with `conv`."""

    def __init__(self, input_dim: int, params: ModelParams) -> None:
        super().__init__()
        width, latents = params.hidden_dims[-1], params.lower_latent_dim or 0
        conv = params.architecture == "conv"
        activation = ACTIVATIONS["relu" if params.activation == "glu" else params.activation]

        def connection(n_in: int, n_out: int) -> nn.Module:
            return Conv(n_in, n_out, 3) if conv else nn.Linear(n_in, n_out)

        block = (
            ConvBlock(width, params.activation, params.residual)
            if conv
            else Dense(width, width, params.activation, params.residual)
        )
        self.prior = nn.Sequential(activation(), connection(width, 2 * latents))
        self.posterior = nn.Sequential(
            activation(), connection(2 * width, width), block, activation(), connection(width, 2 * latents)
        )
        self.inject = connection(latents, width)
        positions = feature_sides(input_dim, len(params.hidden_dims))[1][-1] ** 2 if conv else 1
        self.noise_dim = latents * positions

    def forward(self, h: Tensor, noise: Tensor, seen: Tensor | None = None) -> tuple[Tensor, LowerDraws | None]:
        """The decoder's features `h` [B·K, …], `noise` [B·K, M] and what the encoder `seen`, like h -> features, draws.

        Without `seen`, y is drawn from p(y|z), and there are no draws to tell of.
        """
        prior_mu, prior_logvar = self.prior(h).float().chunk(2, 1)
        if seen is None:
            mu, logvar = prior_mu, prior_logvar
        else:
            # What the image adds to the prior (Vahdat & Kautz 2020, eq. 3): none of it at first.
            shift, log_scale = self.posterior(torch.cat([seen, h], 1)).float().chunk(2, 1)
            mu, logvar = prior_mu + shift, prior_logvar + log_scale
        y = mu + torch.exp(0.5 * logvar) * noise.view_as(mu)
        out = h + self.inject(y)
        if seen is None:
            return out, None
        return out, LowerDraws(*(part.flatten(1) for part in (y, mu, logvar, prior_mu, prior_logvar)))
