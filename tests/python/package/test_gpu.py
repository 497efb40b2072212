"""The package on CUDA tensors: pages, attention and the drop-in functions against the CPU reference on the same inputs, TQ4Cache against the CPU
and against an uncompressed cache. Skipped, visibly, without a CUDA device, torch, or a build with the CUDA backend."""
import inspect

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import tq4  # noqa: E402

if not tq4._core.cuda_compiled():
    pytest.skip("this build has no CUDA backend (cmake.define.TQ4_CUDA=ON)", allow_module_level=True)
if not torch.cuda.is_available():
    pytest.skip("there is no CUDA device", allow_module_level=True)

BLOCK = 16
SHAPES = [("native", "k4v4", 128, 8, 2), ("native", "k3v3", 128, 16, 2), ("native", "k8v4", 128, 8, 2), ("native", "k4v4-2d", 64, 8, 2), ("native", "k4v4", 96, 6, 2),
          ("native", "k2v2", 256, 8, 1), ("native", "fp16", 64, 4, 2), ("turboquant-vllm", "turboquant-vllm", 128, 8, 2), ("vllm", "vllm:3bit_nc", 128, 8, 2), ("vllm", "vllm:k8v4", 64, 8, 2)]


def relative(a, b):
    return ((a.double().cpu() - b.double().cpu()).norm() / b.double().norm().cpu().clamp_min(1e-30)).item()


