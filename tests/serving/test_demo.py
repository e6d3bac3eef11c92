"""scripts/demo.py as a program: a port in use, a package that is missing, clean start and end."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

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


def test_it_listens_on_this_machine_only_and_ends_by_a_signal(tiny_workdir):
    pytest.importorskip("uvicorn")
    command = [sys.executable, "scripts/demo.py", "--model", str(tiny_workdir), "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ['PYTHONPATH']}"}
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert server.stdout is not None
        about, address = server.stdout.readline(), server.stdout.readline().split()[-1]
        assert about.startswith("workdir: A run trained on shapes/tiny")
        assert address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(f"{address}/health", timeout=60) as answer:
            assert json.load(answer)["status"] == "ok"
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)
    assert server.returncode in (0, 130, -signal.SIGINT)
