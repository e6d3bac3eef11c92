"""Measure speed, each measure beside its literal counterpart.

python scripts/benchmark.py step --image-size 128 --width 16 --batch 4
python scripts/benchmark.py step --batch 4 8 16 32       time against batch
python scripts/benchmark.py flops --image-size 128 256   counted, not run
python scripts/benchmark.py memory --image-size 128 --batch 8
python scripts/benchmark.py memory --config coco:256 --batch 32
python scripts/benchmark.py words | frechet | compile
python scripts/benchmark.py input --data coco --data-dir data/

The literal counterpart computes the same function as the official code does; it
is float32. Captions are given as words, so that networks and losses are
compared: the frozen networks are left out on both sides.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from xmcgan.errors import ConfigError, run_cli
from xmcgan.utils.tables import aligned_table, readable_size

Command = Callable[[argparse.Namespace], Any]
Comparison = tuple[ConfigDict, list[Any]]

ROUNDS = {"step": 7, "compile": 3, "memory": 0, "words": 5, "frechet": 3, "input": 7}
WIDE = {"image_size": [128], "width": 96, "batch": [8]}  # the paper's width: compiled only
NARROW = {"image_size": [128], "width": 16, "batch": [4]}  # what a CPU can run


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    _add_step(commands, "step", "time of a training step", _run_step, NARROW)
    _add_step(commands, "compile", "time to the first step, cache off", _run_compile, NARROW)
    _add_step(commands, "memory", "a step's memory and FLOPs, compiled only", _run_costs, WIDE)
    _add_words(commands)
    _add_frechet(commands)
    _add_input(commands)
    return parser


def _add_command(
    commands: argparse._SubParsersAction, name: str, text: str, run: Command, rounds: int
) -> argparse.ArgumentParser:
    aliases = ["flops"] if name == "memory" else []
    parser = commands.add_parser(name, aliases=aliases, help=text, description=text)
    if rounds:
        parser.add_argument(
            "--rounds",
            type=int,
            metavar="N",
            default=rounds,
            help=f"turns of each (default: {rounds})",
        )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here too")
    parser.set_defaults(run=run)
    return parser


def _add_step(
    commands: argparse._SubParsersAction, name: str, text: str, run: Command, sizes: dict[str, Any]
) -> None:
    parser = _add_command(commands, name, text, run, ROUNDS[name])
    parser.add_argument(
        "--config", metavar="NAME[:VARIANT]", help="sizes and settings; the flags override it"
    )
    for flag, kind, several in (
        ("--image-size", "pixels", "+"),
        ("--width", "of both networks", None),
        ("--batch", "images of one generator update", "+"),
    ):
        default = sizes[flag.removeprefix("--").replace("-", "_")]
        shown = " ".join(map(str, default)) if several else default
        text = f"{kind} (default: {shown}, or the config's)"
        parser.add_argument(flag, type=int, nargs=several, metavar="N", help=text)
    _add_word_dim(parser)
    parser.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar="FIELD=VALUE[,...]",
        help="one more row: ours with these fields of the config; may be repeated",
    )
    parser.set_defaults(sizes=sizes)


def _add_word_dim(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--word-dim",
        type=int,
        metavar="N",
        default=768,
        help="size of a word's feature (default: 768, BERT's)",
    )


def _add_words(commands: argparse._SubParsersAction) -> None:
    text = "the word loss with its gradient"
    parser = _add_command(commands, "words", text, _run_words, ROUNDS["words"])
    parser.add_argument(
        "--batch", type=int, metavar="N", default=64, help="of the timed loss (default: 64)"
    )
    parser.add_argument(
        "--large-batch", type=int, metavar="N", default=256, help="compiled only (default: 256)"
    )
    parser.add_argument(
        "--tokens", type=int, metavar="N", default=17, help="a caption (default: 17)"
    )
    _add_word_dim(parser)


def _add_frechet(commands: argparse._SubParsersAction) -> None:
    text = "the Frechet distance of two Gaussians"
    parser = _add_command(commands, "frechet", text, _run_frechet, ROUNDS["frechet"])
    parser.add_argument("--dimensions", type=int, metavar="N", default=2048, help="(default: 2048)")


def _add_input(commands: argparse._SubParsersAction) -> None:
    text = "the data pipeline beside a bare Pillow loop"
    parser = _add_command(commands, "input", text, _run_input, ROUNDS["input"])
    parser.add_argument("--data", default="coco", help="a prepared data set (default: coco)")
    parser.add_argument(
        "--data-dir", type=Path, metavar="DIR", default=Path("data"), help="(default: data/)"
    )
    parser.add_argument("--split", default="train", help="(default: train)")
    parser.add_argument(
        "--image-size",
        type=int,
        nargs="+",
        choices=(128, 256),
        default=[128, 256],
        help="sides (default: both)",
    )
    parser.add_argument(
        "--num", type=int, metavar="N", default=320, help="images a turn (default: 320)"
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", nargs="+", default=[1, 2], help="(default: 1 2)"
    )
    parser.add_argument(
        "--text-weights",
        metavar="NAME",
        default="minilm",
        help="whose vocabulary tokenizes (default: minilm)",
    )
    parser.add_argument(
        "--sustained-tflops",
        type=float,
        metavar="T",
        default=400.0,
        help="of the accelerator to feed (default: 400, 40 %% of an H100's bfloat16 peak)",
    )


def _configs(args: argparse.Namespace, batches: Sequence[int | None]) -> Iterator[Comparison]:
    """Yield the config of each image size and batch, and the formulations to compare there."""
    from xmcgan.benchmarks.choices import benchmark_config, formulations

    # A config brings its own sizes.
    default = dict.fromkeys(args.sizes) if args.config else args.sizes
    for image_size in args.image_size or default["image_size"] or [None]:
        for batch in batches:
            config = benchmark_config(
                args.config,
                image_size=image_size,
                width=args.width or default["width"],
                batch=batch,
            )
            yield config, formulations(config, args.word_dim, args.variant)


def _batches(args: argparse.Namespace) -> Sequence[int | None]:
    return args.batch or ([None] if args.config else args.sizes["batch"])


def _heading(found: dict[str, Any]) -> str:
    return f"{found['image_size']} pixels, width {found['width']}, on {found['backend']}"


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print("\n".join(aligned_table([header, *rows])))


def _run_step(args: argparse.Namespace) -> list[dict[str, Any]]:
    from xmcgan.benchmarks.step import measure_step

    header = ["", "batch", "ms", "images/s", "faster", "GFLOP/image", "GFLOP/s", "of peak"]
    header += ["time/image to first batch"]
    results = []
    batches = _batches(args)
    for config, formulations in _configs(args, batches[:1]):
        sizes = [config.batch_size, *(batch for batch in batches[1:] if batch)]
        found = measure_step(config, args.word_dim, formulations, sizes, args.rounds)
        rows = [
            [
                row["formulation"],
                str(row["batch"]),
                f"{1e3 * row['seconds']:.0f}",
                f"{row['images_per_second']:.2f}",
                f"{row['faster']:.2f}",
                f"{row['gflop_per_image']:.1f}",
                f"{row['flops_per_second'] / 1e9:.1f}",
                f"{row['share_of_peak']:.0%}",
                f"{row['time_per_image_to_first_batch']:.2f}",
            ]
            for row in found["rows"]
        ]
        peaks = [f"{rate / 1e9:.0f} GFLOP/s in {d}" for d, rate in found["matmul_peak"].items()]
        print(f"{_heading(found)}; matrix products reach {', '.join(peaks)}")
        _print_table(header, rows)
        print()
        results.append(found)
    return results


def _run_compile(args: argparse.Namespace) -> list[dict[str, Any]]:
    from xmcgan.benchmarks.step import measure_first_step

    results = []
    for config, formulations in _configs(args, _batches(args)):
        found = measure_first_step(config, args.word_dim, formulations, args.rounds)
        rows = [
            [row["formulation"], f"{row['seconds']:.1f}", f"{row['share']:.2f}"]
            for row in found["rows"]
        ]
        print(f"{_heading(found)}, batch {found['batch']}")
        _print_table(["", "s to the first step", "share"], rows)
        print()
        results.append(found)
    return results


def _run_costs(args: argparse.Namespace) -> list[dict[str, Any]]:
    from xmcgan.benchmarks.costs import measure_costs

    header = ["", "GFLOP/image", "share", "temporary", "share", "state and batch"]
    results = []
    for config, formulations in _configs(args, _batches(args)):
        found = measure_costs(config, args.word_dim, formulations)
        rows = [
            [
                row["formulation"],
                f"{row['gflop_per_image']:.1f}",
                f"{row['flops_share']:.2f}",
                readable_size(row["temporary_bytes"]),
                f"{row['temporary_share']:.2f}",
                readable_size(row["argument_bytes"]),
            ]
            for row in found["rows"]
        ]
        print(f"{_heading(found)}, batch {found['batch']}, compiled only")
        _print_table(header, rows)
        print()
        results.append(found)
    return results


def _run_words(args: argparse.Namespace) -> dict[str, Any]:
    from xmcgan.benchmarks.words import measure_words

    found = measure_words(
        batch=args.batch,
        large_batch=args.large_batch,
        tokens=args.tokens,
        word_dim=args.word_dim,
        rounds=args.rounds,
    )
    rows = [
        [
            row["formulation"],
            f"{1e3 * row['seconds']:.0f}",
            f"{row['faster']:.2f}",
            readable_size(row["temporary_bytes"]),
            readable_size(row["temporary_bytes_large"]),
        ]
        for row in found["rows"]
    ]
    print(f"{found['regions']} regions, {args.tokens} words of {args.word_dim}, with gradients")
    memory = [f"temporary, batch {batch}" for batch in (args.batch, args.large_batch)]
    _print_table(["", f"ms, batch {args.batch}", "faster", *memory], rows)
    return found


def _run_frechet(args: argparse.Namespace) -> dict[str, Any]:
    from xmcgan.benchmarks.frechet import measure_frechet

    found = measure_frechet(dimensions=args.dimensions, rounds=args.rounds)
    rows = [
        [
            row["formulation"],
            f"{row['seconds']:.2f}",
            f"{row['faster']:.2f}",
            f"{row['distance']:.6f}",
        ]
        for row in found["rows"]
    ]
    print(f"{args.dimensions} dimensions")
    _print_table(["", "s", "faster", "distance"], rows)
    return found


def _run_input(args: argparse.Namespace) -> dict[str, Any]:
    from xmcgan.benchmarks import input as benchmark
    from xmcgan.data import DataSet
    from xmcgan.data.tokenizer import Tokenizer
    from xmcgan.pretrained.weights import resolve

    source = DataSet(args.data, args.data_dir).load(args.split)
    tokenizer = Tokenizer(resolve(args.text_weights) / "vocab.txt", max_tokens=17)
    results: dict[str, Any] = {"one core": [], "workers": [], "cores for one GPU": []}
    print(f"{'pixels':>7}{'pipeline':>10}{'bare loop':>11}{'ratio':>7}   images/s, one core")
    for size in args.image_size:
        found = benchmark.compare(source, tokenizer, size, num=args.num, rounds=args.rounds)
        rates = found["images_per_second"]
        ratio = found["ratio"]
        print(f"{size:>7}{rates['pipeline']:>10.0f}{rates['bare loop']:>11.0f}{ratio:>7.2f}")
        results["one core"].append(found)
        results["cores for one GPU"].append(
            benchmark.cores_for_gpu(rates["pipeline"], size, args.sustained_tflops)
        )
    print(f"\n{'pixels':>7}{'workers':>9}{'images/s':>10}{'speed-up':>10}   all cores")
    for size in args.image_size:
        found = benchmark.scaling(
            source, tokenizer, size, num=args.num, rounds=args.rounds, workers=args.workers
        )
        for name, rate in found["images_per_second"].items():
            print(f"{size:>7}{name:>9}{rate:>10.0f}{found['speedup'][name]:>10.2f}")
        results["workers"].append(found)
    print(f"\ncores that feed one GPU of {args.sustained_tflops:g} TFLOP/s in training:")
    for need in results["cores for one GPU"]:
        print(
            f"{need['image_size']:>7} pixels: {need['cores']:.1f} "
            f"(it takes {need['consumed_per_second']:,.0f} images/s)"
        )
    return results


def _require_positive(args: argparse.Namespace) -> None:
    """Refuse numbers that measure nothing."""
    for name in ("rounds", "image_size", "width", "batch", "large_batch", "tokens", "word_dim",
                 "dimensions", "num"):  # fmt: skip
        given = getattr(args, name, None)
        for value in given if isinstance(given, list) else [given]:
            if value is not None and value < 1:
                flag = name.replace("_", "-")
                raise ConfigError(f"--{flag} is {value}; it must be at least 1")


def main() -> None:
    """Parse flags, measure, print a table and write JSON."""
    args = _parser().parse_args()
    _require_positive(args)
    from xmcgan.benchmarks.timing import machine

    run: Command = args.run
    results = run(args)
    if args.json:
        report = {"command": args.command, "machine": machine(), "results": results}
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    run_cli(main)
