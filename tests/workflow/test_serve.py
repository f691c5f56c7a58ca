"""`make serve`: a real server process, which answers as the model does and survives bad requests."""

import json
import signal
import socket
import subprocess
import sys

import numpy as np
import psutil
import pytest
import requests
import torch

import serving
from support import ENVIRONMENT
from vae.data.datasets import load
from vae.models.vae import VAE

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(reproduced):
    pipes = dict.fromkeys(("stdout", "stderr"), subprocess.DEVNULL)
    with serving.server(cwd=reproduced.root, env=ENVIRONMENT, **pipes) as (url, process):
        yield url, process


@pytest.fixture(scope="module")
def images(reproduced):
    return load(reproduced / "data/raw", "test").images[:10]


def ask(server, body, **headers):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **headers}
    return requests.post(f"{server[0]}/invocations", content, headers=headers, timeout=120)


def test_answers_equal_those_of_the_weights(server, images, reproduced):
    vae = VAE.load(reproduced / "models/vae.safetensors")
    assert requests.get(f"{server[0]}/health", timeout=30).status_code == 200
    for inputs in (images.tolist(), (images.view(-1, 28, 28) / 255).tolist()):
        answer = ask(server, {"inputs": inputs}).json()["predictions"]
        np.testing.assert_allclose(answer, vae.reconstruct(images), atol=1e-6)
    answer = ask(server, {"inputs": images.tolist(), "params": {"task": "encode"}}).json()["predictions"]
    np.testing.assert_allclose(answer["mu"], vae.encode(images)[0].detach(), atol=1e-6)
    answer = ask(server, {"inputs": 0, "params": {"task": "sample", "n": 2, "seed": 1}}).json()["predictions"]
    np.testing.assert_allclose(answer, vae.sample(2, torch.Generator().manual_seed(1)), atol=1e-6)
    answer = ask(server, {"inputs": images.tolist(), "params": {"task": "score"}}).json()["predictions"]
    assert len(answer) == 10 and answer[0].keys() == {"neg_elbo", "nll", "percentile"}


IMAGE = [0] * 784


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"inputs": [[', "valid JSON"),
        (b"\xff\xfe\x00", "valid JSON"),
        ({"images": [IMAGE]}, "'inputs'"),
        ([IMAGE], "'inputs'"),
        ({"inputs": [IMAGE[1:]]}, "images have shape (1, 783)"),
        ({"inputs": []}, "[]"),
        ({"inputs": [IMAGE] * 10_000}, "number of images is 10,000"),
        ({"inputs": [[float("nan")] * 784]}, "NaN"),
        ({"inputs": [[300] * 784]}, "0 to 255"),
        ({"inputs": [[1], [1, 2]]}, "rows of equal length"),
        ({"inputs": "abc"}, "not an array of numbers"),
        ({"inputs": {"a": [1]}}, "dict"),
        ({"inputs": [IMAGE], "params": {"task": "draw"}}, "task is 'draw', allowed are"),
        ({"inputs": [IMAGE], "params": {"task": "score", "importance_samples": 0}}, "importance_samples is 0"),
        ({"inputs": [IMAGE], "params": [1]}, "Parameters must be a dictionary"),
    ],
)
def test_a_bad_request_is_refused_and_the_server_goes_on(server, body, words):
    answer = ask(server, body)
    assert answer.status_code == 400
    assert words in answer.json()["message"]
    assert requests.get(f"{server[0]}/ping", timeout=30).status_code == 200


def test_fifty_clients_get_all_their_answers_and_memory_stays(server):
    rounds = [serving.measure(*server, "reconstruct", 1) for _ in range(2)]
    assert [part["errors"] for part in rounds] == [0, 0]
    assert rounds[1]["mib_after"] < rounds[1]["mib_before"] + 20  # the first round starts all threads
    assert psutil.Process(server[1].pid).num_threads() < 100


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_says_what_it_serves_and_ends_without_a_traceback(reproduced, number, tmp_path):
    log = (tmp_path / "log").open("w")
    with log, serving.server(cwd=reproduced.root, env=ENVIRONMENT, stdout=log, stderr=log) as (url, process):
        process.send_signal(number)
        process.wait(60)
    printed = (tmp_path / "log").read_text()
    assert "no vae-mnist@champion yet (`make register` makes one)" in printed and url in printed
    assert "Traceback" not in printed
    with pytest.raises(requests.ConnectionError):
        requests.get(url, timeout=5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "vae-mnist/7"], "no registered model vae-mnist"),
        (["--port", "0x"], "--port"),
        (["--port", "99999"], "PORT="),
        (["--port", "taken"], "PORT="),
    ],
)
def test_what_cannot_be_served_is_said_in_one_line(reproduced, arguments, words):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        arguments = [str(taken.getsockname()[1]) if value == "taken" else value for value in arguments]
        command = [sys.executable, "-m", "vae.workflow.serve", *arguments]
        done = subprocess.run(command, cwd=reproduced.root, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode in (1, 2) and words in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
