"""The table of faults in docs/reliability.md names tests that exist."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
DOCUMENT = TESTS.parent / "docs" / "reliability.md"


def test_every_test_that_the_table_names_exists():
    named = re.findall(r"`(\S+\.py)::(test_\w+)`", DOCUMENT.read_text(encoding="utf-8"))
    assert len(named) > 40
    absent = [
        f"{file}::{name}"
        for file, name in named
        if name
        not in {
            node.name
            for node in ast.parse((TESTS / file).read_text(encoding="utf-8")).body
            if isinstance(node, ast.FunctionDef)
        }
    ]
    assert absent == []


def test_every_fault_has_a_test():
    rows = [line for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if "::test_" in line]
    numbers = [int(number) for row in rows for number in re.findall(r"^\| (\d+) \|", row)]
    assert numbers == list(range(1, 16))
