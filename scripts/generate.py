"""Draw images from your own captions with a trained model.

python scripts/generate.py --model emoji64 --caption "woman firefighter: dark skin tone" --out out/
python scripts/generate.py --workdir runs/quickstart --caption "a red circle" --out images/
"""

import argparse
import sys
import textwrap
from pathlib import Path

import numpy as np
from PIL import Image

from xmcgan.data.tokenizer import Tokenizer
from xmcgan.errors import DataError, UserError, run_cli
from xmcgan.sampling.grid import sample_grid
from xmcgan.sampling.model_folder import load_from_flags
from xmcgan.sampling.sampler import draw_noise, write_manifest
from xmcgan.utils import distributed
from xmcgan.utils.distributed import is_host0, use_compilation_cache

MAX_CAPTION_CHARACTERS = 2000  # more is a file given by mistake, not a caption


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Draw images from your own captions: PNG files, a grid and a manifest."
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--workdir", type=Path, metavar="DIR", help="of a training run")
    source.add_argument(
        "--model", metavar="NAME", help="a model that comes with the repository, or its folder"
    )
    parser.add_argument(
        "--caption", action="append", default=[], metavar="TEXT", help="one caption; repeatable"
    )
    parser.add_argument(
        "--captions-file", type=Path, metavar="FILE", help="a text file, one caption a line"
    )
    parser.add_argument(
        "--num", type=int, default=4, metavar="N", help="images a caption (default: 4)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the noise (default: 0)"
    )
    parser.add_argument(
        "--truncation",
        type=float,
        metavar="T",
        help="draw noise values beyond this anew, for safer images that differ less "
        "(try 1; 0 is no noise; default: off)",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for the images"
    )
    parser.add_argument(
        "--step", type=int, metavar="N", help="checkpoint of the workdir (default: the newest)"
    )
    parser.add_argument(
        "--raw",
        action="store_true",
        help="the weights of that step of the workdir, not their moving average",
    )
    distributed.add_flags(parser)
    return parser.parse_args()


def read_captions(given: list[str], file: Path | None) -> list[str]:
    """Join the captions of the flags and of the file, in this order.

    Raises:
        DataError: there are none, or one is empty, far too long, or not text.
    """
    named = [(f"--caption {index}", text) for index, text in enumerate(given, start=1)]
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise DataError(f"cannot read {file}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise DataError(f"{file} is not a UTF-8 text file") from None
        numbered = enumerate(lines, start=1)
        named += [(f"{file} line {index}", text) for index, text in numbered if text.strip()]
    for place, text in named:
        if not text.strip():
            raise DataError(f"{place} is empty")
        if "\0" in text or len(text) > MAX_CAPTION_CHARACTERS:
            raise DataError(
                f"{place} is not a caption: it has {len(text):,} characters (at most "
                f"{MAX_CAPTION_CHARACTERS:,}) or a NUL among them"
            )
    if not named:
        raise DataError("no captions: give --caption or --captions-file")
    return [text.strip() for _, text in named]


def warn_of_cut(captions: list[str], tokenizer: Tokenizer) -> None:
    """Say how far captions are read that are longer than the model's."""
    for caption in filter(tokenizer.is_cut, captions):
        last = tokenizer.name_words(caption)[0][-2]  # before [SEP]
        print(
            f"warning: the model reads {tokenizer.max_tokens - 2} word pieces of a caption; "
            f"{textwrap.shorten(caption, 50)!r} is cut after {last!r}",
            file=sys.stderr,
        )


def main() -> None:
    args = parse_args()
    with distributed.session(args):
        draw(args)


def draw(args: argparse.Namespace) -> None:
    """Draw on all devices of all processes; process 0 writes."""
    captions = read_captions(args.caption, args.captions_file)
    if args.num < 1 or args.seed < 0:
        raise UserError("--num must be at least 1 and --seed at least 0")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to --out {args.out}: {error.strerror}") from None

    use_compilation_cache()
    model = load_from_flags(args.workdir, args.model, args.step, raw=args.raw)
    if is_host0():
        warn_of_cut(captions, model.tokenizer)
    repeated = [caption for caption in captions for _ in range(args.num)]
    # One row of noise an image of a caption, shared by all captions: columns of the grid differ
    # in noise, rows in caption.
    z = draw_noise(args.seed, args.num, model.config.generator.z_dim, args.truncation)
    images = model(repeated, np.tile(z, (len(captions), 1)))
    if not is_host0():
        return

    files = [f"{i // args.num:04d}_{i % args.num:02d}.png" for i in range(len(images))]
    for name, image in zip(files, images, strict=True):
        Image.fromarray(image).save(args.out / name)
    # A row per caption; where each has one image, or there is one caption, rows of four.
    columns = args.num if min(args.num, len(captions)) > 1 else min(len(images), 4)
    sample_grid(images, repeated, columns=columns).save(args.out / "grid.png")
    write_manifest(
        args.out / "manifest.json",
        {
            **model.origin,
            "seed": args.seed,
            "truncation": args.truncation,
            "images": [
                {"file": name, "caption": caption, "noise": i % args.num}
                for i, (name, caption) in enumerate(zip(files, repeated, strict=True))
            ],
        },
    )
    print(f"{len(images)} images, grid.png and manifest.json in {args.out}")


if __name__ == "__main__":
    run_cli(main)
