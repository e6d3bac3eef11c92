"""What pyproject.toml cannot say: the wheel has configs, scripts and assets, too."""

import re
import runpy
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = ("assets", "configs", "scripts", "tests/oracle")  # the last: scripts/verify_reference.py
COMMANDS = runpy.run_path("xmcgan/utils/commands.py")["COMMANDS"]


class BuildWithFiles(build_py):
    """Copy the folders beside the package into the wheel, and name its own commands there."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        package = Path(self.build_lib, "xmcgan")
        shutil.rmtree(package / "_files", ignore_errors=True)
        left_out = shutil.ignore_patterns("__pycache__", "*.sh", "launch")
        for folder in SHIPPED:
            shutil.copytree(folder, package / "_files" / folder, ignore=left_out)
        for path in package.rglob("*.py"):
            path.write_text(as_installed(path.read_text("utf-8")), "utf-8")


def as_installed(text: str) -> str:
    """Replace `python scripts/NAME.py` and requirement files, in help texts and messages."""
    for command, script in COMMANDS.items():
        program = rf"(python )?scripts/{script}\.py\b" if script else r"python -m xmcgan\.train\b"
        text = re.sub(program, f"xmcgan {command}", text)
    text = re.sub(r"(-r )?\brequirements-(\w+)\.txt", r"xmcgan[\2]", text)
    return text.replace("-r requirements.txt", "xmcgan")


setup(cmdclass={"build_py": BuildWithFiles})
