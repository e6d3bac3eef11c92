"""Train XMC-GAN.

    python -m xmcgan.train --config NAME[:variant] [--workdir DIR] [--config.field=value ...]
    srun python -m xmcgan.train --distributed --config NAME[:variant] --workdir DIR

The same command resumes a run that was stopped.
"""

import argparse
import re
from pathlib import Path

from xmcgan.config import apply_override, known_configs, load_config
from xmcgan.errors import ConfigError, did_you_mean, run_cli
from xmcgan.utils import distributed
from xmcgan.utils.distributed import use_compilation_cache, use_cpu_cores_as_devices


def parse_args(arguments: list[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """Read the command line.

    Args:
        arguments: of the command line; those of this process by default.

    Returns:
        The flags, and the overrides `field=value` in their order.

    Raises:
        ConfigError: an unknown flag.
    """
    parser = argparse.ArgumentParser(
        prog="python -m xmcgan.train",
        usage="%(prog)s --config NAME[:VARIANT] [--workdir DIR]\n"
        "                              [--config.FIELD=VALUE ...]",
        description="Train XMC-GAN. The same command resumes a run that was stopped.",
        epilog=f"configs: {', '.join(known_configs())}\n"
        "variants: see the head of configs/NAME.py; fields: see xmcgan/config.py\n"
        "exit status: 0 finished, 2 a mistake (named), 130 Ctrl-C, saved, 143 SIGTERM,\n"
        "saved, 75 or 134 another of several processes was lost, 1 a fault of the program",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        required=True,
        metavar="NAME[:VARIANT]",
        help="such as shapes:quickstart or folder:name=my_photos,64",
    )
    parser.add_argument(
        "--workdir",
        type=Path,
        metavar="DIR",
        help="of the run (default: runs/ and the config's name)",
    )
    parser.add_argument(
        "--config.FIELD",
        metavar="VALUE",
        dest="ignored",
        help="set a field, such as --config.batch_size=8; repeatable",
    )
    distributed.add_flags(parser)
    args, rest = parser.parse_known_args(arguments)
    overrides = read_overrides(parser, rest)
    if args.workdir is None:
        args.workdir = Path("runs") / re.sub(r"[^A-Za-z0-9.+_-]+", "_", args.config)
    return args, overrides


def read_overrides(parser: argparse.ArgumentParser, rest: list[str]) -> list[str]:
    """Return `field=value` of each flag `--config.field`, which a parser does not know.

    Args:
        parser: its flags are suggested where one is mistyped.
        rest: what it left of a command line.

    Raises:
        ConfigError: an unknown flag.
    """
    overrides, rest = [], list(rest)
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--config."):
            known = [string for action in parser._actions for string in action.option_strings]
            raise ConfigError(f"unknown argument {flag!r}{did_you_mean(flag, known)}")
        override = flag.removeprefix("--config.")
        if "=" not in override and rest and not rest[0].startswith("--"):
            override += f"={rest.pop(0)}"
        overrides.append(override)
    return overrides


def main() -> int:
    args, overrides = parse_args()
    config = load_config(args.config)
    for override in overrides:
        apply_override(config, override)
    use_compilation_cache()
    use_cpu_cores_as_devices(config.batch_size // max(config.num_microbatches, 1))
    with distributed.session(args):
        # After the flags: a mistake in them should not wait for these imports.
        from xmcgan.training.loop import train

        return train(config, args.workdir)


if __name__ == "__main__":
    run_cli(main)
