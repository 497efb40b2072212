#!/usr/bin/env bash
# Builds everything and runs every test. What cannot run here (no GPU, no Python packages) is skipped and listed by name at the end.
# Usage: scripts/test.sh [PRESET] [cmake -D options...]; presets: default, cpu, asan, tsan (CMakePresets.json).
set -euo pipefail
cd "$(dirname "$0")/.."

preset=default
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
  preset=$1
  shift
fi
scripts/bootstrap.sh --python
jobs=$(nproc)
launcher=()
if command -v ccache >/dev/null; then launcher=(-DCMAKE_C_COMPILER_LAUNCHER=ccache -DCMAKE_CXX_COMPILER_LAUNCHER=ccache -DCMAKE_CUDA_COMPILER_LAUNCHER=ccache); fi
python=()
if [ -x build/venv/bin/python ]; then python=(-DTQ4_PYTHON="$PWD/build/venv/bin/python"); fi
# The Python package is built and tested without sanitizers, where nanobind and Python's headers are there; elsewhere its test says why it is skipped.
if { [ "$preset" = default ] || [ "$preset" = cpu ]; } && build/venv/bin/python -c 'import nanobind, os, sysconfig
os.stat(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null; then
  python+=(-DTQ4_PYTHON_MODULE=ON -DPython_EXECUTABLE="$PWD/build/venv/bin/python")
fi
echo "== configuring and building preset $preset"
cmake --preset "$preset" "${launcher[@]}" "${python[@]}" "$@" | tail -n 3
cmake --build --preset "$preset" -j "$jobs" | tail -n 1

log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
ctest --preset "$preset" -j "$jobs" >"$log" 2>&1 || status=$?
if [ $status -ne 0 ]; then cat "$log"; else grep -E '\((Skipped|Disabled)\)$' "$log" || true; fi
echo "== tests of preset $preset: $(grep -cE '^ *[0-9]+/[0-9]+ Test .* Passed' "$log") passed, $(grep -cE '^ *[0-9]+/[0-9]+ Test .*\*\*\*Skipped' "$log") skipped"
grep -E 'tests passed|Total Test time' "$log" || true
exit $status
