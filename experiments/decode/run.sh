#!/usr/bin/env bash
# Every `tq4 profile` of README.md: the main sweep, codecs, head shapes, vLLM's slots, and long runs without a rest. TQ4 is the program, OUT a folder.
# Peers are timed beside it, in the same session (README.md).
# Usage, from the repository: experiments/decode/run.sh TQ4 OUT > OUT/shapes.txt
set -uo pipefail
tq4=$1 out=$2
mkdir -p "$out"
p() { "$tq4" profile -q --force "$@"; }
row() { p --batch 32 --ctx 8k --no-baselines "$@" | tail -n +4; }
echo "#### main"
p --batch 1,8,32,64 --ctx 1k,4k,8k,32k --json "$out/tq4_main.json"
p --batch 1 --ctx 128k --json "$out/long.json" | tail -n +4
p --batch 1,8,32 --ctx 1k,8k,32k --no-overlap --no-baselines --json "$out/no_overlap.json" | tail -n +4
echo "#### codecs"
row --codec tq4,k4v3,tq3,tq4-2d,k8v4,tq2 --json "$out/codecs.json"
echo "#### head shapes; 16/2, 24/4 and 8/2 at head_dim 256, 32/32 at 64 and 96"
for heads in 28/4 64/8 32/32 8/2 4/1; do row --heads $heads --json "$out/heads_${heads/\//_}.json"; done
for heads in 16/2 24/4 8/2; do row --heads $heads --head-dim 256; done
for dim in 64 96; do row --heads 32/32 --head-dim $dim; done
echo "#### 2 and 4 query tokens; blocks of 64 and 256 tokens, 16 again"
row --q-len 2,4
row --block-size 64,256,16
echo "#### calibrated; with 4 + 64 exact tokens; keys centred before RoPE"
for more in "" "--sinks 4 --window 64" "--rope"; do p --codec tq4-2d --calibrated $more --batch 1,32 --ctx 8k --no-baselines | tail -n +4; done
echo "#### lengths log-uniform, and the same bytes in equal ones"
p --ragged --batch 64 --ctx 32k --no-baselines | tail -n +4
p --batch 64 --ctx 3664 --no-baselines | tail -n +4
echo "#### slots"
for codec in 4bit_nc k3v4_nc 3bit_nc k8v4; do
  p --layout vllm --codec vllm:$codec --batch 1,32 --ctx 8k --no-baselines --json "$out/slots_$codec.json" | tail -n +4
done
echo "#### sustained"
p --batch 32 --ctx 8k,32k --rest 0 --samples 250 --json "$out/sustained.json" | tail -n +4
