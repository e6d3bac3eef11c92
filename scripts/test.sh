#!/usr/bin/env bash
# Set up .venv and run every check: lint, formatting, types, tests.
#
#   scripts/test.sh [--all] [PYTEST ARGUMENT ...]
#
# --all also runs the tests marked slow. PYTHON=/path/to/python3 chooses the Python of .venv.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

selection=(-m "not slow")
if [[ "${1:-}" == "--all" ]]; then
  selection=()
  shift
fi

setup_env requirements.txt requirements-dev.txt

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
say "pytest"
status=0
python -m pytest "${selection[@]}" "$@" || status=$?
exit $((status ? status : ${#failed[@]} > 0))
