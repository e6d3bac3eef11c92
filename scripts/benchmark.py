"""Measure speed, each measure beside its literal counterpart.

python scripts/benchmark.py input --data coco --data-dir data/
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xmcgan.errors import ConfigError, run_cli

Command = Callable[[argparse.Namespace], dict[str, Any]]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--rounds", type=int, default=7, help="turns of each (default: 7)")
    common.add_argument("--json", type=Path, metavar="FILE", help="write all figures here too")
    _add_input(commands, common)
    return parser


def _add_input(commands: argparse._SubParsersAction, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "input", parents=[common], help="the data pipeline beside a bare Pillow loop"
    )
    parser.add_argument("--data", default="coco", help="a prepared data set (default: coco)")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="(default: data/)")
    parser.add_argument("--split", default="train", help="(default: train)")
    parser.add_argument("--image-size", type=int, nargs="+", choices=(128, 256), default=[128, 256])
    parser.add_argument("--num", type=int, default=320, help="images a turn (default: 320)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="(default: 1 2)")
    parser.add_argument(
        "--text-weights", default="minilm", help="whose vocabulary tokenizes (default: minilm)"
    )
    parser.add_argument(
        "--sustained-tflops",
        type=float,
        default=400.0,
        help="of the accelerator to feed (default: 400, 40 %% of an H100's bfloat16 peak)",
    )
    parser.set_defaults(run=_run_input)


def _run_input(args: argparse.Namespace) -> dict[str, Any]:
    from xmcgan.benchmarks import input as benchmark
    from xmcgan.data.sources import load_source
    from xmcgan.data.tokenizer import Tokenizer
    from xmcgan.pretrained.weights import resolve

    source = load_source(args.data, args.data_dir, args.split)
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


def main() -> None:
    """Parse flags, measure, print a table and write JSON."""
    args = _parser().parse_args()
    if args.rounds < 1:
        raise ConfigError(f"--rounds is {args.rounds}; it must be at least 1")
    from xmcgan.benchmarks.timing import machine

    run: Command = args.run
    results = run(args)
    if args.json:
        report = {"command": args.command, "machine": machine(), "results": results}
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    run_cli(main)
