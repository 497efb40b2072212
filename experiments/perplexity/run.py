"""Nats per token that a language model loses with its whole K/V cache put through a codec, and the KL divergence to the uncompressed model.

    python run.py --model DIR --library libtq4_roundtrip.so --plan plan.json --calibrations DIR --out results_windows.json

The codec is the project's own (libtq4_roundtrip.so, see runner/). K is quantized after RoPE in every layer of the forward pass, and every query
attends to decoded keys and values, its own included, save for an exact window and sinks. The plan is a list of {"codec", "calibration":
"none" | file stem, "seed", "window", "sinks", "scale"}; one record per entry is written as soon as it is measured, with the value of every
window, so that summarize.py can pair them. Two batches are in flight, so that the CPU's codec and the GPU's model overlap.
"""
import argparse
import concurrent.futures
import ctypes
import json
import os
import pathlib
import threading
import time

import numpy as np
import torch

from model import Model, windows

SCALES = {"least-squares": 0, "norm": 1, "unbiased": 2, "": -1}


class Roundtrip:
    """One codec of the library; call with a layer and fp32 K and V [B, Hk, T, D]."""

    lock = threading.Lock()  # one batch at a time has the processors

    def __init__(self, library, name, calibration, seed, scale, threads):
        self.library, self.threads = library, threads
        message = ctypes.create_string_buffer(500)
        self.handle = library.tq4_roundtrip_open(name.encode(), calibration.encode() if calibration else None, seed, SCALES[scale], message, 500)
        if not self.handle:
            raise SystemExit(f"{name}: {message.value.decode()}")
        self.seconds = 0.0

    def side(self, layer, side, x):
        b, h, t, d = x.shape
        host = torch.empty(x.shape, dtype=torch.float32, pin_memory=x.is_cuda)
        out = torch.empty(x.shape, dtype=torch.float32, pin_memory=x.is_cuda)
        host.copy_(x)
        message = ctypes.create_string_buffer(500)
        with Roundtrip.lock:
            begin = time.time()
            bad = self.library.tq4_roundtrip(self.handle, layer, side, b, h, t, d, host.data_ptr(), out.data_ptr(), self.threads, message, 500)
            self.seconds += time.time() - begin
        if bad:
            raise SystemExit(message.value.decode())
        return out.to(x.device)

    def __call__(self, layer, k, v):
        return self.side(layer, 0, k), self.side(layer, 1, v)


def load_library(path):
    library = ctypes.CDLL(os.path.abspath(path))
    library.tq4_roundtrip_open.restype = ctypes.c_void_p
    library.tq4_roundtrip_open.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
    library.tq4_roundtrip_bits.restype = ctypes.c_double
    library.tq4_roundtrip_bits.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int]
    library.tq4_roundtrip_close.argtypes = [ctypes.c_void_p]
    library.tq4_roundtrip.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int, ctypes.c_void_p,
                                      ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
    return library


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--library", required=True)
    parser.add_argument("--plan", required=True)
    parser.add_argument("--calibrations", default=".")
    parser.add_argument("--out", required=True)
    parser.add_argument("--ctx", type=int, default=4096)
    parser.add_argument("--windows", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--files", default="100:400", help="test files A:B of heldout.npz; calibrate on others")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--commit", default="")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no further entry after this long")
    arguments = parser.parse_args()
    start = time.time()
    torch.set_grad_enabled(False)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = Model(arguments.model, device)
    first, last = (int(x) for x in arguments.files.split(":"))
    tokens = torch.from_numpy(windows(arguments.model, first, last, arguments.ctx, arguments.windows)).to(device)
    batches = [tokens[i : i + arguments.batch] for i in range(0, len(tokens), arguments.batch)]
    base = [model.hidden(b[:, :-1]) for b in batches]

    def measure(batch, reference, codec, window, sinks):
        hidden = model.hidden(batch[:, :-1], codec, window, sinks)
        rows = []
        for i in range(len(batch)):
            p, q = model.log_probabilities(reference[i]), model.log_probabilities(hidden[i])
            target = batch[i, 1:, None]
            rows.append([(p.gather(1, target) - q.gather(1, target)).double().mean().item(), (p.exp() * (p - q)).sum(1).double().mean().item(),
                         -p.gather(1, target).double().mean().item()])
        return rows

    library = load_library(arguments.library)
    records = []
    print(f"{device}, {len(tokens)} windows of {arguments.ctx}; base {time.time() - start:.0f} s", flush=True)
    for entry in json.loads(pathlib.Path(arguments.plan).read_text()):
        if time.time() - start > arguments.seconds:
            print("out of time: left out", entry, flush=True)
            continue
        begin = time.time()
        calibration = entry.get("calibration", "none")
        path = "" if calibration == "none" else str(pathlib.Path(arguments.calibrations) / f"{calibration}.tq4cal")
        codec = Roundtrip(library, entry["codec"], path, entry.get("seed", 42), entry.get("scale", ""), arguments.threads)
        window, sinks = entry.get("window", 0), entry.get("sinks", 0)
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            def one(pair):
                torch.set_grad_enabled(False)  # it is a thread's own setting
                return measure(*pair, codec, window, sinks)
            values = np.array([row for rows in pool.map(one, zip(batches, base)) for row in rows])
        nats, kl = values[:, 0], values[:, 1]
        record = dict(entry, bits=library.tq4_roundtrip_bits(codec.handle, arguments.ctx, model.dim) if not path else None, nats_lost=nats.mean(),
                      standard_error=nats.std(ddof=1) / len(nats) ** 0.5, kl=kl.mean(), kl_standard_error=kl.std(ddof=1) / len(kl) ** 0.5, windows=len(nats),
                      ctx=arguments.ctx, base_nats=values[:, 2].mean(), commit=arguments.commit, seconds=time.time() - begin,
                      per_window={"nats": [round(x, 6) for x in nats], "kl": [round(x, 6) for x in kl]})
        library.tq4_roundtrip_close(codec.handle)
        records.append(record)
        pathlib.Path(arguments.out).write_text(json.dumps(records))
        print(f"{entry} nats {record['nats_lost']:.5f} +- {record['standard_error']:.5f} kl {record['kl']:.5f} {record['seconds']:.1f} s "
              f"(codec {codec.seconds:.1f})", flush=True)


if __name__ == "__main__":
    main()
