"""What a call costs in Python over the C++ call it makes.

    python run.py --out cpu.json             # CPU: tq4.Codec.encode and tq4.PagedCache.attend on tiny input
    python run.py --gpu --out gpu.json       # CUDA: tq4.PagedCache.attend and append on a decode step's shapes (host time)

The binding can repeat the C++ call it makes (`repeat`); (t(101) - t(1)) / 100 is the C++ call alone, and the overhead is the time of a Python call
minus that. Medians of 25 rounds; the load average is recorded because a busy machine makes both larger.
"""
import argparse
import json
import os
import pathlib
import platform
import statistics
import time

import numpy as np

import tq4

ROUNDS = 25


def seconds_of(call, count, finish=lambda: None):
    """Seconds of one call, a sample a round."""
    times = []
    for _ in range(ROUNDS):
        finish()
        begin = time.perf_counter()
        for _ in range(count):
            call()
        times.append((time.perf_counter() - begin) / count)
    finish()
    return times


def microseconds(times):
    return [round(t * 1e6, 3) for t in times]


def measure(name, python, binding, count, finish=lambda: None):
    python()
    binding(1)
    samples = {"python": seconds_of(python, count, finish), "binding_101": seconds_of(lambda: binding(101), 1, finish), "binding_1": seconds_of(lambda: binding(1), 1, finish)}
    call = statistics.median(samples["python"])
    core = statistics.median(samples["binding_101"]) - statistics.median(samples["binding_1"])
    row = {"call": name, "python_us": call * 1e6, "cpp_us": core / 100 * 1e6, "overhead_us": (call - core / 100) * 1e6, "samples_us": {key: microseconds(times) for key, times in samples.items()}}
    print(f"{name:60s} {row['python_us']:8.2f} us, C++ {row['cpp_us']:8.2f} us, over it {row['overhead_us']:8.2f} us", flush=True)
    return row


def encode_rows(kind, make):
    codec = tq4.Codec("k4v4", 64)
    x = make(np.random.default_rng(0).standard_normal((1, 64)).astype(np.float32))
    core = codec._sides["k"]
    return measure(f"Codec.encode, one vector of 64, {kind}", lambda: codec.encode(x), lambda n: core.encode(x, 1, False, 0, n), 200)


def attend_rows(kind, make):
    cache = tq4.PagedCache("k4v4", 1, 64, 2)
    rng = np.random.default_rng(0)
    cache.append(*(rng.standard_normal((4, 1, 64)).astype(np.float32) for _ in "kv"), np.arange(4))
    q, table, lens = make(rng.standard_normal((1, 1, 64)).astype(np.float32)), make(np.zeros((1, 1), np.int32)), make(np.full(1, 4, np.int32))
    out = make(np.empty((1, 1, 64), np.float32))

    core = lambda n: cache._pages.attend(cache.data, q, table, lens, out, None, 0.0, 0, 0.0, None, None, n)
    return measure(f"PagedCache.attend, 4 tokens, 1 head of 64, {kind}", lambda: cache.attend(q, table, lens, out), core, 200)


def gpu_rows():
    import torch

    def whole(name, call):
        samples = seconds_of(call, 100, torch.cuda.synchronize)
        print(f"{name:60s} {statistics.median(samples) * 1e6:8.2f} us")
        return {"call": name, "python_us": statistics.median(samples) * 1e6, "samples_us": {"python": microseconds(samples)}}

    rows = []
    for batch, heads, kv_heads, ctx in ((1, 32, 8, 1024), (8, 32, 8, 4096)):
        blocks = ctx // 16
        cache = tq4.PagedCache("k4v4", kv_heads, 128, batch * blocks, device="cuda")
        table = torch.randperm(batch * blocks, device="cuda").view(batch, blocks).int()
        lens = torch.full((batch,), ctx, dtype=torch.int32, device="cuda")
        q = torch.randn(batch, heads, 128, device="cuda").half()
        out = torch.empty_like(q)
        cache.attend(q, table, lens, out)
        workspace = next(iter(cache._workspaces.values()))
        shape = f"batch {batch}, {heads}/{kv_heads}/128, {ctx} tokens ({cache.path(batch, heads)})"
        core = lambda n: cache._pages.attend(cache.data, q, table, lens, out, None, 0.0, 0, 0.0, None, None, ctx, False, workspace, None, n)
        rows.append(measure(f"PagedCache.attend, {shape}", lambda: cache.attend(q, table, lens, out), core, 100, torch.cuda.synchronize))
        k = torch.randn(batch, kv_heads, 128, device="cuda").half()
        slots = table[:, 0].long() * 16
        rows.append(whole(f"PagedCache.append, {batch} tokens, launch included", lambda: cache.append(k, k, slots)))
    codec = tq4.Codec("k4v4", 128)
    x = torch.randn(8, 128, device="cuda").half()
    encoded, out = codec.encode(x), torch.empty_like(x)
    for name, call in (("Codec.encode, 8 vectors of 128 on CUDA, launch and new tensors included", lambda: codec.encode(x)), ("Codec.decode into out, launch included", lambda: codec.decode(encoded, out=out))):
        rows.append(whole(name, call))
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--commit", default="")
    arguments = parser.parse_args()
    makers = {"NumPy": lambda x: x}
    try:
        import torch

        makers["torch"] = torch.from_numpy
    except ImportError:
        pass
    rows = gpu_rows() if arguments.gpu else [row(kind, make) for kind, make in makers.items() for row in (encode_rows, attend_rows)]
    result = {"rows": rows, "command": "python run.py" + " --gpu" * arguments.gpu, "commit": arguments.commit, "python": platform.python_version(), "numpy": np.__version__, "cores": os.cpu_count(), "load_average": os.getloadavg()}
    if "torch" in makers:
        result["torch"] = torch.__version__
        if arguments.gpu:
            result["gpu"] = torch.cuda.get_device_name()
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
