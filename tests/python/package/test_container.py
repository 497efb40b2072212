"""tq4.open on a file of the tq4 program: lazy arrays give what `tq4 decompress` gives, whatever the slice; damaged files are refused by name."""
import shutil
import subprocess
import sys

import numpy as np
import pytest

import tq4
from tq4.__main__ import program
from conftest import DUMP, h5_dump

needs_program = pytest.mark.skipif(program() is None, reason="built without the tq4 program")


def run(*arguments):
    return subprocess.run([sys.executable, "-m", "tq4", *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    if program() is None:
        pytest.skip("built without the tq4 program")
    folder = tmp_path_factory.mktemp("files")
    for options in (["compress", DUMP, "--k-bits", "4", "--v-bits", "3", "--sinks", "4", "--window", "16", "-o", folder / "x.tq4"],
                    ["decompress", folder / "x.tq4", "-o", folder / "back.h5", "--dtype", "fp32"]):
        result = run(*options)
        assert result.returncode == 0, result.stderr
    return folder


@needs_program
def test_the_program_runs():
    assert "tq4" in run("--version").stdout
    assert run("no-such-verb").returncode == 2


def test_what_the_file_says(files):
    file = tq4.open(files / "x.tq4")
    assert file.name.startswith("k4v3") and file.spec["sinks"] == 4 and file.file_bytes == (files / "x.tq4").stat().st_size
    assert list(file) == [layer.number for layer in file.layers]
    layer = file.layers[0]
    assert layer.k.shape == (layer.num_kv_heads, layer.tokens, layer.head_dim) and len(layer.k) == layer.num_kv_heads
    assert (layer.exact_first, layer.exact_last) == (4, 16)
    file.verify()


def test_all_of_it_is_what_decompress_writes(files):
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    file = tq4.open(files / "x.tq4", threads=0)
    with h5py.File(files / "back.h5") as back:
        for number, k, v in h5_dump(back):
            np.testing.assert_array_equal(np.asarray(file[number].k), k)
            np.testing.assert_array_equal(np.asarray(file[number].v), v)


@pytest.mark.parametrize("key", [0, -1, (0, 5), (1, slice(3, 40)), (slice(None), slice(-20, None)), (Ellipsis, 7), (0, Ellipsis), (0, 0, 0),
                                 (slice(None, None, -1), slice(100, 10, -7), slice(3, 60, 2)), (slice(0, 0),), (0, slice(5, 5)), Ellipsis, (),
                                 (slice(None), 3, slice(None))], ids=str)
def test_every_slice_is_numpys(files, key):
    k = tq4.open(files / "x.tq4").layers[1].k
    whole = np.asarray(k)
    np.testing.assert_array_equal(k[key], whole[key])
    assert k[key].shape == whole[key].shape


@pytest.mark.parametrize("key", ["a", 1.5, None, True, (0, 0, 0, 0), (Ellipsis, Ellipsis), [0, 1], slice("a"), slice(0, 4, 0), 99, (0, -10**6), 2**80], ids=str)
def test_other_indices_are_refused(files, key):
    with pytest.raises(tq4.Error):
        tq4.open(files / "x.tq4").layers[0].k[key]


def test_wrong_files(files, tmp_path):
    for path in (tmp_path / "none.tq4", tmp_path, DUMP):
        with pytest.raises(tq4.Error, match=path.name):
            tq4.open(path)
    with pytest.raises(tq4.UsageError):
        tq4.open(5)
    with pytest.raises(tq4.UsageError):
        tq4.open("a\0b")
    with pytest.raises(tq4.Error, match="no layer 99"):
        tq4.open(files / "x.tq4")[99]
    with pytest.raises(KeyError):
        tq4.open(files / "x.tq4")[99]
    good = (files / "x.tq4").read_bytes()
    (tmp_path / "cut.tq4").write_bytes(good[: len(good) // 2])
    with pytest.raises(tq4.BadInputError):
        tq4.open(tmp_path / "cut.tq4")
    bad = bytearray(good)
    bad[len(bad) * 3 // 4] ^= 1
    (tmp_path / "bad.tq4").write_bytes(bad)
    with pytest.raises(tq4.BadInputError):
        file = tq4.open(tmp_path / "bad.tq4")
        file.verify()


def test_an_array_outlives_its_file(files, tmp_path):
    shutil.copy(files / "x.tq4", tmp_path / "y.tq4")
    k = tq4.open(tmp_path / "y.tq4").layers[0].k
    expected = k[0, :3].copy()
    (tmp_path / "y.tq4").unlink()
    np.testing.assert_array_equal(k[0, :3], expected)
