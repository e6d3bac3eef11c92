"""Several processes as one program: joining them, host-level coordination, and how they end."""

import argparse
import contextlib
import itertools
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import jax

import xmcgan
from xmcgan.errors import EXIT_USER_ERROR, AgreedError, DistributedError, UserError, listed
from xmcgan.utils.files import num_cores
from xmcgan.utils.provenance import fingerprint_differences

JSON = Any

EXIT_LOST = 75  # sysexits' "try again later"
_HEARTBEAT_SECONDS = 30  # JAX ends the other processes after this long without a sign of life
_BARRIER_MS = 3_600_000  # for slow processes only: JAX ends all of them soon after one is lost
_PRINT_SECONDS = 1.0
# Each device has a copy of the parameters: of CLIP ViT-L/14, 1.7 GB. Further cores help within one.
_MAX_CPU_DEVICES = 4
_gathers = itertools.count()


def use_compilation_cache() -> None:
    """Keep compiled programs between runs, unless JAX_COMPILATION_CACHE_DIR is set."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        root = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(root / "xmcgan" / "jax"))


def use_cpu_cores_as_devices(batch_size: int = 0) -> None:
    """Expose up to four CPU devices, one per available core, that divide `batch_size` (0: any).

    Call it before JAX starts. No effect with an accelerator, or if the user sets the count.
    """
    # One image per core is faster than all cores on one image: a step of `emoji:quickstart` on two
    # cores sees 155 images/s instead of 120.
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_force_host_platform_device_count" in flags or "JAX_NUM_CPU_DEVICES" in os.environ:
        return
    counts = range(1, min(num_cores(), _MAX_CPU_DEVICES) + 1)
    devices = max(count for count in counts if batch_size % count == 0)
    jax.config.update("jax_num_cpu_devices", devices)


def is_host0() -> bool:
    """Whether this process writes logs, samples and results."""
    return jax.process_index() == 0


def all_gather_json(value: JSON) -> list[JSON]:
    """Return the values of all processes, in their order; every process must call it."""
    if jax.process_count() == 1:
        return [value]
    from orbax.checkpoint import multihost  # half a second that one process need not wait

    # Not `jax.experimental.multihost_utils`: its device collectives time out if a process is late
    # by minutes because it compiles or prepares data.
    client: Any = multihost.get_jax_distributed_client()
    folder = f"xmcgan/{next(_gathers)}"
    client.key_value_set(f"{folder}/{jax.process_index():08d}", json.dumps(value))
    client.wait_at_barrier(folder, _BARRIER_MS)
    return [json.loads(text) for _, text in sorted(client.key_value_dir_get(folder))]


@contextlib.contextmanager
def raise_on_all() -> Iterator[None]:
    """Make a UserError of one process an AgreedError of all; the block may not gather anything."""
    message = None
    try:
        yield
    except UserError as error:
        if jax.process_count() == 1:
            raise
        message = str(error)
    for process, found in enumerate(all_gather_json(message)):
        if found is not None:
            raise AgreedError(f"process {process}: {found}")


def broadcast_from_host0(compute: Callable[[], JSON]) -> JSON:
    """Return in all processes what `compute` returns in process 0, the only one that calls it."""
    with raise_on_all():
        value = compute() if is_host0() else None
    return all_gather_json(value)[0]


def require_same(choices: Mapping[str, JSON]) -> None:
    """Refuse processes whose choices or versions differ from process 0's, with all fields."""
    versions = {"version of jax": jax.__version__, "version of xmcgan": xmcgan.__version__}
    first, *others = all_gather_json(dict(choices) | versions)
    for process, other in enumerate(others, start=1):
        if differences := fingerprint_differences(first, other):
            raise AgreedError(
                f"processes differ (field: process 0 -> process {process}):{listed(differences)}\n"
                "Give all of them the same command and the same data."
            )


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that `session` reads."""
    add = parser.add_argument_group("several processes").add_argument
    text = "join those that srun, mpirun, a TPU pod or GKE started"
    add("--distributed", action="store_true", help=text)
    add("--coordinator", metavar="HOST:PORT", help="of process 0, if none of these did")
    add("--num-processes", type=int, metavar="N", help="of all processes")
    add("--process-id", type=int, metavar="I", help="of this one, from 0 to N - 1")
    text = "seconds to wait for the others (default: 300)"
    add("--join-timeout", type=int, default=300, metavar="S", help=text)


@contextlib.contextmanager
def session(args: argparse.Namespace) -> Iterator[None]:
    """Join the other processes, if the flags say so; begins before JAX looks for devices."""
    if not _is_distributed(args):
        yield
        return
    _join(args)
    try:
        yield
    except Exception as error:
        if jax.process_count() == 1:
            raise
        # At once: the others would wait for this one in their next collective.
        _end_process(error)


def _is_distributed(args: argparse.Namespace) -> bool:
    address, count, process = args.coordinator, args.num_processes, args.process_id
    flags = {"--coordinator": address, "--num-processes": count, "--process-id": process}
    missing = [flag for flag, value in flags.items() if value is None]
    if len(missing) == len(flags):
        return args.distributed
    if missing:
        raise DistributedError(f"{', '.join(missing)} must be given too, or --distributed alone")
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise DistributedError(f"--coordinator {address}: must be HOST:PORT")
    if not 0 <= process < count:
        raise DistributedError(f"--process-id {process} is not from 0 to {count - 1}")
    if process == 0:
        try:  # JAX's service would crash on a port that is taken
            socket.create_server(("", int(port))).close()
        except OSError as error:
            raise DistributedError(f"process 0 cannot use port {port}: {error.strerror}") from None
    return True


def _join(args: argparse.Namespace) -> None:
    # JAX's own handler of SIGTERM would take the place of the training loop's.
    jax.config.update("jax_enable_preemption_service", False)
    timer = threading.Timer(args.join_timeout, _exit_unmet, [args])
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            args.coordinator,
            args.num_processes,
            args.process_id,
            # Our timer fires first: JAX would end the process without naming the address.
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


def _exit_unmet(args: argparse.Namespace) -> None:
    own = os.environ.get("SLURM_PROCID") or os.environ.get("OMPI_COMM_WORLD_RANK") or "?"
    process = own if args.process_id is None else args.process_id
    message = (
        f"error: process {process} did not meet the others in {args.join_timeout} seconds. "
        f"Process 0 is expected at {args.coordinator or 'the address that the cluster gives'}: is "
        "it running, reachable, and are all processes started? --join-timeout SECONDS waits longer."
    )
    print(message, file=sys.stderr, flush=True)
    os._exit(EXIT_USER_ERROR)  # from a thread: the main one waits inside JAX


def _end_process(error: Exception) -> NoReturn:
    """End this process without waiting for the others, as JAX would at a normal exit."""
    process, count = jax.process_index(), jax.process_count()
    status, message = EXIT_USER_ERROR, f"error: process {process}: {error}"
    if isinstance(error, AgreedError):  # raised in all processes: host 0 prints it for all
        message = f"error: {error}" if process == 0 else ""
    elif isinstance(error, jax.errors.JaxRuntimeError):
        status = EXIT_LOST
        message = (
            f"{traceback.format_exc()}error: process {process} cannot continue. If no other "
            f"process says why, one of the {count} was lost, or the network between them. The last "
            "checkpoint is intact: the same command resumes from it, also on fewer processes."
        )
    elif not isinstance(error, UserError):
        status = 1
        message = f"error: process {process} stops, and the {count - 1} others with it"
        message = traceback.format_exc() + message
    if message:
        print(message, file=sys.stderr, flush=True)
    if process == 0:  # the coordination service ends with it: let the others print first
        time.sleep(_PRINT_SECONDS)
    sys.stdout.flush()
    os._exit(status)
