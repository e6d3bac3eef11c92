"""Serve a page to play with trained models, and the same as a service (docs/serving.md).

python scripts/demo.py
python scripts/demo.py --model emoji64 --model runs/quickstart --port 8080
"""

import argparse
import asyncio
import contextlib
import ctypes
import errno
import socket

from xmcgan.errors import UserError, run_cli
from xmcgan.utils.distributed import use_compilation_cache

_M_ARENA_MAX = -8  # of mallopt


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="A local page, and the same as a service: images from captions."
    )
    parser.add_argument(
        "--model",
        action="append",
        metavar="NAME|DIR",
        help="a model that comes with the repository, a model folder, or the workdir of a run, "
        "whose newest checkpoint is used; repeatable (default: all of the repository)",
    )
    text = "address to listen on (default: 127.0.0.1, this machine only)"
    parser.add_argument("--host", default="127.0.0.1", help=text)
    parser.add_argument("--port", type=int, default=7860, help="(default: 7860)")
    text = "a model that is unused for so long is let go (default: 30)"
    parser.add_argument("--keep-minutes", type=float, default=30, metavar="MINUTES", help=text)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    # glibc would give each thread a heap of its own, and memory would grow by what is free in them.
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)
    try:
        import uvicorn

        from xmcgan.serving.models import Models
        from xmcgan.serving.routes import Service, make_app
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn", "anyio"):
            raise
        raise UserError(
            f"the page needs {error.name}: pip install -r requirements-demo.txt"
        ) from None
    listener = listen(args.host, args.port)
    use_compilation_cache()
    service = Service(Models(args.model, 60 * args.keep_minutes))
    config = uvicorn.Config(
        make_app(service), log_level="warning", timeout_keep_alive=5, limit_concurrency=256
    )
    service.warm_up()
    for described in asyncio.run(service.list_models()):
        print(f"{described['name']}: {described['error'] or described['about']}")
    host = f"[{args.host}]" if ":" in args.host else args.host
    print(f"open http://{host}:{listener.getsockname()[1]}", flush=True)
    uvicorn.Server(config).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; raises UserError, which names a free port if there is one."""
    if not 0 <= port < 2**16:
        raise UserError(f"--port {port}: ports are numbers from 0 to 65535")
    try:
        return bind(host, port)
    except OSError as error:
        message = f"cannot listen on {host}, port {port}: {error.strerror}"
        in_use = error.errno == errno.EADDRINUSE
    for other in range(port + 1, min(port + 100, 2**16)) if in_use else ():
        try:
            bind(host, other).close()
        except OSError:
            continue
        message += f"; port {other} is free: --port {other}"
        break
    raise UserError(message)


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address."""
    kind, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(kind, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError:
        listener.close()
        raise
    return listener


if __name__ == "__main__":
    run_cli(main)
