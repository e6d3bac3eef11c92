"""Semantic object accuracy: sample its captions, and score what was detected.

python scripts/soa.py generate --workdir runs/coco \\
    --captions SOA/captions --out soa/
python scripts/soa.py score --samples soa/ --detections soa/detections

Between the two the authors' script runs YOLOv3 (docs/evaluation.md). Nothing in
a pickle is run. Exit status: 0 done, 2 a mistake (named).
"""

import argparse
import json
from pathlib import Path
from typing import Any

from weight_formats.safe_pickle import read_values

from xmcgan.errors import EvaluationError, UserError, run_cli
from xmcgan.evaluation import soa
from xmcgan.sampling.model_folder import load_from_flags
from xmcgan.utils import distributed
from xmcgan.utils.distributed import is_host0, use_compilation_cache
from xmcgan.utils.files import path_of, write_text, writing
from xmcgan.utils.provenance import provenance
from xmcgan.utils.tables import aligned_table

# Boxes are NumPy arrays, in names of all versions; no score reads them.
_ARRAYS = [
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core")
      for name in ("_reconstruct", "scalar")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
]  # fmt: skip
_TITLES = {
    "soa_c": "SOA-C",
    "soa_i": "SOA-I",
    "soa_c_top40": "SOA-C of the 40 labels with most images",
    "soa_c_bottom40": "SOA-C of the 40 with fewest",
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)

    # fmt: off
    generate = commands.add_parser("generate", help="sample images for the captions of all labels")
    source = generate.add_mutually_exclusive_group(required=True)
    source.add_argument("--workdir", type=path_of, metavar="DIR", help="of a training run")
    source.add_argument("--model", metavar="NAME",
                        help="a name such as emoji64, a folder, or hf:user/name")
    add = generate.add_argument
    add("--captions", type=Path, required=True, metavar="DIR",
        help="the authors' SOA/captions: label_XX_NAME.pkl, or the same as .json")
    add("--out", type=Path, required=True, metavar="DIR",
        help="folder for images/ and manifest.json; the same command continues one")
    add("--num", type=int, default=soa.IMAGES_PER_CAPTION, metavar="N",
        help="images per caption (default: 3; of label_00_person always 1)")
    add("--max-captions", type=int, metavar="N",
        help="random captions per label, for a trial (default: all, 30,000 of label_00_person)")
    add("--seed", type=int, default=0, metavar="N", help="of captions and noise (default: 0)")
    add("--truncation", type=float, metavar="T",
        help="largest magnitude of noise values (default: off)")
    add("--step", type=int, metavar="N", help="checkpoint of the workdir (default: the newest)")
    add("--raw", action="store_true",
        help="weights of that step of the workdir, not their moving average")
    distributed.add_flags(generate)

    score = commands.add_parser("score", help="SOA-C and SOA-I from a detector's results")
    add = score.add_argument
    add("--samples", type=Path, required=True, metavar="DIR",
        help="of generate, or any folder of label_XX_NAME/ with images")
    add("--detections", type=Path, required=True, metavar="PATH",
        help="folder of the authors' detected_LABEL.pkl, or {label: {image: [class]}} as .json")
    add("--json", action="store_true", help="print one JSON object")
    # fmt: on
    return parser.parse_args()


def read(path: Path) -> Any:
    """Return the values of a caption or detection file."""
    return read_values(path, _ARRAYS) if path.suffix == ".pkl" else soa.read_values(path)


def generate(args: argparse.Namespace) -> None:
    """Sample on all devices of all processes; process 0 writes."""
    if args.num < 1 or args.seed < 0 or (args.max_captions is not None and args.max_captions < 1):
        raise UserError("--num and --max-captions must be at least 1, --seed at least 0")
    captions = soa.read_captions(args.captions, read)
    options = {"num": args.num, "seed": args.seed, "max_captions": args.max_captions}
    labels = soa.plan_samples(captions, **options)
    use_compilation_cache()
    model = load_from_flags(args.workdir, args.model, args.step, raw=args.raw)
    manifest = {
        **model.origin,
        "seed": args.seed,
        "truncation": args.truncation,
        "images_per_caption": args.num,
        "max_captions": args.max_captions,
        "labels": labels,
    }
    total = soa.write_samples(model, args.out, manifest)
    if is_host0():
        print(f"{total:,} images of {len(labels)} labels in {args.out / soa.IMAGES}")


def score(args: argparse.Namespace) -> None:
    """Print the scores, and write them beside the detections."""
    scores = soa.score(args.samples, args.detections, read)
    result = json.dumps(scores | provenance(), indent=2, ensure_ascii=False)
    folder = args.detections if args.detections.is_dir() else args.detections.parent
    with writing(folder / soa.RESULT, EvaluationError):
        write_text(folder / soa.RESULT, result + "\n")
    if args.json:
        print(result)
        return
    rows = [["label", "accuracy", "recognized", "images"]]
    for name, each in scores["labels"].items():
        rows.append([name, f"{each['accuracy']:.4f}", *(f"{each[k]:,}" for k in rows[0][2:])])
    print("\n".join(aligned_table(rows)) + "\n")
    for key, title in _TITLES.items():
        if scores[key] is not None:
            print(f"{title}: {scores[key]:.4f}")
    for note in scores["notes"]:
        print(f"note: {note}; not comparable with published scores")
    print(f"{folder / soa.RESULT} has all of this")


def main() -> None:
    args = parse_args()
    if args.command == "score":
        score(args)
        return
    with distributed.session(args):
        generate(args)


if __name__ == "__main__":
    run_cli(main)
