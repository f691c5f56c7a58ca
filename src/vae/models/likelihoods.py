"""Likelihoods p(x|z): how a decoder's output, one number a pixel, becomes a distribution over images.

A new likelihood is one class here, with a name in `LIKELIHOODS` and in `config.LIKELIHOOD_NAMES`. A scale or another
global parameter is an `nn.Parameter` of the class.

Shapes: ... any leading dimensions, D pixels. Densities in nats per image: sums over pixels, never means.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn


class Likelihood(nn.Module):
    """A distribution over images [..., D], given the decoder's output [..., D]."""

    def nll(self, output: Tensor, x: Tensor) -> Tensor:
        """−log p(x|z), summed over pixels: [..., D] and [..., D] -> [...]."""
        raise NotImplementedError

    def mean(self, output: Tensor) -> Tensor:
        """The mean image, [..., D] -> [..., D], in [0, 1]."""
        raise NotImplementedError

    def inverse_mean(self, mean: Tensor) -> Tensor:
        """The output whose mean image is `mean`, [D] -> [D]: where the decoder's bias starts."""
        raise NotImplementedError


class Bernoulli(Likelihood):
    """Each pixel is white with the probability σ(output); the output is a logit (Kingma & Welling 2014, appendix C.1).

    Grey pixels give the cross-entropy, which is not a likelihood: such values can't be compared with NLLs.
    """

    def nll(self, output: Tensor, x: Tensor) -> Tensor:
        """−log p(x|z) summed over pixels, [..., D] and [..., D] -> [...], ≥ 0 for x in [0, 1]."""
        return bernoulli_nll(output, x)

    def mean(self, output: Tensor) -> Tensor:
        """The probabilities of white, [..., D]."""
        return output.sigmoid()

    def inverse_mean(self, mean: Tensor) -> Tensor:
        """The logit of `mean`, kept away from 0 and 1 (Burda et al. 2016)."""
        return torch.logit(mean, eps=1e-3)


def bernoulli_nll(logits: Tensor, x: Tensor) -> Tensor:
    """−log p(x|z) of independent Bernoulli pixels, summed over pixels: [..., D] -> [...], ≥ 0 for x in [0, 1]."""
    nll: Tensor = _BernoulliNLL.apply(logits, x)
    return nll


class _BernoulliNLL(torch.autograd.Function):
    """Σ softplus(l) − x·l, with its gradient σ(l) − x in closed form.

    softplus(l) = max(l, 0) − log σ(|l|), which can't overflow. `binary_cross_entropy_with_logits` computes the same
    through log1p, and was a tenth of a training step's time on the CPU. One logarithm serves 16 pixels: their σ(|l|)
    are at least ½ each, so their product loses no precision. max(l, 0) − x·l is taken pixel by pixel: Σ x·l as a matrix
    product is faster, but its rounding errors in fp32 reach thousandths of a nat.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(logits, x)
        together = math.gcd(logits.shape[-1], 16)
        log_sigmoid = logits.abs().sigmoid_().unflatten(-1, (-1, together)).prod(-1).log_().sum(-1)
        return logits.relu().addcmul_(x, logits, value=-1).sum(-1).sub_(log_sigmoid)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        logits, x = ctx.saved_tensors
        return logits.sigmoid().sub_(x).mul_(gradients[0].unsqueeze(-1)), None


LIKELIHOODS: dict[str, type[Likelihood]] = {"bernoulli": Bernoulli}
