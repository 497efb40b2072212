"""results.json and the table of README.md from the records of run.py.

    python summarize.py windows.json [more.json ...] --out results.json

Entries that differ in their seed alone are averaged window by window ("plain = mean of 5 rotation seeds"). Ratios are to plain TurboQuant
(-norm: the stored scale is the vector's norm) at the same bits and the same exact window, with a paired bootstrap over windows (95%).
"""
import argparse
import json
import pathlib

import numpy as np

BITS = {"k4v4": 4.125, "k3v3": 3.125, "k2v2": 2.125}  # codes and one fp16 scale a vector of 128


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", nargs="+")
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    groups = {}
    for path in arguments.records:
        for record in json.loads(pathlib.Path(path).read_text()):
            calibration = record["calibration"].split(".")[-1]
            key = (record["codec"], calibration, record["window"], record["sinks"], record.get("scale", ""))
            groups.setdefault(key, []).append(record)
    mean = {key: {m: np.mean([r["per_window"][m] for r in records], 0) for m in ("nats", "kl")} for key, records in groups.items()}
    rng = np.random.default_rng(0)
    out = []
    for key, records in groups.items():
        codec, calibration, window, sinks, scale = key
        nats, kl = mean[key]["nats"], mean[key]["kl"]
        error = lambda x: float(x.std(ddof=1) / len(x) ** 0.5)
        base = codec.split("-")[0]
        row = {"codec": base if base in BITS else codec, "codec_name": codec, "calibration": calibration, "window": window, "sinks": sinks,
               "bits": records[0]["bits"] or BITS[base], "nats_lost": float(nats.mean()), "standard_error": error(nats), "kl": float(kl.mean()),
               "kl_standard_error": error(kl), "windows": len(nats), "ctx": records[0]["ctx"], "seeds": len(records), "base_nats": records[0]["base_nats"],
               "commit": records[0]["commit"]}
        if scale:
            row["scale"] = scale
        plain = mean.get((f"{base}-norm", "none", window, sinks, ""))
        if plain is not None and not codec.endswith("-norm"):
            pick = rng.integers(0, len(nats), (4000, len(nats)))
            for name, own in (("nats", nats), ("kl", kl)):
                ratios = own[pick].mean(1) / plain[name][pick].mean(1)
                row[f"{name}_ratio_to_plain"] = float(own.mean() / plain[name].mean())
                row[f"{name}_ratio_95"] = [float(x) for x in np.percentile(ratios, [2.5, 97.5])]
        out.append(row)
    out.sort(key=lambda r: (r["window"], -r["bits"], r["codec"], r["kl"]))
    pathlib.Path(arguments.out).write_text("[\n" + ",\n".join(json.dumps(r) for r in out) + "\n]\n")
    print("| codec | calibration | window+sinks | bits | nats lost | KL | nats / plain (95%) | KL / plain (95%) |\n|---|---|---|---|---|---|---|---|")
    for r in out:
        ratio = lambda m: f"{r[m + '_ratio_to_plain']:.2f} ({r[m + '_ratio_95'][0]:.2f}..{r[m + '_ratio_95'][1]:.2f})" if f"{m}_ratio_95" in r else ""
        print(f"| {r['codec_name']}{' ' + r['scale'] if 'scale' in r else ''} | {r['calibration']} | {r['window']}+{r['sinks']} | {r['bits']:.3f} | "
              f"{r['nats_lost']:.5f} ± {r['standard_error']:.5f} | {r['kl']:.5f} ± {r['kl_standard_error']:.5f} | {ratio('nats')} | {ratio('kl')} |")


if __name__ == "__main__":
    main()
