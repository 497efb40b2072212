#!/usr/bin/env bash
# From a bare Debian 12 to the main job's result: installs what is missing, builds tq4, then compresses a real dump, looks inside, gets it
# back and compares it with the original. Results go to results/quickstart/. Usage: scripts/quickstart.sh [DUMP] (default data/lm_a.h5).
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/bootstrap.sh
echo "== building (log: build/quickstart.log)"
mkdir -p build
if ! { cmake --preset default && cmake --build --preset default --target tq4_program; } >build/quickstart.log 2>&1; then
  tail -n 40 build/quickstart.log >&2
  echo "quickstart.sh: the build failed; the whole log is build/quickstart.log" >&2
  exit 1
fi

dump=${1:-data/lm_a.h5}
out=results/quickstart
rm -rf "$out"
mkdir -p "$out"
step() { echo; echo "\$ $*"; "$@"; }
PATH=$PWD/build/bin:$PATH
step tq4 compress "$dump" --bits 4 -o "$out/dump.tq4" | tee "$out/compress.txt"
step tq4 inspect "$out/dump.tq4" --verify
step tq4 decompress "$out/dump.tq4" -o "$out/back.h5"
step tq4 compare "$dump" "$out/back.h5"

echo
echo "== $dump compressed to 4 bits; all files are in $out/"
tail -n +5 "$out/compress.txt"