def pair(layout, spec, dim, kv_heads, tokens=(37, 700, 1, 0), seed=0, **options):
    """The same tokens appended to a cache on the CPU and one on the GPU."""
    generator = torch.Generator().manual_seed(seed)
    columns = -(-max(tokens) // BLOCK)
    blocks = len(tokens) * columns + 3
    table = torch.randperm(blocks, generator=generator)[: len(tokens) * columns].reshape(len(tokens), columns).int()
    lens = torch.tensor(tokens, dtype=torch.int32)
    k, v = (torch.randn(sum(tokens), kv_heads, dim, generator=generator).half() for _ in "kv")
    slots = torch.cat([table[s, torch.arange(n) // BLOCK].long() * BLOCK + torch.arange(n) % BLOCK for s, n in enumerate(tokens)])
    positions = torch.cat([torch.arange(n) for n in tokens])
    host, device = (tq4.PagedCache(spec, kv_heads, dim, blocks, block_size=BLOCK, layout=layout, device=name, **options) for name in ("cpu", "cuda"))
    host.append(k, v, slots, positions=positions)
    device.append(k.cuda(), v.cuda(), slots.cuda(), positions=positions.cuda())
    return host, device, table, lens, (k, v, slots)


@pytest.mark.parametrize("layout, spec, dim, heads, kv_heads", SHAPES, ids=str)
def test_append_attend_dequant(layout, spec, dim, heads, kv_heads):
    host, device, table, lens, _ = pair(layout, spec, dim, kv_heads)
    different = (torch.from_numpy(host.data) != device.data.cpu()).float().mean().item()
    assert different < 1e-2, f"{different:.2e} of the bytes differ"
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        for rotated in (False, True):
            expected, got = (cache.dequant(t, n, dtype=dtype, rotated=rotated) for cache, t, n in ((host, table, lens), (device, table.cuda(), lens.cuda())))
            for a, b in zip(got, expected):
                assert a.is_cuda and a.dtype == dtype and relative(a, b) < (2e-3 if dtype != torch.bfloat16 else 1e-2), (dtype, rotated)
    for dtype, bound in ((torch.float16, 3e-3), (torch.bfloat16, 1.5e-2)):
        for q_len in (1, 3):
            q = torch.randn(4, q_len, heads, dim, generator=torch.Generator().manual_seed(1)).to(dtype)
            for options in ({}, {"window": 50}, {"soft_cap": 20.0}, {"sm_scale": 0.05}):
                lse = [torch.empty(4, q_len, heads, device=place) for place in ("cpu", "cuda")]
                expected = host.attend(q, table, lens, lse=lse[0], **options)
                got = device.attend(q.cuda(), table.cuda(), lens.cuda(), lse=lse[1], **options)
                error = relative(got, expected)
                assert error < bound, f"{device.path(4, heads, q_len)}, {dtype}, q_len {q_len}, {options}: relative error {error:.2e}"
                finite = torch.isfinite(lse[0])
                assert torch.equal(finite, torch.isfinite(lse[1].cpu())) and (lse[0] - lse[1].cpu())[finite].abs().max() < 2e-2


def test_the_fused_kernel_serves_native_pages():
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("the fused kernel is for Hopper")
    cache = tq4.PagedCache("k4v4", 8, 128, 8, device="cuda")
    assert cache.path(1, 32) == "fused-sm90" and tq4.PagedCache("k4v4", 8, 96, 8, device="cuda").path(1, 32) == "general"


def test_strides_streams_and_graphs():
    host, device, table, lens, (k, v, slots) = pair("native", "k4v4", 128, 2)
    before = device.data.clone()
    wide = torch.zeros(2, len(k), 3 * 128, dtype=torch.float16, device="cuda")
    wide[..., 128:256] = k.cuda().transpose(0, 1)
    device.data.zero_()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(20_000_000)  # what follows must queue behind it on this stream
        device.append(wide[..., 128:256].transpose(0, 1), v.cuda(), slots.cuda())
        q = torch.randn(4, 8, 128, device="cuda").half()
        out = device.attend(q, table.cuda(), lens.cuda())
    side.synchronize()
    assert torch.equal(device.data, before)
    assert relative(out, host.attend(q.cpu(), table, lens)) < 3e-3
    table, lens = table.cuda(), lens.cuda()
    graph, captured = torch.cuda.CUDAGraph(), torch.empty_like(out)
    with torch.cuda.graph(graph):
        device.attend(q, table, lens, captured)
    q.mul_(0.5)
    graph.replay()
    assert torch.equal(captured, device.attend(q, table, lens))


class Interface:
    """What Numba and others offer: __cuda_array_interface__ and nothing else."""

    def __init__(self, tensor):
        self.tensor = tensor
        self.shape = tensor.shape
        self.__cuda_array_interface__ = tensor.__cuda_array_interface__


def test_cuda_array_interface():
    _, device, table, lens, (k, v, slots) = pair("native", "k4v4", 128, 2)
    before = device.data.clone()
    device.data.zero_()
    with pytest.raises(tq4.UsageError, match="stream"):
        device.append(Interface(k.cuda()), v.cuda(), slots.cuda())
    device.append(Interface(k.cuda()), Interface(v.cuda()), Interface(slots.cuda()), stream=torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()
    assert torch.equal(device.data, before)


def test_calibrated(calibration_file):
    calibration = tq4.Codec("k4v4-2d", 128, calibration=calibration_file, layer=4).calibration
    number, heads, dim = calibration.layers[1]
    host, device, table, lens, _ = pair("native", "k4v4-2d", dim, heads, calibration=calibration, layer=number)
    q = torch.randn(4, 2 * heads, dim).half()
    assert relative(device.attend(q.cuda(), table.cuda(), lens.cuda()), host.attend(q, table, lens)) < 5e-3


def test_misuse_on_a_gpu():
    cache = tq4.PagedCache("k4v4", 2, 128, 8, device="cuda")
    k, slots = torch.randn(3, 2, 128, device="cuda").half(), torch.arange(3, device="cuda")
    table, lens, q = torch.zeros(1, 4, dtype=torch.int32, device="cuda"), torch.ones(1, dtype=torch.int32, device="cuda"), torch.randn(1, 4, 128, device="cuda").half()
    for call, error in ((lambda: cache.append(k.cpu(), k, slots), tq4.DeviceError), (lambda: cache.append(k, k.float(), slots), tq4.DTypeError),
                        (lambda: cache.append(k, k, slots.int()), tq4.DTypeError), (lambda: cache.append(k[..., :64], k, slots), tq4.HeadDimError),
                        (lambda: cache.append(k[:, :1], k, slots), tq4.ShapeError), (lambda: cache.append(k, k[:2], slots), tq4.ShapeError),
                        (lambda: cache.append(k.transpose(1, 2).contiguous().transpose(1, 2), k, slots), tq4.StrideError),
                        (lambda: cache.attend(q.cpu(), table, lens), tq4.DeviceError), (lambda: cache.attend(q.float(), table, lens), tq4.DTypeError),
                        (lambda: cache.attend(q, table.long(), lens), tq4.DTypeError), (lambda: cache.attend(q, table, lens.cpu()), tq4.DeviceError),
                        (lambda: cache.attend(q[:, :3], table, lens), tq4.ShapeError), (lambda: cache.attend(q[:, None].expand(1, 17, 4, 128).contiguous(), table, lens), tq4.UnsupportedError),
                        (lambda: cache.attend(q, table, lens, out=torch.empty_like(q).float()), tq4.DTypeError)):
        with pytest.raises(error):
            call()
    assert torch.isfinite(cache.attend(q, table, lens)).all()


# ---- drop-ins: test_compat.py's tests on CUDA tensors -----------------------------------------------------------------------------------------

def compat_cases():
    import test_compat as t

    for name in ("test_fused_paged_tq4_decode", "test_triton_turboquant_decode_attention", "test_tq4_compress_and_decompress", "test_fewer_bits_are_nibbles_too", "test_triton_flash_attention"):
        function = getattr(t, name)
        cases = [{}]
        for mark in getattr(function, "pytestmark", []):
            names = [part.strip() for part in mark.args[0].split(",")]
            cases = [{**case, **dict(zip(names, values if len(names) > 1 else (values,)))} for case in cases for values in mark.args[1]]
        for case in cases:
            yield pytest.param(function, case, id=f"{name[5:]}-{'-'.join(map(str, case.values()))}")


try:
    CASES = list(compat_cases())
except pytest.skip.Exception:
    CASES = []


@pytest.mark.parametrize("function, case", CASES)
def test_drop_in(function, case):
    assert "device" in inspect.signature(function).parameters
    function(**case, device="cuda")


def test_drop_ins_refuse_random_arguments(capsys):
    if not CASES:
        pytest.skip("h5py is not installed")
    import test_compat

    test_compat.fuzz("cuda", 600)
    torch.cuda.synchronize()
    refused, done = map(int, capsys.readouterr().out.split())
    assert refused > 200 and done > 20


# ---- the Hugging Face cache -------------------------------------------------------------------------------------------------------------------

try:
    import test_hf as hf
except pytest.skip.Exception:
    hf = None
needs_hf = pytest.mark.skipif(hf is None, reason="transformers is not installed")


@needs_hf
@pytest.mark.parametrize("name", ["llama-gqa", "qwen2-bias", "mistral-sliding", "gemma2-alternating-softcap"])
def test_hf_pass_through(name):
    """fp16 pass-through codes under the tq4 attention: the logits of an uncompressed cache, prompt in pieces and steps."""
    model = hf.model_of(name, torch.float16, "cuda")
    ids = hf.prompt(2, 60, "cuda")["input_ids"]
    for exact in ((0, 0), (4, 16)):
        with torch.no_grad():
            model.set_attn_implementation("eager")
            expected = model(ids).logits
            model.set_attn_implementation("tq4")
            cache = tq4.hf.TQ4Cache(model, "fp16", sinks=exact[0], window=exact[1])
            got = torch.cat([model(piece, past_key_values=cache).logits for piece in torch.split(ids, [30, 3, 20] + [1] * 7, 1)], 1)
        error = relative(got, expected)
        assert error < 3e-2, f"{name}, exact {exact}: relative error of the logits {error:.2e}"
        assert (got.argmax(-1) == expected.argmax(-1)).float().mean() > 0.9


@needs_hf
@pytest.mark.parametrize("name", ["llama-gqa", "mistral-sliding"])
@pytest.mark.parametrize("attention", ["tq4", "sdpa"])
def test_hf_codes_are_the_cpus(name, attention):
    """3-bit codes: the same logits as TQ4Cache on the CPU, from a prompt of 40 and 8 steps."""
    logits = {}
    for device, dtype in (("cpu", torch.float32), ("cuda", torch.float16)):
        model = hf.model_of(name, dtype, device)
        model.set_attn_implementation(attention)
        ids = hf.prompt(2, 48, device)["input_ids"]
        cache = tq4.hf.TQ4Cache(model, "k3v3")
        with torch.no_grad():
            logits[device] = torch.cat([model(piece, past_key_values=cache).logits for piece in torch.split(ids, [40] + [1] * 8, 1)], 1).float()
    error = relative(logits["cuda"], logits["cpu"])
    assert error < 0.1, f"relative error of the logits {error:.2e}"  # hidden states in fp16 and fp32: codes near a boundary flip


@needs_hf
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("sliding_window", [None, 100])
def test_hf_pages_grown_step_by_step(sliding_window, batch):
    """Pages that grow past 384 tokens (twice) hold and attend to what pages filled at once do, bit for bit."""
    hf.grow_step_by_step("cuda", sliding_window, batch)


@needs_hf
@pytest.mark.parametrize("name", ["llama-gqa", "mistral-sliding"])
def test_hf_logits_of_a_cache_grown_step_by_step(name):
    """496 tokens in steps of 16, every one of which reads the pages: with pass-through codes an uncompressed model's logits, with codes those of one pass
    (of passes of 64 where layers slide: the most they store at a time)."""
    model = hf.model_of(name, torch.float16, "cuda")
    ids = hf.prompt(2, 496, "cuda")["input_ids"]
    with torch.no_grad():
        model.set_attn_implementation("eager")
        expected = {"fp16": model(ids).logits}
        model.set_attn_implementation("tq4")
        cache = tq4.hf.TQ4Cache(model, "k4v4", prefill="stored")
        expected["k4v4"] = torch.cat([model(piece, past_key_values=cache).logits for piece in ids.split(64 if "sliding" in name else 496, 1)], 1)
        for spec, whole in expected.items():
            cache = tq4.hf.TQ4Cache(model, spec)
            steps = torch.cat([model(piece, past_key_values=cache).logits for piece in ids.split(16, 1)], 1)
            for begin, end in ((0, 384), (384, 496)):
                error = relative(steps[:, begin:end], whole[:, begin:end])
                assert error < (3e-2 if spec == "fp16" else 0.1), f"{spec}, tokens {begin} to {end}: relative error of the logits {error:.2e}"


@needs_hf
def test_hf_generate_padding_beams_memory():
    model = hf.model_of("llama-gqa", torch.float16, "cuda")
    inputs = hf.prompt(2, 40, "cuda")
    inputs["attention_mask"][0, :9] = 0
    expected = hf.greedy(model, hf.transformers.DynamicCache(config=model.config), inputs)
    model.set_attn_implementation("tq4")
    got = hf.greedy(model, tq4.hf.TQ4Cache(model, "fp16"), inputs)
    assert (got == expected).float().mean() > 0.9, "left padding"
    beams = hf.greedy(model, tq4.hf.TQ4Cache(model, "k4v4"), inputs, num_beams=3)
    assert beams.shape == expected.shape
    cache = tq4.hf.TQ4Cache(model, "k4v4")
    with torch.no_grad():
        model(hf.prompt(2, 400, "cuda")["input_ids"], past_key_values=cache)
        cache.crop(-100)
        model(hf.prompt(2, 20, "cuda")["input_ids"], past_key_values=cache)
    assert cache.get_seq_length() == 320 and cache.nbytes < 3 * 2 * 2 * 2 * 448 * 64 * 2 / 3


def test_overhead_of_a_call():
    """Host time of PagedCache.attend over the launches themselves: under 20 microseconds where the machine is quiet (experiments/python_overhead)."""
    import time

    cache = tq4.PagedCache("k4v4", 8, 128, 64, device="cuda")
    q = torch.randn(1, 32, 128, device="cuda").half()
    table, lens = torch.arange(64, dtype=torch.int32, device="cuda")[None], torch.full((1,), 100, dtype=torch.int32, device="cuda")
    out = torch.empty_like(q)
    cache.attend(q, table, lens, out)
    workspace = next(iter(cache._workspaces.values()))

    def seconds(call, count):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(count):
            call()
        spent = time.perf_counter() - begin
        torch.cuda.synchronize()
        return spent / count

    raw = lambda repeat: cache._pages.attend(cache.data, q, table, lens, out, None, 0.0, 0, 0.0, None, None, 1024, False, workspace, None, repeat)
    python = np.median([seconds(lambda: cache.attend(q, table, lens, out), 100) for _ in range(9)])
    launch = np.median([(seconds(lambda: raw(101), 1) - seconds(lambda: raw(1), 1)) / 100 for _ in range(9)])
    print(f"PagedCache.attend {python * 1e6:.1f} us a call, of which the C++ launch {launch * 1e6:.1f} us: {(python - launch) * 1e6:.1f} us over it")
    assert python - launch < 60e-6
