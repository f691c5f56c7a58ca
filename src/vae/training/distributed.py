"""Data-parallel training: each process of torchrun computes its rows of every batch.

All processes have the same images and the same seed, and so draw the same order, binarization and noise: of these,
each takes its rows. `DistributedDataParallel` averages the gradients, and all make the same step. Results don't depend
on the number of processes, up to rounding. The first process alone logs and writes files.
"""

import datetime
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from vae.config import TrainParams
from vae.errors import ConfigError, ProcessError

T = TypeVar("T")


def launch(params: TrainParams) -> bool:
    """Run this program again as `nproc` processes, wait for them, and return True; with one process, return False.

    In a process that torchrun started, it returns False. Raises ConfigError if there are not as many GPUs, ProcessError
    if a process was killed; if one failed, it has printed why, and this one exits with its status.
    """
    nproc = params.nproc
    if nproc == 1 or dist.is_torchelastic_launched():
        return False
    if params.device.startswith("cuda:"):
        raise ConfigError(f"train.device is {params.device}, with train.nproc {nproc} allowed is cuda: one GPU each")
    devices = torch.cuda.device_count()
    if params.device != "cpu" and 0 < devices < nproc:
        raise ConfigError(f"train.nproc is {nproc}, allowed are up to {devices}: one for each CUDA device")
    # Takes a second to import.
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // nproc)))
    logs = DefaultLogsSpecs(log_dir=os.devnull)
    config = LaunchConfig(
        1, 1, nproc, logs, str(os.getpid()), rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0
    )
    try:
        elastic_launch(config, sys.executable)(*sys.argv)
    except SignalException as signal:
        raise KeyboardInterrupt from signal
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            raise ProcessError(f"process {rank} of {nproc} was killed ({failure.signal_name()})") from None
        sys.exit(failure.exitcode)
    return True


@contextmanager
def process_group(device: torch.device, timeout: float) -> Iterator[None]:
    """Join the other processes that torchrun started, if it did.

    Raises ProcessError if one of them ends early, or if this one waits for it for more than `timeout` seconds.
    """
    if not dist.is_torchelastic_launched():
        yield
        return
    backend, limit = "nccl" if device.type == "cuda" else "gloo", datetime.timedelta(seconds=timeout)
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if device.type == "cuda":
        torch.cuda.set_device(device)  # NCCL sends objects from the current device
    try:
        store, _, _ = next(rendezvous("env://", timeout=limit))
        if os.environ["TORCHELASTIC_USE_AGENT_STORE"] == "True":
            # This store outlives a restart: without a prefix, processes find the addresses of those that have ended.
            store = PrefixStore(os.environ["TORCHELASTIC_RESTART_COUNT"], store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=limit)
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error).lower():
            time.sleep(3)  # if one has ended, it says why, and torchrun ends this one by SIGTERM
            raise ProcessError(
                f"process {rank} of {world_size} lost the others: one has ended, or did not answer for "
                f"{timeout:g} s (train.timeout)"
            ) from error
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the process that logs and writes files."""
    return not dist.is_initialized() or dist.get_rank() == 0


def share(n: int) -> tuple[slice, float]:
    """The rows of a batch of `n` that this process computes, and a weight for their mean.

    The average over processes of these means, each times its weight, is the mean over the batch. A process for which no
    row is left computes the first one, with the weight 0: all must take part in the average.
    """
    if size() == 1:
        return slice(n), 1.0
    start, end = (n * (dist.get_rank() + i) // size() for i in (0, 1))
    return (slice(start, end), (end - start) * size() / n) if end > start else (slice(1), 0.0)


def wrapped(model: nn.Module) -> nn.Module:
    """The model, such that a backward pass averages its gradients over all processes."""
    return DistributedDataParallel(model, forward_sync_buffers=False) if size() > 1 else model


def add_up(values: Tensor) -> Tensor:
    """The sum over processes, in place."""
    if size() > 1:
        dist.all_reduce(values)
    return values


def of_the_first(value: T) -> T:
    """The value that the first process has."""
    values = [value]
    if size() > 1:
        dist.broadcast_object_list(values)
    return values[0]
