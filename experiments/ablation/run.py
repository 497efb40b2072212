"""Each step's share of what calibration gains: `tq4 calibrate` on some dumps, `tq4 eval` on others, step after step. Standard library only.

    python run.py --tq4 build/bin/tq4                                           # data/lm_a.h5 against lm_b.h5, both ways -> results.json
    python run.py --tq4 build/bin/tq4 --check results.json                      # the same, and fails where a number differs from the file
    python run.py --tq4 build/bin/tq4 --learn A.h5 B.h5 --test C.h5 --ends -o results_4096.json        # other dumps; plain, static and rope alone
    python run.py --show results.json                                           # the tables of README.md

A step is a codec name with the options of `tq4 calibrate` that make its tables (None: none). Steps that rotate are run with every seed of
--seeds, feedback (which has no rotation) with one. Every metric is a mean over seeds and over (learned, tested) pairs; ratios are to the paper's
codec at the same bits, window and pairs.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
METRICS = ("bits", "k_mse", "v_mse", "logit_rmse_centred", "kl_mean", "kl_p99", "top1", "output_mse")
WINDOW = ["--window", "64", "--sinks", "4"]
WIDTHS = ("k4v4", "k4v3", "k3v3", "k2v2")
GROUPS = ("ladder", "window", "alone", "without", "own", "own window")
PLAIN = "plain (paper)"


def step(name, group, codec, calibrate=None, seeded=True, window=False):
    return {"name": name, "group": group, "codec": codec, "calibrate": calibrate, "seeded": seeded, "window": window}


def steps(width, ends_only):
    """codec: suffixes of the width's name; "-norm" is the stored norm of the paper."""
    flat = ["--attention-weight", "0"]
    only_k = ["--method", "none", "--k-method", "centre"]
    only_v = ["--method", "none", "--v-method", "centre"]
    ladder = [
        step(PLAIN, "ladder", width + "-norm"),
        step("least-squares scale", "ladder", width),
        step("+ centre K", "ladder", width, only_k),
        step("+ centre V", "ladder", width, ["--method", "centre"]),
        step("+ transform", "ladder", width, ["--method", "transform", *flat]),
        step("+ 2-D codebook", "ladder", width + "-2d", ["--method", "transform", *flat]),
        step("+ feedback", "ladder", width + "-2d", ["--method", "feedback", *flat], False),
        step("+ attention weight (static)", "ladder", width + "-2d", ["--method", "feedback"], False),
        step("+ centre before RoPE (rope)", "ladder", width + "-2d", ["--method", "feedback", "--rope"], False),
        step(PLAIN, "window", width + "-norm", None, True, True),
        step("least-squares scale", "window", width, None, True, True),
        step("static", "window", width + "-2d", ["--method", "feedback"], False, True),
        step("rope", "window", width + "-2d", ["--method", "feedback", "--rope"], False, True),
    ]
    if ends_only:
        return [s for s in ladder if s["name"] == PLAIN or "--method" in (s["calibrate"] or ()) and s["name"].endswith(("static", "(static)", "rope", "(rope)"))]
    return ladder + [
        step("2-D codebook, paper's norm", "alone", width + "-2d-norm"),
        step("centre K, paper's norm", "alone", width + "-norm", only_k),
        step("2-D codebook", "alone", width + "-2d"),
        step("centre K", "alone", width, only_k),
        step("centre V", "alone", width, only_v),
        step("centre K before RoPE", "alone", width, [*only_k, "--rope"]),
        step("transform", "alone", width, ["--method", "transform", "--no-centre", *flat]),
        step("transform with attention weight", "alone", width, ["--method", "transform", "--no-centre"]),
        step("feedback", "alone", width, ["--method", "feedback", "--no-centre", *flat], False),
        step("feedback with attention weight", "alone", width, ["--method", "feedback", "--no-centre"], False),
        step("least-squares scale", "without", width + "-2d-norm", ["--method", "feedback"], False),
        step("both centres", "without", width + "-2d", ["--method", "feedback", "--no-centre"], False),
        step("feedback of K and V (transform instead)", "without", width + "-2d", ["--method", "transform"]),
        step("feedback and transform of K", "without", width + "-2d", ["--method", "feedback", "--k-method", "centre"], False),
        step("feedback and transform of V", "without", width + "-2d", ["--method", "feedback", "--v-method", "centre"], False),
        step("2-D codebook", "without", width, ["--method", "feedback"], False),
        step("attention weight", "without", width + "-2d", ["--method", "feedback", *flat], False),
        step("static", "own", width + "-2d", ["--method", "feedback"], False),
        step("pair tables fitted a layer", "own", width + "-2d", ["--method", "feedback", "--pairs", "layer"], False),
        step("pair tables fitted a layer, by attention", "own", width + "-2d", ["--method", "feedback", "--pairs", "attention"], False),
        *(step(f"output share {x}", "own", width + "-2d", ["--method", "feedback", "--output-share", x], False) for x in ("0.03", "0.1", "0.3", "1")),
        *(step(f"output share {x}", "own window", width + "-2d", ["--method", "feedback", "--output-share", x], False, True)
          for x in ("0", "0.03", "0.1", "0.3", "1")),
    ]


