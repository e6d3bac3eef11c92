#!/usr/bin/env bash
# Run the fast tests with the lowest or the newest packages that requirements.txt allows.
#
#   scripts/test_bounds.sh lowest|newest [PYTEST ARGUMENT ...]
#
# Makes .venv-lowest or .venv-newest. PYTHON=/path/to/python3 chooses the Python.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

case "${1:-}" in
  lowest) resolution=lowest-direct ;;
  newest) resolution=highest ;;
  *) die "say lowest or newest" ;;
esac
venv=".venv-$1"
shift

"$(find_python)" -m venv --clear "$venv"
"$venv/bin/pip" install -q --disable-pip-version-check uv
install=("$venv/bin/uv" pip install -q --python "$venv/bin/python")
"${install[@]}" --resolution "$resolution" -r requirements.txt
"${install[@]}" -r requirements-demo.txt -r requirements-dev.txt
"${install[@]}" --no-deps -e .
"$venv/bin/uv" pip list --python "$venv/bin/python"

export JAX_PLATFORMS=cpu XMCGAN_TEST_DEVICES=1
unset XLA_FLAGS
"$venv/bin/python" -m pytest -m "not mesh and not slow" "$@"
