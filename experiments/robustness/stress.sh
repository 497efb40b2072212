#!/usr/bin/env bash
# The outlier stress test: for each scale, dumps of the stressed model, its calibrations, and the plan on held-out windows.
#   MODEL=LM LIBRARY=libtq4_roundtrip.so TQ4=tq4 PYTHON=python OUT=. ./stress.sh 16 8 4     # DEVICE=cpu TAKE=5::44 for a few windows
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
: "${MODEL:?}" "${LIBRARY:?}" "${TQ4:=tq4}" "${PYTHON:=python3}" "${OUT:=.}" "${DEVICE:=auto}" "${TAKE:=5::22}" "${DUMPS:=4}" "${COMMIT:=}" "${BITS:=4 3}" "${PLAN:=$here/plan_stress.json}"
for s in "$@"; do
  work=$OUT/stress$s
  mkdir -p "$work/cals"
  "$PYTHON" "$here/../perplexity/dump.py" --model "$MODEL" --stress "$s" --windows "$DUMPS" --out "$work/dumps"
  for b in $BITS; do
    for rope in "" --rope; do
      "$TQ4" calibrate "$work"/dumps/*.h5 --codec k${b}v${b}-2d $rope --force -o "$work/cals/k${b}v${b}-2d.$([ "$rope" ] && echo rope || echo static).tq4cal"
    done
  done
  "$PYTHON" "$here/../perplexity/run.py" --model "$MODEL" --library "$LIBRARY" --plan "$PLAN" --calibrations "$work/cals" --stress "$s" \
    --device "$DEVICE" --take "$TAKE" --commit "$COMMIT" --out "$OUT/stress$s.json"
done
