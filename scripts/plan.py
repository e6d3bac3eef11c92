"""Compile a training step for machines that are not here, and say what it needs.

python scripts/plan.py --config coco:256 --target v5e:4x4
python scripts/plan.py --config coco:256 --target v5e:4x4 --target h100:8
python scripts/plan.py --config coco:128 --target cpu:8 --config.remat=blocks
python scripts/plan.py --config coco:256 --target v5e:2x2 --largest-batch
python scripts/plan.py --config coco:256 --target v5e:2x2 \\
    --compare remat=none,convolutions,blocks
python scripts/plan.py --config coco:256 --config.batch_size=16 --target here

Needs neither the target nor data or weights, only its compiler: for TPUs
`pip install -r requirements-tpu.txt`, for GPUs requirements-cuda.txt. Memory,
work, bytes and collectives are those of the compiled program; times are models,
not measurements. Targets: TPU v4, v5e, v5p, v6e by libtpu's names of slices;
a100, h100, h200, b200 by their number, 8 to a host; cpu by its number; "here"
for the devices of this machine, where the step also runs and is timed.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from xmcgan.config import apply_override, load_config, validate
from xmcgan.errors import ConfigError, run_cli
from xmcgan.planning.report import Plan, largest_batch, make_plan
from xmcgan.planning.targets import HERE, find_target
from xmcgan.training.command_line import read_overrides

CACHE = Path.home() / ".cache" / "xmcgan" / "plans"
# The GPU compiler tunes on the device, which is not here, and without tuning Triton's products may
# fail to compile; CPU programs are not run.
_FLAGS = (
    "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false "
    "--xla_backend_optimization_level=0"
)
_LEVELS = {-1: "O1", 0: "O2", 1: "O3"}  # of XLA; by default it compiles with O2


def parse_args() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", required=True, metavar="NAME[:VARIANT]", help="such as coco:256"
    )
    parser.add_argument(
        "--target",
        action="append",
        required=True,
        metavar="CHIP:SIZE",
        help="such as v5e:4x4, h100:8; repeatable",
    )
    parser.add_argument(
        "--config.FIELD",
        metavar="VALUE",
        dest="ignored",
        help="set a field, such as --config.batch_size=64; repeatable",
    )
    parser.add_argument("--compare", metavar="FIELD=A,B", help="one plan for each value of a field")
    parser.add_argument(
        "--largest-batch", action="store_true", help="search the largest batch that fits"
    )
    parser.add_argument(
        "--no-frozen",
        action="store_true",
        help="leave out text encoder and frozen image network",
    )
    parser.add_argument(
        "--examples", type=int, metavar="N", help="training images, for the length of a run"
    )
    parser.add_argument(
        "--effort",
        type=int,
        default=-1,
        choices=_LEVELS,
        help="of the TPU compiler (default: -1, minutes instead of a quarter of an hour)",
    )
    parser.add_argument("--json", action="store_true", help="print figures as JSON")
    args, rest = parser.parse_known_args()
    return args, read_overrides(parser, rest)


def main() -> None:
    args, overrides = parse_args()
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # libtpu would ask a metadata server
    is_here = args.target == [HERE]
    if HERE in args.target and not is_here:
        raise ConfigError("--target here goes alone: other targets are compiled on the CPU")
    if is_here:
        args.effort = 0  # as training compiles
    else:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}"
        jax.config.update("jax_platforms", "cpu")  # only the compiler is the target's
        for option in ("jax_optimization_level", "jax_memory_fitting_level"):
            jax.config.update(option, _LEVELS[args.effort])
    jax.config.update("jax_compilation_cache_dir", None)
    variants = config_variants(args, overrides)
    plans = []
    for target in map(find_target, args.target):
        for label, config in variants:
            options: dict[str, Any] = {
                "frozen": not args.no_frozen,
                "measure": is_here,
                "num_examples": args.examples,
                "cache": None if is_here else CACHE,
            }
            title = f"{args.config}{label} on {target.name}"
            print(f"compiling {title} (effort {args.effort}) ...", file=sys.stderr)
            plan = (largest_batch if args.largest_batch else make_plan)(config, target, **options)
            plans.append({"config": f"{args.config}{label}", **plan.to_dict()})
            if not args.json:
                print_plan(title, plan)
    if args.json:
        print(json.dumps(plans, indent=1))


def config_variants(args: argparse.Namespace, overrides: list[str]) -> list[tuple[str, ConfigDict]]:
    """Return the configs to plan, each with what tells it from the others."""
    field, equals, values = (args.compare or "").partition("=")
    if args.compare and not (equals and values):
        raise ConfigError(f"--compare {args.compare}: write FIELD=A,B, such as remat=none,blocks")
    variants = []
    for value in values.split(",") if args.compare else [""]:
        config = load_config(args.config)
        for override in [*overrides, *([f"{field}={value}"] if args.compare else [])]:
            apply_override(config, override)
        validate(config)
        variants.append((f" {field}={value}" if args.compare else "", config))
    return variants


def print_plan(title: str, plan: Plan) -> None:
    """Print a plan as a table."""
    rows = plan.rows()
    width = max(len(name) for name, _ in rows)
    print(title)
    for name, text in rows:
        print(f"  {name:<{width}}  {text}")


if __name__ == "__main__":
    run_cli(main)
