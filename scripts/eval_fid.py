"""Score the checkpoints of a training run, or images against images.

python scripts/eval_fid.py --workdir runs/quickstart
python scripts/eval_fid.py --workdir runs/coco --watch \\
    --protocols fid-2015 --weights fid-2015=FILE
python scripts/eval_fid.py --model emoji64 --num-samples 320
python scripts/eval_fid.py report --workdir runs/quickstart
python scripts/eval_fid.py compare REAL FAKE --protocol fd-effnet-lite2
python scripts/eval_fid.py features IMAGES --protocol fid-2015 --out F.npz
python scripts/eval_fid.py stats IMAGES --protocol fid-2015 --out S.npz

Exit status: 0 done, 2 a mistake (named), 130 and 143 stopped by a signal; whole
results stay.
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from xmcgan.data import DataSet
from xmcgan.data.images import RESIZE_MODES
from xmcgan.errors import EvaluationError, run_cli
from xmcgan.evaluation import evaluator
from xmcgan.evaluation.folders import Options, compare, write
from xmcgan.evaluation.metrics import METRICS
from xmcgan.evaluation.protocols import DEFAULT_PROTOCOL, PROTOCOLS, get_protocol
from xmcgan.evaluation.results import score_lines, score_table, write_report
from xmcgan.evaluation.watch import EvaluationJob
from xmcgan.sampling.model_folder import find_model, load_model
from xmcgan.sampling.sample_files import check_writable
from xmcgan.training.command_line import read_overrides
from xmcgan.utils import distributed
from xmcgan.utils.distributed import (
    is_host0,
    raise_on_all,
    require_same,
    use_compilation_cache,
    use_cpu_cores_as_devices,
)
from xmcgan.utils.files import path_of


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    _add_job_flags(parser)
    distributed.add_flags(parser)
    commands = parser.add_subparsers(dest="command", title="without or after a training run")
    report = commands.add_parser("report", help="table, curves and manifest of a run's scores")
    report.add_argument(
        "--workdir", type=path_of, required=True, metavar="DIR", help="of an evaluated run"
    )
    images = argparse.ArgumentParser(add_help=False)
    _add_image_flags(images)
    # Suppressed, or the defaults of a command would undo flags before it.
    processes = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    distributed.add_flags(processes)

    scoring = commands.add_parser(
        "compare", parents=[images, processes], help="score a set of images against a reference"
    )
    scoring.add_argument("real", type=Path, help="the reference: a directory, zip, or .npz")
    scoring.add_argument("fake", type=Path, help="what is scored: a directory, zip, or .npz")
    scoring.add_argument(
        "--bootstrap",
        type=int,
        metavar="N",
        default=20,
        dest="resamples",
        help="resamples for the 95%% intervals, 0 for none (default: 20)",
    )
    scoring.add_argument("--json", action="store_true", help="print one JSON object")
    scoring.add_argument(
        "--allow-foreign-statistics",
        action="store_true",
        help="accept a .npz that does not say how it was made (of pytorch-fid: give --protocol "
        "fid-pytorch; of TTUR: fid-2015)",
    )
    for name, purpose in (
        ("features", "write names, features and logits"),
        ("stats", "write mean, covariance, count and recipe"),
    ):
        writing = commands.add_parser(
            name, parents=[images, processes], help=f"{purpose} to a .npz"
        )
        writing.add_argument("images", type=Path, help="a directory or a zip")
        writing.add_argument(
            "--out", type=Path, required=True, metavar="FILE", help="the .npz to write"
        )
    args, rest = parser.parse_known_args()
    args.overrides = read_overrides(parser, rest)
    return args


def _add_job_flags(parser: argparse.ArgumentParser) -> None:
    job = parser.add_argument_group("the checkpoints of a run")
    add = job.add_argument
    add("--workdir", type=path_of, metavar="DIR", help="of a training run, finished or going on")
    add(
        "--model",
        metavar="NAME",
        help="a model instead (folder, name, hf:user/name): its scores are printed",
    )
    add(
        "--step",
        type=int,
        metavar="N",
        action="append",
        help="a checkpoint; repeatable (default: all)",
    )
    add("--watch", action="store_true", help="wait for more, until the run's end")
    add("--every", type=int, metavar="N", help="steps that N divides, and the last one, only")
    add("--newest-first", action="store_true", help="not the oldest checkpoint first")
    add(
        "--protocols",
        "--protocol",
        nargs="+",
        metavar="P",
        help=f"{', '.join(PROTOCOLS)} (default: of the config, or {DEFAULT_PROTOCOL}); the first "
        "tells the best",
    )
    add(
        "--metrics",
        nargs="+",
        metavar="M",
        help=f"quality, {', '.join(METRICS)}, a name of config.evaluation, or module:Class of your "
        "own (default: config.evaluation, or else quality, retrieval from 100 images, diversity)",
    )
    add(
        "--num-samples",
        type=int,
        metavar="N",
        help="captions (default: of the config, or 30,000, or all of fewer)",
    )
    add(
        "--repeat-captions",
        action="store_true",
        default=None,
        help="with other noise, if there are fewer than N",
    )
    add("--draws", type=int, metavar="K", help="mean over K sets of captions and noise (1)")
    add(
        "--save-samples",
        type=Path,
        metavar="DIR|ZIP",
        help="write the very images that are scored, with their captions",
    )
    add("--use", choices=("ema", "raw", "both"), default="both", help="weights (default: both)")
    add(
        "--weights",
        action="append",
        default=[],
        metavar="P=FILE",
        dest="job_weights",
        help="of a protocol's network; repeatable",
    )
    add(
        "--clip",
        metavar="DIR",
        dest="clip_weights",
        help="CLIP ViT-B/32: CLIPScore and R-precision",
    )
    add("--cmmd", metavar="DIR", dest="cmmd_weights", help="CLIP ViT-L/14 at 336 pixels: CMMD")
    _add_common_flags(job, "of captions and noise (default: 0)")
    add("--split", default="", help="of captions, images (default: held out)")
    add("--reference-split", default="", metavar="SPLIT", help="of images, if it is another one")
    add(
        "--allow-training-references",
        action="store_true",
        help="also if a reference split was trained on",
    )
    add(
        "--bootstrap",
        type=int,
        default=50,
        metavar="N",
        dest="resamples",
        help="resamples for intervals (50)",
    )
    add("--cache-dir", type=Path, metavar="DIR", help="(default: DATA_DIR/evaluation)")
    add(
        "--config.evaluation.FIELD",
        metavar="VALUE",
        dest="ignored",
        help="another value than the run's, such as --config.evaluation.num_references=30000",
    )


def _add_image_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--protocol", required=True, metavar="P", help=", ".join(PROTOCOLS))
    add("--weights", metavar="FILE", help="the network's weights")
    add("--image-size", type=int, metavar="N", help="side in pixels to bring images to first")
    add("--resize", choices=RESIZE_MODES, default="crop", help="to squares (default: crop)")
    add("--num-samples", type=int, metavar="N", help="images of each set, at random")
    _add_common_flags(parser, "of all that is random (default: 0)")


def _add_common_flags(parser: Any, seed: str) -> None:
    add = parser.add_argument
    add(
        "--allow-unverified-weights",
        action="store_true",
        dest="allow_unverified",
        help="accept another file than the published one",
    )
    add("--seed", type=int, default=0, metavar="N", help=seed)
    add("--batch-size", type=int, metavar="N", help="images at once (default: fits the devices)")


def _check_numbers(args: argparse.Namespace) -> None:
    lowest_of = {"image_size": 8, "num_samples": 1, "batch_size": 1, "seed": 0, "draws": 1}
    for flag, lowest in (lowest_of | {"every": 1}).items():
        value = getattr(args, flag, None)
        if value is not None and value < lowest:
            raise EvaluationError(f"--{flag.replace('_', '-')} is {value}: at least {lowest}")


def _options(kind: type, args: argparse.Namespace, **others: Any) -> Any:
    """Options of a class from the flags of the same names, and others."""
    names = {field.name for field in dataclasses.fields(kind)}
    return kind(**{name: vars(args)[name] for name in names & vars(args).keys()} | others)


def _job_options(args: argparse.Namespace) -> evaluator.Options:
    for override in args.overrides:
        if not override.startswith("evaluation."):
            raise EvaluationError(
                f"--config.{override}: a score can change the fields of config.evaluation only"
            )
    weights = {}
    for item in args.job_weights:
        name, equals, path = item.partition("=")
        if not equals or not path:
            raise EvaluationError(f"--weights {item}: must be PROTOCOL=FILE, as fid-2015=w.pth")
        weights[get_protocol(name).name] = path
    return _options(
        evaluator.Options,
        args,
        protocols=args.protocols and [get_protocol(name).name for name in args.protocols],
        metrics=args.metrics and [name for names in args.metrics for name in names.split(",")],
        network_weights=weights,
        weights=("ema", "raw") if args.use == "both" else (args.use,),
    )


def run_job(args: argparse.Namespace) -> str:
    """Evaluate checkpoints; return the message."""
    with raise_on_all():
        options = _job_options(args)
        if args.workdir is None:
            raise EvaluationError("give --workdir DIR, or one of: report, compare, features, stats")
        if args.step and args.watch:
            raise EvaluationError("--step is for one checkpoint, --watch for all: give one")
        if args.step and args.every:
            raise EvaluationError("--step and --every both choose checkpoints: give one")
    job = EvaluationJob(
        args.workdir,
        options,
        every=args.every or 1,
        newest_first=args.newest_first,
        save_samples=args.save_samples,
    )
    added = job.run(args.step, watch=args.watch)
    return (
        f"{added} new results in {args.workdir / 'evaluation' / 'results.jsonl'}\n"
        f"for a table and curves: python scripts/eval_fid.py report --workdir {args.workdir}"
    )


def run_model(args: argparse.Namespace) -> str:
    """Score a model folder; return the table."""
    with raise_on_all():
        options = _job_options(args)
        if args.workdir or args.step or args.watch or args.every:
            raise EvaluationError(
                "--model is scored alone: leave out --workdir, --step, --watch and --every"
            )
        if args.save_samples:
            check_writable(args.save_samples)
        folder = find_model(args.model)
        model = load_model(folder)
        if is_host0():
            data = model.config.data
            DataSet(data.name, data.data_dir, **data.fields).prepare()
    evaluation = evaluator.Evaluator(folder, options)
    scores = evaluation.score(model.variables, args.model, args.save_samples)
    lines = score_lines(scores) if scores else []  # process 0 has them
    manifest = evaluation.manifest
    of = f"{len(manifest.choices)} captions of {manifest.header['split']}"
    return "\n".join([*lines, "", f"{of}, {model.config.data.name}"])


def run_images(args: argparse.Namespace) -> str:
    """Score or describe sets of images; return the message."""
    with raise_on_all():
        if args.overrides:
            raise EvaluationError(f"--config.{args.overrides[0]} is for the checkpoints of a run")
        options = _options(Options, args, protocol=get_protocol(args.protocol))
    if args.command in ("features", "stats"):
        num = write(args.images, args.out, options, statistics=args.command == "stats")
        return f"{args.command} of {num} images in {args.out}"
    allowed = args.allow_foreign_statistics
    scores, recipe = compare(
        args.real, args.fake, options, resamples=args.resamples, allow_foreign=allowed
    )
    if not scores:
        return ""  # process 0 has them
    if not args.json:
        return score_table(scores, recipe)
    named = {name: vars(score) for name, score in scores.items()}
    return json.dumps({"scores": named, "recipe": recipe}, indent=2, allow_nan=False)


def main() -> None:
    args = parse_args()
    if args.command == "report":
        print(write_report(args.workdir))
        return
    use_compilation_cache()
    use_cpu_cores_as_devices()
    with distributed.session(args):
        with raise_on_all():
            _check_numbers(args)
        require_same({"command": args.command})
        run = run_model if args.model else run_job
        message = run(args) if args.command is None else run_images(args)
        if is_host0():
            print(message)


if __name__ == "__main__":
    run_cli(main)
