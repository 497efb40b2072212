#!/usr/bin/env python3
"""tq4 eval against an independent float64 NumPy computation.

Makes a dump (two layers, grouped query heads, queries for the last positions, one layer with a sliding window), quantizes it here
with KIVI, q4_0 and int4 written from their definitions, computes every metric in float64, and compares with the JSON of `tq4 eval`.
Usage: numpy_check.py TQ4_PROGRAM. Exits 77 (skipped) where NumPy or h5py is missing.
"""
import json
import subprocess
import sys
import tempfile
from pathlib import Path

try:
    import h5py
    import numpy as np
except ImportError as error:
    print(f"SKIPPED: {error}; metrics are not compared with NumPy here")
    sys.exit(77)

HK, HQ, T, SQ, D = 2, 4, 300, 100, 64
WINDOW = 96  # sliding window of layer 2


def half(x):
    return np.asarray(x).astype(np.float16).astype(np.float64)


def uniform(x, bits, axis):
    """Levels between minimum and maximum along `axis`, scale and minimum in fp16."""
    top = 2**bits - 1
    lo, hi = x.min(axis, keepdims=True), x.max(axis, keepdims=True)
    zero, scale = half(lo), half(((hi - lo).astype(np.float32) / np.float32(top)))
    index = np.clip(np.round((x - zero) / np.where(scale > 0, scale, 1)), 0, top)
    return zero + scale * index


def kivi(x, bits, group, keys):
    out = np.empty_like(x)
    if keys:
        for t in range(0, x.shape[0], group):
            out[t:t + group] = uniform(x[t:t + group], bits, 0)
    else:
        for c in range(0, x.shape[1], group):
            out[:, c:c + group] = uniform(x[:, c:c + group], bits, 1)
    return out


def q4_0(x):
    blocks = x.reshape(-1, 32)
    d = np.take_along_axis(blocks, np.abs(blocks).argmax(1)[:, None], 1) / -8
    q = np.minimum(15, np.trunc(blocks / np.where(d != 0, d, 1) + 8.5))
    return ((q - 8) * half(d)).reshape(x.shape)


CODECS = {
    "kivi2": lambda x, keys: kivi(x, 2, 32, keys),
    "kivi4-g128": lambda x, keys: kivi(x, 4, 128, keys),
    "q4_0": lambda x, keys: q4_0(x),
    "int4": lambda x, keys: uniform(x, 4, 1),
    "int4+w16+s4": lambda x, keys: uniform(x, 4, 1),
}
EXACT = {"int4+w16+s4": (4, 16)}
BITS = {"kivi2": (3 + 32 * D * (10 - T / 32) / (T * D), 3), "kivi4-g128": (4 + 32 * 3 / T, 4 + 32 / D), "q4_0": (4.5, 4.5), "int4": (4.5, 4.5),
        "int4+w16+s4": ((4.5 * 280 + 16 * 20) / 300,) * 2}


