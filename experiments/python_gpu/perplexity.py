"""Nats and KL that a model loses under tq4.hf.TQ4Cache, beside what experiments/perplexity measured on the same windows.

    python perplexity.py --model LM --device cpu --take 0::64 --out perplexity_cpu.json
    python perplexity.py --model LM --device cuda --take 0::32 --out perplexity_gpu.json

There each layer's keys and values go through the codec in one piece and torch attends in fp32. Here the model runs with the cache as a user would
run it: on the CPU with prefill="stored" (decode, then attend), on a GPU also in steps of 16 tokens, every one of which reads the pages in the
decode kernel, with an fp16 model. Both are compared with the same model uncompressed.
"""
import argparse
import contextlib
import json
import os
import pathlib
import platform
import sys
import time

import numpy as np
import torch
import transformers
from safetensors.torch import load_file

import tq4.hf

EXPERIMENT = pathlib.Path(__file__).resolve().parents[1] / "perplexity"
sys.path.append(str(EXPERIMENT))
from model import windows  # noqa: E402

ENTRIES = [("k4v4", 42, (0, 0)), ("k3v3", 42, (0, 0)), ("k4v4-norm", 1, (0, 0)), ("k3v3-norm", 1, (0, 0)), ("k3v3-norm", 1, (64, 4))]
"""Codec, seed, (window, sinks): records of experiments/perplexity without a calibration."""


def load(folder):
    """The small trained model as transformers has it, fp32 on the CPU; its weights are int8 rows with a scale each."""
    folder = pathlib.Path(folder)
    raw = load_file(folder / "model.int8.safetensors")
    weights = {name.removesuffix(".int8"): x.float() * raw[name.removesuffix(".int8") + ".scale"].float()[:, None] if name.endswith(".int8") else x.float()
               for name, x in raw.items() if not name.endswith(".scale")}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**json.loads((folder / "config.json").read_text())))
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and missing in ([], ["lm_head.weight"])
    model.tie_weights()
    return model.float().eval()


def grid(folder, ctx=4096):
    """The 256 windows of experiments/perplexity."""
    return torch.from_numpy(windows(folder, 100, 400, ctx, 256))


def record_of(spec, seed, exact):
    records = json.loads((EXPERIMENT / "windows.json").read_text())
    return next(r for r in records if r["codec"] == spec and r["calibration"] == "none" and r["seed"] == seed and (r["window"], r["sinks"]) == exact and not r.get("scale"))


def log_probabilities(model, tokens, cache):
    return torch.log_softmax(model(tokens, past_key_values=cache).logits.float(), -1)


def losses(model, tokens, reference, cache, step=None):
    """Nats lost and KL of each window [count, ctx + 1], in passes of `step` tokens; reference: log-probabilities without a codec."""
    inputs, targets = tokens[:, :-1], tokens[:, 1:, None]
    nats, kl = (torch.zeros(len(tokens), dtype=torch.float64, device=tokens.device) for _ in range(2))
    step = step or inputs.shape[1]
    for begin in range(0, inputs.shape[1], step):
        part = slice(begin, begin + step)
        p, q = reference[:, part], log_probabilities(model, inputs[:, part], cache)
        nats += (p.gather(2, targets[:, part]) - q.gather(2, targets[:, part])).double().sum((1, 2))
        kl += (p.exp() * (p - q)).sum(2).double().sum(1)
    return (nats / inputs.shape[1]).tolist(), (kl / inputs.shape[1]).tolist()


def slice_of(text):
    return slice(*(int(x) if x else None for x in text.split(":")))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder with config.json, model.int8.safetensors, heldout.npz")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--take", type=slice_of, default=slice(0, None, 64), help="A:B:STEP, which of the 256 windows")
    parser.add_argument("--commit", default="")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no further entry after this long")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    gpu = arguments.device == "cuda"
    model = load(arguments.model)
    if gpu:
        model = model.half().cuda()
    model.set_attn_implementation("tq4")
    index = list(range(256))[arguments.take]
    tokens = grid(arguments.model)[index].to(arguments.device)
    batches = [tokens] if gpu else list(tokens.split(1))  # a reference is 134 MB a window
    rows = []
    begin = time.time()
    for how, step in [("steps of 16 through the pages' decode kernel", 16), ("one pass, decoded", None)] if gpu else [("one pass, decoded", None)]:
        for spec, seed, exact in ENTRIES:
            if time.time() - begin > arguments.seconds:
                continue
            started = time.time()
            nats, kl = [], []
            for batch in batches:
                reference = log_probabilities(model, batch[:, :-1], transformers.DynamicCache(config=model.config))
                cache = tq4.hf.TQ4Cache(model, tq4.Codec(spec, 128, seed=seed), window=exact[0], sinks=exact[1], prefill="stored")
                one = losses(model, batch, reference, cache, step)
                nats += one[0]
                kl += one[1]
            record = record_of(spec, seed, exact)
            theirs = {name: [record["per_window"][name][i] for i in index] for name in ("nats", "kl")}
            error = lambda a, b: float(np.std(np.subtract(a, b)) / len(a) ** 0.5)
            row = {"codec": spec, "seed": seed, "window": exact[0], "sinks": exact[1], "how": how, "nats": float(np.mean(nats)), "nats_experiment": float(np.mean(theirs["nats"])),
                   "nats_difference_error": error(nats, theirs["nats"]), "kl": float(np.mean(kl)), "kl_experiment": float(np.mean(theirs["kl"])), "per_window": {"nats": [round(x, 6) for x in nats], "kl": [round(x, 6) for x in kl]},
                   "cache": repr(cache), "seconds": time.time() - started}
            rows.append(row)
            print(f"{spec:10s} {exact} {how}: nats {row['nats']:.5f} (experiment {row['nats_experiment']:.5f}), KL {row['kl']:.5f} ({row['kl_experiment']:.5f}); {row['seconds']:.1f} s", flush=True)
    result = {"rows": rows, "windows": index, "command": "python " + " ".join([pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]), "commit": arguments.commit, "python": platform.python_version(), "torch": torch.__version__,
              "transformers": transformers.__version__, "device": torch.cuda.get_device_name() if gpu else f"cpu, {os.cpu_count()} cores", "load_average": os.getloadavg()}
    with contextlib.suppress(OSError):
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
