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
from pathlib import Path

import numpy as np

from xmcgan.data.prepare import (
    OFFICIAL,
    default_name,
    download_official,
    ensure_prepared,
    official_summary,
    prepare_emoji,
    prepare_folder,
    prepare_official,
    prepare_shapes,
    read_official,
)
from xmcgan.data.sources import find_version, list_splits, load_source
from xmcgan.errors import ConfigError, run_cli
from xmcgan.sampling.grid import contact_sheet
from xmcgan.shapes.dataset import ShapesConfig
from xmcgan.utils.files import atomic_file


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="dataset", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--data-dir", type=Path, default=Path("data"), metavar="DIR", help="(default: data/)"
    )

    commands.add_parser("emoji", parents=[common], help="emoji with their names as captions")

    defaults = ShapesConfig(name="default")
    shapes = commands.add_parser("shapes", parents=[common], help="drawn scenes with captions")
    shapes.add_argument("--name", default="default", help="to keep several sizes side by side")
    for flag, default, text in (
        ("--num-train", defaults.num_train, "images to train on"),
        ("--num-validation", defaults.num_validation, "images held out"),
        ("--max-objects", defaults.max_objects, "of a scene"),
        ("--seed", defaults.seed, "of all scenes"),
    ):
        text = f"{text} (default: {default:,})"
        shapes.add_argument(flag, type=int, default=default, metavar="N", help=text)

    folder = commands.add_parser("folder", parents=[common], help="your own captioned images")
    folder.add_argument(
        "--source", type=Path, required=True, metavar="PATH", help="a directory or a .zip"
    )
    folder.add_argument(
        "--captions", type=Path, metavar="FILE", help="JSON lines outside the source"
    )
    folder.add_argument("--name", help="(default: the source's name)")
    _add_official(commands, common)

    show = commands.add_parser("show", parents=[common], help="a contact sheet of a data set")
    show.add_argument("name", metavar="NAME", help="such as emoji, shapes/single, folder/mine")
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
    official.add_argument("--name", help="to keep several side by side (default: default)")
    official.add_argument(
        "--num-workers",
        type=int,
        default=0,
        metavar="N",
        help="processes that write (default: cores, up to 3)",
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


def _prepare_official(args: argparse.Namespace) -> None:
    """Prepare one of the paper's data sets and print what it holds."""
    if not args.source and not args.download:
        raise ConfigError("give --source DIR, or --download to fetch the official files")
    if args.num_workers < 0:
        raise ConfigError(f"--num-workers is {args.num_workers}; it must be 0 or more")
    karpathy = getattr(args, "karpathy", None)
    sources = list(args.source)
    if args.download:
        folder = download_official(args.dataset, args.data_dir / "downloads", progress=True)
        sources.append(folder)
    data = read_official(args.dataset, sources, year=getattr(args, "year", ""), karpathy=karpathy)
    name = args.name or ("karpathy" if karpathy else "default")
    built = prepare_official(
        args.dataset,
        data,
        args.data_dir,
        name=name,
        num_workers=args.num_workers,
        skip_damaged=args.skip_damaged,
        progress=True,
    )
    print(f"{args.dataset}/{name} {'is ready' if built else 'was prepared before'}:")
    print(official_summary(args.dataset, data, name, args.data_dir))


def _show(args: argparse.Namespace) -> None:
    """Write a contact sheet of images that are chosen at random."""
    if args.out.suffix.lower() != ".png":
        raise ConfigError(f"--out {args.out} must end in .png")
    if args.seed < 0:
        raise ConfigError(f"--seed is {args.seed}; it must be 0 or more")
    ensure_prepared(args.name, args.data_dir, progress=True)
    source = load_source(args.name, args.data_dir, args.split)
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


def main() -> None:
    """Parse flags, prepare the data set and print what it holds."""
    args = _parser().parse_args()
    if args.dataset == "show":
        _show(args)
        return
    if args.dataset in OFFICIAL:
        _prepare_official(args)
        return
    if args.dataset == "emoji":
        built, name = prepare_emoji(args.data_dir, progress=True), "emoji"
    elif args.dataset == "shapes":
        config = ShapesConfig(
            name=args.name,
            num_train=args.num_train,
            num_validation=args.num_validation,
            max_objects=args.max_objects,
            seed=args.seed,
        )
        built, name = prepare_shapes(args.data_dir, config, progress=True), f"shapes/{args.name}"
    else:
        folder_name = args.name or default_name(args.source)
        built, summary = prepare_folder(
            args.source, args.data_dir, name=folder_name, captions=args.captions, progress=True
        )
        name = f"folder/{folder_name}"
        print(summary)
    print(f"{name} {'is ready' if built else 'was prepared before'}:")
    for split, num_examples in list_splits(name, args.data_dir).items():
        print(f"  {split:<12}{num_examples:>9,} examples")
    print(f"  in {find_version(name, args.data_dir)}")


if __name__ == "__main__":
    run_cli(main)