class Program:
    def __init__(self, path, queries):
        self.path, self.queries = path, queries

    def calibrate(self, learn, output, codec, seed, options):
        subprocess.run([self.path, "calibrate", *learn, "--codec", codec, "--seed", str(seed), *options, "-o", output, "--force", "-q"], check=True,
                       stdout=subprocess.DEVNULL)

    def evaluate(self, test, arguments):
        text = subprocess.run([self.path, "eval", test, "--queries", self.queries, "--no-recommend", "-q", "--json", "-", *arguments], check=True,
                              stdout=subprocess.PIPE).stdout
        return json.loads(text)["codecs"]


def measure(program, learn, tests, width, seeds, ends_only, groups, folder):
    """{(group, name): list of codec reports}, one a seed and test."""
    out = {}
    todo = [s for s in steps(width, ends_only) if s["group"] in groups or s["name"] == PLAIN]
    tables = {}
    for seed in seeds:
        for window in (False, True):
            here = [s for s in todo if s["window"] == window and (s["seeded"] or seed == seeds[0])]
            plain = [s for s in here if s["calibrate"] is None]
            learned = [s for s in here if s["calibrate"] is not None]
            for s in learned:
                key = (s["codec"], tuple(s["calibrate"]), seed)
                if key not in tables:
                    tables[key] = os.path.join(folder, f"{len(tables)}.tq4cal")
                    program.calibrate(learn, tables[key], s["codec"], seed, s["calibrate"])
            more = WINDOW if window else []
            for test in tests:
                names = list(dict.fromkeys(s["codec"] for s in plain))
                reports = program.evaluate(test, ["--codec", ",".join(names), "--seed", str(seed), *more])
                for s, name in ((s, s["codec"]) for s in plain):
                    out.setdefault((s["group"], s["name"]), []).append((seed, test, reports[names.index(name)]))
                if learned:
                    files = [tables[s["codec"], tuple(s["calibrate"]), seed] for s in learned]
                    reports = program.evaluate(test, ["--codec", "fp8", *(x for f in files for x in ("--calibration", f)), *more])[1:]
                    for s, report in zip(learned, reports):
                        out.setdefault((s["group"], s["name"]), []).append((seed, test, report))
    return out


def mean_of(reports, metric):
    return statistics.fmean(r["total"][metric] for _, _, r in reports)


def rows(width, reports, what):
    """One row a step: means, ratios to plain, their spread over seeds (standard deviation) and over heads (least, greatest)."""
    todo = {(s["group"], s["name"]): s for s in steps(width, False)}
    out = []
    for (group, name), of_step in reports.items():
        plain = reports["window" if group in ("window", "own window") else "ladder", PLAIN]
        row = {"data": what, "width": width, "group": group, "step": name, "codec": todo[group, name]["codec"],
               "calibrate": todo[group, name]["calibrate"], "runs": len(of_step)}
        row.update({m: mean_of(of_step, m) for m in METRICS})
        for m in ("k_mse", "v_mse", "kl_mean", "output_mse"):
            row[m + "_ratio"] = row[m] / mean_of(plain, m)
            by_seed = {}
            for seed, _, report in of_step:
                by_seed.setdefault(seed, []).append(report["total"][m])
            seeds = [statistics.fmean(v) / mean_of(plain, m) for v in by_seed.values()]
            row[m + "_ratio_sd"] = statistics.stdev(seeds) if len(seeds) > 1 else None
        for m in ("kl_mean", "output_mse"):
            mine, theirs = by_head(of_step, m), by_head(plain, m)
            ratios = sorted(mine[h] / theirs[h] for h in mine)
            row[m + "_heads"] = [ratios[0], statistics.median(ratios), ratios[-1]]
        out.append(row)
    return out


def by_head(reports, metric):
    values = {}
    for _, test, report in reports:
        for head in report["heads"]:
            values.setdefault((test, head["layer"], head["head"]), []).append(head[metric])
    return {h: statistics.fmean(v) for h, v in values.items()}


def merged(parts):
    """Reports of several (learned, tested) pairs put together, step by step."""
    out = {}
    for part in parts:
        for key, reports in part.items():
            out.setdefault(key, []).extend(reports)
    return out


def ratio(row, metric):
    sd = row[metric + "_ratio_sd"]
    return f"{row[metric + '_ratio']:.2f}x" + (f" ± {sd:.2f}" if sd is not None and sd >= 0.005 else "")


