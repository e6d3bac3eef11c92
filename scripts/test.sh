#!/usr/bin/env bash
# Set up .venv and run every check: lint, formatting, types, tests.
#
#   scripts/test.sh [--all] [PYTEST ARGUMENT ...]
#
# --all also runs the tests marked slow. PYTHON=/path/to/python3 chooses the Python of .venv.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

speed=" and not slow"
if [[ "${1:-}" == "--all" ]]; then
  speed=""
  shift
fi
# A part of the suite starts sooner in one process.
(($#)) && workers=() || workers=(-n auto --dist loadfile --no-loadscope-reorder)

setup_env requirements.txt requirements-demo.txt requirements-dev.txt

# The same for everybody: simulated devices on the CPU, whatever else the machine has.
export JAX_PLATFORMS=cpu TF_CPP_MIN_LOG_LEVEL=2
unset XLA_FLAGS  # tests/conftest.py sets them

failed=()
check() {
  say "$*"
  "$@" || failed+=("$*")
}

check ruff check
check ruff format --check
if pyright --version >/dev/null 2>&1; then
  check pyright
else
  say "pyright skipped: it needs a Node.js, and neither the machine nor the package index has one"
fi

say "Pretrained weights for the tests"
python scripts/fetch_weights.py || say "No weights fetched: the tests that need them are skipped"

if ((${#failed[@]})); then
  printf 'FAILED: %s\n' "${failed[@]}"
fi
# Tests that need a mesh have eight simulated devices; for one device programs compile faster.
status=5  # pytest's "no tests were selected"
for run in "1 not mesh" "8 mesh"; do
  read -r devices marker <<<"$run"
  say "pytest, simulated devices: $devices"
  found=0
  XMCGAN_TEST_DEVICES=$devices python -m pytest -m "$marker$speed" "${workers[@]}" "$@" || found=$?
  case $found in
    0) status=$((status == 5 ? 0 : status)) ;;
    5) ;;
    *) status=$found ;;
  esac
done
exit $((status ? status : ${#failed[@]} > 0))
