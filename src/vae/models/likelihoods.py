"""Likelihoods p(x|z): how a decoder's output, P numbers a pixel value, becomes a distribution over images.

A new likelihood is one class here, with a name in `LIKELIHOODS` and in `config.LIKELIHOOD_NAMES`. A scale or another
global parameter is an `nn.Parameter` of the class.

Shapes: ... any leading dimensions, D pixel values, P parameters of each, K components of a mixture. The output is
[..., P·D]: the first parameter of all values, then the second, and so on. In nats per image: sums over pixel values,
never means.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vae.config import ModelParams

LEVEL = 1 / 255  # the distance between two of the 256 values that 8 bits hold


class Likelihood(nn.Module):
    """A distribution over images [..., D], given the decoder's output [..., P·D]."""

    parameters_per_pixel = 1  # P
    discretized = False  # whether it gives probabilities to the 256 levels, of which bits per dimension can be told

    def __init__(self, params: ModelParams) -> None:
        super().__init__()

    def nll(self, output: Tensor, x: Tensor) -> Tensor:
        """−log p(x|z), summed over pixel values: [..., P·D] and [..., D] -> [...]."""
        raise NotImplementedError

    def mean(self, output: Tensor) -> Tensor:
        """The mean image, [..., P·D] -> [..., D], in [0, 1]."""
        raise NotImplementedError

    def sample(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Sample an image for each output, [..., P·D] -> [..., D], in [0, 1]."""
        raise NotImplementedError

    def from_moments(self, mean: Tensor, std: Tensor) -> Tensor:
        """The output for pixel values of about this mean and standard deviation, [D] and [D] -> [P·D].

        It is where the decoder's bias starts.
        """
        raise NotImplementedError


class Bernoulli(Likelihood):
    """Each pixel is white with the probability σ(output); the output is a logit (Kingma & Welling 2014, appendix C.1).

    For black-and-white images. Grey pixels would give the cross-entropy, which is not a likelihood.
    """

    def nll(self, output: Tensor, x: Tensor) -> Tensor:
        """−log p(x|z) summed over pixels, [..., D] and [..., D] -> [...], ≥ 0 for x in [0, 1]."""
        return bernoulli_nll(output, x)

    def mean(self, output: Tensor) -> Tensor:
        """The probabilities of white, [..., D]."""
        return output.sigmoid()

    def sample(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Pixels that are 0 or 1, [..., D]."""
        return torch.bernoulli(self.mean(output), generator=generator)

    def from_moments(self, mean: Tensor, std: Tensor) -> Tensor:
        """The logit of `mean`, kept away from 0 and 1 (Burda et al. 2016)."""
        return torch.logit(mean, eps=1e-3)


class Gaussian(Likelihood):
    """A normal distribution for each pixel value: its mean is the output, σ is learned, the same for all values.

    Rybkin et al. 2021 show that one shared σ is enough, and that an output of its own for every value's σ is unstable.
    This is a density of values in [0, 1]: the NLL may be negative, and compares with that of no discrete likelihood.
    σ is at least the distance of two grey levels. Without a bound, the density of constant pixels would be infinite.
    """

    def __init__(self, params: ModelParams) -> None:
        super().__init__(params)
        self.log_scale = nn.Parameter(torch.tensor(math.log(0.25)))

    @property
    def sigma(self) -> Tensor:
        """The standard deviation of every pixel value, a scalar above 1/255."""
        return LEVEL + self.log_scale.exp()

    def nll(self, output: Tensor, x: Tensor) -> Tensor:
        """−log p(x|z), a density, summed over pixel values: [..., D] and [..., D] -> [...]."""
        constant = self.sigma.log() + 0.5 * math.log(2 * math.pi)
        return (0.5 * ((x - output) / self.sigma).square() + constant).sum(-1)

    def mean(self, output: Tensor) -> Tensor:
        """The output, limited to [0, 1]: [..., D]."""
        return output.clamp(0, 1)

    def sample(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Output plus noise, limited to [0, 1]: [..., D]."""
        noise = torch.randn(output.shape, generator=generator, device=output.device)
        return (output + self.sigma * noise).clamp(0, 1)

    def from_moments(self, mean: Tensor, std: Tensor) -> Tensor:
        """`mean` itself, [D]."""
        return mean


class DiscretizedLogistic(Likelihood):
    """Each value is one of 256 levels, with the probability that a mixture of logistic distributions gives to its bin.

    As Salimans et al. 2017 (PixelCNN++), eq. 2, without their dependence of a pixel's channels on each other. Bins end
    halfway between two levels; those of the first and the last level take the tails. The output has K − 1 logits of
    weights (the last is 0), K means and K scales, before softplus. Scales are at least 1/8 of a level: narrower ones
    differ in nothing but the price of an error.
    """

    discretized = True

    def __init__(self, params: ModelParams) -> None:
        super().__init__(params)
        self.components = params.likelihood_components
        self.parameters_per_pixel = 3 * self.components - 1

    def nll(self, output: Tensor, x: Tensor) -> Tensor:
        """−log p(x|z) of the levels nearest to x, summed over pixel values: [..., P·D] and [..., D] -> [...], ≥ 0."""
        log_weight, mean, scale = self._mixture(output)
        level = (x * 255).round().unsqueeze(-2)
        lower, upper = (((level + side) * LEVEL - mean) / scale for side in (-0.5, 0.5))
        # σ(u) − σ(l) = σ(u) σ(−l) (1 − exp(l − u)): the logarithm of each factor is exact, however small the bin is.
        first, last, zero = level <= 0, level >= 255, torch.zeros_like(scale)
        log_probability = (
            torch.where(last, zero, F.logsigmoid(upper))
            + torch.where(first, zero, F.logsigmoid(-lower))
            + torch.where(first | last, zero, torch.log(-torch.expm1(-LEVEL / scale)))
        )
        if self.components > 1:
            log_probability = torch.logsumexp(log_weight + log_probability, -2, keepdim=True)
        return -log_probability.sum((-2, -1))

    def mean(self, output: Tensor) -> Tensor:
        """The mean of the continuous mixture with its tails moved to 0 and 1, [..., P·D] -> [..., D].

        It differs from that of the levels by less than half a level.
        """
        log_weight, mean, scale = self._mixture(output)
        area = scale * (F.softplus((1 - mean) / scale) - F.softplus(-mean / scale))  # ∫ of the cdf from 0 to 1
        return (log_weight.exp() * (1 - area)).sum(-2).clamp(0, 1)

    def sample(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Levels k / 255, [..., P·D] -> [..., D]."""
        log_weight, mean, scale = self._mixture(output)
        first, second = torch.rand(2, *mean.shape, generator=generator, device=mean.device)
        component = (log_weight - torch.log(-torch.log(first))).argmax(-2, keepdim=True)  # Gumbel-max
        value = mean + scale * torch.logit(second)
        return (value.gather(-2, component).squeeze(-2).clamp(0, 1) * 255).round() / 255

    def from_moments(self, mean: Tensor, std: Tensor) -> Tensor:
        """One component for each of K equal parts of a uniform distribution with these moments: [P·D]."""
        count = self.components
        offsets = math.sqrt(3) * torch.linspace(-1, 1, 2 * count + 1, device=mean.device)[1::2, None]
        width = (math.sqrt(3) / math.pi * std / count).clamp(min=LEVEL)
        scales = (width + torch.log(-torch.expm1(-width))).expand(count, -1)  # the inverse of softplus
        logits = torch.zeros_like(scales[1:])
        return torch.cat([logits, mean + offsets * std, scales]).flatten()

    def _mixture(self, output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log weights, means and scales of the components, [..., K, D] each."""
        count = self.components
        logits, mean, scale = output.unflatten(-1, (3 * count - 1, -1)).split([count - 1, count, count], -2)
        log_weight = F.pad(logits, (0, 0, 0, 1)).log_softmax(-2)
        return log_weight, mean, LEVEL / 8 + F.softplus(scale)


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


LIKELIHOODS: dict[str, type[Likelihood]] = {
    "bernoulli": Bernoulli,
    "gaussian": Gaussian,
    "discretized_logistic": DiscretizedLogistic,
}
