"""The borders between the rooms of the package hold; CONTRIBUTING.md says them in words."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EVERYWHERE = ("xmcgan", "scripts", "configs", "tests")
# What arithmetic on arrays may need of Python, JAX and NumPy.
ARRAYS = {"jax", "jaxtyping", "numpy"} | {
    "__future__",
    "abc",
    "collections",
    "dataclasses",
    "enum",
    "functools",
    "itertools",
    "math",
    "operator",
    "typing",
}
STEP = ("step", "microbatching")
FILES = {"glob", "io", "json", "os", "pathlib", "shutil", "tempfile"}


def imports_of(source: str) -> list[tuple[str, ...]]:
    """Return the names of each import, at the top or inside a function.

    `from a.b import c` gives `("a.b", "a.b.c")`, because `c` may be a module.
    """
    found: list[tuple[str, ...]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(alias.name,) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            found += [(module, f"{module}.{alias.name}") for alias in node.names]
    return found


def within(name: str, packages: set[str]) -> bool:
    """Return whether a module is one of the packages or inside one."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def imports_by_file(*rooms: str) -> dict[str, list[tuple[str, ...]]]:
    """Return the imports of all files in some folders, by path from the root."""
    paths: list[Path] = []
    for room in rooms:
        path = ROOT / room
        paths += sorted(path.rglob("*.py")) if path.is_dir() else [path] * path.exists()
    return {
        path.relative_to(ROOT).as_posix(): imports_of(path.read_text("utf-8")) for path in paths
    }


def using(rooms: tuple[str, ...], packages: set[str]) -> list[str]:
    """Return `file: name` for each import of one of the packages."""
    return [
        f"{file}: {names[-1]}"
        for file, imports in imports_by_file(*rooms).items()
        for names in imports
        if any(within(name, packages) for name in names)
    ]


def using_more_than(rooms: tuple[str, ...], packages: set[str]) -> list[str]:
    """Return `file: name` for each import of anything besides the packages."""
    return [
        f"{file}: {names[-1]}"
        for file, imports in imports_by_file(*rooms).items()
        for names in imports
        if not any(within(name, packages) for name in names)
    ]


def outside(offenders: list[str], *homes: str) -> list[str]:
    """Return the offenders whose file is not in one of the folders or files."""
    return [offender for offender in offenders if not offender.startswith(homes)]


def test_nothing_imports_tensorflow_or_pytorch():
    assert using(EVERYWHERE, {"tensorflow", "torch", "torchvision"}) == []


def test_imports_are_absolute():
    relative = [
        file
        for file, imports in imports_by_file(*EVERYWHERE).items()
        for names in imports
        if names[0].startswith(".")
    ]
    assert relative == []


def test_the_package_imports_neither_configs_nor_scripts_nor_tests():
    scripts = {"scripts", "benchmarks", "convert_weights", "weight_formats"}
    assert using(("xmcgan",), scripts | {"configs", "tests", "oracle"}) == []


def test_models_know_arrays_and_nothing_else():
    assert using_more_than(("xmcgan/models",), ARRAYS | {"flax", "xmcgan.models"}) == []


def test_losses_know_arrays_and_attention_but_no_network():
    models = {"xmcgan.models.attention", "xmcgan.models.outputs"}
    allowed = (
        ARRAYS | models | {"inspect", "xmcgan.losses", "xmcgan.errors", "xmcgan.utils.registry"}
    )
    assert using_more_than(("xmcgan/losses",), allowed) == []


def test_data_is_numpy_without_networks_and_without_config():
    data = ("xmcgan/data",)
    assert using(data, {"flax", "jax", "optax", "ml_collections"}) == []
    own = using(data, {"xmcgan"})
    known = using(data, {"xmcgan.data", "xmcgan.errors", "xmcgan.utils"})
    assert sorted(set(own) - set(known)) == []


def test_frozen_networks_know_neither_data_nor_training_nor_config():
    packages = {"ml_collections", "xmcgan.config", "xmcgan.data", "xmcgan.training"}
    assert using(("xmcgan/pretrained",), packages) == []


