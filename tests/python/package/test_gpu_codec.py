"""tq4.Codec on CUDA tensors against tq4.Codec on the CPU: the same bytes but for coordinates at a boundary, which are counted; decoded vectors;
strides, streams, graphs, other frameworks, misuse. Skipped, visibly, without a CUDA device, torch, or a build with the CUDA backend."""
import random

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import tq4  # noqa: E402

if not tq4._core.cuda_compiled():
    pytest.skip("this build has no CUDA backend (cmake.define.TQ4_CUDA=ON)", allow_module_level=True)
if not torch.cuda.is_available():
    pytest.skip("there is no CUDA device", allow_module_level=True)

SPECS = ["tq4", "tq3", "tq2", "k4v3", "tq2.5", "tq3.5", "k4v3-2d", "k4v4-prod", "k8v4", "k4v16", "fp8", "fp16", "tq4-norm", "turboquant-vllm", "vllm:k8v4", "vllm:4bit_nc", "vllm:3bit_nc"]
FLIPS = 5e-5
"""Share of bytes that may differ, and two more: rotations go over the tensor cores (docs/gpu.md), which flips one or two of a million codes and leaves
up to one in a thousand scales one fp16 number away (experiments/gpu_ops)."""


def vectors(*shape, seed=0, dtype=torch.float16):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def different_bytes(a, b):
    """Bytes that differ between two Encoded, and bytes in all."""
    x, y = (np.frombuffer(encoded.tobytes(), np.uint8) for encoded in (a, b))
    return int((x != y).sum()), x.size


def relative(a, b):
    a, b = (torch.as_tensor(x).double().cpu() for x in (a, b))
    return ((a - b).norm() / b.norm().clamp_min(1e-30)).item()


@pytest.mark.parametrize("dim", [64, 96, 128, 256])
@pytest.mark.parametrize("name", SPECS)
def test_the_cpus_bytes_and_vectors(name, dim):
    codec = tq4.Codec(name, dim)
    for side in "kv":
        for dtype in (torch.float16, torch.bfloat16, torch.float32):
            x = vectors(3, 257, dim, dtype=dtype)
            x[1, 5] = 0
            host, device = codec.encode(x, side), codec.encode(x.cuda(), side)
            assert device.codes.is_cuda and device.shape == host.shape == (3, 257, dim)
            assert all(p is None or p.dtype in (torch.uint8, torch.float32) for p in device.planes)
            back = device.to("cpu")
            assert back.nbytes == host.nbytes and [p is None or p.dtype for p in back.planes] == [p is None or p.dtype for p in host.planes]
            flips, total = different_bytes(host, device)
            if flips:
                print(f"{name} {side} {dim} {dtype}: {flips} of {total} bytes differ")
            assert flips <= FLIPS * total + 2
        same = host.to("cuda")
        for rotated in (False, True):
            expected = codec.decode(host, rotated=rotated)
            for dtype, bound in ((None, 3e-6), (torch.float16, 1e-3), ("bfloat16", 6e-3)):
                got = codec.decode(same, dtype=dtype, rotated=rotated)
                assert got.is_cuda and got.dtype == {None: torch.float32, "bfloat16": torch.bfloat16}.get(dtype, dtype)
                assert relative(got, expected) < bound, (side, rotated, dtype)
        out = torch.empty(3, 257, dim, dtype=torch.bfloat16, device="cuda")
        assert codec.decode(same, out=out) is out and relative(out, codec.decode(host)) < 6e-3
        assert codec.frombytes(device.tobytes(), side, device.shape).codes.shape == host.codes.shape


@pytest.mark.parametrize("cut", [np.s_[::2], np.s_[:, 3:11], np.s_[1:, 0], np.s_[..., None, :], np.s_[0, 0]], ids=str)
def test_strided_vectors_are_read_in_place(cut):
    codec = tq4.Codec("k3v3", 128)
    for x in (vectors(4, 20, 128), vectors(20, 4, 128).transpose(0, 1), vectors(4, 20, 256)[..., 64:192], vectors(4, 1, 128).expand(4, 20, 128), vectors(20, 3, 4, 128).permute(2, 0, 1, 3)):
        host = x[cut]
        device = x.cuda() if x.is_contiguous() else torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda").copy_(x) if 0 not in x.stride() else x[:, :1].cuda().expand(x.shape)
        assert device.stride() == x.stride()
        flips, total = different_bytes(codec.encode(host), codec.encode(device[cut]))
        assert flips <= FLIPS * total + 2, f"{tuple(x.stride())}: {flips} of {total}"
    many = vectors(5, 40, 3, 7, 128, seed=3).permute(3, 1, 0, 2, 4)
    flips, total = different_bytes(codec.encode(many), codec.encode(many.cuda()))
    assert flips <= FLIPS * total + 2


