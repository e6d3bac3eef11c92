"""Generate images from your own captions with a trained model.

python scripts/generate.py --model emoji64 --caption "woman firefighter: dark skin tone" --out out/
python scripts/generate.py --workdir runs/quickstart --caption "a red circle" --out images/
python scripts/generate.py --workdir runs/coco --captions-file 30000.txt --num 1 --out samples.zip
"""

import argparse
import sys
import textwrap
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from xmcgan.data.tokenizer import Tokenizer
from xmcgan.errors import DataError, UserError, run_cli
from xmcgan.sampling.exploration import (
    check_video,
    interpolate_captions,
    interpolate_noise,
    write_video,
)
from xmcgan.sampling.grid import image_grid
from xmcgan.sampling.model_folder import load_from_flags
from xmcgan.sampling.sample_files import SampleWriter, check_writable
from xmcgan.sampling.sampler import TrainedModel, sample_noise
from xmcgan.utils import distributed
from xmcgan.utils.distributed import is_host0, use_compilation_cache
from xmcgan.utils.files import path_of

MAX_CAPTION_CHARACTERS = 2000  # more is a file given by mistake, not a caption
CHUNK = 64  # images in memory at once, 12 MB at 256 pixels
MAX_SEEDS = 100_000
GRID_IMAGES = 48  # first images that grid.png shows


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Images from your own captions: PNG files, a grid and a manifest."
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--workdir", type=path_of, metavar="DIR", help="of a training run")
    source.add_argument(
        "--model", metavar="NAME", help="a name such as emoji64, a folder, or hf:user/name"
    )
    parser.add_argument(
        "--caption", action="append", default=[], metavar="TEXT", help="one caption; repeatable"
    )
    parser.add_argument(
        "--captions-file", type=Path, metavar="FILE", help="a text file, one caption per line"
    )
    parser.add_argument(
        "--num", type=int, default=4, metavar="N", help="images per caption (default: 4)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the noise (default: 0)"
    )
    parser.add_argument(
        "--seeds",
        metavar="RANGE",
        help="an image per caption of each of these seeds instead of --seed and --num, such as "
        "0-29 or 3,8,10-12",
    )
    parser.add_argument(
        "--truncation",
        type=float,
        metavar="T",
        help="largest magnitude of noise values, for safer images that differ less "
        "(try 1; 0 is no noise; default: off)",
    )
    parser.add_argument(
        "--shared-noise",
        action="store_true",
        help="image i of every caption has the same noise, so that columns of the grid compare "
        "captions (default: each image has its own)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR|ZIP",
        help="folder for the images and grid.png, or a zip without a grid",
    )
    parser.add_argument(
        "--labels", action="store_true", help="say under each image of the grid which noise it has"
    )
    parser.add_argument(
        "--interpolate",
        action="store_true",
        help="a video of the way from each caption to the next one, or of one caption from each "
        "noise to the next one",
    )
    parser.add_argument(
        "--video",
        type=Path,
        metavar="FILE",
        help=".gif or .mp4 (which needs imageio-ffmpeg) of --interpolate (default: "
        "OUT/interpolation.gif)",
    )
    parser.add_argument(
        "--frames", type=int, default=24, metavar="N", help="of each way (default: 24)"
    )
    parser.add_argument(
        "--step", type=int, metavar="N", help="checkpoint of the workdir (default: the newest)"
    )
    parser.add_argument(
        "--raw",
        action="store_true",
        help="weights of that step of the workdir, not their moving average",
    )
    distributed.add_flags(parser)
    return parser.parse_args()


