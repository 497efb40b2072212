"""The figure and the tables of this folder from results.json, standard library only: python plot.py -> distortion.svg and, on stdout, tables.

Left: squared error of unit vectors against bits; right: squared error of inner products with unit vectors, times d. Both with the bounds of
arXiv 2504.19874: theorems 1 and 2 from above, theorem 3 from below.
"""
import json
import math
import pathlib

HERE = pathlib.Path(__file__).parent
BITS = (1, 2, 3, 4)
DIMENSIONS = (64, 128, 256, 1536)
PAPER = {"mse": (0.36, 0.117, 0.03, 0.009), "prod": (1.57, 0.56, 0.18, 0.047)}
WIDTH, HEIGHT, LEFT, TOP, PANEL, DEPTH = 940, 430, 70, 40, 360, 300
SHAPES = {64: "circle", 128: "square", 256: "diamond", 1536: "cross"}


def mse_upper(b):
    return math.sqrt(3) * math.pi / 2 * 4.0**-b


def product_upper(b):
    return math.sqrt(3) * math.pi**2 * 4.0**-b


class Panel:
    """Log scale upwards from `low` to `high`, bits 1 to 4 to the right."""

    def __init__(self, x0, title, low, high):
        self.x0, self.low, self.high = x0, math.log10(low), math.log10(high)
        self.parts = [f'<text x="{x0}" y="{TOP - 14}" class="t">{title}</text>']
        for decade in range(math.ceil(self.low), math.floor(self.high) + 1):
            y = self.y(10.0**decade)
            self.parts.append(f'<path d="M{x0} {y:.1f}h{PANEL}" class="g"/><text x="{x0 - 8}" y="{y + 4:.1f}" class="r">{10.0**decade:g}</text>')
        for b in BITS:
            self.parts.append(f'<text x="{self.x(b):.1f}" y="{TOP + DEPTH + 18}" class="m">{b}</text>')
        self.parts.append(f'<path d="M{x0} {TOP}v{DEPTH}h{PANEL}" class="a"/>')
        self.parts.append(f'<text x="{x0 + PANEL / 2}" y="{TOP + DEPTH + 38}" class="m">bits a coordinate</text>')

    def x(self, b):
        return self.x0 + PANEL * (b - 0.7) / 3.6

    def y(self, value):
        return TOP + DEPTH * (self.high - math.log10(value)) / (self.high - self.low)

    def line(self, values, style):
        points = " ".join(f"{self.x(b):.1f},{self.y(v):.1f}" for b, v in zip(BITS, values))
        self.parts.append(f'<polyline points="{points}" class="{style}"/>')

    def mark(self, b, value, dimension, style):
        x, y = self.x(b) + 11 * (DIMENSIONS.index(dimension) - 1.5), self.y(value)  # side by side: they would lie on each other
        shape = SHAPES[dimension]
        if shape == "circle":
            self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" class="{style}"/>')
        elif shape == "square":
            self.parts.append(f'<rect x="{x - 4.5:.1f}" y="{y - 4.5:.1f}" width="9" height="9" class="{style}"/>')
        elif shape == "diamond":
            self.parts.append(f'<path d="M{x:.1f} {y - 5:.1f}l5 5l-5 5l-5 -5z" class="{style}"/>')
        else:
            self.parts.append(f'<path d="M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8" class="{style}"/>')