def test_empty_and_single():
    codec = tq4.Codec("tq4", 128)
    assert codec.decode(codec.encode(torch.zeros(0, 128, device="cuda"))).shape == (0, 128)
    assert codec.decode(codec.encode(torch.zeros(2, 0, 128, device="cuda").half())).shape == (2, 0, 128)
    one = vectors(128)
    assert codec.decode(codec.encode(one.cuda())).shape == (128,) and different_bytes(codec.encode(one), codec.encode(one.cuda()))[0] == 0
    assert not codec.decode(codec.encode(torch.zeros(3, 128, device="cuda"))).any()


def test_calibrated(calibration_file):
    calibration = tq4.Codec("k4v4-2d", 128, calibration=calibration_file, layer=4).calibration
    number, heads, dim = calibration.layers[1]
    codec = tq4.Codec("k4v4-2d", dim, calibration=calibration, layer=number)
    for side in "kv":
        x = vectors(heads, 300, dim, seed=4)
        strided = vectors(300, heads, dim, seed=4).transpose(0, 1)
        for one, other in ((x, x.cuda()), (strided, strided.cuda())):
            assert other.stride() == one.stride()
            host, device = codec.encode(one, side, position0=7), codec.encode(other, side, position0=7)
            flips, total = different_bytes(host, device)
            print(f"calibrated {side}: {flips} of {total} bytes differ")
            assert flips <= 1e-4 * total + 2
            for rotated in (False, True):
                assert relative(codec.decode(host.to("cuda"), rotated=rotated, position0=7), codec.decode(host, rotated=rotated, position0=7)) < 1e-5
    with pytest.raises(tq4.ShapeError):
        codec.encode(vectors(heads + 1, 30, dim).cuda())


def test_streams_and_graphs():
    codec = tq4.Codec("k4v4", 128)
    x = vectors(64, 128).cuda()
    expected = codec.encode(x)
    side = torch.cuda.Stream()
    later = torch.zeros_like(x)
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(20_000_000)
        later.copy_(x)  # what follows must queue behind it on this stream
        encoded = codec.encode(later)
        back = codec.decode(encoded)
    side.synchronize()
    assert torch.equal(encoded.codes, expected.codes) and torch.equal(encoded.scale, expected.scale) and torch.equal(back, codec.decode(expected))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = codec.decode(codec.encode(x))
    x.mul_(-2)
    graph.replay()
    assert torch.equal(captured, codec.decode(codec.encode(x)))


def test_nonfinite():
    codec = tq4.Codec("tq4", 128)
    x = vectors(10, 128).cuda()
    x[3, 5], x[7, 0] = float("nan"), float("inf")
    scale = codec.encode(x).scale
    assert (~torch.isfinite(scale)).nonzero().flatten().tolist() == [3, 7]
    zeroed = codec.encode(x, nonfinite="zero")
    x[3, 5], x[7, 0] = 0, 0
    assert zeroed.tobytes() == codec.encode(x).tobytes()


def test_cupy():
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    codec = tq4.Codec("k4v3", 128)
    x = vectors(2, 30, 128)
    expected = codec.encode(x)
    with cupy.cuda.Stream(non_blocking=True) as stream:
        encoded = codec.encode(cupy.asarray(x.numpy()))
        back = codec.decode(encoded, dtype="float16")
        stream.synchronize()
    assert different_bytes(expected, expected.to("cuda"))[0] == 0
    assert isinstance(encoded.codes, cupy.ndarray) and isinstance(back, cupy.ndarray)
    assert different_bytes(expected, encoded)[0] == 0 and relative(cupy.asnumpy(back), codec.decode(expected)) < 1e-3
    cache = tq4.PagedCache("k4v3", 2, 128, 4, device="cuda")
    cache.append(cupy.asarray(vectors(5, 2, 128).numpy()), cupy.asarray(vectors(5, 2, 128).numpy()), cupy.arange(5))


def test_a_torch_without_the_exchange_interface():
    """Older torch: DLPack alone, and the current stream asked of torch."""

    class Old:
        def __init__(self, tensor):
            self.tensor = tensor

        def __dlpack__(self, **kwargs):
            return self.tensor.__dlpack__(**kwargs)

        def __dlpack_device__(self):
            return self.tensor.__dlpack_device__()

    Old.__module__ = "torch"
    k, slots = vectors(5, 2, 128).cuda(), torch.arange(5, device="cuda")
    one, other = (tq4.PagedCache("k4v3", 2, 128, 4, device="cuda") for _ in range(2))
    one.append(k, k, slots)
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
        other.append(Old(k), Old(k), Old(slots))
    torch.cuda.synchronize()
    assert torch.equal(one.data, other.data) and one.data.any()


