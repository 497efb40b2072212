"""results.json from the records of run.py.

    python summarize.py windows.json [more.json ...] --out results.json
    python summarize.py --recall recall.json --out results_recall.json         # of recall.py: against the uncompressed model, paired

Records that differ in their seed alone are averaged window by window ("plain = mean of 5 rotation seeds"). Ratios are to plain TurboQuant (-norm:
the stored scale is the vector's norm) at the same bits, text and exact window, over the windows that both were measured on, with a paired
bootstrap over windows (95%). `unseen` repeats the figures without the windows near those that settings were once chosen by (CHOSEN).
"""
import argparse
import json
import pathlib

import numpy as np

GRID = "heldout 100:400, 256 windows"
WHOLE = 347  # windows of 4,096 tokens in files 100 to 399: run.py's grid takes 256 of them, the choice of settings took 24
CHOSEN = {i for i, at in enumerate(np.linspace(0, WHOLE - 1, 256).astype(int)) if np.abs(np.linspace(0, WHOLE - 1, 24).astype(int) - at).min() <= 1}


def side_bits(base):
    """k4v3: 4 and 3 bits a value and one fp16 scale a vector of 128."""
    return (int(base[1]) + int(base[3])) / 2 + 16 / 128


def is_pair(base):
    return len(base) == 4 and base[0] == "k" and base[2] == "v"


def figures(own, plain, rng):
    """Means and errors of {window: (nats, kl)}, and the ratios to `plain` over common windows."""
    at = sorted(own)
    values = np.array([own[i] for i in at])
    out = {"nats_lost": values[:, 0].mean(), "standard_error": values[:, 0].std(ddof=1) / len(at) ** 0.5, "kl": values[:, 1].mean(),
           "kl_standard_error": values[:, 1].std(ddof=1) / len(at) ** 0.5, "windows": len(at)}
    common = sorted(set(own) & set(plain or {}))
    if common:
        mine, theirs = np.array([own[i] for i in common]), np.array([plain[i] for i in common])
        pick = rng.integers(0, len(common), (4000, len(common)))
        for column, name in enumerate(("nats", "kl")):
            ratios = mine[pick, column].mean(1) / theirs[pick, column].mean(1)
            out[f"{name}_ratio_to_plain"] = mine[:, column].mean() / theirs[:, column].mean()
            out[f"{name}_ratio_95"] = [float(x) for x in np.percentile(ratios, [2.5, 97.5])]
            out[f"plain_{name}"] = theirs[:, column].mean()
            difference = theirs[:, column] - mine[:, column]
            out[f"{name}_better_by"] = [difference.mean(), difference.std(ddof=1) / len(common) ** 0.5]
        out["plain_windows"] = len(common)
    return {k: [float(y) for y in x] if isinstance(x, list) else float(x) if isinstance(x, np.floating) else x for k, x in out.items()}


def write(path, rows):
    pathlib.Path(path).write_text("[\n" + ",\n".join(json.dumps(r) for r in rows) + "\n]\n")


def summarize_recall(path):
    records = json.loads(pathlib.Path(path).read_text())
    whole = next(r for r in records if r["codec"] == "none")
    out = []
    for record in records:
        base = record["codec"].split("-")[0]
        row = {"codec": "fp16" if record is whole else base if is_pair(base) else record["codec"],
               "codec_name": "uncompressed" if record is whole else record["codec"], "calibration": record["calibration"].split(".")[-1],
               "bits": side_bits(base) if is_pair(base) else float(record["bits"])}
        for name, values in record["per_window"].items():
            row[name] = float(np.mean(values))
            if name.endswith("nats"):
                more = np.array(values) - np.array(whole["per_window"][name])
                row[f"{name}_more"] = float(more.mean())
                row[f"{name}_more_error"] = float(more.std(ddof=1) / len(more) ** 0.5)
        out.append(row | {k: record[k] for k in ("windows", "ctx", "needles", "passage", "device", "commit")})
    out.sort(key=lambda r: (-r["bits"], r["codec"], r["copy_nats"]))
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", nargs="+")
    parser.add_argument("--recall", action="store_true", help="the records are recall.py's")
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    if arguments.recall:
        write(arguments.out, summarize_recall(arguments.records[0]))
        return
    groups, last = {}, {}
    for path in arguments.records:
        for record in json.loads(pathlib.Path(path).read_text()):
            calibration = record["calibration"].split(".")[-1]
            key = (record["codec"], calibration, record["window"], record["sinks"], record.get("scale", ""), record.get("text", GRID), record.get("stress", 1))
            windows = groups.setdefault(key, {})
            for i, pair in zip(record.get("index", range(record["windows"])), zip(record["per_window"]["nats"], record["per_window"]["kl"])):
                windows.setdefault(i, []).append(pair)
            last.setdefault(key, []).append(record)
    mean = {key: {i: np.mean(values, 0) for i, values in windows.items()} for key, windows in groups.items()}
    rng = np.random.default_rng(0)
    out = []
    for key, records in last.items():
        codec, calibration, window, sinks, scale, text, stress = key
        base = codec.split("-")[0]
        pair = is_pair(base)
        residual = int(codec.rsplit("-r", 1)[1]) if "-r1" in codec else 0  # KIVI's own window
        plain = mean.get((f"{base}-norm", "none", window, sinks, "", text, stress)) if pair and not codec.endswith("-norm") else None
        row = {"codec": base if pair else codec, "codec_name": codec, "calibration": calibration, "window": window or residual, "sinks": sinks,
               "bits": float(records[0]["bits"] or side_bits(base)), **figures(mean[key], plain, rng), "ctx": records[0]["ctx"],
               "seeds": len({seed for r in records for seed in r.get("seeds", [r.get("seed")])}), "base_nats": records[0]["base_nats"], "device": records[0].get("device", "cuda"),
               "commit": records[0]["commit"]}
        if scale:
            row["scale"] = scale
        if text != GRID:
            row["text"] = text
        if stress != 1:
            row["stress"] = stress
        if text == GRID and set(mean[key]) & CHOSEN:
            row["unseen"] = figures({i: x for i, x in mean[key].items() if i not in CHOSEN}, plain, rng)
        out.append(row)
    out.sort(key=lambda r: (r.get("stress", 1), r.get("text", ""), r["window"] if is_pair(r["codec"]) else 0, -r["bits"], r["codec"], r["kl"]))
    write(arguments.out, out)


if __name__ == "__main__":
    main()
