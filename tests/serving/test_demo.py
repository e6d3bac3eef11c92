"""scripts/demo.py as a program: a port in use, a package that is missing, clean start and end."""

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xmcgan.sampling.sampler import TrainedModel, sample_noise

ROOT = Path(__file__).resolve().parents[2]


def test_a_port_in_use_names_the_next_free_one(run):
    pytest.importorskip("uvicorn")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, _, errors = run("scripts/demo.py", "--port", port)
    assert status == 2
    assert f"port {port}: Address already in use; port" in errors
    assert "is free: --port" in errors


def test_a_port_that_cannot_be_is_named(run):
    pytest.importorskip("uvicorn")
    status, _, errors = run("scripts/demo.py", "--port", 70000)
    assert (status, "ports are numbers" in errors) == (2, True)


def test_a_missing_package_says_what_to_install(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    status, _, errors = run("scripts/demo.py")
    assert status == 2
    assert "needs uvicorn: pip install -r requirements-demo.txt" in errors


@contextlib.contextmanager
def started(*command):
    """Start a server and end it as Ctrl-C does."""
    paths = f"{ROOT}{os.pathsep}{os.environ['PYTHONPATH']}"
    # A job in the background ignores SIGINT, and its children would, too; not if it is handled.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    server = subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    try:
        yield server
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)


def ask(address, body=None):
    """Return status and content of an answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as refusal:
        return refusal.code, refusal.read()


def test_it_listens_on_this_machine_only_and_ends_by_a_signal(tiny_workdir):
    pytest.importorskip("uvicorn")
    with started("scripts/demo.py", "--model", tiny_workdir, "--port", 0) as server:
        about, address = server.stdout.readline(), server.stdout.readline().split()[-1]
        assert about.startswith("workdir: A run trained on shapes/tiny")
        assert address.startswith("http://127.0.0.1:")
        assert json.loads(ask(f"{address}/health")[1])["status"] == "ok"
    assert server.returncode in (0, 130, -signal.SIGINT)


def memory_mb(process):
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_four_clients_for_two_minutes_fail_nothing_and_leave_memory_as_it_is(tiny_workdir):
    pytest.importorskip("uvicorn")
    known, failed, asked = {}, [], 0

    def client(number, address, end):
        nonlocal asked
        turn = number
        while time.monotonic() < end:
            turn += 1
            path = ("generate", "generate", "between", "attention")[turn % 4]
            body = {"captions": [f"a red circle {turn % 20}"], "weights": ("ema", "raw")[turn % 2]}
            body["captions"] += ["a star"] * (path == "between")
            status, content = ask(f"{address}/{path}", body)
            asked += 1
            if status != 200 or known.setdefault(f"{path} {body}", content) != content:
                failed.append((path, body, status))

    def clients(seconds):
        end = time.monotonic() + seconds
        with ThreadPoolExecutor(4) as pool:
            [*pool.map(lambda number: client(number, address, end), range(4))]

    with started("scripts/demo.py", "--model", tiny_workdir, "--port", 0) as server:
        server.stdout.readline()
        address = server.stdout.readline().split()[-1]
        clients(20)
        before = memory_mb(server)
        clients(100)
        assert memory_mb(server) < 1.1 * before
    assert failed == []
    assert asked > 200


def test_the_documented_server_draws_an_exported_model(tiny_workdir, run, tmp_path):
    out = tmp_path / "exported"
    assert run("scripts/export.py", "--workdir", tiny_workdir, "--out", out)[0] == 0
    text = (ROOT / "docs/serving.md").read_text("utf-8")
    (tmp_path / "serve.py").write_text(text.split("```python\n")[1].split("```")[0])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}/?caption=a+red+circle"
    with started(tmp_path / "serve.py", out, port):
        for _ in range(300):
            try:
                status, png = ask(f"{address}&seed=3")
                break
            except urllib.error.URLError:
                time.sleep(0.1)
        assert ask(f"{address}&seed=x")[0] == 400
    assert status == 200
    image = np.asarray(Image.open(io.BytesIO(png))).astype(int)
    expected = TrainedModel.from_workdir(tiny_workdir)(["a red circle"], sample_noise(3, 1, 4))[0]
    assert np.abs(image - expected).max() <= 1
