"""Publish a model: write its folder, or upload it to the Hugging Face hub.

python scripts/publish.py --workdir runs/mine --license mit --to mine/
python scripts/publish.py --workdir runs/mine --license mit --to hf:user/name
python scripts/publish.py --model mine/ --license mit --to hf:user/name

The card is made from what the run recorded, its scores under
WORKDIR/evaluation, and --notes; see scripts/save_model.py, which asks for
the notes. Uploading needs an account: `hf auth login`.
"""

import argparse
import re
import shutil
import sys
import tempfile
from pathlib import Path

from save_model import (
    FROM_AUTHOR,
    card,
    read_notes,
    scores_section,
    training_facts,
    training_section,
)

from xmcgan.errors import UserError, run_cli
from xmcgan.sampling.hub import PREFIX, upload_model
from xmcgan.sampling.model_folder import (
    CARD,
    CONFIG,
    FACTS,
    WEIGHTS,
    find_model,
    read_model,
    save_model,
)
from xmcgan.sampling.sampler import TrainedModel
from xmcgan.utils.files import path_of

UNSAID = {
    "Data": "The author has not described the data further.",
    "What it cannot do": "Not described by its author. It draws what its training data show.",
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--workdir", type=path_of, metavar="DIR", help="of a training run")
    source.add_argument("--model", metavar="NAME", help="a model folder that is uploaded as it is")
    add = parser.add_argument
    add("--to", required=True, metavar="TARGET", help="a folder, or hf:user/name")
    add("--step", type=int, metavar="N", help="checkpoint (default: the newest)")
    add("--license", metavar="ID", help="such as apache-2.0; asked for on a terminal")
    add("--notes", type=Path, metavar="FILE", help="the author's part of the card")
    add("--machine", default="not recorded", metavar="TEXT", help="what it was trained on")
    add("--private", action="store_true", help="make the hub's repository private")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    on_hub = args.to.startswith(PREFIX)
    if args.model and (args.step is not None or args.notes):
        raise UserError("--step and --notes need --workdir: a model folder has both already")
    if args.private and not on_hub:
        raise UserError("--private is for --to hf:user/name")
    license_id = args.license or _ask_for_license()
    with tempfile.TemporaryDirectory() as temporary:
        name = args.to.removeprefix(PREFIX).partition("@")[0].rpartition("/")[2]
        out = Path(temporary) / (name or "model") if on_hub else Path(args.to).resolve()
        try:
            if args.workdir:
                write_run(args, out, license_id)
            else:
                copy_model(find_model(args.model), out, license_id)
        except OSError as error:
            raise UserError(f"cannot write to {out}: {error.strerror}") from None
        for path in sorted(out.iterdir()):
            print(f"{path.stat().st_size / 1e6:8.3f} MB  {path.name if on_hub else path}")
        if on_hub:
            print(upload_model(out, args.to, private=args.private))


def _ask_for_license() -> str:
    answer = input("license of the model, such as apache-2.0: ") if sys.stdin.isatty() else ""
    if not answer.strip():
        raise UserError("a published model needs a license: --license apache-2.0, for example")
    return answer.strip()


def write_run(args: argparse.Namespace, out: Path, license_id: str) -> None:
    """Write the model folder of a run's checkpoint."""
    notes = read_notes(args.notes) if args.notes else {"": ""} | UNSAID
    model = TrainedModel.from_workdir(args.workdir, args.step)
    facts = training_facts(args.workdir, model)
    sections = {
        FROM_AUTHOR[0]: [f"Trained on `{model.config.data.name}`."],
        "Training": training_section(args.workdir, model, facts, args.machine),
        "Scores": scores_section(args.workdir, model),
        "License": [f"`{license_id}`"],
    }
    text = _with_license(card(out.name, notes, sections), license_id)
    save_model(out, model.variables, model.config, facts, text)


def copy_model(folder: Path, out: Path, license_id: str) -> None:
    """Copy the files of a model folder, verified, and no others."""
    read_model(folder)
    text = (folder / CARD).read_text(encoding="utf-8") if (folder / CARD).is_file() else ""
    out.mkdir(parents=True, exist_ok=True)
    for name in (WEIGHTS, CONFIG, FACTS):
        if (folder / name).resolve() != (out / name).resolve():
            shutil.copyfile(folder / name, out / name)
    (out / CARD).write_text(_with_license(text, license_id), encoding="utf-8")


def _with_license(text: str, license_id: str) -> str:
    """Return the card with the header that the hub reads, in place of one that it had."""
    body = re.sub(r"\A---\n.*?\n---\n+", "", text, flags=re.DOTALL)
    header = f"license: {license_id}\npipeline_tag: text-to-image\ntags: [xmc-gan]"
    return f"---\n{header}\n---\n\n{body}"


if __name__ == "__main__":
    run_cli(main)
