#!/usr/bin/env bash
# Installs what is missing to build and test on Debian 12 (or a relative with the same package names). Asks for nothing; does nothing when
# all is there. With --lint: clang-format, clang-tidy, clang with libFuzzer too. With --python: Python's headers and a virtual environment at
# build/venv with what the Python package is built with and the Python tests use, where PyPI can be reached.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(cmake g++ git ninja-build pkg-config ca-certificates libhwy-dev libhdf5-dev libcli11-dev libfmt-dev libeigen3-dev nlohmann-json3-dev libgtest-dev
          libbenchmark-dev libxxhash-dev libminizip-dev zlib1g-dev)
python=no
for argument in "$@"; do
  case $argument in
    --lint) packages+=(clang-14 libclang-rt-14-dev clang-format-14 clang-tidy-14) ;;
    --python) python=yes; packages+=(python3 python3-dev python3-venv) ;;
    *) echo "bootstrap.sh: unknown argument $argument (--lint, --python)" >&2; exit 2 ;;
  esac
done

missing=()
for package in "${packages[@]}"; do
  [ "$(dpkg-query -W -f='${Status}' "$package" 2>/dev/null)" = "install ok installed" ] || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
  as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || { echo "bootstrap.sh: missing packages (${missing[*]}), and neither root nor sudo to install them" >&2; exit 1; }
    as_root=(sudo)
  fi
  echo "== installing: ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

if [ $python = yes ] && ! build/venv/bin/python -c 'import nanobind, scikit_build_core, numpy, h5py, safetensors, pytest' 2>/dev/null; then
  # Debian's own python: another one first on the PATH may lack the venv module.
  mkdir -p build
  if ! { { [ -x build/venv/bin/python ] || /usr/bin/python3 -m venv build/venv; } &&
         build/venv/bin/pip install -q --disable-pip-version-check numpy h5py safetensors pytest nanobind scikit-build-core; }; then
    [ -x build/venv/bin/pytest ] || rm -rf build/venv  # an older environment still serves the tests that it can
    echo "bootstrap.sh: the Python environment is incomplete (PyPI unreachable?): Python tests will be skipped, visibly" >&2
  fi
fi
