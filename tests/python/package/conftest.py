"""Where the repository's small dump lies and how to read one with h5py."""
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DUMP = Path(__file__).resolve().parents[3] / "data" / "lm_a.h5"


def h5_dump(file):
    """(layer number, k, v) of every layer of an open HDF5 dump."""
    layers = {}
    file.visititems(lambda name, item: layers.setdefault(name.rsplit("/", 1)[0], {}).update({name.rsplit("/", 1)[1]: item})
                    if hasattr(item, "shape") and "/" in name else None)
    for group in sorted(layers):
        yield int(re.search(r"(\d+)$", group)[1]), layers[group]["k"][()], layers[group]["v"][()]


@pytest.fixture(scope="session")
def calibration_file(tmp_path_factory):
    """A .tq4cal of the repository's small dump, made by the program (or TQ4_TEST_CALIBRATION, where there is no program)."""
    if "TQ4_TEST_CALIBRATION" in os.environ:
        return Path(os.environ["TQ4_TEST_CALIBRATION"])
    from tq4.__main__ import program

    if program() is None:
        pytest.skip("built without the tq4 program, which makes calibrations")
    path = tmp_path_factory.mktemp("calibration") / "lm.tq4cal"
    made = subprocess.run([sys.executable, "-m", "tq4", "calibrate", str(DUMP), "--codec", "k4v4-2d", "--method", "transform", "-o", str(path)], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return path
