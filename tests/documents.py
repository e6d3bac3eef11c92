"""The commands that the documents tell their readers to type."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
# What a command begins with, after variables such as A=b.
_PROGRAMS = {
    "python", "pip", "tensorboard", "wandb", "jupyter", "srun", "sbatch", "scancel", "mpirun",
    "gcloud", "source", "export", "cd", "git", "apt-get", "curl", "docker", "kubectl", "uv",
}  # fmt: skip
# What the shell puts there in scripts/quickstart.sh and under launch/.
_EXPANDED = {
    '"$workdir"': "runs/quickstart",
    "$workdir": "runs/quickstart",
    '"$own"': "runs/quickstart/own_captions",
    '"$@"': "...",
}


class Command(NamedTuple):
    """Hold one command.

    Attributes:
        place: the file, from the root.
        text: on one line, single spaces, without comments.
    """

    place: str
    text: str

    @property
    def words(self) -> list[str]:
        """Return the words that a shell would see, without variables before the program."""
        words = shlex.split(self.text)
        while words and re.match(r"[A-Z_]+=", words[0]):
            del words[0]
        return words


def documents() -> list[Path]:
    """Return all files with commands for readers."""
    patterns = ("README.md", "CONTRIBUTING.md", "docs/*.md", "configs/*.py", "scripts/*.py",
                "scripts/quickstart.sh", "scripts/launch/*")  # fmt: skip
    return sorted(path for pattern in patterns for path in ROOT.glob(pattern))


def commands() -> list[Command]:
    """Return each command of each document once."""
    found = {}
    for path in documents():
        place = path.relative_to(ROOT).as_posix()
        for text in commands_in(_prose(path)):
            found[Command(place, text)] = None
    return list(found)


def commands_in(text: str) -> Iterator[str]:
    """Yield the commands of a text: in code blocks, on lines of their own, in `spans`."""
    joined = re.sub(r"\\\n\s*", "", text)
    for line in joined.splitlines():
        for candidate in re.findall(r"`([^`]+)`", line) or [line]:
            # An explanation stands behind a wide gap or a number sign.
            command = re.split(r"\s{2,}|\s#\s|\s\|\s", candidate.strip())[0]
            for text, expanded in _EXPANDED.items():
                command = command.replace(text, expanded)
            if _is_command(command):
                # Several in a row, but for those that one of them hands to another machine.
                yield from [command] if "--command=" in command else command.split(" && ")


def _is_command(text: str) -> bool:
    if "$(" in text:  # of a script, for the shell alone
        return False
    words = text.split()
    while words and re.match(r"[A-Z_]+=", words[0]):
        del words[0]
    # A name alone, such as `python`, is no command.
    return (len(words) > 1 and words[0] in _PROGRAMS) or bool(
        words and words[0].startswith("./scripts/")
    )


def _prose(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return text
    if path.suffix == ".py":
        return ast.get_docstring(ast.parse(text)) or ""
    # Of a shell script its comments, too, and what it prints.
    return "\n".join(line.lstrip("# ") for line in text.splitlines())
