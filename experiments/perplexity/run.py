"""Nats per token that a language model loses with its whole K/V cache put through a codec, and the KL divergence to the uncompressed model.

    python run.py --model DIR --library libtq4_roundtrip.so --plan plan.json --calibrations DIR --out windows.json
    python run.py ... --device cpu --windows 256 --take 5::32      # a few windows of the same grid, on a machine without a GPU
    python run.py ... --tokens english.npz                         # another text;  --stress 8: a model with outlier channels
    python run.py ... --plan all --rounds 4                        # every codec of `tq4 eval --codec all`

The codec is the project's own (libtq4_roundtrip.so, see runner/). K is quantized after RoPE in every layer of the forward pass, and every query
attends to decoded keys and values, its own included, save for an exact window and sinks. The plan is a list of {"codec", "calibration":
"none" | file stem, "seed", "window", "sinks", "scale"}; "seeds": [1, 2, ...] instead of "seed" takes them in turn, one a window. One record per
entry is written as soon as it is measured, with the value of every window, so that summarize.py can pair them; entries that --out already holds
are not measured again. With --rounds N every entry is measured on windows 0, N, 2N, ... first, then on 1, N + 1, ..., so that a run that is cut short
has the same windows for all of them. On a GPU two batches are in flight, so that the CPU's codec and the GPU's model overlap; on a CPU each thread has a window.
"""
import argparse
import concurrent.futures
import itertools
import json
import os
import pathlib
import re
import time

import numpy as np
import torch

from model import Model, windows
from roundtrip import Roundtrip, codec_names, load_library


def slice_of(text):
    return slice(*(int(x) if x else None for x in text.split(":")))


def add_machine_arguments(parser):
    parser.add_argument("--model", required=True, help="folder with config.json, model.int8.safetensors, heldout.npz")
    parser.add_argument("--library", required=True)
    parser.add_argument("--plan", required=True, help="JSON file, or all: every codec of `tq4 eval --codec all`, none calibrated")
    parser.add_argument("--known", nargs="*", default=[], help="with --plan all: leave codecs out that these records have")
    parser.add_argument("--calibrations", default=".")
    parser.add_argument("--out", required=True)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--stress", type=float, default=1, help="scale of the outlier channels (model.py)")
    parser.add_argument("--commit", default="")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no further entry after this long")


class Machine:
    """Where the model runs, and how many batches at a time."""

    def __init__(self, arguments):
        torch.set_grad_enabled(False)
        self.device = arguments.device if arguments.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        self.cpu = self.device == "cpu"
        self.workers = arguments.threads if self.cpu else 2
        self.codec_threads = 1 if self.cpu else arguments.threads
        self.model = Model(arguments.model, self.device, arguments.stress)
        self.library = load_library(arguments.library)
        self.calibrations = pathlib.Path(arguments.calibrations)

    def map(self, function, items):
        def one(item):
            torch.set_grad_enabled(False)  # both are a thread's own settings
            if self.cpu:
                torch.set_num_threads(1)
            return function(item)

        with concurrent.futures.ThreadPoolExecutor(self.workers) as pool:
            return list(pool.map(one, items))

    def codecs(self, entry):
        """One Roundtrip for each seed of the entry."""
        calibration = entry.get("calibration", "none")
        path = "" if calibration == "none" else str(self.calibrations / f"{calibration}.tq4cal")
        seeds = entry.get("seeds") or [entry.get("seed", 42)]
        return [Roundtrip(self.library, entry["codec"], path, seed, entry.get("scale", ""), self.codec_threads) for seed in seeds]


def exact_tokens(entry, codec):
    """(sinks, window, block) of K and V: the entry's window and sinks, or the codec's own residual window."""
    own = (entry.get("sinks", 0), entry.get("window", 0), 0)
    return (own, own) if any(own) else (codec.exact_k, codec.exact_v)


def plan_entries(arguments, library):
    """The entries of --plan. tqB is kBvB here, as everywhere in this experiment; rotations that a seed draws take seeds 1 to 5 in turn."""
    if arguments.plan != "all":
        return json.loads(pathlib.Path(arguments.plan).read_text())
    known = {r["codec"] for path in arguments.known for r in json.loads(pathlib.Path(path).read_text()) if r["calibration"] == "none" and not r["window"]}
    entries = []
    for name in codec_names(library):
        codec = re.sub(r"^tq(\d)(-norm|-2d|)$", r"k\1v\1\2", name)
        seeds = {"seeds": [1, 2, 3, 4, 5]} if re.match(r"(tq|k)\d", codec) else {"seed": 42}
        if codec not in known:
            entries.append({"codec": codec, "calibration": "none", **seeds, "window": 0, "sinks": 0})
    return entries


def measured(out, settings):
    """Records of an earlier run with the same settings."""
    path = pathlib.Path(out)
    records = json.loads(path.read_text()) if path.exists() else []
    for record in records:
        for key, value in settings.items():
            if record.get(key, value) != value:
                raise SystemExit(f"{out} holds records with another {key}: choose another --out")
    return records


