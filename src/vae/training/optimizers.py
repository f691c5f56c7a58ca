"""Optimisers and learning rates, all of them PyTorch's: which weights each moves, and how its rate moves by step."""

from torch import nn
from torch.optim import Adam, Muon, Optimizer, lr_scheduler

from vae.config import TrainParams
from vae.models.networks import Conv

MUON_MAX_SIDE = 200  # of a matrix's shorter side: to orthogonalize larger ones takes longer than a step of ours


def make_optimizers(model: nn.Module, params: TrainParams) -> list[Optimizer]:
    """Adam; or Muon for kernels and small matrices, and Adam for everything else.

    Muon (Jordan et al. 2024) orthogonalizes each update; its steps are scaled as in Liu et al. 2025.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear | Conv)]
    small = [layer.weight for layer in layers if min(layer.weight.shape) <= MUON_MAX_SIDE]
    matrices = small if params.optimizer == "muon" else []
    taken = set(map(id, matrices))
    others = [weight for weight in model.parameters() if id(weight) not in taken]
    optimizers: list[Optimizer] = [Adam(others, lr=params.learning_rate, weight_decay=params.weight_decay, fused=True)]
    if matrices:
        optimizers.append(
            Muon(
                matrices,
                lr=params.muon_learning_rate,
                weight_decay=params.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    return optimizers


def make_schedule(optimizer: Optimizer, params: TrainParams, total_steps: int) -> lr_scheduler.LRScheduler:
    """The learning rate by step: `learning_rate` is where constant, step and cosine start, and one_cycle's peak."""
    match params.lr_schedule:
        case "constant":
            return lr_scheduler.ConstantLR(optimizer, factor=1.0)
        case "step":  # a tenth at half and again at three quarters of the training
            return lr_scheduler.MultiStepLR(optimizer, [total_steps // 2, total_steps * 3 // 4])
        case "cosine":
            return lr_scheduler.CosineAnnealingLR(optimizer, total_steps)
        case "one_cycle":
            return lr_scheduler.OneCycleLR(optimizer, optimizer.param_groups[0]["lr"], total_steps + 1)
