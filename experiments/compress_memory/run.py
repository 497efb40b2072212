#!/usr/bin/env python3
"""Memory and wall time of `tq4 compress` on a large dump, against reading the file and encoding from memory.

Writes a dump of GIB gibibytes (HDF5, fp16, heads of 128) to WORK. Then, ROUNDS times in turn: reads it with cat, compresses it, asks the
benchmark program how fast the same machine encodes from memory with the same number of threads; first with the page cache dropped before
reading and before compressing (needs root), then with the dump in the page cache. The result goes to result.json beside this file.
Usage: run.py TQ4 TQ4_BENCH_CPU [--gib 4] [--rounds 5] [--work /tmp/tq4-compress-memory] [--bits 4] [--keep]
Needs numpy and h5py (scripts/bootstrap.sh --python) and GNU time (Debian: time).
"""
import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import time

import h5py
import numpy as np

HEADS, TOKENS, DIM = 8, 65536, 128


def make_dump(path, gib):
    layer_bytes = 2 * HEADS * TOKENS * DIM * 2
    layers = max(1, round(gib * 2**30 / layer_bytes))
    random = np.random.default_rng(1)
    block = random.standard_normal((TOKENS, DIM), dtype=np.float32)
    with h5py.File(path, "w") as file:
        file.attrs["model"] = "random normal vectors"
        for layer in range(layers):
            for name in ("k", "v"):
                data = file.create_dataset(f"layer_{layer:03d}/{name}", (HEADS, TOKENS, DIM), dtype="<f2")
                for head in range(HEADS):
                    # Other vectors in every head at the price of a shift: compression does not care, the disk does not deduplicate.
                    data[head] = np.roll(block, 7919 * (layer * HEADS + head) + (name == "v"), axis=0).astype(np.float16)


def drop_caches():
    os.sync()
    try:
        pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")
        return True
    except OSError:
        return False


def timed(command):
    """Wall seconds, CPU seconds and peak resident bytes of a command, from GNU time -v."""
    begin = time.monotonic()
    done = subprocess.run(["/usr/bin/time", "-v", *command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wall = time.monotonic() - begin
    field = lambda name: float(re.search(name + r"[^:]*: ([0-9.]+)", done.stderr).group(1))
    return {"wall_seconds": wall, "cpu_seconds": field("User time") + field("System time"), "peak_bytes": int(field("Maximum resident set size") * 1024)}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("tq4")
    parser.add_argument("bench")
    parser.add_argument("--gib", type=float, default=4)
    parser.add_argument("--work", default="/tmp/tq4-compress-memory")
    parser.add_argument("--bits", default="4")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep", action="store_true", help="leave the dump for another run")
    options = parser.parse_args()
    work = pathlib.Path(options.work)
    work.mkdir(parents=True, exist_ok=True)
    dump, out = work / "dump.h5", work / "dump.tq4"
    if not dump.exists():
        make_dump(dump, options.gib)
    with h5py.File(dump) as file:
        layers = len(file)
    vectors = 2 * layers * HEADS * TOKENS
    threads = len(os.sched_getaffinity(0))

    json_out = work / "compress.json"

    def compress():
        for old in (out, json_out):  # replacing a file of a gigabyte costs the file system a third of a second, which is not ours
            old.unlink(missing_ok=True)
        os.sync()
        return timed([options.tq4, "compress", str(dump), "--bits", options.bits, "-o", str(out), "-q", "--json", str(json_out)])

    def encode():
        bench = subprocess.run([options.bench, f"--benchmark_filter=^encode/haar/bits:{options.bits}/dim:{DIM}/threads:{threads}(/real_time)?$",
                                "--benchmark_min_time=1", "--benchmark_format=json"], check=True, capture_output=True, text=True)
        return vectors / json.loads(bench.stdout)["benchmarks"][0]["items_per_second"]

    runs = []
    for _ in range(options.rounds):
        run = {"load_average_before": os.getloadavg()[0]}
        for kind in ("cold", "warm"):
            if kind == "cold":
                dropped = drop_caches()
                reading = timed(["cat", str(dump)])
                drop_caches()
            else:
                dropped = False
                timed(["cat", str(dump)])
                reading = timed(["cat", str(dump)])
            packing = compress()
            encoding = encode()
            run[kind] = {"reading": reading, "encoding_from_memory_seconds": encoding, "compress": packing, "caches_dropped": dropped,
                         "ratio_to_larger": packing["wall_seconds"] / max(reading["wall_seconds"], encoding)}
        run["load_average_after"] = os.getloadavg()[0]
        runs.append(run)
        print(json.dumps(run), file=sys.stderr, flush=True)
    version = json.loads(subprocess.run([options.tq4, "--version", "--json"], check=True, capture_output=True, text=True).stdout)
    result = {"schema_version": 2, "build": version, "threads": threads, "dump_bytes": dump.stat().st_size, "layers": layers, "heads": HEADS, "tokens": TOKENS,
              "head_dim": DIM, "bits": options.bits, "runs": runs, "peak_bytes": max(r[kind]["compress"]["peak_bytes"] for r in runs for kind in ("cold", "warm")),
              "median_ratio_to_larger": {kind: statistics.median(r[kind]["ratio_to_larger"] for r in runs) for kind in ("cold", "warm")}}
    path = pathlib.Path(__file__).with_name("result.json")
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    for file in work.iterdir():
        if not (options.keep and file == dump):
            file.unlink()
    if not options.keep:
        work.rmdir()


if __name__ == "__main__":
    main()
