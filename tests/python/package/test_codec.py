"""tq4.Codec over NumPy arrays and other DLPack tensors: errors as theory says, the same bytes whatever the thread count, dtype of the tensor's
owner or detour through bytes, and the interpreter's lock free while it works."""
import threading
import time

import numpy as np
import pytest

import tq4

SPECS = ["tq4", "tq3", "tq2", "k4v3", "tq2.5", "tq3.5", "k4v3-2d", "k4v4-prod", "k8v4", "k4v16", "fp8", "fp16", "tq4-norm",
         "turboquant-vllm", "vllm:k8v4", "vllm:4bit_nc", "vllm:3bit_nc"]


def vectors(shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def relative_error(x, y):
    x, y = x.astype(np.float64), y.astype(np.float64)
    return float(((x - y) ** 2).sum() / (x ** 2).sum())


class Exported:
    """A tensor of another framework: DLPack and nothing else."""

    def __init__(self, array, device=(1, 0)):
        self.array, self.device = array, device

    def __dlpack__(self, **kwargs):
        return self.array.__dlpack__(**kwargs)

    def __dlpack_device__(self):
        return self.device


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("side", ["k", "v"])
def test_round_trip_error_is_what_theory_says(name, side):
    codec = tq4.Codec(name, head_dim=128)
    x = vectors((4, 300, 128))
    encoded = codec.encode(x, side)
    back = codec.decode(encoded)
    assert encoded.shape == x.shape and back.shape == x.shape and back.dtype == np.float32
    assert encoded.nbytes == 4 * 300 * codec.vector_bytes(side)
    assert repr(encoded) == f"<tq4 encoded {side} (4, 300, 128), {encoded.nbytes} bytes>"
    error, theory = relative_error(x, back), codec.theoretical_mse(side)
    if np.isnan(theory):
        assert error < 0.15
    else:
        assert 0.8 * theory < error < 1.2 * theory


def test_the_number_that_the_paper_gives():
    """Theorem 1's table: 4 bits a coordinate cost 0.009 of a unit vector's energy."""
    x = vectors((2000, 128))
    codec = tq4.Codec("tq4", 128)
    assert relative_error(x, codec.decode(codec.encode(x))) == pytest.approx(0.0094, abs=0.0008)


def test_options_change_the_spec_and_the_bytes():
    x = vectors((50, 128))
    plain, other = tq4.Codec("tq4", 128), tq4.Codec("tq4", 128, rotation="hadamard", seed=7, scale_rule="norm", scale_dtype="float32")
    assert other.spec["k"]["rotation"] == "hadamard" and other.spec["v"]["seed"] == 7
    a, b = plain.encode(x), other.encode(x)
    assert (a.codes != b.codes).any() and a.scale.dtype == np.float16 and b.scale.dtype == np.float32
    np.testing.assert_allclose(b.scale, np.linalg.norm(x, axis=-1), rtol=1e-5)
    again = tq4.Codec(other.spec, 128)
    assert again.spec == other.spec and again.encode(x).tobytes() == b.tobytes()


def test_codes_are_what_the_tables_say():
    """An independent NumPy encoder from tq4.rotation and tq4.codebook gives the same codes but at boundaries."""
    x = vectors((200, 64), seed=3)
    encoded = tq4.Codec("tq4", 64, rotation="hadamard", scale_rule="norm", scale_dtype="float32").encode(x)
    y = x.astype(np.float64) @ tq4.rotation(64, "hadamard").T.astype(np.float64)
    z = y / np.linalg.norm(y, axis=-1, keepdims=True)
    boundaries = tq4.codebook(4, 64).boundaries
    codes = np.searchsorted(boundaries, z, side="right")
    ours = np.stack([encoded.codes & 15, encoded.codes >> 4], -1).reshape(200, 64)
    differ = codes != ours
    assert np.abs(z[differ][:, None] - boundaries).min(-1, initial=1).max(initial=0) < 1e-6 and differ.sum() < 5


@pytest.mark.parametrize("name", SPECS)
def test_bytes_do_not_depend_on_threads(name):
    codec = tq4.Codec(name, head_dim=64, threads=1)
    x = vectors((3, 1000, 64), dtype=np.float16)
    one = codec.encode(x, "k")
    many = codec.encode(x, "k", threads=0)
    assert one.tobytes() == many.tobytes()
    np.testing.assert_array_equal(codec.decode(one), codec.decode(one, threads=3))


@pytest.mark.parametrize("name", SPECS)
def test_bytes_and_back(name):
    codec = tq4.Codec(name, head_dim=96)
    for side in "kv":
        encoded = codec.encode(vectors((2, 5, 96)), side)
        again = codec.frombytes(encoded.tobytes(), side, encoded.shape)
        np.testing.assert_array_equal(codec.decode(again), codec.decode(encoded))
        with pytest.raises(tq4.ShapeError):
            codec.frombytes(encoded.tobytes()[:-1], side, encoded.shape)


def test_dtypes_and_outputs():
    codec = tq4.Codec("tq4", 128)
    x = vectors((2, 30, 128), dtype=np.float16)
    encoded = codec.encode(x)
    assert codec.encode(x.astype(np.float32)).tobytes() == encoded.tobytes()
    wide = codec.decode(encoded)
    np.testing.assert_array_equal(codec.decode(encoded, dtype="float16"), wide.astype(np.float16))
    out = np.empty_like(x)
    assert codec.decode(encoded, out=out) is out
    np.testing.assert_array_equal(out, wide.astype(np.float16))


def test_rotated_space_is_one_rotation_away():
    codec = tq4.Codec("tq4", 128)
    encoded = codec.encode(vectors((40, 128)))
    np.testing.assert_allclose(codec.decode(encoded, rotated=True) @ tq4.rotation(128), codec.decode(encoded), atol=1e-4)


def test_zero_vectors_empty_arrays_and_single_vectors():
    codec = tq4.Codec("tq4", 128)
    assert not codec.decode(codec.encode(np.zeros((3, 128), np.float32))).any()
    assert codec.decode(codec.encode(np.zeros((0, 128), np.float32))).shape == (0, 128)
    assert codec.decode(codec.encode(np.zeros((2, 0, 128), np.float16))).shape == (2, 0, 128)
    assert codec.decode(codec.encode(vectors(128))).shape == (128,)


def test_dlpack_tensors_and_read_only_arrays_are_taken_in_place():
    codec = tq4.Codec("tq4", 128)
    x = vectors((10, 128))
    expected = codec.encode(x).tobytes()
    assert codec.encode(Exported(x)).tobytes() == expected
    x.flags.writeable = False
    assert codec.encode(x).tobytes() == expected
    assert codec.encode(memoryview(x)).tobytes() == expected


def test_nonfinite():
    x = vectors((10, 128))
    x[3, 5] = np.nan
    codec = tq4.Codec("tq4", 128)
    with pytest.raises(tq4.BadInputError, match="3"):
        codec.encode(x)
    y = x.copy()
    y[3, 5] = 0
    assert codec.encode(x, nonfinite="zero").tobytes() == codec.encode(y).tobytes()


def test_the_interpreter_runs_on_while_a_codec_works():
    codec = tq4.Codec("tq4", 128)
    x = vectors((60000, 128))
    ticks, done = [], threading.Event()

    def work():
        codec.encode(x)
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    while not done.is_set():
        ticks.append(time.perf_counter())
        time.sleep(0.0005)
    thread.join()
    assert len(ticks) > 5


def test_tables():
    book = tq4.codebook(4, 128)
    assert len(book.centroids) == 16 and len(book.boundaries) == 15 and (np.diff(book.centroids) > 0).all()
    np.testing.assert_allclose(book.centroids, -book.centroids[::-1], atol=1e-12)
    assert book.shannon_bound <= book.mse <= book.paper_bound
    for kind in ("haar", "haar-torch", "hadamard", "hadamard-signed", "none"):
        matrix = tq4.rotation(96, kind, seed=5)
        assert matrix.dtype == np.float32
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(96), atol=1e-5)
    assert (tq4.rotation(64, seed=1) != tq4.rotation(64, seed=2)).any()


