#!/usr/bin/env python
"""Check an installation, data or a run: what is wrong, and what to do.

python scripts/doctor.py                            the installation
python scripts/doctor.py --data-dir data            and all prepared data sets
python scripts/doctor.py --workdir runs/quickstart  and a run, its data, weights

Nothing is changed. Exit status: 0 no problems, 1 problems were found, 2 a
mistake in the command.
"""

import argparse
from pathlib import Path

from xmcgan.errors import UserError, run_cli
from xmcgan.studies import doctor
from xmcgan.utils.files import path_of

_DEFAULT_WEIGHTS = ("minilm",)  # of every config that names no others


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for flag, kind, text in (
        ("--workdir", path_of, "of a run, which may be going on"),
        ("--data-dir", Path, "root of prepared data sets"),
        ("--weights-dir", Path, "of fetched weights (default: weights/)"),
    ):
        parser.add_argument(flag, type=kind, metavar="DIR", help=text)
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    for folder in (args.workdir, args.data_dir):
        if folder is not None and not folder.is_dir():
            raise UserError(f"there is no folder {folder}")
    needed = doctor.pinned_weights(args.workdir) if args.workdir else _DEFAULT_WEIGHTS
    found = doctor.Examination()
    doctor.check_installation(found, args.weights_dir, needed)
    if args.data_dir:
        doctor.check_data(found, args.data_dir)
    if args.workdir:
        doctor.check_workdir(found, args.workdir)
    num = found.problems
    print(f"\n{num} problems found" if num else "\nno problems found")
    return 1 if num else 0


if __name__ == "__main__":
    run_cli(main)
