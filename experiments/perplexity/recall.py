"""A needle-style copy test at full context: random strings under random names, strewn through Python source, that must be given back at the end.

    python recall.py --model DIR --library libtq4_roundtrip.so --plan plan_recall.json --calibrations DIR --out recall.json

A window begins with a passage of another file; then source the model never saw, with `--needles` lines NAME = "VALUE" put in at line ends (3 and 4
random word tokens); at its end come the same lines in another order and then the passage once more. Scored, teacher-forced, are the end's VALUE
tokens ("needle") and passage tokens from the ninth on ("copy"): what the model knows of them beyond guessing it has from the cache. `accuracy`:
share of tokens that the model ranks first; `nats`: mean -log p of the right token. "copy_first": the passage where it stands first, for comparison.
"""
import argparse
import json
import pathlib
import time

import numpy as np
import torch

from model import windows
from run import Machine, add_machine_arguments, exact_tokens, measured


KEY, VALUE, SKIP = 3, 4, 8  # tokens of a name, of a value, of the passage before scoring


def vocabulary(folder):
    """Ids of newline, ' =', ' "', '"' and of plain words, from a byte-level BPE tokenizer.json."""
    vocab = json.loads((pathlib.Path(folder) / "tokenizer.json").read_text())["model"]["vocab"]
    words = sorted(i for token, i in vocab.items() if 3 <= len(token) <= 8 and token.isascii() and token.isalpha())
    return vocab["Ċ"], vocab["Ġ="], vocab['Ġ"'], vocab['"'], np.array(words)


def make_windows(folder, files, ctx, count, needles, passage):
    """tokens [count, ctx] and the positions at each window's end of the needles' value tokens [count, needles, VALUE] and of the passage's tokens."""
    newline, equals, quote, unquote, words = vocabulary(folder)
    rng = np.random.default_rng(0)
    line_tokens = KEY + 2 + VALUE + 2
    filler_tokens = ctx - 1 - 2 * needles * line_tokens - 2 * passage
    first, last = (int(x) for x in files.split(":"))
    tokens, places, copies = [], [], []
    grid = windows(folder, first, last, ctx, 2 * count)
    for filler, other in zip(grid[::2], grid[1::2]):
        filler, copied = filler[1 : filler_tokens + 1], other[1 : passage + 1]
        lines = [np.concatenate([rng.choice(words, KEY), [equals, quote], rng.choice(words, VALUE), [unquote, newline]]) for _ in range(needles)]
        ends = np.flatnonzero(filler == newline) + 1
        cuts = ends[np.linspace(0, len(ends) - 1, needles).astype(int)]
        pieces, begin = [np.array([1]), copied], 0
        for cut, line in zip(cuts, lines):
            pieces += [filler[begin:cut], line]
            begin = cut
        pieces.append(filler[begin:])
        start = sum(len(p) for p in pieces)
        pieces += [lines[i] for i in rng.permutation(needles)] + [copied]
        tokens.append(np.concatenate(pieces))
        places.append([[start + n * line_tokens + KEY + 2 + j for j in range(VALUE)] for n in range(needles)])
        copies.append(np.arange(ctx - passage + SKIP, ctx))
    return np.stack(tokens), np.array(places), np.array(copies)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_machine_arguments(parser)
    parser.add_argument("--ctx", type=int, default=4096)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--needles", type=int, default=24)
    parser.add_argument("--passage", type=int, default=256)
    parser.add_argument("--files", default="100:400")
    arguments = parser.parse_args()
    machine = Machine(arguments)
    model = machine.model
    tokens, places, copies = make_windows(arguments.model, arguments.files, arguments.ctx, arguments.windows, arguments.needles, arguments.passage)
    tokens = torch.from_numpy(tokens).to(machine.device)

    def measure(item):
        number, codecs, entry = item
        codec = codecs[number % len(codecs)] if codecs else None
        exact = exact_tokens(entry, codec) if codecs else ()
        hidden = model.hidden(tokens[number : number + 1], codec, *exact)[0]
        row = []
        for place in (places[number].reshape(-1), copies[number], copies[number] - arguments.ctx + arguments.passage + 1):
            place = torch.from_numpy(place).to(machine.device)
            log_p = model.log_probabilities(hidden[place - 1])
            target = tokens[number, place]
            row += [(log_p.argmax(1) == target).double().mean().item(), -log_p.gather(1, target[:, None]).double().mean().item()]
        return row

    settings = {"ctx": arguments.ctx, "needles": arguments.needles, "passage": arguments.passage, "windows": arguments.windows, "stress": arguments.stress}
    names = [f"{what}_{metric}" for what in ("needle", "copy", "copy_first") for metric in ("accuracy", "nats")]
    records = measured(arguments.out, settings)
    for entry in json.loads(pathlib.Path(arguments.plan).read_text()):
        if any(entry == {key: r[key] for key in entry if key in r} for r in records):
            continue
        begin = time.time()
        codecs = [] if entry["codec"] == "none" else machine.codecs(entry)
        values = np.array(machine.map(measure, [(n, codecs, entry) for n in range(len(tokens))]))
        bits = 16 if not codecs else codecs[0].bits(arguments.ctx, model.dim) if entry.get("calibration", "none") == "none" else None
        record = dict(entry, bits=bits, **dict(zip(names, values.mean(0))), **settings, device=machine.device, commit=arguments.commit,
                      per_window={name: np.round(values[:, i], 6).tolist() for i, name in enumerate(names)})
        for codec in codecs:
            codec.close()
        records.append(record)
        pathlib.Path(arguments.out).write_text("[\n" + ",\n".join(json.dumps(r) for r in records) + "\n]\n")
        print(f"{entry} " + " ".join(f"{name} {record[name]:.4f}" for name in names) + f" {time.time() - begin:.1f} s", flush=True)


if __name__ == "__main__":
    main()