def test_flax_stays_in_models_pretrained_and_the_training_state():
    homes = ("xmcgan/models/", "xmcgan/pretrained/", "xmcgan/shapes/", "xmcgan/training/state.py",
             "xmcgan/training/monitoring.py")  # fmt: skip
    assert outside(using(("xmcgan",), {"flax"}), *homes) == []


def test_losses_are_added_up_in_one_place():
    homes = (
        "xmcgan/losses/",
        "xmcgan/train.py",
        "xmcgan/planning/",
        *(f"xmcgan/training/{f}.py" for f in STEP),
    )
    assert outside(using(("xmcgan",), {"xmcgan.losses"}), *homes) == []


def test_the_training_step_touches_neither_files_nor_data():
    packages = FILES | {"orbax", "xmcgan.data", "xmcgan.training.checkpoint"}
    assert using(tuple(f"xmcgan/training/{part}.py" for part in STEP), packages) == []


def test_the_literal_formulation_shares_no_code_with_ours():
    oracle = tuple(f"tests/oracle/{part}.py" for part in ("literal", "params", "step"))
    assert using_more_than(oracle, ARRAYS | {"optax", "oracle"}) == []


def test_evaluation_and_sampling_never_use_the_training_step():
    assert using(("xmcgan/evaluation", "xmcgan/sampling"), {"xmcgan.training.step"}) == []
    assert using(("xmcgan/evaluation",), {"xmcgan.shapes"}) == []  # its metric is found by name


def test_the_service_stands_on_sampling_and_nothing_stands_on_it():
    trained = {"xmcgan.train", "xmcgan.training.step", "xmcgan.evaluation", "xmcgan.studies"}
    assert using(("xmcgan/serving",), trained) == []
    web = {"starlette", "uvicorn", "xmcgan.serving"}
    assert outside(using(("xmcgan",), web), "xmcgan/serving/") == []


def test_who_looks_at_a_workdir_does_not_train():
    packages = {"xmcgan.train", "xmcgan.training.step"}
    assert using(("xmcgan/studies",), packages) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import torch.nn as nn", [("torch.nn",)]),
        ("def f():\n    from tensorflow import keras", [("tensorflow", "tensorflow.keras")]),
        ("from xmcgan import config", [("xmcgan", "xmcgan.config")]),
        ("from .models import config", [(".models", ".models.config")]),
    ],
)
def test_imports_are_found_in_every_form(source, found):
    assert imports_of(source) == found


def test_a_package_is_told_from_another_that_begins_with_its_name():
    assert within("tensorflow.io", {"tensorflow"})
    assert not within("tensorflow_datasets", {"tensorflow"})


# The size of the house.


def lines(*paths: Path) -> int:
    """Return the lines of files together."""
    return sum(len(path.read_text("utf-8").splitlines()) for path in paths)


def modules(room: Path) -> list[str]:
    """Return the names of a folder's modules, the package's own file left out."""
    return sorted(path.stem for path in room.glob("*.py") if path.stem != "__init__")


def test_the_package_does_not_grow_unseen():
    kinds = (".py", ".js", ".html", ".css")
    files = [path for path in (ROOT / "xmcgan").rglob("*") if path.suffix in kinds]
    assert lines(*files) <= 19_314
    assert {path.name for path in files if lines(path) > 500} == set()


def test_the_root_has_the_program_its_config_and_its_errors():
    assert modules(ROOT / "xmcgan") == ["config", "errors", "train"]


def test_a_room_has_three_to_ten_files():
    rooms = [path.parent for path in (ROOT / "xmcgan").rglob("__init__.py")]
    sizes = {room.name: len(modules(room)) for room in rooms}
    assert {name: size for name, size in sizes.items() if not 3 <= size <= 10} == {}


def test_train_reads_from_top_to_bottom():
    program = ROOT / "xmcgan/train.py"
    imports = {names[0] for names in imports_of(program.read_text("utf-8"))}
    assert len([name for name in imports if within(name, {"xmcgan"})]) <= 14
    assert lines(program) <= 250


def test_the_training_program_imports_neither_evaluation_nor_reports():
    code = "import sys, xmcgan.train; print(*(n for n in sys.modules if n.startswith('xmcgan')))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = run.stdout.split()
    assert len(imported) <= 50
    assert not any(within(n, {"xmcgan.evaluation", "xmcgan.studies"}) for n in imported)
