"""Write the page of a run: samples, curves, scores, settings.

python scripts/report.py --workdir runs/quickstart
python scripts/report.py --workdir runs/coco --out report/

The run may be training. Exit status: 0 written, 2 a mistake.
"""

import argparse
from pathlib import Path

from xmcgan.errors import run_cli
from xmcgan.studies.run_report import write_report
from xmcgan.utils.files import path_of


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--workdir", type=path_of, required=True, metavar="DIR", help="of a run; it may be going on"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where to write (default: the workdir)"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    print(f"{write_report(args.workdir, args.out)} and its curves")


if __name__ == "__main__":
    run_cli(main)
