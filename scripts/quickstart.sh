#!/usr/bin/env bash
# From a bare clone to a model that draws emoji, in about ten minutes on two CPU cores.
#
#   scripts/quickstart.sh [--config.FIELD=VALUE ...]
#
# Sets up .venv, fetches three frozen networks, trains on the embedded data set, draws captions that
# training never saw and captions of its own, and scores the result. Running it again resumes or
# reuses what is there.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

workdir=runs/quickstart
own="$workdir/own_captions"

setup_env requirements.txt

say "Frozen networks: text encoder, trunk of the discriminator, and the judge of the scores"
python scripts/fetch_weights.py minilm efficientnet_lite0 efficientnet_lite2

say "What longer training draws: the model emoji64, which comes with the clone"
python scripts/generate.py --model emoji64 --out runs/emoji64 \
  --captions-file assets/captions.txt --shared-noise --num 1

say "Training a smaller one here: 3,463 emoji and their names"
python -m xmcgan.train --config emoji:quickstart --workdir "$workdir" "$@"

say "Images for captions of your own"
python scripts/generate.py --workdir "$workdir" --out "$own" --captions-file assets/captions.txt --shared-noise

say "Scores, by a network that training never sees"
python scripts/eval_fid.py --workdir "$workdir" --num-samples 320 --use ema \
  --metrics retrieval diversity
python scripts/eval_fid.py report --workdir "$workdir"
python scripts/report.py --workdir "$workdir"

say "Done. What to look at:"
last=$(ls "$workdir"/samples/*.png | tail -n 1)
cat <<EOF
  $last
                            names that training never saw, each with the real emoji beside the drawn one:
                            look for the right figure, pose and skin tone
  $own/grid.png
                            the captions of assets/captions.txt, which you can change; four noises each
  runs/emoji64/grid.png     the same captions by the model of the clone, after 1.5 million images
  $workdir/report.md        the run on one page: samples, curves, scores, settings
  $workdir/samples/         the same captions as training went on
  $workdir/evaluation/      report.md: retrieval@1 says how often a drawn emoji is nearer to the real one of
                            its name than to 99 others (chance: 1 %)
  $workdir/checkpoints/     the state; the same command resumes from it

What to try next, after: source .venv/bin/activate
  python scripts/generate.py --workdir $workdir --caption "a yellow star" --out runs/mine
  python -m xmcgan.train --config emoji:32         the same for an hour
  python -m xmcgan.train --config emoji            64 px, on a GPU
  python scripts/prepare_data.py folder --help     your own images and captions
EOF
