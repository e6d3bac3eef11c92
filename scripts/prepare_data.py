"""Prepare a data set for training; nothing is downloaded.

    python scripts/prepare_data.py shapes
    python scripts/prepare_data.py folder --source my_photos/ --name my_photos

Running it again is safe: a prepared data set is left as it is.
"""

import argparse
from pathlib import Path

from xmcgan.data.prepare import default_name, prepare_folder, prepare_shapes
from xmcgan.data.shapes import ShapesConfig
from xmcgan.data.sources import find_version, list_splits
from xmcgan.errors import run_cli


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="dataset", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--data-dir", type=Path, default=Path("data"), help="default: data/")

    defaults = ShapesConfig(name="default")
    shapes = commands.add_parser("shapes", parents=[common], help="drawn scenes with captions")
    shapes.add_argument("--name", default="default", help="to keep several sizes side by side")
    shapes.add_argument("--num-train", type=int, default=defaults.num_train)
    shapes.add_argument("--num-validation", type=int, default=defaults.num_validation)
    shapes.add_argument("--seed", type=int, default=defaults.seed)

    folder = commands.add_parser("folder", parents=[common], help="your own captioned images")
    folder.add_argument("--source", type=Path, required=True, help="a directory or a .zip")
    folder.add_argument("--captions", type=Path, help="JSON lines outside the source")
    folder.add_argument("--name", help="default: the source's name")
    return parser


def main() -> None:
    """Parse flags, prepare the data set and print what it holds."""
    args = _parser().parse_args()
    if args.dataset == "shapes":
        config = ShapesConfig(
            name=args.name,
            num_train=args.num_train,
            num_validation=args.num_validation,
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
