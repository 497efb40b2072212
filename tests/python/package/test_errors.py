"""Every misuse is a tq4.Error of a named class, and thousands of random misuses end in a tq4.Error or a result, never in a crash."""
import random
import subprocess
import sys

import numpy as np
import pytest

import test_pages
import tq4
from test_codec import Exported, vectors

CODEC = tq4.Codec("k4v3", 128)


def test_classes():
    for name in ("UsageError", "DTypeError", "ShapeError", "StrideError", "HeadDimError", "BadInputError"):
        assert issubclass(getattr(tq4, name), tq4.Error) and issubclass(getattr(tq4, name), ValueError)
    for name in ("OperationError", "UnsupportedError", "DeviceError", "NoDeviceError"):
        assert issubclass(getattr(tq4, name), tq4.Error) and issubclass(getattr(tq4, name), RuntimeError)


MISUSES = [
    (lambda: tq4.Codec("tq44", 128), tq4.UsageError, "tq4"),
    (lambda: tq4.Codec("tq4", 100), tq4.HeadDimError, "multiple of 8"),
    (lambda: tq4.Codec("tq4", 0), tq4.HeadDimError, "32 to 512"),
    (lambda: tq4.Codec("tq4", -128), tq4.HeadDimError, None),
    (lambda: tq4.Codec("tq4", 2**40), tq4.UsageError, "head_dim"),
    (lambda: tq4.Codec("tq4", 128.0), tq4.UsageError, "head_dim"),
    (lambda: tq4.Codec("tq4", True), tq4.UsageError, "bool"),
    (lambda: tq4.Codec(4, 128), tq4.UsageError, "spec"),
    (lambda: tq4.Codec({}, 128), tq4.UsageError, '"k"'),
    (lambda: tq4.Codec('{"k": 1', 128), tq4.UsageError, "JSON"),
    (lambda: tq4.Codec("tq4\0", 128), tq4.UsageError, None),
    (lambda: tq4.Codec("tq4\ud800", 128), tq4.UsageError, "Unicode"),
    (lambda: tq4.Codec("tq4", 128, rotation="spin"), tq4.UsageError, "rotation"),
    (lambda: tq4.Codec("tq4", 128, seed=-1), tq4.UsageError, "seed"),
    (lambda: tq4.Codec("tq4", 128, threads=-1), tq4.UsageError, "threads"),
    (lambda: tq4.Codec("tq4", 128, calibration="/no/such.tq4cal"), tq4.Error, "no/such"),
    (lambda: tq4.Codec("tq4", 128, calibration=3), tq4.UsageError, "calibration"),
    (lambda: CODEC.encode(vectors((4, 64))), tq4.HeadDimError, "64"),
    (lambda: CODEC.encode(np.float32(1)), tq4.Error, None),
    (lambda: CODEC.encode(np.zeros((), np.float32)), tq4.ShapeError, "single"),
    (lambda: CODEC.encode(vectors((4, 128), dtype=np.float64)), tq4.DTypeError, "float64"),
    (lambda: CODEC.encode(np.zeros((4, 128), np.int32)), tq4.DTypeError, "int32"),
    (lambda: CODEC.encode(np.zeros((4, 128), bool)), tq4.DTypeError, "bool"),
    (lambda: CODEC.encode(np.zeros((4, 128), complex)), tq4.DTypeError, "complex"),
    (lambda: CODEC.encode(np.array([["a"] * 128])), tq4.DTypeError, None),
    (lambda: CODEC.encode(np.array([[None] * 128])), tq4.DTypeError, None),
    (lambda: CODEC.encode([[0.0] * 128]), tq4.DTypeError, "list"),
    (lambda: CODEC.encode(None), tq4.DTypeError, "NoneType"),
    (lambda: CODEC.encode(vectors((128, 4)).T), tq4.StrideError, "contiguous"),
    (lambda: CODEC.encode(vectors((8, 256))[:, ::2]), tq4.StrideError, "last axis"),
    (lambda: CODEC.encode(vectors((8, 128))[:, ::-1]), tq4.StrideError, None),
    (lambda: CODEC.decode(CODEC.encode(vectors((8, 128))), out=np.empty((16, 128), np.float32)[::2]), tq4.StrideError, "axis 0"),
    (lambda: CODEC.encode(vectors((8, 128)), "q"), tq4.UsageError, "side"),
    (lambda: CODEC.encode(vectors((8, 128)), 0), tq4.UsageError, "side"),
    (lambda: CODEC.encode(vectors((8, 128)), threads="all"), tq4.UsageError, "threads"),
    (lambda: CODEC.encode(vectors((8, 128)), nonfinite="no"), tq4.UsageError, "nonfinite"),
    (lambda: CODEC.encode(vectors((8, 128)), position0=-1), tq4.UsageError, "position0"),
    (lambda: CODEC.encode(np.full((8, 128), np.inf, np.float16)), tq4.BadInputError, None),
    (lambda: CODEC.decode(vectors((8, 128))), tq4.UsageError, "encode"),
    (lambda: CODEC.decode(tq4.Codec("tq4", 64).encode(vectors((8, 64)))), tq4.ShapeError, "64"),
    (lambda: CODEC.decode(tq4.Codec("tq2", 128).encode(vectors((8, 128)))), tq4.ShapeError, "64 bytes"),
    (lambda: CODEC.decode(CODEC.encode(vectors((8, 128))), out=np.empty((7, 128), np.float32)), tq4.ShapeError, "out"),
    (lambda: CODEC.decode(CODEC.encode(vectors((8, 128))), out=np.empty((8, 128))), tq4.DTypeError, "out"),
    (lambda: CODEC.decode(CODEC.encode(vectors((8, 128))), out=memoryview(bytes(4096))), tq4.DTypeError, "writable"),
    (lambda: CODEC.decode(CODEC.encode(vectors((8, 128))), dtype="int8"), tq4.DTypeError, "int8"),
    (lambda: CODEC.decode(CODEC.encode(vectors((8, 128))), dtype="float33"), tq4.DTypeError, "float33"),
    (lambda: CODEC.decode(tq4.Encoded("k", 128, np.zeros((8, 64), np.uint8), None)), tq4.DTypeError, "scale"),
    (lambda: CODEC.decode(tq4.Encoded("k", 128, np.zeros((8, 64), np.uint8), np.zeros(7, np.float16))), tq4.ShapeError, "scale"),
    (lambda: CODEC.decode(tq4.Encoded("k", 128, np.zeros((8, 64), np.int8), np.zeros(8, np.float16))), tq4.DTypeError, "codes"),
    (lambda: CODEC.frombytes(b"", "k", (3, 128)), tq4.ShapeError, "0 bytes"),
    (lambda: CODEC.frombytes(b"", "k", 3), tq4.UsageError, "shape"),
    (lambda: CODEC.vector_bytes("x"), tq4.UsageError, "side"),
    (lambda: tq4.codebook(0, 128), tq4.UsageError, None),
    (lambda: tq4.codebook(9, 128), tq4.UsageError, None),
    (lambda: tq4.codebook(4, 1), tq4.UsageError, None),
    (lambda: tq4.codebook(4, 128, "spheer"), tq4.UsageError, "codebook"),
    (lambda: tq4.rotation(4), tq4.UsageError, None),
    (lambda: tq4.rotation(128, 'x"y'), tq4.UsageError, "rotation"),
    (lambda: tq4.rotation(10**9), tq4.UsageError, None),
]


