"""Write a trained model as files that draw images without this package.

python scripts/export.py --workdir runs/quickstart --out exported/
python exported/run_exported.py "a red circle"
"""

import argparse
import shutil
from pathlib import Path

from xmcgan.errors import run_cli
from xmcgan.sampling.export import export_model
from xmcgan.sampling.model_folder import load_from_flags
from xmcgan.utils.distributed import use_compilation_cache
from xmcgan.utils.files import path_of

PROGRAM = Path(__file__).with_name("run_exported.py")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--workdir", type=path_of, metavar="DIR", help="of a training run")
    source.add_argument(
        "--model", metavar="NAME", help="a name such as emoji64, a folder, or hf:user/name"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help="captions of one call (default: any number)"
    )
    parser.add_argument(
        "--raw",
        action="store_true",
        help="the weights of the workdir's last step, not their moving average",
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    use_compilation_cache()
    model = load_from_flags(args.workdir, args.model, raw=args.raw)
    files = export_model(model, args.out, batch_size=args.batch_size)
    files.append(Path(shutil.copy(PROGRAM, args.out)))
    for path in files:
        print(f"{path.stat().st_size / 1e6:8.2f} MB  {path}")
    print(f'try it: python {files[-1]} "a red circle" --out {args.out}')


if __name__ == "__main__":
    run_cli(main)
