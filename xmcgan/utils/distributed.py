"""Several processes as one program: how they find each other, and how they end.

JAX's multi-controller runtime does the work; here stand the flags, and words where it has none.
"""

import argparse
import contextlib
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator

import jax

from xmcgan.errors import EXIT_USER_ERROR, AgreedError, DistributedError, UserError

EXIT_LOST = 75  # sysexits' "try again later"
_HEARTBEAT_SECONDS = 30  # after so long without a sign of life, JAX ends the other processes
_PRINT_SECONDS = 1.0


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that `session` reads."""
    group = parser.add_argument_group("several processes")
    group.add_argument(
        "--distributed",
        action="store_true",
        help="join those that srun, mpirun, a TPU pod or GKE started",
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0, where none did")
    group.add_argument("--num-processes", type=int, metavar="N", help="of all processes")
    group.add_argument("--process-id", type=int, metavar="I", help="of this one, from 0 to N - 1")
    group.add_argument(
        "--join-timeout",
        type=int,
        default=300,
        metavar="S",
        help="seconds to wait for the others (default: 300)",
    )


@contextlib.contextmanager
def session(args: argparse.Namespace) -> Iterator[None]:
    """Join the other processes for the time of the block; without the flags, do nothing.

    It must begin before JAX looks for devices. An error that one process alone meets ends it at
    once: the others would wait for it in their next exchange, and end when they notice.

    Args:
        args: the flags of `add_flags`.

    Raises:
        DistributedError: the flags do not fit together.
    """
    if not _is_asked_for(args):
        yield
        return
    _join(args)
    try:
        yield
    except Exception as error:
        if jax.process_count() == 1:
            raise
        _leave(*_last_words(error))


def _is_asked_for(args: argparse.Namespace) -> bool:
    explicit = {
        "--coordinator": args.coordinator,
        "--num-processes": args.num_processes,
        "--process-id": args.process_id,
    }
    missing = [flag for flag, value in explicit.items() if value is None]
    if len(missing) == len(explicit):
        return args.distributed
    if missing:
        raise DistributedError(f"{', '.join(missing)} must be given too, or --distributed alone")
    host, _, port = args.coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise DistributedError(f"--coordinator {args.coordinator}: must be HOST:PORT")
    if not 0 <= args.process_id < args.num_processes:
        raise DistributedError(
            f"--process-id {args.process_id} is not from 0 to --num-processes - 1, which is "
            f"{args.num_processes - 1}"
        )
    if args.process_id == 0:
        _check_port(int(port))
    return True


def _check_port(port: int) -> None:
    """Refuse a port that is taken; JAX's service would crash on it."""
    try:
        with socket.create_server(("", port)):
            pass
    except OSError as error:
        raise DistributedError(f"process 0 cannot use port {port}: {error.strerror}") from None


def _join(args: argparse.Namespace) -> None:
    # JAX's own handler of SIGTERM would take the place of the training loop's.
    jax.config.update("jax_enable_preemption_service", False)
    timer = threading.Timer(args.join_timeout, _give_up, [args])
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            args.coordinator,
            args.num_processes,
            args.process_id,
            # The timer speaks first: JAX ends the process without naming the address.
            initialization_timeout=args.join_timeout + 60,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
        )
    except ValueError as error:
        raise DistributedError(
            "--distributed found no cluster: neither srun nor mpirun, TPU pod or Kubernetes "
            f"started this process ({error}). Give --coordinator HOST:PORT --num-processes N "
            "--process-id I"
        ) from None
    finally:
        timer.cancel()


def _give_up(args: argparse.Namespace) -> None:
    own = os.environ.get("SLURM_PROCID") or os.environ.get("OMPI_COMM_WORLD_RANK") or "?"
    process = own if args.process_id is None else args.process_id
    address = args.coordinator or "the address that the cluster gives"
    print(
        f"error: process {process} did not meet the others in {args.join_timeout} seconds. "
        f"Process 0 is expected at {address}: is it running, reachable, and are all processes "
        "started? --join-timeout SECONDS waits longer.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(EXIT_USER_ERROR)  # from a thread: the main one waits inside JAX


def _last_words(error: Exception) -> tuple[int, str]:
    """Return the exit status and the message of a process that cannot go on."""
    number, count = jax.process_index(), jax.process_count()
    if isinstance(error, AgreedError):
        return EXIT_USER_ERROR, f"error: {error}" if number == 0 else ""
    if isinstance(error, UserError):
        return EXIT_USER_ERROR, f"error: process {number}: {error}"
    trace = traceback.format_exc()
    if not isinstance(error, jax.errors.JaxRuntimeError):
        return 1, f"{trace}error: process {number} stops, and the {count - 1} others with it"
    return EXIT_LOST, (
        f"{trace}error: process {number} cannot go on. If no other process says why, one of the "
        f"{count} was lost, or the network between them. The last checkpoint is intact: the same "
        "command goes on from it, also on fewer processes."
    )


def _leave(status: int, message: str) -> None:
    """End this process without waiting for the others, as JAX would at a normal exit."""
    if message:
        print(message, file=sys.stderr, flush=True)
    if jax.process_index() == 0:
        # Its end takes the meeting point away: let the others print what they have to say.
        time.sleep(_PRINT_SECONDS)
    sys.stdout.flush()
    os._exit(status)