def logit_change(arguments, machine, tokens):
    """How far the outlier channels move the uncompressed model's log-probabilities: they should not."""
    plain = Model(arguments.model, machine.device)
    one, other = (m.log_probabilities(m.hidden(tokens)) for m in (plain, machine.model))
    return (one - other).abs().max().item()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_machine_arguments(parser)
    parser.add_argument("--ctx", type=int, default=4096)
    parser.add_argument("--windows", type=int, default=256, help="an even grid of so many windows over the files")
    parser.add_argument("--take", type=slice_of, default=slice(None), help="A:B:STEP, which windows of the grid to measure (default: all)")
    parser.add_argument("--rounds", type=int, default=1, help="take the windows in so many interleaved parts, all entries on one before the next")
    parser.add_argument("--batch", type=int, default=None, help="windows at a time (default: 8, CPU 1)")
    parser.add_argument("--files", default="100:400", help="test files A:B of heldout.npz; calibrate on others")
    parser.add_argument("--tokens", help="npz with `tokens` [windows, ctx + 1] instead of the files")
    arguments = parser.parse_args()
    start = time.time()
    machine = Machine(arguments)
    model = machine.model
    if arguments.tokens:
        grid = np.load(arguments.tokens)["tokens"].astype(np.int64)[:, : arguments.ctx + 1]
        text = pathlib.Path(arguments.tokens).stem
    else:
        first, last = (int(x) for x in arguments.files.split(":"))
        grid = windows(arguments.model, first, last, arguments.ctx, arguments.windows)
        text = f"heldout {arguments.files}, {arguments.windows} windows"
    index = list(range(len(grid)))[arguments.take]
    tokens = torch.from_numpy(grid[index]).to(machine.device)
    size = arguments.batch or (1 if machine.cpu else 8)
    keep = len(tokens) <= (16 if machine.cpu else 512)  # reference distributions: 134 MB a window

    def reference_of(batch):
        hidden = model.hidden(batch[1][:, :-1])
        return [model.log_probabilities(h) for h in hidden] if keep else hidden

    entries = plan_entries(arguments, machine.library)
    seeds = max(len(entry.get("seeds", [0])) for entry in entries)  # windows of one seed lie together: the codec has more to do at a time
    parts = []  # numbers of windows, their batches, the references of each batch
    for first in range(arguments.rounds):
        part, which = index[first :: arguments.rounds], tokens[first :: arguments.rounds]
        order = sorted(range(len(part)), key=lambda n: (n % seeds, n))
        batches = [(order[i : i + size], which[order[i : i + size]]) for i in range(0, len(part), size)]
        parts.append((part, batches, machine.map(reference_of, batches)))

    def measure(item):
        (numbers, batch), reference, codecs, entry = item
        rows = {}
        for seed, codec in enumerate(codecs):
            mine = [i for i, n in enumerate(numbers) if n % len(codecs) == seed]
            if not mine:
                continue
            hidden = model.hidden(batch[mine][:, :-1], codec, *exact_tokens(entry, codec))
            for i, h in zip(mine, hidden):
                p, q = reference[i] if keep else model.log_probabilities(reference[i]), model.log_probabilities(h)
                target = batch[i, 1:, None]
                rows[i] = [(p.gather(1, target) - q.gather(1, target)).double().mean().item(), (p.exp() * (p - q)).sum(1).double().mean().item(),
                           -p.gather(1, target).double().mean().item()]
        return [(n, rows[i]) for i, n in enumerate(numbers)]

    if arguments.stress != 1:
        change = logit_change(arguments, machine, tokens[:1, :512])
        print(f"stress {arguments.stress:g}: log-probabilities of the uncompressed model change by {change:.2g} at most", flush=True)
        if change > 1e-3:
            raise SystemExit("the stressed model is another model")
    settings = {"ctx": arguments.ctx, "text": text, "stress": arguments.stress}
    records = measured(arguments.out, settings)
    print(f"{machine.device}, {len(tokens)} windows of {arguments.ctx} ({text}); base {time.time() - start:.0f} s", flush=True)
    for (part, batches, base), entry in itertools.product(parts, entries):
        if any(r.get("index", list(range(r["windows"]))) == part and entry == {key: r[key] for key in entry if key in r} for r in records):
            continue
        if time.time() - start > arguments.seconds:
            print("out of time: left out", entry, flush=True)
            continue
        begin = time.time()
        codecs = machine.codecs(entry)
        rows = machine.map(measure, [(b, r, codecs, entry) for b, r in zip(batches, base)])
        values = np.array([row for _, row in sorted(itertools.chain(*rows))])
        nats, kl = values[:, 0], values[:, 1]
        record = dict(entry, bits=codecs[0].bits(arguments.ctx, model.dim) if entry.get("calibration", "none") == "none" else None, nats_lost=nats.mean(),
                      standard_error=nats.std(ddof=1) / len(nats) ** 0.5, kl=kl.mean(), kl_standard_error=kl.std(ddof=1) / len(kl) ** 0.5, windows=len(nats),
                      base_nats=values[:, 2].mean(), device=machine.device, commit=arguments.commit, seconds=time.time() - begin, **settings, index=part,
                      per_window={"nats": [round(x, 6) for x in nats], "kl": [round(x, 6) for x in kl]})
        seconds = sum(codec.seconds for codec in codecs)
        for codec in codecs:
            codec.close()
        records.append(record)
        pathlib.Path(arguments.out).write_text("[\n" + ",\n".join(json.dumps(r) for r in records) + "\n]\n")
        print(f"{entry} nats {record['nats_lost']:.5f} +- {record['standard_error']:.5f} kl {record['kl']:.5f} {record['seconds']:.1f} s "
              f"(codec {seconds:.1f})", flush=True)


if __name__ == "__main__":
    main()