def test_torch_tensors():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    codec = tq4.Codec("k4v3", 128)
    x = vectors((4, 25, 128), dtype=np.float16)
    tensor = torch.from_numpy(x.copy())
    assert codec.encode(tensor).tobytes() == codec.encode(x).tobytes()
    encoded = codec.encode(tensor.to(torch.bfloat16))
    assert encoded.tobytes() == codec.encode(tensor.to(torch.bfloat16).float().numpy()).tobytes()
    out = torch.empty(4, 25, 128, dtype=torch.bfloat16)
    assert codec.decode(encoded, out=out) is out
    torch.testing.assert_close(out, torch.from_numpy(codec.decode(encoded)).to(torch.bfloat16), rtol=0, atol=0)
    assert codec.decode(encoded, dtype=torch.float16).dtype == np.float16
    assert codec.encode(tensor.transpose(0, 1)).tobytes() == codec.encode(tensor.transpose(0, 1).contiguous()).tobytes()
    assert codec.encode(tensor.clone().requires_grad_()).tobytes() == codec.encode(tensor).tobytes()  # values are read, no gradient flows
    with pytest.raises(tq4.DTypeError, match="float64"):
        codec.encode(tensor.double())
    with pytest.raises(tq4.Error):
        codec.encode(torch.zeros(2, 128, device="meta"))


@pytest.mark.parametrize("cut", [np.s_[::2], np.s_[:, ::-1], np.s_[..., :128], np.s_[:, 3:11, 128:], np.s_[1:, 0]], ids=str)
def test_strided_vectors_are_read(cut):
    codec = tq4.Codec("k3v3", 128)
    x = vectors((4, 20, 256) if "128" in str(cut) else (4, 20, 128))[cut]
    assert codec.encode(x).tobytes() == codec.encode(np.ascontiguousarray(x)).tobytes()
    many = np.broadcast_to(vectors((3, 1, 128)), (3, 5000, 128)).transpose(1, 0, 2)  # more than the buffer's 4096, steps of 0
    assert codec.encode(many).tobytes() == codec.encode(np.ascontiguousarray(many)).tobytes()


def test_strided_planes_are_read():
    codec = tq4.Codec("k4v3-prod", 128)
    encoded = codec.encode(vectors((2, 9, 128)))
    wide = [None if p is None else np.concatenate([p, p], 1)[:, :9] for p in encoded.planes]
    np.testing.assert_array_equal(codec.decode(tq4.Encoded("k", 128, *wide)), codec.decode(encoded))
