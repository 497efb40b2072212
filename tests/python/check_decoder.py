"""Compares scripts/tq4_decode.py, which knows only FORMAT.md, with what the library decoded from the same containers.

    check_decoder.py DECODER_CASES_PROGRAM FOLDER

Exits 77 (ctest: skipped) where NumPy or safetensors are missing."""
import pathlib
import subprocess
import sys

try:
    import numpy as np
    import safetensors  # noqa: F401
except ImportError as error:
    print(f"SKIPPED: {error}; pip install numpy safetensors xxhash")
    sys.exit(77)

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "scripts"))
import tq4_decode  # noqa: E402


def main():
    program, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    subprocess.run([program, str(folder)], check=True)
    cases = sorted(folder.glob("*.tq4"))
    assert len(cases) >= 20, cases
    failures, checked = 0, True
    for case in cases:
        container = tq4_decode.Container(case)
        checked = checked and container.verified
        reference, worst = np.fromfile(case.with_suffix(".f32"), "<f4"), 0.0
        decoded = [container.decode(layer, side) for layer in container.layers for side in "kv"]
        assert sum(x.size for x in decoded) == reference.size, case
        for x in decoded:
            expected, reference = reference[: x.size].reshape(x.shape), reference[x.size :]
            if x.size:
                worst = max(worst, float(np.abs(x - expected).max() / np.abs(expected).max()))
        bad = not worst < 3e-6
        failures += bad
        print(f"{'FAILED' if bad else 'ok':6} {case.stem:20} largest difference {worst:.1e} of the largest value")
    print("checksums verified" if checked else "checksums NOT verified: pip install xxhash")

    broken = bytearray(cases[0].read_bytes())
    broken[-1] ^= 1
    damaged = folder / "damaged.bin"
    damaged.write_bytes(broken)
    try:
        tq4_decode.Container(damaged)
        failures += checked  # without xxhash nothing can be noticed
    except ValueError as error:
        print("ok    ", error)
    sys.exit(1 if failures else 0)


main()
