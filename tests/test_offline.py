"""The suite itself runs without a network and without TensorFlow, in every process of it."""

import importlib.util
import socket
import subprocess
import sys
import urllib.request

import pytest
from offline import sitecustomize
from offline.sitecustomize import HIDDEN, NetworkUsedError

ADDRESS = ("192.0.2.1", 80)  # of a block that is reserved for documentation


def test_a_connection_to_another_machine_is_refused():
    with socket.socket() as client, pytest.raises(NetworkUsedError, match=r"192\.0\.2\.1"):
        client.connect(ADDRESS)
    with (
        socket.socket(type=socket.SOCK_DGRAM) as client,
        pytest.raises(NetworkUsedError, match="a test asked"),
    ):
        client.sendto(b"x", ADDRESS)


def test_a_name_is_not_looked_up():
    with pytest.raises(NetworkUsedError, match=r"example\.org"):
        urllib.request.urlopen("http://example.org/", timeout=1)


def test_this_machine_can_be_reached():
    with socket.create_server(("localhost", 0)) as server:
        socket.create_connection(server.getsockname()).close()


@pytest.mark.parametrize("name", HIDDEN)
def test_tensorflow_and_pytorch_are_absent(name):
    assert name not in sys.modules
    assert importlib.util.find_spec(name) is None
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(name)


def test_a_package_that_is_installed_is_hidden_too(monkeypatch):
    name = "this"  # stands in for one that is installed
    assert importlib.util.find_spec(name) is not None
    monkeypatch.setattr(sitecustomize, "HIDDEN", (name,))
    assert importlib.util.find_spec(name) is None


def test_processes_that_tests_start_are_closed_too():
    program = f"import socket; socket.socket().connect({ADDRESS!r})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "NetworkUsedError" in done.stderr
