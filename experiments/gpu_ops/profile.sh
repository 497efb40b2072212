#!/usr/bin/env bash
# Every operation of `tq4 profile`: the sweep, calibrated points, real data, the pages, the launch choices. TQ4 is the program, OUT an empty
# folder, CALIBRATION made by: tq4 calibrate data/lm_a.h5 --codec k4v4-2d --method transform -o lm_a.tq4cal
# Usage, from the repository: experiments/gpu_ops/profile.sh TQ4 OUT CALIBRATION > OUT/log.txt
set -uo pipefail
tq4=$1 out=$2 calibration=$3
export XDG_CACHE_HOME=$out/cache
p() { "$tq4" profile -q --force "$@"; }
echo "== default";    p --ctx 1k..32k --samples 20 --json "$out/decode.json" --html "$out/decode.html"
echo "== calibrated"; p --codec tq4,tq4-2d --calibrated --ctx 1k,8k,32k --no-baselines --samples 10 --json "$out/calibrated.json"
echo "== general calibrated"; p --codec tq4 --calibrated --general --ctx 8k --no-baselines --samples 10
echo "== dump";       p --dump data/lm_a.h5 --layer 4 --codec tq4,k4v3 --ctx 1k,8k --no-baselines --samples 10 --json "$out/dump.json"
echo "== dump calibrated"
p --dump data/lm_a.h5 --layer 4 --calibration "$calibration" --codec k4v4-2d --ctx 1k,8k --no-baselines --samples 10 --json "$out/dump_calibrated.json"
for op in store encode dequant; do echo "== $op"; p --op $op --batch 1,32 --ctx 8k --samples 10 --json "$out/$op.json" --html "$out/$op.html"; done
echo "== dump ops";   for op in store encode dequant prefill; do p --op $op --dump data/lm_a.h5 --ctx 2k --samples 5; done
echo "== prefill";    p --op prefill --ctx 1k..32k --samples 5 --json "$out/prefill.json" --html "$out/prefill.html"
echo "== tune";       p --tune --general --batch 1,8 --ctx 1k,8k,32k --samples 10 --json "$out/tune.json"
echo "== tune vllm";  p --tune --layout turboquant-vllm --padded --codec turboquant-vllm --ctx 8k,32k --samples 10 --json "$out/tune_tqvllm.json"
echo "== tuned and by rule"
p --general --batch 1,8 --ctx 1k,8k,32k --samples 20 --no-baselines
p --general --batch 1,8 --ctx 1k,8k,32k --samples 20 --no-baselines --no-tuned
echo "== fused has nothing to tune"; p --tune --ctx 8k
echo "== too large";  p --batch 4096 --ctx 32k --no-baselines --samples 5; p --op prefill --batch 1024 --ctx 32k; p --dry-run --batch 4096 --ctx 32k
echo "== end";        cat "$out/cache/tq4/tune.tsv"
