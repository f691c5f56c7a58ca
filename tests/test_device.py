import pytest
import torch

from vae.config import TrainParams
from vae.device import resolve
from vae.errors import ConfigError


def test_auto_takes_the_best_device_that_is_there():
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert resolve(TrainParams()).device.type == best


def test_the_cpu_is_always_there_and_is_not_compiled_for_unless_asked():
    assert not resolve(TrainParams(device="cpu")).compile
    assert resolve(TrainParams(device="cpu", compile=True)).compile


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_a_device_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(ConfigError, match=r"train.device is 'cuda', this machine has .*cpu"):
        resolve(TrainParams(device="cuda"))


def test_precision_decides_the_type_of_matrix_products_only():
    x = torch.ones(2, 2)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        hardware = resolve(TrainParams(device="cpu", precision=precision))
        with hardware.autocast():
            assert (x @ x).dtype == dtype
            assert x.sum().dtype == torch.float32
        assert precision in str(hardware)