def read_captions(given: list[str], file: Path | None) -> list[str]:
    """Return the captions of the flags, then those of the file.

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
    """Warn of captions with more tokens than the model reads."""
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
        generate(args)


def read_seeds(text: str) -> list[int]:
    """Return the seeds of ranges such as `3,8,10-12`."""
    seeds: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        try:
            found = range(int(first), int(last or first) + 1)
        except ValueError:
            found = range(0)
        if not found or len(found) > MAX_SEEDS:
            raise UserError(
                f"--seeds {text}: {part!r} is no seed and no range of at most {MAX_SEEDS:,}, such "
                "as 0-29"
            )
        seeds += found
    return seeds


def generate(args: argparse.Namespace) -> None:
    """Sample on all devices of all processes; process 0 writes."""
    captions = read_captions(args.caption, args.captions_file)
    if args.num < 1 or args.seed < 0 or args.frames < 2:
        raise UserError("--num must be at least 1, --seed at least 0, --frames at least 2")
    seeds = read_seeds(args.seeds) if args.seeds else None
    args.num = len(seeds) if seeds else args.num
    total = len(captions) * args.num
    if is_host0():
        check_writable(args.out)
    if args.interpolate:
        interpolate(args, captions, seeds)
        return

    use_compilation_cache()
    model = load_from_flags(args.workdir, args.model, args.step, raw=args.raw)
    if is_host0():
        warn_of_cut(captions, model.sampler.tokenizer)
    rows = np.arange(total) % args.num if args.shared_noise or seeds else np.arange(total)
    noise = noise_of(args, seeds, rows.max() + 1, model)
    origin = {**model.origin, "seed": args.seed, "truncation": args.truncation}
    origin |= {"seeds": seeds} if seeds else {}
    # A row per caption; if each has one image, or there is one caption, rows of four.
    columns = min(args.num, 16) if min(args.num, len(captions)) > 1 else min(total, 4)
    shown: list[np.ndarray] = []
    with SampleWriter(args.out, total, origin) if is_host0() else nullcontext() as writer:
        for start in tqdm(range(0, total, CHUNK), unit="batch", disable=None, leave=False):
            numbers = range(start, min(start + CHUNK, total))
            texts = [captions[n // args.num] for n in numbers]
            images = model(texts, noise[rows[start : start + CHUNK]])
            if writer is not None:
                names = [f"{n // args.num:04d}_{n % args.num:02d}" for n in numbers]
                entries = [
                    {"caption": text, "noise": int(rows[n])}
                    for n, text in zip(numbers, texts, strict=True)
                ]
                writer.add(images, entries, names)
                shown.extend(images[: max(0, GRID_IMAGES - len(shown))])
    if not is_host0():
        return
    message = f"{total:,} images and manifest.json in {args.out}"
    if args.out.suffix != ".zip":
        in_grid = total if total <= GRID_IMAGES else GRID_IMAGES // columns * columns
        texts = [[captions[n // args.num]] for n in range(in_grid)]
        for text, row in zip(texts, rows.tolist() if args.labels else [], strict=False):
            text.append(f"seed {seeds[row]}" if seeds else f"noise {row}")
        image_grid(np.stack(shown[:in_grid]), texts, columns).save(args.out / "grid.png")
        message += f"; the first {in_grid} in grid.png" if in_grid < total else ", all in grid.png"
    print(message)


def noise_of(
    args: argparse.Namespace, seeds: list[int] | None, num: int, model: TrainedModel
) -> Float[np.ndarray, "n z"]:
    """Return the noise of --seeds, or `num` rows of --seed."""
    z_dim = model.sampler.generator.z_dim
    if seeds:
        return np.concatenate([sample_noise(seed, 1, z_dim, args.truncation) for seed in seeds])
    return sample_noise(args.seed, num, z_dim, args.truncation)


def interpolate(args: argparse.Namespace, captions: list[str], seeds: list[int] | None) -> None:
    """Write a video of ways between captions under one noise, or between noises."""
    file = args.video or args.out / "interpolation.gif"
    check_video(file)
    if args.out.suffix == ".zip":
        raise UserError("--interpolate writes a video: give a folder as --out")
    if len(captions) == 1 and args.num == 1:
        raise UserError("--interpolate needs two captions, or one and --num or --seeds of 2 noises")
    use_compilation_cache()
    model = load_from_flags(args.workdir, args.model, args.step, raw=args.raw)
    noise = noise_of(args, seeds, args.num, model)
    ways = []
    if len(captions) > 1:
        z = np.repeat(noise[:1], args.frames, axis=0)
        for start, end in pairwise(captions):
            ways.append(interpolate_captions(model, start, end, z))
    else:
        for start, end in pairwise(noise):
            z = interpolate_noise(start, end, args.frames)
            ways.append(model(captions * args.frames, z))
    if is_host0():
        images = np.concatenate([ways[0], *(way[1:] for way in ways[1:])])  # ends meet
        write_video(file, images, seconds=2.0 * len(ways))
        print(f"{len(images)} images in {file}")


if __name__ == "__main__":
    run_cli(main)
