"""Every command of the documents can be typed as it stands there.

Each one parses: its script, flags, config and fields exist. Then it is in one of two tables:
EXECUTED, which runs it in a folder with tiny data, or NOT_HERE, which says why that cannot be.
"""

import ast
import functools
import json
import re
import shlex
import shutil
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pytest
from documents import ROOT, Command, commands, commands_in, documents
from PIL import Image
from programs import parser_of, programs, with_commands

import xmcgan
from xmcgan.config import apply_override, load_config, validate
from xmcgan.train import read_overrides

RUN = "runs/quickstart"
# In this order, in one folder; with a file that must be there afterwards.
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
GPU, COCO, MACHINES = "needs a GPU", "needs data that the paper used", "needs several machines"
MINUTES, NETWORK, PACKAGE = "takes minutes", "uses the network", "installs or sets up"
QUICKSTART, RUN_BY = "run by quickstart.sh", "run by another test: "
NOT_HERE = {
    "*./scripts/quickstart.sh": "the whole way, ten minutes",
    "*./scripts/test.sh*": "runs these tests",
    "source .venv/bin/activate": PACKAGE,
    "pip install *": PACKAGE,
    "apt-get install *": PACKAGE,
    "export JAX_PLATFORMS=*": PACKAGE,
    "export GLIBC_TUNABLES=*": PACKAGE,
    "wandb login": "needs an account",
    "jupyter lab *": f"a server; the notebook is {RUN_BY}test_notebooks.py",
    "python scripts/fetch_weights.py*": NETWORK,
    "python scripts/prepare_data.py * --download": NETWORK,
    "python scripts/prepare_data.py shapes": QUICKSTART,
    "python scripts/prepare_data.py *coco --source *": f"{COCO}; {RUN_BY}data/test_prepare.py",
    "python scripts/prepare_data.py ln_open_images --source *": COCO,
    "python scripts/prepare_data.py folder --source DIR_OR_ZIP *": "a placeholder",
    "python scripts/prepare_data.py folder --help": f"{RUN_BY}test_help.py",
    "python -m xmcgan.train --config *coco*": f"{GPU}, {COCO}",
    "python -m xmcgan.train --config ln_open_images*": f"{GPU}, {COCO}",
    "python -m xmcgan.train --config folder:*": GPU,
    "python -m xmcgan.train --config emoji": GPU,
    "python -m xmcgan.train --config emoji:*": MINUTES,
    "python -m xmcgan.train --config shapes": GPU,
    "python -m xmcgan.train --config shapes:projected": GPU,
    "python -m xmcgan.train --config shapes --config.*": GPU,
    "python -m xmcgan.train --config shapes:64,*": GPU,
    "python -m xmcgan.train --config shapes:*small*": "an hour",
    f"python -m xmcgan.train --config emoji:quickstart --workdir {RUN} ...": QUICKSTART,
    "python -m xmcgan.train --distributed ...": MACHINES,
    "*srun *": MACHINES,
    "sbatch *": MACHINES,
    "scancel *": MACHINES,
    "mpirun *": MACHINES,
    "gcloud *": MACHINES,
    "python scripts/generate.py --workdir runs/quickstart --out runs/quickstart/own_captions *": (
        QUICKSTART
    ),
    "python scripts/generate.py --model emoji64 --out runs/emoji64 *": QUICKSTART,
    'python scripts/generate.py --workdir runs/quickstart --caption "a yellow star" *': QUICKSTART,
    "python scripts/generate.py --model *": f"{RUN_BY}test_commands.py",
    "python scripts/save_model.py *": f"{RUN_BY}test_model_card.py",
    "python scripts/eval_fid.py --workdir runs/quickstart --num-samples 320 *": QUICKSTART,
    "python scripts/eval_fid.py --workdir runs/coco *": COCO,
    "python scripts/eval_fid.py --model emoji64 *": MINUTES,
    "python scripts/verify_reference.py FILE.npz": f"{RUN_BY}test_commands.py",
    "python scripts/doctor.py": f"{RUN_BY}studies/test_doctor.py",
    "python scripts/doctor.py --data-dir data": f"{RUN_BY}studies/test_doctor.py",
    "python scripts/doctor.py --workdir runs/quickstart": f"{RUN_BY}studies/test_doctor.py",
    "python scripts/report.py --workdir runs/coco --out report/": COCO,
    "python scripts/benchmark.py *": MINUTES,
    "python scripts/count_collectives.py *": MINUTES,
    "python -m pytest -m slow *": MINUTES,
    "python scripts/ablate.py *": f"{MINUTES}; {RUN_BY}studies/",
    "python scripts/export.py *": f"{RUN_BY}test_exporting.py",
    "python *run_exported.py *": f"{RUN_BY}test_exporting.py",
}
COMMANDS = commands()


@pytest.mark.parametrize("command", COMMANDS, ids=lambda each: f"{each.place}: {each.text}")
def test_every_command_parses_and_is_run_or_says_why_not(command):
    check(command)
    reasons = [reason for text, reason in NOT_HERE.items() if fnmatchcase(command.text, text)]
    assert (command.text in EXECUTED) != bool(reasons), "in one of the two tables, not in both"


def test_the_tables_hold_no_commands_that_no_document_has():
    texts = {command.text for command in COMMANDS}
    assert [text for text in EXECUTED if text not in texts] == []
    unused = [p for p in NOT_HERE if not any(fnmatchcase(text, p) for text in texts)]
    assert unused == []
    named = [reason.partition(RUN_BY)[2] for reason in NOT_HERE.values() if RUN_BY in reason]
    assert [path for path in named if not exists(f"tests/{path}")] == []


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