def figure(measured):
    left = Panel(LEFT, "E |x - x~|², unit vectors", 2e-3, 1.5)
    right = Panel(LEFT + PANEL + 100, "d · E |⟨y, x⟩ - ⟨y, x~⟩|², unit vectors", 2e-3, 8)
    left.line([mse_upper(b) for b in BITS], "u")
    left.line([4.0**-b for b in BITS], "l")
    right.line([product_upper(b) for b in BITS], "u")
    right.line([4.0**-b for b in BITS], "l")
    for method, style in (("mse", "c1"), ("prod", "c2"), ("mse-unbiased", "c3")):
        values = [measured[method, 1536, b]["product_times_d"] for b in BITS]
        right.line(values, style)
        if method == "mse":
            left.line([measured[method, 1536, b]["mse"] for b in BITS], style)
        for d in DIMENSIONS:
            for b in BITS:
                right.mark(b, measured[method, d, b]["product_times_d"], d, style)
                if method == "mse":
                    left.mark(b, measured[method, d, b]["mse"], d, style)
    legend, x = [], LEFT
    entries = (("u", "upper bound", 88), ("l", "lower bound", 88), ("c1", "mse", 42), ("c2", "prod (QJL)", 82), ("c3", "mse, unbiased scale", 138))
    for style, text, step in entries:
        legend.append(f'<path d="M{x} {HEIGHT - 14}h22" class="{style}"/><text x="{x + 27}" y="{HEIGHT - 10}">{text}</text>')
        x += 32 + step
    shapes = "○ d = 64   □ 128   ◇ 256   ✕ 1536"
    legend.append(f'<text x="{x}" y="{HEIGHT - 10}" xml:space="preserve">{shapes}</text>')
    style = ("text{font:13px sans-serif;fill:#222}.t{font-weight:600}.r{text-anchor:end}.m{text-anchor:middle}path,polyline,circle,rect{fill:none}"
             ".g{stroke:#ddd}.a{stroke:#444}.u{stroke:#888;stroke-dasharray:7 4}.l{stroke:#888;stroke-dasharray:2 3}"
             ".c1{stroke:#0b62a4;stroke-width:1.6}.c2{stroke:#c2410c;stroke-width:1.6}.c3{stroke:#15803d;stroke-width:1.6}")
    body = "\n".join(left.parts + right.parts + legend)
    (HERE / "distortion.svg").write_text(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">'
                                         f'<style>{style}</style><rect width="100%" height="100%" style="fill:#fff"/>\n{body}\n</svg>\n')


def tables(measured, theory):
    print("| | b = 1 | 2 | 3 | 4 |\n|---|---|---|---|---|")
    for method, key, what, bounds in (("mse", "mse", "squared error", (mse_upper, 1)), ("prod", "product_times_d", "inner product x d, QJL", (product_upper, 1)),
                                      ("mse", "product_times_d", "inner product x d, mse", None), ("mse-unbiased", "product_times_d", "inner product x d, mse with the unbiased scale", None)):
        if bounds:
            print(f"| **{what}**: paper prints | " + " | ".join(f"{v:g}" for v in PAPER[method]) + " |")
            print("| theory, d = 1536 | " + " | ".join(f"{theory[1536, b]['mse' if key == 'mse' else 'prod_times_d']:.4g}" for b in BITS) + " |")
            print("| upper / lower bound | " + " | ".join(f"{bounds[0](b):.3g} / {4.0**-b:.3g}" for b in BITS) + " |")
        else:
            print(f"| **{what}** | | | | |")
        for d in DIMENSIONS:
            print(f"| d = {d} | " + " | ".join(f"{measured[method, d, b][key]:.4g} ± {measured[method, d, b][key + '_se']:.1g}" for b in BITS) + " |")
    print("\n| slope of the estimate, E ⟨x, x~⟩ | b = 1 | 2 | 3 | 4 |\n|---|---|---|---|---|")
    for method in ("mse", "mse-ls", "mse-unbiased", "prod"):
        for d in (64, 128, 1536):
            print(f"| {method}, d = {d} | " + " | ".join(f"{measured[method, d, b]['slope']:.4f} ± {measured[method, d, b]['slope_se']:.1g}" for b in BITS) + " |")
    print("\n| d = 1536, b = 2 | at ⟨x, y⟩ = 0.01 | 0.06 | 0.10 | 0.17 |\n|---|---|---|---|---|")
    for method in ("prod", "mse", "mse-unbiased"):
        at = measured[method, 1536, 2]["at"]
        print(f"| {method}: mean error | " + " | ".join(f"{a['bias']:.5f} ± {a['bias_se']:.0e}" for a in at) + " |")
        print(f"| {method}: variance x d | " + " | ".join(f"{a['variance_times_d']:.3g}" for a in at) + " |")


def main():
    results = json.loads((HERE / "results.json").read_text())
    measured = {(m["method"], m["d"], m["bits"]): m for m in results["measured"]}
    theory = {(t["d"], t["bits"]): t for t in results["theory"]}
    figure(measured)
    tables(measured, theory)


if __name__ == "__main__":
    main()
