"""tq4 compress and decompress with --device cuda against the CPU: bytes that differ by plane, vectors, seconds of the whole program (files in /tmp).

    python device_bytes.py TQ4 OUT      # from the repository's root, on a machine with a GPU; writes OUT/device_bytes.json
"""
import json
import os
import pathlib
import struct
import subprocess
import sys
import time

import h5py
import numpy as np

TQ4, OUT = sys.argv[1], pathlib.Path(sys.argv[2])
BIG = "/tmp/big.h5"
CODECS = ["tq4", "tq3", "k4v3", "k8v4", "tq4-2d", "tq3.5", "tq4-prod", "fp8", "fp16", "vllm:3bit_nc", "turboquant-vllm"]


def run(turns, *arguments):
    """Seconds of the last of so many runs."""
    for _ in range(turns):
        begin = time.time()
        subprocess.run([TQ4, *arguments, "-q", "--force"], check=True, capture_output=True)
    return round(time.time() - begin, 3)


def tensors(path):
    data = pathlib.Path(path).read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    start = 8 + length
    return {name: np.frombuffer(data[start + e["data_offsets"][0] : start + e["data_offsets"][1]], np.uint8) for name, e in header.items() if name not in ("__metadata__", "checksums")}


def compare(path, codec, turns):
    row = {"dump": path, "codec": codec}
    for device in ("cpu", "cuda"):
        row[f"compress_{device}_seconds"] = run(turns, "compress", path, "--codec", codec, "-o", f"/tmp/{device}.tq4", "--device", device)
    cpu, cuda = tensors("/tmp/cpu.tq4"), tensors("/tmp/cuda.tq4")
    assert cpu.keys() == cuda.keys()
    row["bytes"] = sum(x.size for x in cpu.values())
    row["bytes_that_differ"] = {}
    for name, x in cpu.items():
        if count := int((x != cuda[name]).sum()):
            plane = name.split(".")[-1]
            row["bytes_that_differ"][plane] = row["bytes_that_differ"].get(plane, 0) + count
    for device in ("cpu", "cuda"):
        row[f"decompress_{device}_seconds"] = run(turns, "decompress", "/tmp/cpu.tq4", "-o", f"/tmp/{device}.h5", "--dtype", "float32", "--device", device)
    error = norm = 0.0
    with h5py.File("/tmp/cpu.h5") as a, h5py.File("/tmp/cuda.h5") as b:
        for layer in a:
            for side in "kv":
                x, y = (f[layer][side][:].astype(np.float64) for f in (a, b))
                error, norm = error + ((x - y) ** 2).sum(), norm + (x**2).sum()
    row["relative_difference_of_decompressed"] = float((error / norm) ** 0.5)
    return row


def main():
    x = np.random.default_rng(0).standard_normal((2, 8, 16384, 128), np.float32).astype(np.float16)
    with h5py.File(BIG, "w") as file:
        for i in range(6):
            file[f"layer_{i:03d}/k"], file[f"layer_{i:03d}/v"] = x[0], x[1]
    rows = [compare("data/lm_a.h5", codec, 1) for codec in CODECS] + [compare(BIG, codec, 2) for codec in ("tq4", "k8v4")]
    (OUT / "device_bytes.json").write_text(json.dumps({"rows": rows, "cores": os.cpu_count(), "command": "python device_bytes.py TQ4 OUT"}, indent=1) + "\n")


if __name__ == "__main__":
    main()
