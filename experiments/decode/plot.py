#!/usr/bin/env python3
"""The figure of results.json, standard library only: python plot.py -> decode.svg, time against context length, one panel a batch size."""
import json
import math
import pathlib

HERE = pathlib.Path(__file__).parent
SERIES = (("tq4, 4 bits", "seconds", "#c2410c", "circle"), ("bf16, FlashInfer", "bf16_seconds", "#1d4ed8", "square"),
          ("fp8, FlashInfer", "fp8_seconds", "#0f766e", "diamond"), ("reading tq4's bytes once", None, "#78716c", None))
BATCHES = (1, 8, 32)
LEFT, TOP, PANEL, DEPTH, GAP = 64, 56, 250, 270, 44
LOW, HIGH = math.log10(0.2), math.log10(2000)

data = json.loads((HERE / "results.json").read_text())
ceiling = data["ceiling_bytes_per_second"]
points = [p for p in data["points"] if p.get("heads") == "32/8" and p["codec"] == "tq4" and p.get("head_dim") == 128]
parts = []


def y_of(us):
    return TOP + DEPTH * (HIGH - math.log10(us)) / (HIGH - LOW)


def marker(shape, x, y, colour):
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>'
    turn = f' transform="rotate(45 {x:.1f} {y:.1f})"' if shape == "diamond" else ""
    return f'<rect x="{x - 3.6:.1f}" y="{y - 3.6:.1f}" width="7.2" height="7.2" fill="{colour}"{turn}/>'


for panel, batch in enumerate(BATCHES):
    x0 = LEFT + panel * (PANEL + GAP)
    of_batch = sorted((p for p in points if p["batch"] == batch), key=lambda p: p["ctx"])
    first, last = math.log2(1024) - 0.5, math.log2(131072) + 0.5

    def x_of(ctx):
        return x0 + PANEL * (math.log2(ctx) - first) / (last - first)

    parts.append(f'<text x="{x0}" y="{TOP - 10}" class="t">batch {batch}</text>')
    for us in (1, 10, 100, 1000):
        parts.append(f'<path d="M{x0} {y_of(us):.1f}h{PANEL}" class="g"/>')
        if panel == 0:
            parts.append(f'<text x="{x0 - 8}" y="{y_of(us) + 4:.1f}" class="r">{us}</text>')
    for ctx in (1024, 8192, 32768, 131072):
        parts.append(f'<text x="{x_of(ctx):.1f}" y="{TOP + DEPTH + 18}" class="m">{ctx // 1024}k</text>')
    parts.append(f'<path d="M{x0} {TOP}v{DEPTH}h{PANEL}" class="a"/>')
    for name, key, colour, shape in SERIES:
        xy = [(x_of(p["ctx"]), y_of(1e6 * (p[key] if key else p["bytes"] / ceiling))) for p in of_batch if key is None or p[key]]
        dash = ' stroke-dasharray="5 4"' if key is None else ""
        parts.append(f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in xy)}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        if shape:
            parts += [marker(shape, x, y, colour) for x, y in xy]
width, height = LEFT + 3 * PANEL + 2 * GAP + 20, TOP + DEPTH + 92
x = LEFT
for name, key, colour, shape in SERIES:
    dash = ' stroke-dasharray="5 4"' if key is None else ""
    parts.append(f'<path d="M{x} {height - 20}h26" stroke="{colour}" stroke-width="2"{dash}/>')
    if shape:
        parts.append(marker(shape, x + 13, height - 20, colour))
    parts.append(f'<text x="{x + 34}" y="{height - 16}">{name}</text>')
    x += 66 + 7 * len(name)
parts.append(f'<text x="{LEFT + (3 * PANEL + 2 * GAP) / 2}" y="{TOP + DEPTH + 42}" class="m">context (tokens); microseconds a call, {data["gpu"]["name"]}</text>')
style = ("text{font:13px system-ui,sans-serif;fill:#1c1917}.t{font-weight:600}.m{text-anchor:middle}.r{text-anchor:end}.g{stroke:#e7e5e4}"
         ".a{stroke:#44403c;fill:none}")
(HERE / "decode.svg").write_text(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
                                 f'<style>{style}</style><rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n')
