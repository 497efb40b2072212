#!/usr/bin/env python3
"""Joins `tq4 profile` and the peers' timings of one GPU session into results.json and prints the table of README.md.

    python3 collect.py raw/tq4_main.json raw/long.json --peers raw/peers_flashinfer.json -o results.json

bf16 and fp8 are the fastest FlashInfer kernel of each kind at that point (tensor cores, XQA, with and without programmatic launch).
"""
import argparse
import json

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("profiles", nargs="+")
parser.add_argument("--peers", required=True)
parser.add_argument("-o", "--output", required=True)
args = parser.parse_args()

best = {}
for row in json.load(open(args.peers))["rows"]:
    if "us" in row:
        key = (row["B"], row["ctx"], "bf16" if "bf16" in row["peer"] else "fp8")
        if key not in best or row["us"] < best[key][0]:
            best[key] = (row["us"], row["peer"])

points, head = [], {}
for path in args.profiles:
    profile = json.load(open(path))
    if not head:
        head = {"gpu": profile["gpu"], "commit": profile["build"].get("commit") if isinstance(profile["build"], dict) else profile["build"],
                "ceiling_bytes_per_second": profile["ceiling_bytes_per_second"]}
    for p in profile["points"]:
        timing = p["timing"] if "timing" in p else {"samples": p["samples"], "median": p["seconds"]}
        bf16, fp8 = best.get((p["batch"], p["ctx"], "bf16")), best.get((p["batch"], p["ctx"], "fp8"))
        points.append({
            "heads": p.get("heads", "32/8"), "head_dim": p.get("head_dim", 128), "codec": p["codec"], "layout": p["layout"], "batch": p["batch"],
            "ctx": p["ctx"], "bytes": p["bytes"], "seconds": timing["median"], "samples": timing["samples"],
            "bf16_seconds": bf16 and bf16[0] * 1e-6, "bf16_kernel": bf16 and bf16[1], "fp8_seconds": fp8 and fp8[0] * 1e-6, "fp8_kernel": fp8 and fp8[1],
            "relative_error": p["relative_error"], "path": p["path"],
            "ceiling_bytes_per_second": profile["ceiling_bytes_per_second"]})
points.sort(key=lambda p: (p["batch"], p["ctx"]))
json.dump({**head, "points": points}, open(args.output, "w"), indent=1)
print("| batch / context | us | % of ceiling | against bf16 | against fp8 | relative error |\n|---|---|---|---|---|---|")
for p in points:
    ratio = lambda kind: f"{p[kind + '_seconds'] / p['seconds']:.2f}x" if p[kind + "_seconds"] else "-"
    share = 100 * p["bytes"] / p["seconds"] / p["ceiling_bytes_per_second"]
    print(f"| {p['batch']} / {p['ctx'] // 1024}k | {p['seconds'] * 1e6:.1f} | {share:.0f} | {ratio('bf16')} | {ratio('fp8')} | {p['relative_error']:.1e} |")
