#!/usr/bin/env python3
"""tq4's CPU codecs against FAISS on one core, in one run: encode, decode, decode without rotation.

  compare_faiss.py --bench build/tests/bench/tq4_bench_cpu [--core 1] [--rounds 7] [-n 100000] [-o results.json]

FAISS (PyPI faiss-cpu), the benchmark program and an SGEMM of NumPy's BLAS are measured in turns, `rounds` times, pinned to one core. Times
are CPU times of the measuring process: another process on the core delays it but is not counted (it still costs cache and memory speed).
Every figure is millions of 128-dimensional vectors a second; the median over rounds is what ratios are made of, min and max show the spread.
"""
import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import faiss  # noqa: E402
import numpy as np  # noqa: E402

DIM = 128
BENCHMARKS = {
    "encode haar": "encode/haar/bits:4/dim:128/threads:1",
    "decode haar": "decode/haar/bits:4/dim:128/threads:1",
    "encode hadamard": "encode/hadamard/bits:4/dim:128/threads:1",
    "decode hadamard": "decode/hadamard/bits:4/dim:128/threads:1",
    "decode rotated": "decode_rotated/bits:4/dim:128/threads:1",
}


def rate(n, call, seconds=0.4):
    """Millions of vectors a second of CPU time; the best of the calls that fit `seconds`."""
    best, spent = 0.0, 0.0
    while spent < seconds:
        start = time.process_time()
        call()
        took = time.process_time() - start
        best, spent = max(best, n / took / 1e6), spent + took
    return best


def faiss_cases(x):
    cases = {}
    for factory in ("RR128,SQtqmse4", "SQtqmse4"):
        index = faiss.index_factory(DIM, factory)
        index.train(x[:20000])
        codes, back = index.sa_encode(x), np.empty_like(x)
        cases[f"FAISS {factory} encode"] = lambda i=index, c=codes: i.sa_encode(x, c)
        cases[f"FAISS {factory} decode"] = lambda i=index, c=codes, b=back: i.sa_decode(c, b)
    matrix, out = np.linalg.qr(np.random.default_rng(1).standard_normal((DIM, DIM)))[0].astype(np.float32), np.empty_like(x)
    cases["SGEMM (NumPy's BLAS) rotation alone"] = lambda: np.dot(x, matrix, out=out)
    return cases


def tq4_rates(bench, n, core):
    pattern = "^(fma_peak|" + "|".join(BENCHMARKS.values()) + ")$"
    command = ["taskset", "-c", str(core), bench, f"--n={n}", f"--benchmark_filter={pattern}", "--benchmark_format=json",
               "--benchmark_min_time=0.02", "--benchmark_repetitions=9"]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    best = {}
    for row in report["benchmarks"]:
        if row["run_type"] == "iteration":
            best[row["run_name"]] = max(best.get(row["run_name"], 0), row["items_per_second"])
    rates = {"tq4 " + label: best[name] / 1e6 for label, name in BENCHMARKS.items()}
    rates["FMA peak, as rotations"] = best["fma_peak"] / (DIM * DIM) / 1e6
    return rates


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", required=True)
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("-n", type=int, default=100000)
    parser.add_argument("-o", "--output")
    args = parser.parse_args()
    os.sched_setaffinity(0, {args.core})
    faiss.omp_set_num_threads(1)

    x = np.random.default_rng(0).standard_normal((args.n, DIM), dtype=np.float32)
    cases, samples = faiss_cases(x), {}
    for round_number in range(args.rounds):
        for name, value in [(name, rate(args.n, call)) for name, call in cases.items()] + list(tq4_rates(args.bench, args.n, args.core).items()):
            samples.setdefault(name, []).append(value)
        print(f"round {round_number + 1} of {args.rounds}", file=sys.stderr)

    rates = {name: {"median": statistics.median(v), "min": min(v), "max": max(v)} for name, v in samples.items()}
    median = {name: r["median"] for name, r in rates.items()}
    rotated, plain, sgemm = "FAISS RR128,SQtqmse4 ", "FAISS SQtqmse4 ", "SGEMM (NumPy's BLAS) rotation alone"
    targets = [
        ("encode, haar / FAISS RR128,SQtqmse4", median["tq4 encode haar"] / median[rotated + "encode"], 8.0),
        ("decode, haar / FAISS RR128,SQtqmse4", median["tq4 decode haar"] / median[rotated + "decode"], 2.5),
        ("encode, haar / SGEMM for the rotation alone", median["tq4 encode haar"] / median[sgemm], 0.6),
        ("decode, haar / SGEMM for the rotation alone", median["tq4 decode haar"] / median[sgemm], 0.6),
        ("encode, hadamard / FAISS RR128,SQtqmse4", median["tq4 encode hadamard"] / median[rotated + "encode"], 50.0),
        ("decode to rotated space / FAISS SQtqmse4", median["tq4 decode rotated"] / median[plain + "decode"], 1.5),
    ]
    # What no fp32 rotation on this core can exceed: the FMA peak, nothing else done.
    roofs = {
        "encode, haar / FAISS RR128,SQtqmse4": median["FMA peak, as rotations"] / median[rotated + "encode"],
        "decode, haar / FAISS RR128,SQtqmse4": median["FMA peak, as rotations"] / median[rotated + "decode"],
    }
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), platform.processor())
    result = {
        "what": "million 128-dimensional vectors a second, 4 bits, one thread, fp32 in and out; best of short repeats in each round",
        "cpu": cpu, "vectors": args.n, "rounds": args.rounds, "load_average": os.getloadavg(),
        "faiss": faiss.__version__, "faiss_options": faiss.get_compile_options().strip(), "numpy": np.__version__,
        "rates": rates,
        "ratios": [{"ratio": name, "value": value, "target": target, "reached": value >= target, **({"roof": roofs[name]} if name in roofs else {})}
                   for name, value, target in targets],
    }
    for name, r in rates.items():
        print(f"{name:42s} {r['median']:8.2f}   ({r['min']:.2f} .. {r['max']:.2f})")
    for row in result["ratios"]:
        print(f"{row['ratio']:46s} {row['value']:7.2f}x  target {row['target']}x" + (f"  FMA roof {row['roof']:.2f}x" if "roof" in row else ""))
    if args.output:
        with open(args.output, "w") as file:
            json.dump(result, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    main()
