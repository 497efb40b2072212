#!/usr/bin/env python3
"""The report page in a real headless browser, in light and in dark.

Renders the page of a dump with Chromium and looks at the pixels: the background is light or dark as the reader's system asks, text and
pictures are there in both, and nothing was fetched. Usage: browser_check.py TQ4_PROGRAM DUMP [--keep FOLDER]. Exits 77 (skipped) where no
Chromium is installed.
"""
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from collections import Counter
from pathlib import Path

WIDTH, HEIGHT = 1320, 2600


def read_png(path):
    """Rows of (r, g, b) of an 8-bit RGB or RGBA PNG."""
    data = path.read_bytes()
    at, packed, header = 8, b"", None
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at:at + 8])
        if kind == b"IHDR":
            header = struct.unpack(">IIBBBBB", data[at + 8:at + 8 + size])
        elif kind == b"IDAT":
            packed += data[at + 8:at + 8 + size]
        at += size + 12
    width, height, depth, colour = header[:4]
    assert depth == 8 and colour in (2, 6), header
    n = 3 if colour == 2 else 4
    raw, rows, before = zlib.decompress(packed), [], bytearray(width * n)
    for y in range(height):
        start = y * (width * n + 1)
        mode, line = raw[start], bytearray(raw[start + 1:start + 1 + width * n])
        for i in range(len(line)):
            a = line[i - n] if i >= n else 0
            b = before[i]
            c = before[i - n] if i >= n else 0
            if mode == 1:
                line[i] = (line[i] + a) & 255
            elif mode == 2:
                line[i] = (line[i] + b) & 255
            elif mode == 3:
                line[i] = (line[i] + (a + b) // 2) & 255
            elif mode == 4:
                p = a + b - c
                d = (abs(p - a), abs(p - b), abs(p - c))
                line[i] = (line[i] + (a, b, c)[d.index(min(d))]) & 255
        rows.append(line)
        before = line
    return [[tuple(row[x * n:x * n + 3]) for x in range(0, width, 2)] for row in rows[::2]]


def brightness(colour):
    return (299 * colour[0] + 587 * colour[1] + 114 * colour[2]) / 1000


def main():
    browser = next((b for b in ("chromium", "chromium-browser", "google-chrome", "chrome") if shutil.which(b)), None)
    if browser is None:
        print("SKIPPED: no Chromium here; the page was not looked at")
        sys.exit(77)
    program, dump = sys.argv[1:3]
    keep = Path(sys.argv[4]) if len(sys.argv) > 4 and sys.argv[3] == "--keep" else None
    with tempfile.TemporaryDirectory() as temporary:
        folder = keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        page = folder / "report.html"
        subprocess.run([program, "eval", dump, "--html", str(page), "--force", "-q"], check=True, stdout=subprocess.DEVNULL)
        problems = []
        for theme, flags in (("light", []), ("dark", ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"])):
            picture = folder / f"report_{theme}.png"
            subprocess.run([browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={temporary}/{theme}", *flags,
                            f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={picture}", page.resolve().as_uri()],
                           check=True, timeout=240, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            rows = read_png(picture)
            colours = Counter(c for row in rows for c in row)
            total = sum(colours.values())
            ground = brightness(colours.most_common(1)[0][0])
            far = sum(n for c, n in colours.items() if abs(brightness(c) - ground) > 120) / total
            tinted = sum(n for c, n in colours.items() if max(c) - min(c) > 60) / total
            bands = sum(1 for i in range(0, len(rows), 100) if len({c for row in rows[i:i + 100] for c in row}) > 30)
            print(f"{theme}: background {ground:.0f} of 255, {100 * far:.1f}% of pixels in contrast, {100 * tinted:.2f}% in colour, "
                  f"{bands} of {(len(rows) + 99) // 100} bands with drawing")
            if (ground > 200) != (theme == "light") or (ground < 60) != (theme == "dark"):
                problems.append(f"{theme}: background brightness {ground:.0f}")
            if far < 0.01 or tinted < 0.002 or bands < 8:
                problems.append(f"{theme}: too little is drawn")
        for problem in problems:
            print(problem)
        sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
