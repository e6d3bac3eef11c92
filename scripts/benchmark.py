"""Measure speed, each measure beside its literal counterpart.

python scripts/benchmark.py step --image-size 128 --width 16 --batch 4
python scripts/benchmark.py step --batch 4 8 16 32       time against batch
python scripts/benchmark.py flops --image-size 128 256   counted, not run
python scripts/benchmark.py memory --image-size 128 --batch 8
python scripts/benchmark.py memory --config coco:256 --batch 32
python scripts/benchmark.py words | frechet | compile
python scripts/benchmark.py input --data coco --data-dir data/
python scripts/benchmark.py sample --model emoji64

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
from xmcgan.utils.files import path_of
from xmcgan.utils.tables import aligned_table, readable_size

WIDE = {"image_size": [128], "width": 96, "batch": [8]}  # the paper's width: compiled only
NARROW = {"image_size": [128], "width": 16, "batch": [4]}  # what a CPU can run
# Columns of a table: header, field of a row, format.
Columns = Sequence[tuple[str, str, Callable[[Any], str]]]
STEP: Columns = (
    ("", "formulation", str),
    ("batch", "batch", str),
    ("ms", "seconds", lambda s: f"{1e3 * s:.0f}"),
    ("images/s", "images_per_second", "{:.2f}".format),
    ("faster", "faster", "{:.2f}".format),
    ("GFLOP/image", "gflop_per_image", "{:.1f}".format),
    ("GFLOP/s", "flops_per_second", lambda rate: f"{rate / 1e9:.1f}"),
    ("of peak", "share_of_peak", "{:.0%}".format),
    ("time/image to first batch", "time_per_image_to_first_batch", "{:.2f}".format),
)
COMPILE: Columns = (
    ("", "formulation", str),
    ("s to the first step", "seconds", "{:.1f}".format),
    ("share", "share", "{:.2f}".format),
)
COSTS: Columns = (
    ("", "formulation", str),
    ("GFLOP/image", "gflop_per_image", "{:.1f}".format),
    ("share", "flops_share", "{:.2f}".format),
    ("temporary", "temporary_bytes", readable_size),
    ("share", "temporary_share", "{:.2f}".format),
    ("state and batch", "argument_bytes", readable_size),
)
SAMPLE: Columns = (
    ("batch", "batch", str),
    ("package", "package", "{:.1f}".format),
    ("exported", "exported", "{:.1f}".format),
    ("package's rate to the exported's", "ratio", "{:.2f}".format),
)
FRECHET: Columns = (
    ("", "formulation", str),
    ("s", "seconds", "{:.2f}".format),
    ("faster", "faster", "{:.2f}".format),
    ("distance", "distance", "{:.6f}".format),
)


def main() -> None:
    """Parse flags, measure, print a table and write JSON."""
    args = parse_args()
    results = args.run(args)
    if args.json:
        from benchmarks.timing import machine

        report = {"command": args.command, "machine": machine(), "results": results}
        args.json.write_text(json.dumps(report, indent=2) + "\n")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, text: str, run: Any, rounds: int, **options: Any) -> Callable[..., None]:
        """Add a command; return a function that adds one of its flags."""
        command = commands.add_parser(name, help=text, description=text, **options)
        command.set_defaults(run=run)

        def flag(flag: str, default: Any, text: str, **options: Any) -> None:
            shown = " ".join(map(str, default)) if isinstance(default, list) else default
            note = f" (default: {shown})" if default is not None else ""
            options = {"type": int, "metavar": "N", "default": default} | options
            command.add_argument(flag, help=text + note, **options)

        if rounds:
            flag("--rounds", rounds, "turns of each")
        flag("--json", None, "write all figures here too", type=Path, metavar="FILE")
        return flag

    for name, text, run, rounds, sizes in (
        ("step", "time of a training step", run_step, 7, NARROW),
        ("compile", "time to the first step, cache off", run_compile, 3, NARROW),
        ("memory", "a step's memory and FLOPs, compiled only", run_costs, 0, WIDE),
    ):
        flag = add(name, text, run, rounds, aliases=["flops"] if name == "memory" else [])
        text = "sizes and settings; the flags override it"
        flag("--config", None, text, type=str, metavar="NAME[:VARIANT]")
        for size, text, nargs in (
            ("image_size", "pixels", "+"),
            ("width", "of both networks", None),
            ("batch", "images of one generator update", "+"),
        ):
            shown = " ".join(map(str, sizes[size])) if nargs else sizes[size]
            text += f" (default: {shown}, or the config's)"
            flag(f"--{size.replace('_', '-')}", None, text, nargs=nargs)
        flag("--word-dim", 768, "size of a word's feature, BERT's by default")
        text = "one more row: ours with these fields of the config; may be repeated"
        flag("--variant", None, text, action="append", type=str, metavar="FIELD=VALUE[,...]")
        commands.choices[name].set_defaults(sizes=sizes)
    flag = add("words", "the word loss with its gradient", run_words, 5)
    flag("--batch", 64, "of the timed loss")
    flag("--large-batch", 256, "compiled only")
    flag("--tokens", 17, "per caption")
    flag("--word-dim", 768, "size of a word's feature, BERT's by default")
    flag = add("frechet", "the Frechet distance of two Gaussians", run_frechet, 3)
    flag("--dimensions", 2048, "of the features, Inception's by default")
    flag = add("input", "the data pipeline beside a bare Pillow loop", run_input, 7)
    flag("--data", "coco", "a prepared data set", type=str, metavar="NAME")
    flag("--data-dir", Path("data"), "of all data sets", type=Path, metavar="DIR")
    flag("--split", "train", "of the data set", type=str, metavar="NAME")
    flag("--image-size", [128, 256], "sides", nargs="+", choices=(128, 256))
    flag("--num", 320, "images per turn")
    flag("--workers", [1, 2], "processes", nargs="+")
    flag("--text-weights", "minilm", "whose vocabulary tokenizes", type=str, metavar="NAME")
    text = "of the accelerator to feed, by default 40 %% of an H100's bfloat16 peak"
    flag("--sustained-tflops", 400.0, text, type=float, metavar="T")

    flag = add("sample", "time to the first image, and images/s", run_sample, 5)
    flag("--model", "emoji64", "a model folder", type=str, metavar="NAME")
    flag("--workdir", None, "of a training run instead", type=path_of, metavar="DIR")
    flag("--batch", [1, 8, 32], "captions of a call", nargs="+")

    args = parser.parse_args()
    for name in ("rounds", "image_size", "width", "batch", "large_batch", "tokens", "word_dim",
                 "dimensions", "num"):  # fmt: skip
        given = getattr(args, name, None)
        for value in given if isinstance(given, list) else [given]:
            if value is not None and value < 1:
                flag_name = name.replace("_", "-")
                raise ConfigError(f"--{flag_name} is {value}; it must be at least 1")
    return args


def print_table(title: str, columns: Columns, found: dict[str, Any]) -> None:
    rows = [[show(row[field]) for _, field, show in columns] for row in found["rows"]]
    print(title)
    print("\n".join(aligned_table([[header for header, _, _ in columns], *rows])))
    print()


def heading(found: dict[str, Any]) -> str:
    return f"{found['image_size']} pixels, width {found['width']}, on {found['backend']}"


def batches(args: argparse.Namespace) -> Sequence[int | None]:
    return args.batch or ([None] if args.config else args.sizes["batch"])


def comparisons(
    args: argparse.Namespace, batches: Sequence[int | None]
) -> Iterator[tuple[ConfigDict, list[Any]]]:
    """Yield the config of each image size and batch, and the formulations to compare there."""
    from benchmarks.formulations import benchmark_config, formulations

    # A config brings its own sizes.
    default = dict.fromkeys(args.sizes) if args.config else args.sizes
    for image_size in args.image_size or default["image_size"] or [None]:
        for batch in batches:
            width = args.width or default["width"]
            config = benchmark_config(args.config, image_size=image_size, width=width, batch=batch)
            yield config, formulations(config, args.word_dim, args.variant or ())


def run_step(args: argparse.Namespace) -> list[dict[str, Any]]:
    from benchmarks.measures import measure_step

    results = []
    first, *more = batches(args)
    for config, formulations in comparisons(args, [first]):
        sizes = [config.batch_size, *(batch for batch in more if batch)]
        found = measure_step(config, args.word_dim, formulations, sizes, args.rounds)
        peaks = [f"{rate / 1e9:.0f} GFLOP/s in {d}" for d, rate in found["matmul_peak"].items()]
        print_table(f"{heading(found)}; matrix products reach {', '.join(peaks)}", STEP, found)
        results.append(found)
    return results


def run_compile(args: argparse.Namespace) -> list[dict[str, Any]]:
    from benchmarks.measures import measure_first_step

    results = []
    for config, formulations in comparisons(args, batches(args)):
        found = measure_first_step(config, args.word_dim, formulations, args.rounds)
        print_table(f"{heading(found)}, batch {found['batch']}", COMPILE, found)
        results.append(found)
    return results


def run_costs(args: argparse.Namespace) -> list[dict[str, Any]]:
    from benchmarks.measures import measure_costs

    results = []
    for config, formulations in comparisons(args, batches(args)):
        found = measure_costs(config, args.word_dim, formulations)
        print_table(f"{heading(found)}, batch {found['batch']}, compiled only", COSTS, found)
        results.append(found)
    return results


def run_words(args: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.measures import measure_words

    names = ("batch", "large_batch", "tokens", "word_dim", "rounds")
    found = measure_words(**{name: getattr(args, name) for name in names})
    columns: Columns = (
        ("", "formulation", str),
        (f"ms, batch {args.batch}", "seconds", lambda s: f"{1e3 * s:.0f}"),
        ("faster", "faster", "{:.2f}".format),
        (f"temporary, batch {args.batch}", "temporary_bytes", readable_size),
        (f"temporary, batch {args.large_batch}", "temporary_bytes_large", readable_size),
    )
    title = f"{found['regions']} regions, {args.tokens} words of {args.word_dim}, with gradients"
    print_table(title, columns, found)
    return found


def run_frechet(args: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.measures import measure_frechet

    found = measure_frechet(dimensions=args.dimensions, rounds=args.rounds)
    print_table(f"{args.dimensions} dimensions", FRECHET, found)
    return found


def run_input(args: argparse.Namespace) -> dict[str, Any]:
    from benchmarks import input as benchmark

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


def run_sample(args: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.sampling import measure_rates, time_starts

    from xmcgan.sampling.model_folder import load_from_flags

    flags = ["--workdir", str(args.workdir)] if args.workdir else ["--model", args.model]
    starts = time_starts(flags)
    print(
        f"first image: {starts['first']:.1f} s after the first start, {starts['later']:.1f} s later"
    )
    model = load_from_flags(args.workdir, None if args.workdir else args.model, None, raw=False)
    rows = measure_rates(model, args.batch, args.rounds)
    print_table("images/s", SAMPLE, {"rows": rows})
    return {"seconds_to_first_image": starts, "rows": rows}


if __name__ == "__main__":
    run_cli(main)
