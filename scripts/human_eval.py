"""Rank the images of several models by people, blindly, and score their answers.

python scripts/human_eval.py create --images ours=images/ours \\
    --images theirs=images/theirs --out ranking.html
python scripts/human_eval.py score --key ranking.key.json \\
    --results answers/ --out human_eval/

Exit status: 0 done, 2 a mistake (named).
"""

import argparse
from pathlib import Path

import rich
from rich.markdown import Markdown

from xmcgan.errors import DataError, UserError, run_cli
from xmcgan.studies.human_eval.models import read_models
from xmcgan.studies.human_eval.page import DEFAULT_TITLE, write_page
from xmcgan.studies.human_eval.report import write_report

_RANGES = {
    "num": (1, 1000),
    "checks": (0, 100),
    "seed": (0, 2**63),
    "image_size": (16, 1024),
    "min_checks": (0, 1),
    "bootstrap": (100, 100_000),
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)

    # fmt: off
    create = commands.add_parser("create", help="write the page that asks, and its key")
    add = create.add_argument
    add("--images", action="append", required=True, metavar="NAME=DIR",
        help="a model's images, as scripts/generate.py writes them; give it for each model")
    add("--captions", type=Path, metavar="FILE",
        help="for other folders: lines NAME<tab>CAPTION, or JSON lines with image and captions")
    add("--out", type=Path, required=True, metavar="FILE", help="the page, an .html file")
    add("--num", type=int, metavar="N", help="captions (default: 50, or all of fewer)")
    add("--checks", type=int, metavar="N",
        help="attention checks besides (default: a tenth, at least 2)")
    add("--seed", type=int, default=0, metavar="N", help="of captions and order (default: 0)")
    add("--image-size", type=int, default=256, metavar="N",
        help="side of all images in pixels (default: 256)")
    add("--title", metavar="TEXT", default=DEFAULT_TITLE, help="heading of the page")

    score = commands.add_parser("score", help="join the raters' files with the key")
    add = score.add_argument
    add("--key", type=Path, required=True, metavar="FILE", help="of create")
    add("--results", type=Path, nargs="+", required=True, metavar="PATH",
        help="raters' files, or folders of them")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for the report")
    add("--min-checks", type=float, metavar="SHARE", default=0.75,
        help="share of attention questions a rater has to get right (default: 0.75)")
    add("--bootstrap", type=int, default=2000, metavar="N",
        help="resamples for intervals (default: 2000)")
    add("--seed", type=int, default=0, metavar="N", help="of the resamples (default: 0)")
    # fmt: on
    return parser.parse_args()


def check_ranges(args: argparse.Namespace) -> None:
    """Refuse a number out of range, by its flag."""
    for name, (low, high) in _RANGES.items():
        value = getattr(args, name, None)
        if value is not None and not low <= value <= high:
            raise UserError(f"--{name.replace('_', '-')} is {value}: must be {low} to {high}")


def named_folder(text: str) -> tuple[str, Path]:
    """Split NAME=DIR."""
    name, _, folder = text.partition("=")
    if not name.strip() or not folder:
        raise DataError(f"--images {text}: must be NAME=DIR, as ours=images/a")
    return name.strip(), Path(folder)


def main() -> None:
    args = parse_args()
    check_ranges(args)
    if args.command == "create":
        page, key = write_page(
            read_models([*map(named_folder, args.images)], args.captions),
            args.out,
            num=args.num,
            checks=args.checks,
            seed=args.seed,
            image_size=args.image_size,
            title=args.title,
        )
        print(f"{page} ({page.stat().st_size / 1e6:.1f} MB): send it to raters, or open it")
        print(f"{key}: keep it to yourself, it says which model drew which image")
    else:
        numbers = {"min_share": args.min_checks, "resamples": args.bootstrap, "seed": args.seed}
        rich.print(Markdown(write_report(args.key, args.results, args.out, **numbers)))
        print(f"\nreport.md, report.json and ranks.png in {args.out}")


if __name__ == "__main__":
    run_cli(main)