def metrics(q, k, v, k2, v2, window, exact):
    """q [group, SQ, D]; everything else [T, D]; float64 throughout."""
    sinks, newest = exact
    cos = lambda a, b: (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    kept = slice(sinks, T - newest)
    r = {"k_mse": ((k - k2)[kept]**2).sum() / (k[kept]**2).sum(), "v_mse": ((v - v2)[kept]**2).sum() / (v[kept]**2).sum()}
    kl, top1, top8, error, energy, cosine, logit, centred, largest, relative = [], [], [], 0, 0, [], [], [], 0, [0, 0]
    for head in q:
        for i, row in enumerate(head):
            p = T - SQ + i
            begin = max(0, p + 1 - window) if window else 0
            j = np.arange(begin, p + 1)
            exact_row = (j < sinks) | (j > p - newest)
            l = k[j] @ row / np.sqrt(D)
            m = np.where(exact_row, l, k2[j] @ row / np.sqrt(D))
            a, b = np.exp(l - l.max()), np.exp(m - m.max())
            a, b = a / a.sum(), b / b.sum()
            kl.append((a * (np.log(a) - np.log(b))).sum())
            top1.append(l.argmax() == m.argmax())
            n = min(8, len(j))
            top8.append(len(set(np.argsort(-l, kind="stable")[:n]) & set(np.argsort(-m, kind="stable")[:n])) / n)
            o, o2 = a @ v[j], b @ np.where(exact_row[:, None], v[j], v2[j])
            error += ((o - o2)**2).sum()
            energy += (o**2).sum()
            cosine.append(cos(o, o2))
            e = m - l
            logit.append((e**2).sum())
            centred.append(((e - e.mean())**2).sum())
            largest = max(largest, np.abs(e).max())
            relative[0] += ((e - e.mean())**2).sum()
            relative[1] += ((l - l.mean())**2).sum()
    count = sum(min(window or T, T - SQ + i + 1) for i in range(SQ)) * len(q)
    kl = np.sort(kl)
    r.update(kl_mean=kl.mean(), kl_median=kl[int(np.ceil(len(kl) / 2)) - 1], kl_p99=kl[int(np.ceil(0.99 * len(kl))) - 1], kl_max=kl[-1],
             top1=np.mean(top1), top8=np.mean(top8), output_mse=error / energy, output_error=np.sqrt(error / energy), output_cosine=np.mean(cosine),
             logit_rmse=np.sqrt(sum(logit) / count), logit_rmse_centred=np.sqrt(sum(centred) / count), logit_max=largest, logit_mse=relative[0] / relative[1],
             k_cosine=cos(k, k2)[kept].mean(), v_cosine=cos(v, v2)[kept].mean())
    return r


def main():
    rng = np.random.default_rng(5)
    with tempfile.TemporaryDirectory() as folder:
        dump, result = Path(folder) / "dump.h5", Path(folder) / "result.json"
        data = {}
        with h5py.File(dump, "w") as f:
            f.attrs.update(model="numpy check", num_q_heads=HQ, num_kv_heads=HK, head_dim=D, sm_scale=1 / np.sqrt(D), rope_applied=True, causal=True)
            for layer, window in ((0, 0), (2, WINDOW)):
                g = f.create_group(f"layer_{layer}")
                channel = 1 + 4 * (rng.random(D) > 0.95)
                tensors = {"k": rng.normal(size=(HK, T, D)) * channel + rng.normal(size=D), "v": rng.normal(size=(HK, T, D)), "q": 2 * rng.normal(size=(HQ, SQ, D))}
                for name, x in tensors.items():
                    g[name] = x.astype(np.float16)
                    tensors[name] = x.astype(np.float16).astype(np.float64)
                g.attrs["q_start"] = T - SQ
                g["q"].attrs["q_start"] = T - SQ
                if window:
                    g.attrs["sliding_window"] = window
                data[layer] = (tensors, window)
            f.attrs["q_start"] = T - SQ
        subprocess.run([sys.argv[1], "eval", str(dump), "--codec", ",".join(CODECS), "--json", str(result), "--no-recommend", "-q"], check=True, stdout=subprocess.DEVNULL)
        report = json.loads(result.read_text())
    worst = {}
    failed = 0
    for codec in report["codecs"]:
        name = codec["codec"]
        means = {}
        for head in codec["heads"]:
            tensors, window = data[head["layer"]]
            h = head["head"]
            k, v = tensors["k"][h], tensors["v"][h]
            q = tensors["q"][h * (HQ // HK):(h + 1) * (HQ // HK)]
            expected = metrics(q, k, v, CODECS[name](k, True), CODECS[name](v, False), window, EXACT.get(name, (0, 0)))
            expected["k_bits"], expected["v_bits"] = BITS[name]
            for metric, value in expected.items():
                # fp32 rounding of the program: 1e-4 relative; a tie in an index or a rank may move a share by one query or key.
                slack = 1.01 / (8 * len(q) * SQ) if metric in ("top1", "top8") else 1e-7
                difference = abs(head[metric] - value)
                worst[metric] = max(worst.get(metric, 0), difference / max(abs(value), 1e-12))
                if difference > 3e-4 * abs(value) + slack:
                    print(f"{name} layer {head['layer']} head {h} {metric}: tq4 {head[metric]:.8g}, numpy {value:.8g}")
                    failed += 1
                means.setdefault(metric, []).append(value)
        for metric in ("k_mse", "v_mse", "output_mse", "kl_mean", "top1", "output_cosine"):
            if abs(codec["total"][metric] - np.mean(means[metric])) > 1e-3 * abs(np.mean(means[metric])):
                print(f"{name} total {metric}: tq4 {codec['total'][metric]:.8g}, numpy {np.mean(means[metric]):.8g}")
                failed += 1
    print(f"{len(report['codecs'])} codecs; largest relative difference of each metric:")
    print("  " + ", ".join(f"{m} {d:.1e}" for m, d in sorted(worst.items())))
    sys.exit(1 if failed or len(report["codecs"]) != len(CODECS) else 0)


if __name__ == "__main__":
    main()
