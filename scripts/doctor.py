#!/usr/bin/env python
"""Say what is wrong with an installation, with data or a run, and what to do.

python scripts/doctor.py                            the installation
python scripts/doctor.py --data-dir data            and all prepared data sets
python scripts/doctor.py --workdir runs/quickstart  and a run, its data, weights

Nothing is changed. Exit status: 0 no problems, 1 problems were found, 2 a
mistake in the command.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from xmcgan.errors import UserError, run_cli
from xmcgan.studies.doctor.data_sets import examine_data
from xmcgan.studies.doctor.findings import Finding, format_finding
from xmcgan.studies.doctor.installation import examine_installation
from xmcgan.studies.doctor.workdir import examine_workdir, pinned_weights

_DEFAULT_WEIGHTS = ("minilm",)  # of every config that names no others


def parse_arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for flag, text in (
        ("--workdir", "of a run, which may be going on"),
        ("--data-dir", "root of prepared data sets"),
        ("--weights-dir", "of fetched weights (default: weights/)"),
    ):
        parser.add_argument(flag, type=Path, metavar="DIR", help=text)
    return parser.parse_args()


def main() -> int:
    """Print all findings as they come."""
    arguments = parse_arguments()
    for folder in (arguments.workdir, arguments.data_dir):
        if folder is not None and not folder.is_dir():
            raise UserError(f"there is no folder {folder}")
    needed = _DEFAULT_WEIGHTS if arguments.workdir is None else pinned_weights(arguments.workdir)
    problems = _show(examine_installation(arguments.weights_dir, needed))
    if arguments.data_dir is not None:
        problems += _show(examine_data(arguments.data_dir))
    if arguments.workdir is not None:
        problems += _show(examine_workdir(arguments.workdir))
    print(f"\n{problems} problems found" if problems else "\nno problems found")
    return 1 if problems else 0


def _show(findings: Iterator[Finding]) -> int:
    problems = 0
    for finding in findings:
        problems += finding.is_problem
        print(format_finding(finding), flush=True)
    return problems


if __name__ == "__main__":
    run_cli(main)
