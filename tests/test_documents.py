"""What the documents say: commands parse, names exist, help fits a terminal of 80 columns."""

import argparse
import ast
import functools
import json
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import xmcgan
from xmcgan.config import apply_override, load_config, validate
from xmcgan.evaluation.metrics import METRICS
from xmcgan.evaluation.protocols import PROTOCOLS
from xmcgan.training.command_line import read_overrides
from xmcgan.utils import files
from xmcgan.utils.commands import COMMANDS

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
TRAIN = "xmcgan/train.py"
DOCUMENTS = sorted(
    path
    for pattern in ("README.md", "CONTRIBUTING.md", "docs/*.md", "configs/*.py", "scripts/*.py",
                    "scripts/quickstart.sh", "scripts/launch/*")
    for path in ROOT.glob(pattern)
)  # fmt: skip
MARKDOWN = {path.name: path.read_text("utf-8") for path in DOCUMENTS if path.suffix == ".md"}
SPANS = [
    (name, span) for name, text in MARKDOWN.items() for span in re.findall(r"`([^`\n]+)`", text)
]
# What a command begins with, after variables such as A=b.
COMMAND_WORDS = {
    "python", "pip", "tensorboard", "wandb", "jupyter", "srun", "sbatch", "scancel", "mpirun",
    "gcloud", "source", "export", "cd", "git", "apt-get", "curl", "docker", "kubectl", "uv",
    "xmcgan",
}  # fmt: skip
# What the shell fills in in scripts/quickstart.sh and under launch/.
EXPANDED = {
    '"$workdir"': "runs/quickstart",
    "$workdir": "runs/quickstart",
    '"$own"': "runs/quickstart/own_captions",
    '"$@"': "...",
}
RUN = "runs/quickstart"
# Documented commands that are run in this order, in one folder, and a file that each must leave.
EXECUTED = {
    "python -m xmcgan.train --config shapes:quickstart": "runs/shapes_quickstart/config.json",
    f'python scripts/generate.py --workdir {RUN} --out runs/mine --caption "a yellow star" '
    "--num 4": "runs/mine/0000_03.png",
    f'python scripts/generate.py --workdir {RUN} --caption "a red circle" --out images/': (
        "images/grid.png"
    ),
    "python scripts/generate.py --workdir runs/ours --captions-file captions.txt --num 1 "
    "--out images/ours": "images/ours/manifest.json",
    "python scripts/generate.py --workdir runs/theirs --captions-file captions.txt --num 1 "
    "--out images/theirs": "images/theirs/manifest.json",
    "python scripts/human_eval.py create --images ours=images/ours --images theirs=images/theirs "
    "--out ranking.html": "ranking.html",
    "python scripts/human_eval.py score --key ranking.key.json --results answers/ "
    "--out human_eval/": "human_eval/ranks.png",
    f"python scripts/eval_fid.py --workdir {RUN}": f"{RUN}/evaluation/results.jsonl",
    f"python scripts/eval_fid.py --workdir {RUN} --watch": f"{RUN}/evaluation/results.jsonl",
    f"python scripts/eval_fid.py report --workdir {RUN}": f"{RUN}/evaluation/curves.png",
    "python scripts/eval_fid.py compare REAL FAKE --protocol fd-effnet-lite2": "REAL",
    "python scripts/eval_fid.py compare REAL FAKE --protocol fid-2015": "REAL",
    "python scripts/eval_fid.py features IMAGES --protocol fid-2015 --out F.npz": "F.npz",
    "python scripts/eval_fid.py stats IMAGES --protocol fid-2015 --out S.npz": "S.npz",
    f"python scripts/report.py --workdir {RUN}": f"{RUN}/report.md",
    "python scripts/prepare_data.py folder --source my_photos/ --name my_photos": (
        "data/folder/my_photos"
    ),
    "python scripts/prepare_data.py folder --source my_photos/": "data/folder/my_photos",
    "python scripts/prepare_data.py folder --source my_photos.zip --name my_photos": (
        "data/folder/my_photos"
    ),
    "python scripts/prepare_data.py emoji": "data/emoji",
    "python scripts/prepare_data.py show emoji --out sheet.png": "sheet.png",
    "python scripts/prepare_data.py show emoji --split validation --num 60 --out sheet.png": (
        "sheet.png"
    ),
    "python scripts/prepare_data.py show folder/my_photos --out sheet.png": "sheet.png",
    f"python scripts/doctor.py --workdir {RUN} --data-dir data": "data",
}


