"""Where the repository's small dump lies and how to read one with h5py."""
import re
from pathlib import Path

DUMP = Path(__file__).resolve().parents[3] / "data" / "lm_a.h5"


def h5_dump(file):
    """(layer number, k, v) of every layer of an open HDF5 dump."""
    layers = {}
    file.visititems(lambda name, item: layers.setdefault(name.rsplit("/", 1)[0], {}).update({name.rsplit("/", 1)[1]: item})
                    if hasattr(item, "shape") and "/" in name else None)
    for group in sorted(layers):
        yield int(re.search(r"(\d+)$", group)[1]), layers[group]["k"][()], layers[group]["v"][()]
