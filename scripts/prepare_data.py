"""Prepare a data set for training, and look at one.

    python scripts/prepare_data.py emoji
    python scripts/prepare_data.py shapes
    python scripts/prepare_data.py folder --source my_photos/ --name my_photos
    python scripts/prepare_data.py coco --source coco/
    python scripts/prepare_data.py ln_coco --source narratives/ --source coco/
    python scripts/prepare_data.py ln_open_images --source open_images/
    python scripts/prepare_data.py show emoji --out sheet.png

`--download` fetches the official files of the paper's three data sets; nothing
else uses the network. Running a command again is safe: a prepared data set is
left as it is, a download goes on where it ended. `show` writes images of a
prepared data set with their captions. Exit status: 0 done, 2 a mistake (named).
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from xmcgan.data import DATA_SETS, DataSet
from xmcgan.data.folder import default_name
from xmcgan.data.readers import USUAL_COLUMNS, Columns
from xmcgan.data.records import MAX_WORKERS, describe
from xmcgan.errors import ConfigError, run_cli
from xmcgan.sampling.grid import contact_sheet
from xmcgan.shapes.dataset import NUM_TRAIN, NUM_VALIDATION
from xmcgan.shapes.scene import MAX_OBJECTS
from xmcgan.utils.files import atomic_file
from xmcgan.utils.registry import find


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="dataset", required=True, metavar="DATA")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--data-dir", type=Path, default=Path("data"), metavar="DIR", help="(default: data/)"
    )

    commands.add_parser("emoji", parents=[common], help="emoji with their names as captions")

    shapes = commands.add_parser("shapes", parents=[common], help="drawn scenes with captions")
    shapes.add_argument("--name", default="", help="to keep several sizes side by side")
    for flag, default, text in (
        ("--num-train", NUM_TRAIN, "images to train on"),
        ("--num-validation", NUM_VALIDATION, "images held out"),
        ("--max-objects", MAX_OBJECTS, "of a scene"),
        ("--seed", 0, "of all scenes"),
    ):
        text = f"{text} (default: {default:,})"
        shapes.add_argument(flag, type=int, default=default, metavar="N", help=text)

    folder = commands.add_parser("folder", parents=[common], help="your own captioned images")
    folder.add_argument(
        "--source",
        type=Path,
        required=True,
        metavar="PATH",
        help="a directory, .zip, .tar or .parquet",
    )
    folder.add_argument(
        "--captions", type=Path, metavar="FILE", help="JSON lines, CSV or TSV outside the source"
    )
    for kind, usual in USUAL_COLUMNS.items():
        text = f"of CSV, Parquet, metadata.jsonl (default: {' or '.join(usual)})"
        folder.add_argument(f"--{kind}-column", default="", metavar="NAME", help=text)
    folder.add_argument("--name", help="(default: the source's name)")
    _add_official(commands, common)

    show = commands.add_parser("show", parents=[common], help="a contact sheet of a data set")
    show.add_argument(
        "name", metavar="NAME", help="such as emoji, folder/mine, or my_module:MyDataSet"
    )
    show.add_argument(
        "--field",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a field of your own data set, as in data.fields; repeatable",
    )
    show.add_argument("--out", type=Path, required=True, metavar="FILE", help="a .png")
    show.add_argument("--split", default="train", help="(default: train)")
    show.add_argument("--num", type=int, metavar="N", help="images (default: up to 24)")
    show.add_argument("--seed", type=int, default=0, metavar="N", help="of the choice (default: 0)")
    return parser


def _add_official(commands: argparse._SubParsersAction, common: argparse.ArgumentParser) -> None:
    official = argparse.ArgumentParser(add_help=False)
    official.add_argument(
        "--source",
        type=Path,
        metavar="PATH",
        action="append",
        default=[],
        help="a directory or .zip with captions or images; repeatable",
    )
    official.add_argument(
        "--download", action="store_true", help="fetch the official files to DATA_DIR/downloads"
    )
    official.add_argument("--name", default="", help="to keep several side by side")
    official.add_argument(
        "--num-workers",
        type=int,
        default=0,
        metavar="N",
        help=f"processes that write (default: cores, up to {MAX_WORKERS})",
    )
    official.add_argument(
        "--skip-damaged",
        action="store_true",
        help="leave out images that cannot be decoded, and count them",
    )
    parents = [common, official]
    coco = commands.add_parser("coco", parents=parents, help="COCO's images and captions")
    coco.add_argument("--year", choices=("2014", "2017"), default="", help="where both are there")
    coco.add_argument(
        "--karpathy",
        type=Path,
        metavar="FILE",
        help="take the splits of this dataset_coco.json; the name is then karpathy",
    )
    commands.add_parser("ln_coco", parents=parents, help="Localized Narratives of COCO")
    commands.add_parser(
        "ln_open_images", parents=parents, help="Localized Narratives of Open Images"
    )


def _prepare(args: argparse.Namespace) -> None:
    """Prepare a data set and print what it holds."""
    data_set = find(args.dataset, DATA_SETS, "data set")
    variant, options = getattr(args, "name", "") or "", {}
    if args.dataset == "emoji":
        contents = data_set.embedded(variant)
    elif args.dataset == "shapes":
        contents = data_set.read(
            num_train=args.num_train,
            num_validation=args.num_validation,
            max_objects=args.max_objects,
            seed=args.seed,
        )
    elif args.dataset == "folder":
        variant = variant or default_name(args.source)
        columns = Columns(args.image_column, args.caption_column, args.split_column)
        contents = data_set.read(args.source, args.captions, columns)
    else:
        variant, contents = _read_official(data_set, args)
        options = {"num_workers": args.num_workers, "skip_damaged": args.skip_damaged}
    built = data_set.write(contents, args.data_dir, variant, **options)
    name = f"{args.dataset}/{variant}" if variant else args.dataset
    print(f"{name} {'is ready' if built else 'was prepared before'}:")
    print(describe(data_set, contents, args.data_dir, variant))


def _read_official(data_set: Any, args: argparse.Namespace) -> tuple[str, Any]:
    """Return the variant's name and the contents of one of the paper's data sets."""
    if not args.source and not args.download:
        raise ConfigError("give --source DIR, or --download to fetch the official files")
    if args.num_workers < 0:
        raise ConfigError(f"--num-workers is {args.num_workers}; it must be 0 or more")
    sources = list(args.source)
    if args.download:
        sources.append(args.data_dir / "downloads" / args.dataset)
        data_set.download(sources[-1])
    if args.dataset != "coco":
        return args.name, data_set.read(sources)
    variant = args.name or ("karpathy" if args.karpathy else "")
    return variant, data_set.read(sources, year=args.year, karpathy=args.karpathy)


def _show(args: argparse.Namespace) -> None:
    """Write a contact sheet of images that are chosen at random."""
    if args.out.suffix.lower() != ".png":
        raise ConfigError(f"--out {args.out} must end in .png")
    if args.seed < 0:
        raise ConfigError(f"--seed is {args.seed}; it must be 0 or more")
    if wrong := [field for field in args.field if "=" not in field]:
        raise ConfigError(f"--field {wrong[0]} must be NAME=VALUE")
    fields = dict(field.split("=", 1) for field in args.field)
    fields = {name: _value(text) for name, text in fields.items()}
    data_set = DataSet(args.name, args.data_dir, **fields)
    data_set.prepare()
    source = data_set.load(args.split)
    images = source.one_per_image()
    num = min(24, len(images)) if args.num is None else args.num
    if not 1 <= num <= len(images):
        raise ConfigError(
            f"--num is {num}; split {args.split!r} of {args.name} has {len(images):,} images"
        )
    chosen = np.random.default_rng(args.seed).choice(images, num, replace=False)
    what = f"{num} of {len(images):,} images of {args.name}, split {args.split}"
    sheet = contact_sheet([source[int(index)] for index in chosen], title=what)
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(args.out) as file:
            sheet.save(file, "PNG")
    except OSError as error:
        raise ConfigError(f"cannot write --out {args.out}: {error.strerror}") from error
    print(f"{what}: {args.out}")


def _value(text: str) -> Any:
    """Return a number or another value of JSON, else the text as it is."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def main() -> None:
    """Parse flags, prepare the data set and print what it holds."""
    args = _parser().parse_args()
    if args.dataset == "show":
        _show(args)
    else:
        _prepare(args)


if __name__ == "__main__":
    run_cli(main)
