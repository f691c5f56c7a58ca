"""Devices, precision and torch.compile: what `auto` resolves to, and what is refused."""

import os
import subprocess
import sys

import pytest
import torch

import vae.device
from vae import VAE, VAETrainer
from vae.config import TrainParams
from vae.device import full_fp32, resolve
from vae.errors import ConfigError


def cuda(monkeypatch, capability=(9, 0), count=1):
    """A machine with CUDA GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Some GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(vae.device.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(vae.device, "find_spec", lambda name: name)


@pytest.mark.parametrize("name", ["cuda:99", "mps:0", "cuda"])
def test_a_missing_device_is_refused_with_those_that_exist(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve(TrainParams()).device == torch.device("cpu")
    with pytest.raises(ConfigError, match=rf"^train.device is '{name}', this machine has cpu \(or say auto\)$"):
        resolve(TrainParams(device=name))


def test_devices_may_have_an_index(monkeypatch):
    cuda(monkeypatch, count=2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    for name in ("cuda", "cuda:1", "mps", "mps:0"):
        assert resolve(TrainParams(device=name, compile=False)).device == torch.device(name)
    assert VAETrainer(VAE(), device="mps:0").hardware.device == torch.device("mps:0")
    with pytest.raises(ConfigError, match=r"'cuda:2', this machine has cuda, cuda:0, cuda:1, mps, mps:0, cpu"):
        resolve(TrainParams(device="cuda:2"))
    with pytest.raises(ConfigError, match="on mps only fp32"):
        resolve(TrainParams(device="mps:0", precision="bf16"))


def test_precision_is_that_of_matrix_products_only():
    x = torch.ones(2, 2)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        hardware = resolve(TrainParams(device="cpu", precision=precision))
        with hardware.autocast():
            assert (x @ x).dtype == dtype
            assert x.sum().dtype == torch.float32
        assert precision in str(hardware)


def fp32_settings():
    backends = torch.backends
    settings = backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.matmul
    precisions = [setting.fp32_precision for setting in settings]
    return [*precisions, torch.get_float32_matmul_precision(), backends.cudnn.allow_tf32]


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_no_tf32_is_left_in_full_fp32_and_the_settings_are_restored(precision):
    initial = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        before = fp32_settings()
        with pytest.raises(KeyError), full_fp32():
            assert fp32_settings() == ["ieee"] * 4 + ["highest", False]
            raise KeyError
        assert fp32_settings() == before
    finally:
        torch.set_float32_matmul_precision(initial)


def test_auto_compiles_on_cuda_and_long_trainings_on_a_cpu(monkeypatch):
    monkeypatch.setattr(vae.device, "_missing_for_compile", lambda _: "")
    on_cpu = TrainParams(device="cpu", precision="fp32", epochs=20)
    assert str(resolve(on_cpu, 50_000)).endswith("fp32, compiled")
    assert str(resolve(on_cpu, 49_999)).endswith("fp32, eager (compiling pays off from 1,000,000 images)")
    assert resolve(on_cpu.model_copy(update={"compile": True})).compile
    assert not resolve(on_cpu.model_copy(update={"compile": False}), 50_000).compile
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert resolve(on_cpu, 50_000).eager_reason == "several processes"
    monkeypatch.delenv("WORLD_SIZE")
    cuda(monkeypatch)
    assert str(resolve(TrainParams())) == "cuda (Some GPU), fp32, compiled"


@pytest.mark.parametrize(
    ("lacks", "reason"),
    [
        ("triton", "Triton is not installed"),
        ("capability", "Triton needs a GPU of compute capability 7.0, this one has 6.1"),
        ("compiler", "Triton found no C compiler"),
    ],
)
def test_auto_runs_eagerly_on_a_gpu_that_cannot_compile_and_says_why(lacks, reason, monkeypatch):
    cuda(monkeypatch, capability=(6, 1) if lacks == "capability" else (9, 0))
    if lacks == "triton":
        monkeypatch.setattr(vae.device, "find_spec", lambda _: None)
    if lacks == "compiler":
        monkeypatch.setattr(vae.device.shutil, "which", lambda _: None)
    hardware = resolve(TrainParams())
    assert not hardware.compile
    assert f"fp32, eager ({reason}" in str(hardware)
    with pytest.raises(ConfigError, match=f"^train.compile is true, but {reason}"):
        resolve(TrainParams(compile=True))


def test_compiling_on_the_cpu_needs_a_cpp_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigError, match=r"train.compile is true, but there is no C\+\+ compiler '.*' \(.*CXX"):
        resolve(TrainParams(device="cpu", compile=True))
    assert "there is no C++ compiler" in resolve(TrainParams(device="cpu", epochs=1), 1_000_000).eager_reason


@pytest.mark.slow
def test_auto_runs_eagerly_where_the_cpp_compiler_does_not_work(tmp_path):
    """In a process of its own: torch remembers its choice of a compiler."""
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\nexit 1")
    compiler.chmod(0o755)
    code = "from vae.device import *; print(resolve(TrainParams(device='cpu', epochs=1), 1_000_000))"
    environment = os.environ | {"CXX": str(compiler), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    out = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert "eager (torch.compile fails here: InvalidCxxCompiler" in out.stdout
