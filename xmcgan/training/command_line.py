"""Flags of `python -m xmcgan.train`."""

import argparse
import re
from pathlib import Path

from ml_collections import ConfigDict

from xmcgan.config import known_configs
from xmcgan.errors import ConfigError, did_you_mean
from xmcgan.utils.distributed import add_flags
from xmcgan.utils.files import path_of


def parse_args(arguments: list[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """Return the flags of the command line, and the overrides `field=value` in their order."""
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
    text = "such as shapes:quickstart or folder:name=my_photos,64"
    parser.add_argument("--config", required=True, metavar="NAME", help=text)
    text = "of the run (default: runs/ and the config's name)"
    parser.add_argument("--workdir", type=path_of, metavar="DIR", help=text)
    text = "set a field, such as --config.batch_size=8; repeatable"
    parser.add_argument("--config.FIELD", metavar="VALUE", dest="ignored", help=text)
    text = "print config, layers and plan; train nothing"
    parser.add_argument("--dry-run", action="store_true", help=text)
    add_flags(parser)
    args, rest = parser.parse_known_args(arguments)
    overrides = read_overrides(parser, rest)
    if args.dry_run and (args.distributed or args.coordinator):
        raise ConfigError("--dry-run is of one process; scripts/plan.py plans other machines")
    if args.workdir is None:
        args.workdir = Path("runs") / re.sub(r"[^A-Za-z0-9.+_-]+", "_", args.config)
    return args, overrides


def dry_run(config: ConfigDict) -> int:
    """Print what a command would train; return the exit status."""
    from xmcgan.planning.dry_run import print_dry_run  # not part of training

    print_dry_run(config)
    return 0


def read_overrides(parser: argparse.ArgumentParser, rest: list[str]) -> list[str]:
    """Return `field=value` for each `--config.field` in `rest`; refuse other flags."""
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