def exists(path: str) -> bool:
    return (ROOT / path).exists()


# Programs and their parsers, without running what they do.

PROGRAMS = [TRAIN, *sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("scripts/*.py"))]


class ParserSeen(BaseException):
    """A parser on its way out of the program that built it."""


@functools.cache
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


def options(program: str) -> set[str]:
    """Return the flags of a program and of its commands."""
    actions = [action for each in with_commands(parser_of(program)) for action in each._actions]
    return {option for action in actions for option in action.option_strings}


# Commands.


def commands_in(text: str) -> Iterator[str]:
    """Yield the commands of a text: in code blocks, on lines of their own, in `spans`."""
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        for candidate in re.findall(r"`([^`]+)`", line) or [line]:
            # An explanation follows a wide gap or a number sign.
            command = re.split(r"\s{2,}|\s#\s|\s\|\s", candidate.strip())[0]
            for variable, value in EXPANDED.items():
                command = command.replace(variable, value)
            words = without_variables(command.split())
            # A name alone, such as `python`, is no command; "$(" is for a script's own shell.
            is_command = len(words) > 1 and words[0] in COMMAND_WORDS and "$(" not in command
            if is_command or (words and words[0].startswith("./scripts/")):
                # Several in a row, but for those that one of them hands to another machine.
                yield from [command] if "--command=" in command else command.split(" && ")


def without_variables(words: list[str]) -> list[str]:
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    return words


