"""No network and no TensorFlow or PyTorch: for pytest, and for every Python that a test starts.

`tests/conftest.py` imports this, and puts its folder on PYTHONPATH, where Python looks for a module
of this name at its start.
"""

import ipaddress
import socket
import sys
from importlib.machinery import PathFinder
from typing import Any

HIDDEN = ("tensorflow", "torch", "torchvision")


class NetworkUsedError(BaseException):
    """Report a connection to another machine; no `except Exception` swallows it."""


class HidingFinder(PathFinder):
    """Find what is installed but for `HIDDEN`, as where these are not installed."""

    @classmethod
    def find_spec(cls, fullname: str, path: Any = None, target: Any = None) -> Any:
        """Return where a module stands, None for a hidden one."""
        if fullname.partition(".")[0] in HIDDEN:
            return None
        return super().find_spec(fullname, path, target)


def is_local(address: Any) -> bool:
    """Return whether an address of any kind of socket stays on this machine."""
    if not isinstance(address, tuple):  # a path of a Unix socket
        return True
    return is_local_host(address[0])


def is_local_host(host: Any) -> bool:
    """Return whether a name or number stands for this machine."""
    host = host.decode() if isinstance(host, bytes) else host
    if host in (None, "", "localhost", socket.gethostname()):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def refuse(target: Any) -> None:
    """Say what was asked for."""
    raise NetworkUsedError(f"a test asked for the network: {target!r}")


def close_the_network() -> None:
    """Let sockets connect to this machine only, and look up no other names."""
    plain = {name: getattr(socket.socket, name) for name in ("connect", "connect_ex", "sendto")}

    def guarded(name: str) -> Any:
        def call(self: socket.socket, *arguments: Any) -> Any:
            if not is_local(arguments[-1]):
                refuse(arguments[-1])
            return plain[name](self, *arguments)

        return call

    for name in plain:
        setattr(socket.socket, name, guarded(name))
    look_up = socket.getaddrinfo

    def getaddrinfo(host: Any, *arguments: Any, **options: Any) -> Any:
        if not is_local_host(host):
            refuse(host)
        return look_up(host, *arguments, **options)

    socket.getaddrinfo = getaddrinfo


# Processes of pytest-xdist start with this module: their conftest.py must not load it once more.
sys.modules["offline.sitecustomize"] = sys.modules[__name__]
sys.meta_path[sys.meta_path.index(PathFinder)] = HidingFinder
close_the_network()