def test_misuse():
    codec = tq4.Codec("k4v3", 128)
    x = vectors(4, 128).cuda()
    encoded, host = codec.encode(x), codec.encode(x.cpu())
    for call, error, words in (
        (lambda: codec.encode(x.double()), tq4.DTypeError, "float64"),
        (lambda: codec.encode(x.int()), tq4.DTypeError, "int32"),
        (lambda: codec.encode(x[:, :64]), tq4.HeadDimError, "64"),
        (lambda: codec.encode(torch.tensor(1.0, device="cuda")), tq4.ShapeError, None),
        (lambda: codec.encode(x.T.contiguous().T), tq4.StrideError, "last axis"),
        (lambda: codec.encode(x, "q"), tq4.UsageError, "side"),
        (lambda: codec.decode(encoded, out=torch.empty(4, 128)), tq4.DeviceError, "out"),
        (lambda: codec.decode(encoded, out=np.empty((4, 128), np.float32)), tq4.DeviceError, "out"),
        (lambda: codec.decode(host, out=torch.empty(4, 128, device="cuda")), tq4.DeviceError, "out"),
        (lambda: codec.decode(encoded, out=torch.empty(5, 128, device="cuda")), tq4.ShapeError, None),
        (lambda: codec.decode(encoded, out=torch.empty(4, 256, device="cuda")[:, ::2]), tq4.StrideError, None),
        (lambda: codec.decode(encoded, out=torch.empty(4, 128, device="cuda", dtype=torch.float64)), tq4.DTypeError, "out"),
        (lambda: codec.decode(encoded, dtype=torch.int8), tq4.DTypeError, "int8"),
        (lambda: codec.decode(tq4.Encoded("k", 128, encoded.codes, host.scale)), tq4.DeviceError, "scale"),
        (lambda: codec.decode(tq4.Encoded("k", 128, encoded.codes)), tq4.DTypeError, "scale"),
        (lambda: codec.decode(tq4.Encoded("k", 128, encoded.codes[:, :9], encoded.scale)), tq4.ShapeError, "codes"),
        (lambda: codec.decode(tq4.Encoded("k", 128, encoded.codes.int(), encoded.scale)), tq4.DTypeError, "codes"),
        (lambda: tq4.Codec("k4v3", 64).decode(encoded), tq4.ShapeError, "128"),
        (lambda: encoded.to("tpu"), tq4.UsageError, "device"),
    ):
        with pytest.raises(error, match=words):
            call()


def test_random_arguments_never_crash():
    """CUDA tensors of wrong shapes, dtypes and strides in every place: a tq4.Error or a result, and the device lives."""
    rng = random.Random(2)
    codec = tq4.Codec("k4v3", 128)
    good = codec.encode(vectors(2, 128).cuda())
    cache = tq4.PagedCache("k4v3", 2, 128, 4, device="cuda")
    k, slots = vectors(3, 2, 128).cuda(), torch.arange(3, device="cuda")
    table, lens, q = torch.arange(4, dtype=torch.int32, device="cuda")[None], torch.full((1,), 3, dtype=torch.int32, device="cuda"), vectors(1, 2, 128).cuda()

    def thing():
        shape = [rng.choice([0, 1, 2, 3, 16, 64, 128]) for _ in range(rng.randrange(5))]
        x = torch.zeros(shape, dtype=rng.choice([torch.float16, torch.float32, torch.float64, torch.uint8, torch.int64, torch.bool]), device=rng.choice(["cuda", "cuda", "cpu"]))
        if x.ndim and rng.random() < 0.3:
            x = x[tuple(slice(None, None, rng.choice([1, 2])) for _ in shape)].transpose(0, -1)
        return rng.choice([x, x, x, x, None, 3, "k", b"abc", [], np.zeros(shape, np.float32)])

    refused = done = 0
    for _ in range(1500):
        pick = lambda value: thing() if rng.random() < 0.35 else value
        call = rng.choice([
            lambda: codec.encode(thing()),
            lambda: codec.decode(good, out=thing()),
            lambda: codec.decode(good, dtype=thing()),
            lambda: codec.decode(tq4.Encoded("k", 128, pick(good.codes), pick(good.scale), pick(None), pick(None))),
            lambda: cache.append(pick(k), pick(k), pick(slots), positions=pick(None)),
            lambda: cache.attend(pick(q), pick(table), pick(lens), pick(None), pick(None), alibi_slopes=pick(None), sink_logits=pick(None)),
            lambda: cache.dequant(pick(table), pick(lens), 5, k_out=pick(None), v_out=pick(None)),
        ])
        try:
            call()
            done += 1
        except tq4.Error:
            refused += 1
    torch.cuda.synchronize()
    assert refused > 500 and done > 50, (refused, done)
    assert torch.equal(codec.decode(codec.encode(k)), codec.decode(codec.encode(k)))
