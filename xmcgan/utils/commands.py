"""The console command `xmcgan`: every script by a short name."""

import os
import sys
from pathlib import Path

# Each becomes `python scripts/NAME.py`; setup.py writes these names into the wheel's help texts.
COMMANDS = {
    "train": "",  # python -m xmcgan.train
    "generate": "generate",
    "evaluate": "eval_fid",
    "report": "report",
    "demo": "demo",
    "prepare": "prepare_data",
    "fetch": "fetch_weights",
    "convert": "convert_weights",
    "doctor": "doctor",
    "plan": "plan",
    "benchmark": "benchmark",
    "ablate": "ablate",
    "rank": "human_eval",
    "soa": "soa",
    "save": "save_model",
    "publish": "publish",
    "export": "export",
    "verify": "verify_reference",
}


def main() -> None:
    """Become the program of a command, with its arguments and its exit status."""
    # Here, because setup.py reads the table where the package is not installed.
    from xmcgan.errors import EXIT_USER_ERROR, did_you_mean
    from xmcgan.utils.files import FILES

    scripts = FILES / "scripts"
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in COMMANDS:
        script = str(scripts / f"{COMMANDS[name]}.py")
        program = [script] if COMMANDS[name] else ["-m", "xmcgan.train"]
        os.execv(sys.executable, [sys.executable, *program, *arguments])
    if name not in ("-h", "--help"):
        print(f"error: unknown command {name!r}{did_you_mean(name, COMMANDS)}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    print("usage: xmcgan COMMAND ...; xmcgan COMMAND --help says more\n")
    for command, script in COMMANDS.items():
        path = scripts / f"{script}.py" if script else Path(__file__).parents[1] / "train.py"
        summary = path.read_text("utf-8").partition('"""')[2].splitlines()[0]
        print(f"  {command:<10} {summary}")