def check(command: Command) -> None:
    """Fail where a command names what does not exist."""
    words = command.words
    for text in [word for word in words if word.startswith("--command=")]:
        for part in text.partition("=")[2].split(" && "):
            check(Command(command.place, part))
    if words[0] in ("srun", "mpirun"):
        words = words[words.index("python") :]
    assert [word for word in words if word.startswith("tests/") and not exists(word)] == []
    if words[0] == "sbatch":
        at = next(index for index, word in enumerate(words) if word.endswith(".sbatch"))
        assert exists(words[at])
        check_arguments("xmcgan/train.py", words[at + 1 :])
    elif words[0].startswith("./"):
        assert exists(words[0])
    elif words[:3] == ["python", "-m", "xmcgan.train"]:
        check_arguments("xmcgan/train.py", words[3:])
    elif words[0] == "python" and words[1:3] != ["-m", "pytest"]:
        # export.py copies this one to where it writes.
        program = re.sub(r"^.*run_exported.py$", "scripts/run_exported.py", words[1])
        assert program in programs()
        check_arguments(program, words[2:])


def exists(path: str) -> bool:
    return (ROOT / path).exists()


@functools.cache
def parser(program: str):
    return parser_of(program)


def options(program: str) -> set[str]:
    """Return the flags of a program and of its commands."""
    actions = [action for each in with_commands(parser(program)) for action in each._actions]
    return {option for action in actions for option in action.option_strings}


def check_arguments(program: str, words: list[str]) -> None:
    """Let the program's own parser read the words, and its configs take the fields."""
    if "..." in words or "--help" in words:  # not the whole command
        flags = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert flags <= options(program)
        return
    try:
        args, rest = parser(program).parse_known_args(words)
    except SystemExit:
        pytest.fail(f"{program} cannot read {shlex.join(words)}")
    overrides = read_overrides(parser(program), rest)
    if getattr(args, "config", None):
        config = load_config(args.config)
        for override in overrides:
            apply_override(config, override)
        validate(config)


def markdown() -> list[Path]:
    return [path for path in documents() if path.suffix == ".md"]


def spans() -> list[tuple[str, str]]:
    """Return document and text of each `span` in it."""
    found = [(p.name, re.findall(r"`([^`\n]+)`", p.read_text("utf-8"))) for p in markdown()]
    return [(name, text) for name, texts in found for text in texts]


def test_fields_that_documents_name_exist():
    given = [
        match
        for _, text in spans()
        for match in re.findall(r"--config\.([a-z][a-z_.]*)(?:=(\S+))?", text)
    ]
    assert len(given) > 8
    for field, value in given:
        if field == "field":  # any
            continue
        shapes = load_config("shapes")
        known = functools.reduce(lambda config, name: config[name], field.split("."), shapes)
        # In capitals: a placeholder.
        if value and (isinstance(known, str) or not value.isupper()):
            apply_override(shapes, f"{field}={value}")


def test_flags_that_documents_name_exist():
    known = set().union(*(options(program) for program in programs()))
    known |= {"--all"}  # of test.sh
    named = [(name, match[0]) for name, text in spans() if (match := re.match(r"--[a-z-]+", text))]
    wrong = [(name, flag) for name, flag in named if flag not in known and flag != "--config"]
    assert len(named) > 50
    assert wrong == []


def test_files_that_documents_name_or_link_exist():
    rooms = r"(scripts|docs|tests|xmcgan|configs|notebooks)/[\w/.-]+"
    wrong = [each for each in spans() if re.fullmatch(rooms, each[1]) and not exists(each[1])]
    for path in markdown():
        links = re.findall(r"\]\(([^)#]+)", path.read_text(encoding="utf-8"))
        wrong += [(path.name, link) for link in links if not (path.parent / link).exists()]
    assert wrong == []


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


def test_the_commands_work_one_after_another(run, folder, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "evaluation"))
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "studies"))
    import raters
    import tiny_network

    from xmcgan.studies.human_eval.page import read_key

    tiny_network.install(monkeypatch)
    tiny_network.install_detector(monkeypatch)
    for text, result in EXECUTED.items():
        words = shlex.split(text)[1:]
        if words[0] == "-m":
            words = ["xmcgan/train.py", *words[2:]]
        if "score" in words:  # after the page was made, and before it is scored
            key = read_key(folder / "ranking.key.json")
            raters.answer_file(folder / "answers" / "ann.json", key, raters.by_quality)
        status, output, errors = run(*words)
        # 1: it found problems, such as absent weights.
        assert status == 0 or ("doctor" in text and status == 1), (text, output, errors)
        assert (folder / result).exists(), text
    assert "step 6: every array has its digest" in output  # of the last command
    assert json.loads((folder / "runs/mine/manifest.json").read_text())["step"] == 6


def strings_of_the_code() -> list[str]:
    """Return all texts of the package, with … for what is filled in."""
    found = []
    for path in [*ROOT.glob("xmcgan/**/*.py"), *ROOT.glob("scripts/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = [v.value if isinstance(v, ast.Constant) else "…" for v in node.values]
                found.append("".join(map(str, parts)))
    return found


def test_messages_that_the_documents_quote_are_those_of_the_code():
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)` \| \S", text, flags=re.MULTILINE)
    lines = re.findall(r"^(?:- )?`([^`]+)`: ", text, flags=re.MULTILINE)
    quoted = [each for each in [*rows, *lines] if not each.startswith(("--", "jax"))]
    assert len(quoted) > 15
    known = strings_of_the_code()
    assert [each for each in quoted if not any(each in message for message in known)] == []


def test_the_citation_is_of_this_version():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.+)$", text, flags=re.MULTILINE) == [xmcgan.__version__]