@pytest.mark.parametrize("call, error, words", MISUSES, ids=[str(i) for i in range(len(MISUSES))])
def test_misuse(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_a_tensor_on_a_gpu_is_refused_by_name():
    class Gpu(Exported):
        """DLPack says where a tensor is in its capsule: patch a CPU tensor's."""

        def __dlpack__(self, **kwargs):
            import ctypes
            capsule = self.array.__dlpack__()
            get = ctypes.pythonapi.PyCapsule_GetPointer
            get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
            ctypes.cast(get(capsule, b"dltensor") + 8, ctypes.POINTER(ctypes.c_int32))[0] = 2  # DLDevice.device_type: kDLCUDA
            return capsule

    with pytest.raises(tq4.DeviceError, match="cpu"):
        CODEC.encode(Gpu(vectors((4, 128)), (2, 0)))


def test_tensors_that_lie_or_fail():
    class Raises:
        def __dlpack__(self, **kwargs):
            raise BufferError("no")

    class Nonsense:
        def __dlpack__(self, **kwargs):
            return 5

    class Odd:
        @property
        def __dlpack__(self):
            raise ValueError("surprise")

    for thing in (Raises(), Nonsense(), Odd()):
        with pytest.raises(tq4.DTypeError):
            CODEC.encode(thing)


def random_thing(rng):
    dtype = rng.choice([np.float16, np.float32, np.float64, np.uint8, np.int64, bool, object, "U3"])
    shape = tuple(rng.choice([0, 1, 2, 3, 16, 64, 128]) for _ in range(rng.randrange(5)))
    array = np.zeros(shape, dtype)
    if array.ndim and rng.random() < 0.3:
        array = array[tuple(slice(None, None, rng.choice([1, 2, -1])) for _ in shape)]
    if rng.random() < 0.2:
        array = array.T
    if rng.random() < 0.2:
        array.flags.writeable = False
    return rng.choice([array, array, array, Exported(array), None, 0, -1, 2**70, 1.5, float("nan"), "", "k", "tq4", b"abc", [], {}, (), object(), array.dtype, print])


def test_random_arguments_never_crash():
    """In a process of its own, so that a crash is a failure of this test and not the end of the run."""
    script = "import sys; sys.path[:0] = {!r}; import test_errors; test_errors.fuzz()".format([str(p) for p in sys.path])
    result = subprocess.run([sys.executable, "-X", "faulthandler", "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    refused, done = map(int, result.stdout.split())
    assert refused > 1000 and done > 10


def fuzz():
    rng = random.Random(1)
    refused = done = 0
    good = CODEC.encode(vectors((2, 128)))
    for _ in range(4000):
        a, b, c, d = (random_thing(rng) for _ in range(4))
        call = rng.choice([
            lambda: CODEC.encode(a, b if rng.random() < 0.3 else "v"),
            lambda: CODEC.encode(a, "k", threads=rng.choice([b, None]), position0=rng.choice([c, 0]), nonfinite=rng.choice([d, "zero"])),
            lambda: CODEC.decode(a),
            lambda: CODEC.decode(good, out=a),
            lambda: CODEC.decode(good, dtype=a),
            lambda: CODEC.decode(tq4.Encoded("k", 128, a, b, c, d)),
            lambda: CODEC.decode(tq4.Encoded(a, b, good.codes, c)),
            lambda: CODEC.frombytes(a, b, c),
            lambda: CODEC.frombytes(good.tobytes(), "k", a),
            lambda: tq4.Codec(a, b),
            lambda: tq4.Codec("tq4", 64, rotation=a, seed=b, codebook=c),
            lambda: tq4.Codec({**CODEC.spec, "k": {**CODEC.spec["k"], rng.choice(list(CODEC.spec["k"])): a if not isinstance(a, np.ndarray) else 3}}, 64),
            lambda: tq4.Codec("tq4", 64, calibration=a, layer=b),
            lambda: tq4.codebook(a, b),
            lambda: tq4.rotation(a, b, c),
            lambda: CODEC.vector_bytes(a),
            lambda: good.to(a),
            lambda: tq4.Encoded(a, b, good.codes, *(None if getattr(thing, "size", 0) > 10**6 else thing for thing in (c, d))).tobytes(),
            *[test_pages.fuzz(rng, random_thing)] * 6,
        ])
        try:
            call()
            done += 1
        except tq4.Error:
            refused += 1
    print(refused, done)