def show(results):
    for what in dict.fromkeys(r["data"] for r in results):
        print(f"\n### {what}")
        show_one([r for r in results if r["data"] == what])


def show_one(results):
    """Full tables of the ladder; of the others the two ratios, all widths side by side."""
    titles = {"window": "With the newest 64 and the first 4 tokens exact, against plain with the same",
              "own": "Static with what else was tried", "own window": "The same with the newest 64 and the first 4 tokens exact",
              "alone": "One step alone, on the least-squares scale (or on the paper's norm)", "without": "Everything (static) without one step"}
    widths = [w for w in WIDTHS if any(r["width"] == w for r in results)]
    for width in widths:
        print(f"\n**One after the other, {width.upper()}**\n")
        print("| step | K error | V error | logit rms | KL | output error | KL / plain | output / plain | heads: KL | heads: output |")
        print("|---|---|---|---|---|---|---|---|---|---|")
        for r in results:
            if r["group"] != "ladder" or r["width"] != width:
                continue
            heads = ["{:.2f} .. {:.2f}".format(r[m + "_heads"][0], r[m + "_heads"][2]) for m in ("kl_mean", "output_mse")]
            print(f"| {r['step']} | {r['k_mse']:.3g} | {r['v_mse']:.3g} | {r['logit_rmse_centred']:.3g} | {r['kl_mean']:.3g} | {r['output_mse']:.3g} | "
                  f"{ratio(r, 'kl_mean')} | {ratio(r, 'output_mse')} | {heads[0]} | {heads[1]} |")
    for group, title in titles.items():
        here = {(r["step"], r["width"]): r for r in results if r["group"] == group}
        if not here:
            continue
        print(f"\n**{title}** (KL, output error; both to plain)\n")
        print("| step | " + " | ".join(w.upper() for w in widths) + " |\n|---|" + "---|" * len(widths))
        for name in dict.fromkeys(name for name, _ in here):
            cells = [f"{ratio(here[name, w], 'kl_mean')}, {ratio(here[name, w], 'output_mse')}" for w in widths]
            print(f"| {name} | " + " | ".join(cells) + " |")


def differences(results, reference):
    old = {(r["data"], r["width"], r["group"], r["step"]): r for r in reference}
    for r in results:
        before = old.get((r["data"], r["width"], r["group"], r["step"]))
        for m in METRICS:
            if before is None or abs(r[m] - before[m]) > 1e-4 * abs(before[m]):
                yield f"{r['width']} {r['group']} {r['step']}: {m} is {r[m]}, was {before and before[m]}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tq4")
    parser.add_argument("--learn", nargs="+", help="dumps to calibrate on (default: data/lm_a.h5 and lm_b.h5 in turn)")
    parser.add_argument("--test", nargs="+", help="dumps of other texts to measure on")
    parser.add_argument("--widths", default=",".join(WIDTHS))
    parser.add_argument("--seeds", default="42,43,44,45,46")
    parser.add_argument("--queries", default="all")
    parser.add_argument("--ends", action="store_true", help="only plain, static and rope, with and without window")
    parser.add_argument("--groups", default=",".join(GROUPS), help="which tables' steps")
    parser.add_argument("-o", "--output", type=pathlib.Path)
    parser.add_argument("--append", action="store_true", help="keep the rows that the output has")
    parser.add_argument("--check", type=pathlib.Path)
    parser.add_argument("--show", type=pathlib.Path)
    a = parser.parse_args()
    if a.show:
        show(json.loads(a.show.read_text()))
        return
    program = Program(a.tq4, a.queries)
    lm_a, lm_b = str(ROOT / "data/lm_a.h5"), str(ROOT / "data/lm_b.h5")
    pairs = [(a.learn, a.test)] if a.learn else [([lm_a], [lm_b]), ([lm_b], [lm_a])]
    what = " ".join(pathlib.Path(p).stem for p in a.learn) + " -> " + " ".join(pathlib.Path(p).stem for p in a.test) if a.learn else "lm_a <-> lm_b"
    results = json.loads(a.output.read_text()) if a.append else []
    groups = a.groups.split(",")
    for width in a.widths.split(","):
        with tempfile.TemporaryDirectory() as folder:
            parts = [measure(program, learn, test, width, [int(s) for s in a.seeds.split(",")], a.ends, groups, folder) for learn, test in pairs]
        results += [row for row in rows(width, merged(parts), what) if row["group"] in groups]
        print(width, "done", file=sys.stderr)
    if a.check:
        wrong = list(differences(results, json.loads(a.check.read_text())))
        print("\n".join(wrong) or f"all {len(results)} rows as in {a.check}")
        sys.exit(1 if wrong else 0)
    output = a.output or pathlib.Path(__file__).parent / "results.json"
    output.write_text(json.dumps(results, indent=0) + "\n")
    show(results)


if __name__ == "__main__":
    main()
