"""Train combinations of the losses with equal budgets and score them in a table.

python scripts/ablate.py --config shapes:quickstart --grid sentence,word
python scripts/ablate.py --config shapes:quickstart --seeds 3 --dry-run
python scripts/ablate.py --config coco:256,paper --rows paper

The same command resumes where it was stopped.
"""

import argparse
import re
import sys
from pathlib import Path

import rich
from rich.markdown import Markdown

from xmcgan.errors import TrainingError, listed, run_cli
from xmcgan.evaluation.protocols import PROTOCOLS, get_protocol
from xmcgan.studies.ablation.plan import combinations, plan_cells, read_rows
from xmcgan.studies.ablation.report import write_report
from xmcgan.studies.ablation.runs import Scoring, dry_run, run_cells
from xmcgan.training.command_line import read_overrides
from xmcgan.training.monitoring import StopSignal
from xmcgan.utils.files import lock_workdir
from xmcgan.utils.variants import ABLATION_NAMES

EVALUATE = [sys.executable, str(Path(__file__).with_name("eval_fid.py"))]


def parse_args() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="exit status: 0 all runs have a score, 2 a mistake or a failed run (named),\n"
        "130 stopped by Ctrl-C, 143 by SIGTERM",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", required=True, metavar="NAME[:VARIANT]", help="such as shapes:quickstart"
    )
    parser.add_argument(
        "--grid",
        default="sentence,word,image",
        metavar="LOSS,...",
        help=f"of {', '.join(ABLATION_NAMES)}: none, each alone, pairs and all are trained "
        "(default: sentence,word,image)",
    )
    parser.add_argument(
        "--rows",
        metavar="ROW,...",
        help="the rows themselves in place of a grid, such as none,sentence+word; `paper`: the ten "
        "of the paper's table",
    )
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="runs a row (default: 1)")
    parser.add_argument(
        "--num-samples", type=int, default=500, metavar="N", help="images to score (default: 500)"
    )
    parser.add_argument(
        "--protocol",
        default="fd-effnet-lite2",
        help=f"{', '.join(PROTOCOLS)} (default: fd-effnet-lite2)",
    )
    parser.add_argument("--weights", metavar="FILE", help="of the protocol's network")
    parser.add_argument("--clip", metavar="DIR", help="CLIP ViT-B/32: CLIPScore and R-precision")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="(default: runs/ablation_ and the config's name)"
    )
    parser.add_argument("--dry-run", action="store_true", help="list the runs and what they cost")
    parser.add_argument(
        "--config.FIELD",
        metavar="VALUE",
        dest="ignored",
        help="set a field of the config of all runs; repeatable",
    )
    args, rest = parser.parse_known_args()
    overrides = read_overrides(parser, rest)
    if args.out is None:
        args.out = Path("runs") / f"ablation_{re.sub(r'[^A-Za-z0-9.+_-]+', '_', args.config)}"
    return args, overrides


def main() -> int:
    args, overrides = parse_args()
    scoring = Scoring(args.num_samples, args.protocol, args.weights, args.clip)
    rows = read_rows(args.rows) if args.rows else combinations(args.grid.split(","))
    cells = plan_cells(args.config, rows, seeds=args.seeds, overrides=overrides, out=args.out)
    scoring.check(cells)
    if args.dry_run:
        print(dry_run(cells, scoring))
        return 0
    with lock_workdir(args.out), StopSignal() as stop:
        failures = run_cells(cells, scoring, EVALUATE, stop)
        if found := scoring.find_results(cells):
            protocol = get_protocol(args.protocol)
            rich.print(Markdown(write_report(cells, found, protocol, failures, args.out)))
            print(f"\nablation.md, ablation.json and ablation.png in {args.out}")
    if stop.received:
        print("stopped; the same command resumes")
    elif failures:
        raise TrainingError(
            f"{len(failures)} of {len(cells)} runs failed; the same command tries them "
            f"again:{listed(failures)}"
        )
    return stop.exit_status


if __name__ == "__main__":
    run_cli(main)
