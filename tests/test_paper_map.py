"""docs/paper_map.md lists every deviation that the code marks, and names tests that exist."""

import re
from pathlib import Path

TESTS = Path(__file__).parent
ROOT = TESTS.parent
TEXT = (ROOT / "docs" / "paper_map.md").read_text(encoding="utf-8")


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the tables below a heading, up to the next of its depth."""
    section = re.split(rf"^#{{1,{heading.count('#')}}} ", TEXT.partition(heading)[2], flags=re.M)[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip(" `") for cell in line.strip("|").split(" | ")] for line in lines]


def test_every_marked_deviation_is_listed_with_its_row():
    listed = dict(rows("### Where the code says so")[1:])
    marked = {
        path.relative_to(ROOT / "xmcgan").as_posix()
        for path in (ROOT / "xmcgan").rglob("*.py")
        if "Deviation:" in path.read_text(encoding="utf-8")
    }
    assert set(listed) == marked
    known = {cells[0] for cells in rows("## Deviations")}  # "Beyond the paper" is part of it
    assert [row for row in listed.values() if row not in known] == []


def test_every_deviation_says_what_holds_it():
    headings = ("Networks", "Losses", "Precision", "Training", "Text and data", "Evaluation")
    for heading in (*headings, "Beyond the paper"):
        found = rows(f"### {heading}\n")[1:]
        assert len(found) > 2, heading
        without = [cells[0] for cells in found if cells[-1].strip(" |") in ("", "\u2013")]
        assert without in ([], ["batch"]), heading


def test_every_test_that_it_names_exists():
    files = list(TESTS.rglob("*.py"))
    functions = "".join(path.read_text(encoding="utf-8") for path in files)
    named = set(re.findall(r"\btest_\w+(?:\.py)?", TEXT))
    assert len(named) > 40
    absent = [
        name
        for name in sorted(named)
        if (
            name not in {path.name for path in files}
            if name.endswith(".py")
            else f"def {name}(" not in functions
        )
    ]
    assert absent == []
