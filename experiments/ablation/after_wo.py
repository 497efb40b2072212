"""The attention output's error as the model meets it: through W_o. `tq4 eval` counts all directions of a head's output equally; calibrated values
spend their error where the dump's o_gram (W_o^T W_o of the head) says it hardly matters. Independent of `tq4 eval`: float64 NumPy on dumps that
`tq4 compress` and `tq4 decompress` made. Needs numpy and h5py.

    python after_wo.py --tq4 build/bin/tq4 --learn data/lm_a.h5 --test data/lm_b.h5 -o after_wo.json [--append] [--queries 256] [--output-share 0.3]
"""
import argparse
import json
import pathlib
import subprocess
import tempfile

import h5py
import numpy as np

WIDTHS = ("k4v4", "k4v3", "k3v3", "k2v2")


def attention(q, k, v, start, scale, window, exact):
    """Outputs [queries, D]; tokens below 4 and the newest `window` of each query come from `exact` = (k, v) when window > 0."""
    positions = start + np.arange(len(q))
    tokens = np.arange(len(k))
    logits = scale * q @ k.T
    near = (tokens[None, :] > positions[:, None] - window) | (tokens[None, :] < 4) if window else np.zeros(logits.shape, bool)
    if window:
        logits = np.where(near, scale * q @ exact[0].T, logits)
    logits[tokens[None, :] > positions[:, None]] = -np.inf
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return np.where(near, p, 0) @ exact[1] + np.where(near, 0, p) @ v


def errors(original, decoded, queries, window):
    """Mean over kv heads of relative squared output errors: all directions equal, and through W_o."""
    flat, seen = [], []
    layers = [name for name in original if name.startswith("layer")]
    numbers = {int(name.split("_")[1]): name for name in decoded if name.startswith("layer")}
    scale = float(original.attrs["sm_scale"])
    for name in layers:
        a, b = original[name], decoded[numbers[int(name.split("_")[1])]]
        group = a["q"].shape[0] // a["k"].shape[0]
        start = a["k"].shape[1] - a["q"].shape[1]
        for head in range(a["k"].shape[0]):
            k, v = a["k"][head].astype(np.float64), a["v"][head].astype(np.float64)
            k2, v2 = b["k"][head].astype(np.float64), b["v"][head].astype(np.float64)
            gram = a["o_gram"][head].astype(np.float64)
            sums = np.zeros(4)
            for q_all in a["q"][head * group : (head + 1) * group].astype(np.float64):
                q, first = q_all[-queries:], start + max(0, len(q_all) - queries)
                exact = attention(q, k, v, first, scale, 0, (k, v))
                error = attention(q, k2, v2, first, scale, window, (k, v)) - exact
                sums += [(error**2).sum(), (exact**2).sum(), np.einsum("id,de,ie", error, gram, error), np.einsum("id,de,ie", exact, gram, exact)]
            flat.append(sums[0] / sums[1])
            seen.append(sums[2] / sums[3])
    return np.array(flat), np.array(seen)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tq4", required=True)
    parser.add_argument("--learn", nargs="+", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--widths", default=",".join(WIDTHS))
    parser.add_argument("--queries", type=int, default=256)
    parser.add_argument("--output-share", default="0", help="of `tq4 calibrate`")
    parser.add_argument("--append", action="store_true")
    parser.add_argument("-o", "--output", type=pathlib.Path, required=True)
    a = parser.parse_args()
    rows = json.loads(a.output.read_text()) if a.append else []
    quiet = {"check": True, "stdout": subprocess.DEVNULL}
    with tempfile.TemporaryDirectory() as folder, h5py.File(a.test) as original:
        for width in a.widths.split(","):
            table, packed, back = (f"{folder}/{name}" for name in ("m.tq4cal", "x.tq4", "x.h5"))
            subprocess.run([a.tq4, "calibrate", *a.learn, "--codec", width + "-2d", "--output-share", a.output_share, "-o", table, "-q", "--force"], **quiet)
            plain = {}
            static = "static" if a.output_share == "0" else f"static, output share {a.output_share}"
            for step, options in (("plain", ["--codec", width + "-norm"]), (static, ["--calibration", table])):
                subprocess.run([a.tq4, "compress", a.test, *options, "-o", packed, "-q", "--force"], **quiet)
                subprocess.run([a.tq4, "decompress", packed, "-o", back, "-q", "--force"], **quiet)
                with h5py.File(back) as decoded:
                    for window in (0, 64):
                        flat, seen = errors(original, decoded, a.queries, window)
                        plain.setdefault(window, (flat, seen))
                        ratios = [flat.mean() / plain[window][0].mean(), seen.mean() / plain[window][1].mean()]
                        heads = [seen / plain[window][1]]
                        rows.append({"learn": [pathlib.Path(p).stem for p in a.learn], "test": pathlib.Path(a.test).stem, "width": width, "step": step,
                                     "window": window, "output_mse": flat.mean(), "output_mse_through_wo": seen.mean(), "ratio": ratios[0],
                                     "ratio_through_wo": ratios[1], "heads_through_wo": [heads[0].min(), heads[0].max()]})
                        print(f"{width} {step:6} window {window:2}: output error {flat.mean():.4g} ({ratios[0]:.2f}x), through W_o {seen.mean():.4g} "
                              f"({ratios[1]:.2f}x, heads {heads[0].min():.2f} .. {heads[0].max():.2f})", flush=True)
    a.output.write_text(json.dumps(rows, indent=0) + "\n")


if __name__ == "__main__":
    main()
