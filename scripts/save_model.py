"""Write a checkpoint as a model folder: a small generator and its card.

python scripts/save_model.py --workdir runs/mine --notes notes.md --out mine/

The card is made from what the run recorded, its scores under
WORKDIR/evaluation, and the notes: a Markdown file with the sections
`## Data`, `## What it cannot do` and `## License`.
"""

import argparse
from pathlib import Path

from xmcgan.errors import UserError, run_cli
from xmcgan.sampling.model_card import model_card, read_notes, training_facts
from xmcgan.sampling.model_folder import save_model
from xmcgan.sampling.sampler import TrainedModel


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--workdir", type=Path, required=True, metavar="DIR", help="of a training run"
    )
    parser.add_argument(
        "--step", type=int, metavar="N", help="checkpoint to save (default: the newest)"
    )
    parser.add_argument(
        "--notes", type=Path, required=True, metavar="FILE", help="the author's part of the card"
    )
    parser.add_argument(
        "--machine",
        default="not recorded",
        metavar="TEXT",
        help="what it was trained on, for the card, such as '2 CPU cores'",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="the folder; named as the model"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    notes = read_notes(args.notes)
    model = TrainedModel.from_workdir(args.workdir, args.step)
    name = args.out.resolve().name
    card = model_card(name, args.workdir, model, notes, args.machine)
    info = training_facts(args.workdir, model)
    try:
        save_model(args.out.resolve(), model.variables, model.config, info, card)
    except OSError as error:
        raise UserError(f"cannot write to --out {args.out}: {error.strerror}") from None
    for path in sorted(args.out.iterdir()):
        print(f"{path.stat().st_size / 1e6:8.3f} MB  {path}")


if __name__ == "__main__":
    run_cli(main)
