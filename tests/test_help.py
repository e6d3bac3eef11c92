"""`--help` of every program reads well in a terminal of 80 columns without colours."""

import argparse
import re
from pathlib import Path

import pytest
from programs import ROOT, parser_of, programs, with_commands


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.mark.parametrize("program", programs())
def test_help_fits_the_terminal_and_explains_every_flag(program):
    for parser in with_commands(parser_of(program)):
        text = parser.format_help()
        assert "\033" not in text
        assert [line for line in text.splitlines() if len(line) > 80] == []
        for folder in (ROOT, Path.home()):
            assert str(folder) not in text, "a path of this machine"
        unexplained = [
            action.dest
            for action in parser._actions
            if not action.help and not isinstance(action, argparse._SubParsersAction)
        ]
        assert unexplained == [], parser.prog
        shouted = re.findall(r"--([a-z-]+) ([A-Z_]{6,})\b", text)
        repeated = [a for a, b in shouted if a.replace("-", "_").upper() == b and "_" in b]
        assert repeated == [], f"{parser.prog}: metavar says nothing"


def test_help_of_training_is_one_screen_and_names_every_config():
    text = parser_of("xmcgan/train.py").format_help()
    assert len(text.splitlines()) <= 24
    for config in (ROOT / "configs").glob("*.py"):
        assert re.search(rf"configs:.*\b{config.stem}\b", text)
