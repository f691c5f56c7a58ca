"""Optimizers and learning-rate schedules, all of them PyTorch's."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from torch.optim import Adam, Muon, Optimizer, lr_scheduler

from vae.config import TrainParams

MUON_MAX_SIDE = 200  # of a matrix's shorter side: orthogonalizing a larger one takes longer than a training step


class MatrixMuon(Muon):
    """Muon for weights of any shape: each is updated as a matrix [n_out, everything else], as Jordan et al. 2024 do.

    PyTorch's Muon takes matrices only. It is given views, which share their memory with `weights`.
    """

    def __init__(self, weights: Iterable[Tensor], **options: Any) -> None:
        self.weights = list(weights)
        super().__init__([weight.detach().flatten(1) for weight in self.weights], **options)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step with the gradients of `weights`."""
        for weight, matrix in zip(self.weights, self.param_groups[0]["params"], strict=True):
            matrix.data = weight.data.view(matrix.shape)  # at each step: the model may have moved to another device
            matrix.grad = None if weight.grad is None else weight.grad.flatten(1)
        loss: float | None = super().step(closure)
        return loss


def make_optimizers(model: nn.Module, params: TrainParams) -> list[Optimizer]:
    """Adam; or Muon for convolution kernels and small matrices, those of the prior aside, and Adam for all others.

    Muon (Jordan et al. 2024) orthogonalizes each update; its steps are scaled as in Liu et al. 2025. A flow as the
    prior has so many small matrices that this would take longer than the rest of a training step.
    """
    networks = [part for name, part in model.named_modules() if not name.startswith("prior.")]
    layers = [part for part in networks if isinstance(part, nn.Linear | nn.Conv2d)]
    small = [layer.weight for layer in layers if min(layer.weight.flatten(1).shape) <= MUON_MAX_SIDE]
    matrices = small if params.optimizer == "muon" else []
    taken = set(map(id, matrices))
    others = [weight for weight in model.parameters() if id(weight) not in taken]
    optimizers: list[Optimizer] = [Adam(others, lr=params.learning_rate, weight_decay=params.weight_decay, fused=True)]
    if matrices:
        muon = {"lr": params.muon_learning_rate, "weight_decay": params.weight_decay}
        optimizers.append(MatrixMuon(matrices, adjust_lr_fn="match_rms_adamw", **muon))
    return optimizers


def make_schedule(optimizer: Optimizer, params: TrainParams, total_steps: int) -> lr_scheduler.LRScheduler:
    """The learning rate by step: constant, step and cosine start at `learning_rate`; it is the peak of one_cycle."""
    match params.lr_schedule:
        case "constant":
            return lr_scheduler.ConstantLR(optimizer, factor=1.0)
        case "step":  # a tenth at half and again at three quarters of the training
            return lr_scheduler.MultiStepLR(optimizer, [total_steps // 2, total_steps * 3 // 4])
        case "cosine":
            return lr_scheduler.CosineAnnealingLR(optimizer, total_steps)
        case "one_cycle":
            return lr_scheduler.OneCycleLR(optimizer, optimizer.param_groups[0]["lr"], total_steps + 1)
