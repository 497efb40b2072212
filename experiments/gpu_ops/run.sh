#!/usr/bin/env bash
# Runs the GPU test suite, compute-sanitizer and the profile sweep. BIN_DIR holds gpu_tests, gpu_engine_step and tq4.
set -uo pipefail
bin=$1 out=$2
mkdir -p "$out"
export TQ4_GOLDEN=${TQ4_GOLDEN:-tests/golden/data/peers.h5}
"$bin/gpu_tests" > "$out/tests.log" 2>&1; echo "gpu_tests: exit $?" | tee -a "$out/tests.log"
"$bin/gpu_engine_step" | tee -a "$out/tests.log"
small='Encode*:*d64*:*d32*:Store.*:Dequant*:Decode.OtherLayouts:Decode.ExactPart:Decode.Options:DecodeGraph.IsDeterministic:Prefill.*:LayerStep.*'
for tool in memcheck racecheck initcheck synccheck; do
  echo "== $tool" && timeout "${SANITIZER_SECONDS:-120}" compute-sanitizer --tool "$tool" "$bin/gpu_tests" --gtest_brief=1 --gtest_filter="$small" 2>&1 | tail -8
done > "$out/sanitizer.log"
"$bin/tq4" profile -q --ctx 1k..32k --batch 1,8,32 --json "$out/profile.json" --force | tee "$out/profile.txt"
