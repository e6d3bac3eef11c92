# Sourced by the other scripts: goes to the repository's root and sets up `.venv`.
# shellcheck shell=bash

cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Large arrays in huge pages, where Linux has them: a step on a CPU takes a quarter less time, since
# each one's memory is handed out anew (docs/recipes.md).
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"

# Bold where a terminal can show it.
say() {
  if [[ -t 1 && -z "${NO_COLOR:-}" && "${TERM:-dumb}" != dumb ]]; then
    printf '\033[1m%s\033[0m\n' "$*"
  else
    printf '%s\n' "$*"
  fi
}
die() { printf 'error: %s\n' "$*" >&2; exit 2; }

# Succeeds if "$1" runs and is a Python that the requirements support.
python_fits() {
  "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
}

find_python() {
  local candidate
  if [[ -n "${PYTHON:-}" ]]; then
    python_fits "$PYTHON" || die "PYTHON=$PYTHON is not a Python 3.11, 3.12 or 3.13 that runs"
    echo "$PYTHON"
    return
  fi
  for candidate in python3 python python3.13 python3.12 python3.11; do
    if python_fits "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  die "no Python 3.11, 3.12 or 3.13 found. Install one, or name it: PYTHON=/path/to/python3 $0"
}

# Prints a hash of what the environment is made from.
fingerprint() {
  .venv/bin/python - "$@" <<'EOF'
import hashlib, pathlib, sys
parts = [sys.version.encode(), sys.prefix.encode(), *(pathlib.Path(p).read_bytes() for p in sys.argv[1:])]
print(hashlib.sha256(b"\0".join(parts)).hexdigest())
EOF
}

create_venv() {
  local python
  python=$(find_python)
  say "Creating .venv with $("$python" --version)"
  rm -rf .venv
  if ! "$python" -m venv .venv; then
    rm -rf .venv
    die "$python cannot create a virtual environment (message above). Its venv or ensurepip part is
missing: on Debian and Ubuntu 'apt install python3-venv' brings it, or name another Python:
PYTHON=/path/to/python3 $0"
  fi
}

# setup_env FILE...: makes `.venv` hold the package and the requirement files' packages, and enters
# it. A mark for the same files makes the next call cheap.
setup_env() {
  local mark file hash
  local -a arguments=()
  if ! python_fits .venv/bin/python || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    create_venv
  elif [[ -n "${PYTHON:-}" ]] && python_fits "$PYTHON" && ! same_version "$PYTHON"; then
    create_venv
  fi
  mark=".venv/.installed-$(basename "${@: -1}" .txt)"
  hash=$(fingerprint "$@" pyproject.toml)
  if [[ "$(cat "$mark" 2>/dev/null)" != "$hash" ]]; then
    say "Installing $* into .venv (a minute or two the first time)"
    for file in "$@"; do arguments+=(-r "$file"); done
    .venv/bin/python -m pip install -q --disable-pip-version-check "${arguments[@]}"
    .venv/bin/python -m pip install -q --disable-pip-version-check --no-deps -e .
    echo "$hash" > "$mark"
  fi
  export VIRTUAL_ENV="$PWD/.venv" PATH="$PWD/.venv/bin:$PATH"
}

same_version() {
  local script='import sys; print(sys.version)'
  [[ "$("$1" -c "$script")" == "$(.venv/bin/python -c "$script")" ]]
}
