"""The programs of this repository and their parsers, without running what they do."""

import argparse
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


class ParserSeen(BaseException):
    """Carry a parser out of the program that built it."""


def programs() -> list[str]:
    """Return all programs that read a command line, by path from the root."""
    scripts = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("scripts/*.py"))
    return ["xmcgan/train.py", *scripts]


def parser_of(program: str) -> argparse.ArgumentParser:
    """Return the parser of a program, as it is when it would read its command line."""

    def stop(parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        raise ParserSeen(parser)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [program])
        for name in ("parse_args", "parse_known_args"):
            patch.setattr(argparse.ArgumentParser, name, stop)
        with pytest.raises(ParserSeen) as seen:
            runpy.run_path(str(ROOT / program), run_name="__main__")
    return seen.value.args[0]


def with_commands(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """Return a parser and those of its commands."""
    found = [parser]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found += {id(each): each for each in action.choices.values()}.values()
    return found
