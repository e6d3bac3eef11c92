#!/usr/bin/env bash
# From a bare clone to a trained text-to-image model in at most ten minutes on two CPU cores.
#
#   scripts/quickstart.sh [--config.FIELD=VALUE ...]
#
# Sets up .venv, fetches the frozen networks, draws the embedded data set, trains on it, generates
# images for captions of its own and scores the checkpoints. Running it again resumes or reuses what
# is there.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

workdir=runs/quickstart
own="$workdir/own_captions"

setup_env requirements.txt

say "Frozen networks: text encoder, and image features for the scores"
python scripts/fetch_weights.py minilm efficientnet_lite0 efficientnet_lite2

say "Training"
python -m xmcgan.train --config shapes:quickstart --workdir "$workdir" "$@"

say "Images for captions of your own"
python scripts/generate.py --workdir "$workdir" --out "$own" \
  --caption "a large red circle on the left" \
  --caption "a small blue square in the middle" \
  --caption "a green triangle above a yellow circle" \
  --caption "two shapes side by side"

say "Evaluation: how real, and how true to their captions"
python scripts/eval_fid.py --workdir "$workdir" --num-samples 256 --use ema --bootstrap 10
python scripts/eval_fid.py report --workdir "$workdir"
python scripts/report.py --workdir "$workdir"

say "Done. What was left where:"
cat <<EOF
  $workdir/report.md        the run on one page: samples, curves, scores, settings
  $workdir/samples/         fixed captions as training went on, each beside its real image
  $own/    images for the captions above; grid.png shows them all
  $workdir/evaluation/      report.md and curves.png: the scores of four checkpoints
  $workdir/checkpoints/     the state; the same command resumes from it
  $workdir/metrics.jsonl    every loss, and the same for TensorBoard:
      pip install tensorboard && tensorboard --logdir $workdir/tensorboard

What to try next, after: source .venv/bin/activate
  python scripts/generate.py --workdir $workdir --caption "a purple star" --out runs/mine
  python -m xmcgan.train --config shapes:small     the same for an hour
  python -m xmcgan.train --config shapes            larger networks and images; wants a GPU
  python scripts/prepare_data.py folder --help      your own images and captions
EOF