def prose(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return ast.get_docstring(ast.parse(text)) or ""
    if path.suffix == ".md":
        return text
    # Of a shell script its comments, too, and what it prints.
    return "\n".join(line.lstrip("# ") for line in text.splitlines())


DOCUMENTED = sorted({command for path in DOCUMENTS for command in commands_in(prose(path))})


@pytest.mark.parametrize("command", DOCUMENTED)
def test_every_command_parses(command, monkeypatch):
    monkeypatch.setattr(files, "_check_bucket", lambda bucket: None)
    check(without_variables(shlex.split(command)))


def check(words: list[str]) -> None:
    """Fail if a command names a file, flag, config or field that does not exist."""
    for text in [word for word in words if word.startswith("--command=")]:
        for part in text.partition("=")[2].split(" && "):
            check(without_variables(shlex.split(part)))
    if words[0] in ("srun", "mpirun"):
        words = words[words.index("python") :]
    assert [word for word in words if word.startswith("tests/") and not exists(word)] == []
    if words[0] == "sbatch":
        at = next(index for index, word in enumerate(words) if word.endswith(".sbatch"))
        assert exists(words[at])
        check_arguments(TRAIN, words[at + 1 :])
    elif words[0].startswith("./"):
        assert exists(words[0])
    elif words[0] == "xmcgan":
        script = "" if words[1] == "--help" else COMMANDS[words[1]]
        if words[2:]:  # not a name alone
            check_arguments(f"scripts/{script}.py" if script else TRAIN, words[2:])
    elif words[:3] == ["python", "-m", "xmcgan.train"]:
        check_arguments(TRAIN, words[3:])
    elif words[0] == "python" and words[1:3] != ["-m", "pytest"]:
        # export.py copies this one to where it writes.
        program = re.sub(r"^.*run_exported.py$", "scripts/run_exported.py", words[1])
        assert program in PROGRAMS
        check_arguments(program, words[2:])


def check_arguments(program: str, words: list[str]) -> None:
    """Let the program's own parser read the words, and its configs take the fields."""
    if "..." in words or "--help" in words:  # not the whole command
        flags = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert flags <= options(program)
        return
    try:
        args, rest = parser_of(program).parse_known_args(words)
    except SystemExit:
        pytest.fail(f"{program} cannot read {shlex.join(words)}")
    overrides = read_overrides(parser_of(program), rest)
    if getattr(args, "config", None) == "my_config.py":
        return  # of docs/extending.md; tests/test_extending.py loads it
    if getattr(args, "config", None):
        config = load_config(args.config)
        for override in overrides:
            apply_override(config, override)
        validate(config)


def test_commands_are_found_in_every_form():
    text = """
Words of `python` and `pip install x`.

    python a.py --x 1   # why
    python b.py \\
        --y             what for

| `./scripts/c.sh` | a table |

```sh
source d && A=1 srun python e.py | f
```
"""
    found = ["pip install x", "python a.py --x 1", "python b.py --y", "./scripts/c.sh", "source d"]
    assert list(commands_in(text)) == [*found, "A=1 srun python e.py"]


def test_commands_that_are_executed_are_documented():
    assert [command for command in EXECUTED if command not in DOCUMENTED] == []


@pytest.fixture
def folder(tiny_root, tiny_workdir, tmp_path, monkeypatch) -> Path:
    """Return a folder that has what the commands of EXECUTED name, and go there."""
    for name in ("quickstart", "ours", "theirs", "shapes_quickstart"):
        shutil.copytree(tiny_workdir, tmp_path / "runs" / name)
    shutil.copytree(tiny_root / "data", tmp_path / "data")
    (tmp_path / "captions.txt").write_text("".join(f"a red circle {n}\n" for n in range(6)))
    rng = np.random.default_rng(0)
    for name in ("REAL", "FAKE", "IMAGES", "my_photos"):
        (tmp_path / name).mkdir()
        for index in range(16):
            pixels = rng.integers(0, 255 - 9 * index, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{index}.png")
            if name == "my_photos":
                (tmp_path / name / f"{index}.txt").write_text(f"photograph {index}\n")
    shutil.make_archive(str(tmp_path / "my_photos"), "zip", tmp_path / "my_photos")
    # A file of configs/ in the current directory comes first: the tiny one of the run.
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "shapes.py").write_text(
        "from pathlib import Path\nfrom xmcgan.config import read_config\n"
        "def get_config(variant):\n    return read_config(Path('runs/quickstart/config.json'))\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_commands_work_one_after_another(run, folder, monkeypatch):
    monkeypatch.syspath_prepend(str(TESTS / "studies"))
    import raters
    import tiny_network

    from xmcgan.studies.human_eval.page import read_key

    tiny_network.install(monkeypatch)
    tiny_network.install_detector(monkeypatch)
    for text, result in EXECUTED.items():
        words = shlex.split(text)[1:]
        if words[0] == "-m":
            words = [TRAIN, *words[2:]]
        if "score" in words:  # after the page was made, and before it is scored
            key = read_key(folder / "ranking.key.json")
            raters.answer_file(folder / "answers" / "ann.json", key, raters.by_quality)
        status, output, errors = run(*words)
        # 1: it found problems, such as absent weights.
        assert status == 0 or ("doctor" in text and status == 1), (text, output, errors)
        assert (folder / result).exists(), text
    assert "step 6: every array has its digest" in output  # of the last command
    assert json.loads((folder / "runs/mine/manifest.json").read_text())["step"] == 6


# Names in the text.


def test_fields_that_documents_name_exist():
    pattern = r"--config\.([a-z][a-z0-9_.]*)(?:=(\S+))?"
    given = [match for _, span in SPANS for match in re.findall(pattern, span)]
    assert len(given) > 8
    for field, value in given:
        if field == "field":  # any
            continue
        shapes = load_config("shapes")
        if field.endswith(".type") and value:  # a class, which may be a new entry
            apply_override(shapes, f"{field}={value}")
            continue
        known = functools.reduce(lambda config, name: config[name], field.split("."), shapes)
        # In capitals: a placeholder.
        if value and (isinstance(known, str) or not value.isupper()):
            apply_override(shapes, f"{field}={value}")


def test_flags_that_documents_name_exist():
    known = {"--all", "--config"}.union(*map(options, PROGRAMS))  # --all: of test.sh
    named = [(name, match[0]) for name, span in SPANS if (match := re.match(r"--[a-z0-9-]+", span))]
    assert len(named) > 50
    assert [each for each in named if each[1] not in known] == []


def test_files_that_documents_name_or_link_exist():
    rooms = r"(scripts|docs|tests|xmcgan|configs|notebooks)/[\w/.-]+"
    wrong = [each for each in SPANS if re.fullmatch(rooms, each[1]) and not exists(each[1])]
    for path in DOCUMENTS:
        links = re.findall(r"\]\((?!https://)([^)#]+)", MARKDOWN.get(path.name, ""))
        wrong += [(path.name, link) for link in links if not (path.parent / link).exists()]
    assert wrong == []


def test_tests_that_documents_name_exist():
    files = {path.relative_to(TESTS).as_posix(): path.read_text() for path in TESTS.rglob("*.py")}
    functions = set(re.findall(r"def (test_\w+)\(", "".join(files.values())))
    names = {Path(file).name for file in files}
    named = {
        (document, name)
        for document in ("paper_map.md", "reliability.md")
        for name in re.findall(r"\btest_\w+(?:\.py)?", MARKDOWN[document])
    }
    assert len(named) > 80
    assert sorted(each for each in named if each[1] not in functions | names) == []
    placed = re.findall(r"`(\S+\.py)::(test_\w+)`", MARKDOWN["reliability.md"])
    assert [each for each in placed if f"def {each[1]}(" not in files.get(each[0], "")] == []


def test_every_fault_of_the_reliability_table_has_a_test():
    rows = [line for line in MARKDOWN["reliability.md"].splitlines() if "::test_" in line]
    numbers = [int(number) for row in rows for number in re.findall(r"^\| (\d+) \|", row)]
    assert numbers == list(range(1, 16))


def table(heading: str) -> list[list[str]]:
    """Return the cells of the tables below a heading of paper_map.md, without the header's."""
    text, depth = MARKDOWN["paper_map.md"].partition(f"{heading}\n")[2], heading.count("#")
    section = re.split(rf"^#{{1,{depth}}} ", text, flags=re.MULTILINE)[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip(" `") for cell in line.strip("|").split(" | ")] for line in lines[1:]]


def test_every_deviation_that_the_code_marks_is_in_the_paper_map():
    listed = table("### Where the code says so")
    marked = {
        path.relative_to(ROOT / "xmcgan").as_posix()
        for path in (ROOT / "xmcgan").rglob("*.py")
        if "Deviation:" in path.read_text(encoding="utf-8")
    }
    assert {file for file, _ in listed} == marked
    known = {cells[0] for cells in table("## Deviations")}  # "Beyond the paper" is part of it
    assert [row for _, row in listed if row not in known] == []


def test_every_deviation_says_what_holds_it():
    headings = ("Networks", "Losses", "Precision", "Training", "Text and data", "Evaluation")
    for heading in (*headings, "Beyond the paper"):
        found = table(f"### {heading}")
        assert len(found) > 2, heading
        without = [cells[0] for cells in found if cells[-1].strip(" |") in ("", "\u2013")]
        assert without in ([], ["batch"]), heading


def test_messages_that_the_documents_quote_are_those_of_the_code():
    text = MARKDOWN["troubleshooting.md"]
    rows = re.findall(r"^\| `([^`]+)` \| \S", text, flags=re.MULTILINE)
    lines = re.findall(r"^(?:- )?`([^`]+)`: ", text, flags=re.MULTILINE)
    quoted = [each for each in [*rows, *lines] if not each.startswith(("--", "jax"))]
    assert len(quoted) > 15
    known = []
    for path in [*ROOT.glob("xmcgan/**/*.py"), *ROOT.glob("scripts/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                known.append(node.value)
            elif isinstance(node, ast.JoinedStr):  # with … for what is filled in
                parts = [v.value if isinstance(v, ast.Constant) else "…" for v in node.values]
                known.append("".join(map(str, parts)))
    assert [each for each in quoted if not any(each in message for message in known)] == []


def test_the_citation_is_of_this_version():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.+)$", text, flags=re.MULTILINE) == [xmcgan.__version__]


# `--help`.


@pytest.fixture
def plain_terminal(monkeypatch):
    for name, value in {"COLUMNS": "80", "TERM": "dumb", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_fits_the_terminal_and_explains_every_flag(plain_terminal, program):
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


def test_help_of_training_is_one_screen_and_names_every_config(plain_terminal):
    text = parser_of(TRAIN).format_help()
    assert len(text.splitlines()) <= 24
    for config in (ROOT / "configs").glob("*.py"):
        assert re.search(rf"configs:.*\b{config.stem}\b", text)


def test_every_protocol_and_metric_has_a_row_in_the_papers_evaluation():
    section = MARKDOWN["paper_map.md"].partition("### Evaluation of the paper")[2]
    rows = section.partition("\n### ")[0]
    missing = [name for name in (*PROTOCOLS, *METRICS) if f"`{name}`" not in rows]
    assert not missing
