"""The tables of README.md from result files, and the check that both are sound (standard library only).

    python tables.py results.json README.md            # rewrites what stands between <!-- results.json --> and <!-- end -->
    python tables.py --check results.json README.md    # exits 1 where a result file or its table is not as it should be

A result file is a list of {"codec", "calibration": "none" | "static" | "rope", "window", "sinks", "bits", "nats_lost", "standard_error", "kl",
"windows", "ctx", "commit", ...}; what else summarize.py adds is optional.
"""
import json
import math
import pathlib
import sys

FIELDS = {"codec": str, "calibration": str, "window": int, "sinks": int, "bits": float, "nats_lost": float, "standard_error": float, "kl": float,
          "windows": int, "ctx": int, "commit": str}


def problems(rows):
    """What is wrong with a result file; empty when nothing is."""
    found = []
    if not isinstance(rows, list) or not rows:
        return ["is no list of rows"]
    seen = set()
    for number, row in enumerate(rows):
        bad = lambda what: found.append(f"row {number} ({row.get('codec_name', row.get('codec'))}): {what}")
        for field, kind in FIELDS.items():
            value = row.get(field)
            if kind is float and isinstance(value, int) and not isinstance(value, bool):
                value = float(value)
            if not isinstance(value, kind) or (kind is float and not math.isfinite(value)):
                bad(f"{field} is {value!r}")
        if any(f"row {number} " in f for f in found):
            continue
        if row["calibration"] not in ("none", "static", "rope"):
            bad(f"calibration is {row['calibration']!r}")
        if not (row["kl"] > 0 and row["standard_error"] > 0 and 1 < row["bits"] <= 16 and row["windows"] >= 2 and row["ctx"] >= 4096 and row["commit"]):
            bad("has an impossible value")
        for metric in ("nats", "kl"):
            low_high = row.get(f"{metric}_ratio_95")
            if low_high and not low_high[0] <= row[f"{metric}_ratio_to_plain"] <= low_high[1]:
                bad(f"{metric} ratio is outside of its interval")
        key = tuple(row.get(k) for k in ("codec_name", "codec", "calibration", "window", "sinks", "scale", "text", "stress"))
        if key in seen:
            bad("stands twice")
        seen.add(key)
    return found


def ratio(row, metric):
    if f"{metric}_ratio_95" not in row:
        return ""
    low, high = row[f"{metric}_ratio_95"]
    if metric == "nats" and (row["plain_windows"] < 6 or high - low > 0.5):  # few windows, or plain loses next to nothing: noise
        return ""
    return f"{row[f'{metric}_ratio_to_plain']:.2f} ({low:.2f}..{high:.2f})"


def fewer(row, metric):
    if f"{metric}_better_by" not in row:
        return ""
    mean, error = row[f"{metric}_better_by"]
    return f"{mean:.4f} ± {error:.4f}"


def render(rows):
    stressed = any(row.get("stress", 1) != 1 for row in rows)
    unseen = any("unseen" in row for row in rows)
    other = stressed or any("text" in row for row in rows)  # few windows, nats near zero: a difference says more than a ratio
    texts = len({row.get("text") for row in rows}) > 1
    head = ["text"] * texts + ["outliers"] * stressed + ["codec", "calibration", "window+sinks", "bits", "windows", "nats lost", "KL"]
    head += ["nats fewer than plain" if other else "nats / plain (95%)", "KL / plain (95%)"]
    head += ["KL / plain, unseen windows"] * unseen
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for r in rows:
        cells = [r.get("text", "").replace("_", " ")] * texts + [f"{r.get('stress', 1):g}x"] * stressed
        cells += [f"{r['codec_name']}{' ' + r['scale'] if 'scale' in r else ''}", r["calibration"], f"{r['window']}+{r['sinks']}", f"{r['bits']:.3f}",
                  str(r["windows"]), f"{r['nats_lost']:.5f} ± {r['standard_error']:.5f}", f"{r['kl']:.5f} ± {r['kl_standard_error']:.5f}", fewer(r, "nats") if other else ratio(r, "nats"),
                  ratio(r, "kl")]
        cells += [ratio(r.get("unseen", {}), "kl")] * unseen
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def render_recall(rows):
    """The copy test of recall.py."""
    lines = ["| codec | calibration | bits | needle: accuracy | nats (more than uncompressed) | copy: accuracy | nats (more) |", "|---|---|---|---|---|---|---|"]
    for r in rows:
        cells = [r["codec_name"], r["calibration"], f"{r['bits']:.3f}"]
        for what in ("needle", "copy"):
            more = f" ({r[f'{what}_nats_more']:+.3f} ± {r[f'{what}_nats_more_error']:.3f})"
            cells += [f"{r[f'{what}_accuracy']:.3f}", f"{r[f'{what}_nats']:.3f}" + ("" if r["codec"] == "fp16" else more)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    arguments = [a for a in sys.argv[1:] if a != "--check"]
    check = len(arguments) < len(sys.argv) - 1
    *results, readme = (pathlib.Path(a) for a in arguments)
    text = readme.read_text()
    failed = False
    for path in results:
        rows = json.loads(path.read_text())
        recall = path.stem.endswith("recall")
        for problem in [] if recall else problems(rows):
            failed = True
            print(f"{path.name}: {problem}")
        begin, end = f"<!-- {path.name} -->\n", "\n<!-- end -->"
        a = text.index(begin) + len(begin)
        table = render_recall(rows) if recall else render(rows)
        if check and text[a : text.index(end, a)] != table:
            failed = True
            print(f"{readme.name}: the table of {path.name} is not what the result file gives")
        text = text[:a] + table + text[text.index(end, a) :]
    if not check:
        readme.write_text(text)
    sys.exit(failed)


if __name__ == "__main__":
    main()
