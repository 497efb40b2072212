"""tq4.compat on CPU tensors against what the peers' own code wrote and computed (tests/golden/data): their signatures, their bytes, their outputs."""
import inspect
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
h5py = pytest.importorskip("h5py", reason="h5py is not installed")

import tq4  # noqa: E402
from tq4 import compat  # noqa: E402

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "data" / "peers.h5"
DIMS = [64, 96, 128, 256]
PRESETS = ["turboquant_k8v4", "turboquant_4bit_nc", "turboquant_k3v4_nc", "turboquant_3bit_nc"]

SIGNATURES = {
    "fused_paged_tq4_decode": "q kv_cache block_table seq_lens centroids rotation num_kv_heads head_dim block_size sm_scale=None out=None",
    "triton_turboquant_decode_attention": "query kv_cache block_table seq_lens Pi centroids scale mse_bits key_packed_size value_quant_bits key_fp8=False "
    "norm_correction=False PiT=None mid_o_buf=None output_buf=None lse_buf=None buf_holder=None max_num_kv_splits=32",
    "triton_flash_attention_tq4_kv": "q k_packed k_norms v_packed v_norms centroids rotation sm_scale=None is_causal=False",
    "triton_flash_attention_tq4": "q k_packed k_norms centroids rotation v sm_scale=None is_causal=False",
    "tq4_compress": "x rotation_T_even rotation_T_odd boundaries out=None",
    "tq4_decompress": "packed norms centroids dtype=None out=None",
}


def golden(group, device="cpu"):
    """The group's datasets as tensors."""
    with h5py.File(GOLDEN) as file:
        found = {}
        file[group].visititems(lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return {name: torch.from_numpy(np.asarray(value)).to(device) if np.ndim(value) else value for name, value in found.items()}


def relative(a, b):
    return ((a.double().cpu() - b.double().cpu()).norm() / b.double().norm().cpu()).item()


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature(name):
    parameters = inspect.signature(getattr(compat, name)).parameters.values()
    assert " ".join(p.name if p.default is p.empty else f"{p.name}={p.default}" for p in parameters) == SIGNATURES[name]


@pytest.mark.parametrize("dim", DIMS)
def test_fused_paged_tq4_decode(dim, device="cpu"):
    g = golden(f"tqv/d{dim}", device)
    heads, block_size = g["b4/k"].shape[1], g["page/cache"].shape[1]
    arguments = (g["page/q"], g["page/cache"], g["page/block_table"], g["page/seq_lens"], g["b4/centroids"], g["rotation_seed42"], heads, dim, block_size)
    out = compat.fused_paged_tq4_decode(*arguments)
    assert out.dtype == torch.float16 and out.device.type == device
    assert relative(out, g["page/out_float64"]) < 1e-3
    if "page/out_peer_kernel" in g:
        assert relative(out, g["page/out_peer_kernel"]) < 3e-3
    given = torch.empty_like(out)
    assert compat.fused_paged_tq4_decode(*arguments, sm_scale=dim**-0.5, out=given) is given and torch.equal(given, out)
    wide = torch.zeros(*g["page/cache"].shape[:2], 2 * g["page/cache"].shape[2], dtype=torch.uint8, device=device)  # padded rows
    wide[..., : g["page/cache"].shape[2]] = g["page/cache"]
    assert torch.equal(compat.fused_paged_tq4_decode(arguments[0], wide, *arguments[2:]), out)


@pytest.mark.parametrize("dim", [64, 128, 256])
@pytest.mark.parametrize("preset", PRESETS)
def test_triton_turboquant_decode_attention(preset, dim, device="cpu"):
    g = golden(f"vllm/{preset}/d{dim}", device)
    fp8 = "k8" in preset
    bits = 8 if fp8 else 3 if "k3" in preset or "3bit" in preset else 4
    value_bits = 3 if "3bit" in preset else 4
    hadamard = torch.from_numpy(tq4.rotation(dim, "hadamard")).to(device)
    output, lse = torch.empty(4, 8, dim, device=device), torch.empty(4, 8, device=device)
    out = compat.triton_turboquant_decode_attention(g["q"], g["cache"], g["block_table"], g["seq_lens"], hadamard, g["centroids"], dim**-0.5, bits,
                                                    int(g["key_packed_size"]), value_bits, key_fp8=fp8, norm_correction=preset.endswith("_nc"),
                                                    output_buf=output, lse_buf=lse)
    assert out.dtype == g["q"].dtype
    assert relative(out, g["out_peer_kernel"]) < (5e-3 if not fp8 else 2e-2)
    batch, heads = g["q"].shape[:2]
    assert torch.equal(output[:batch, :heads].to(out.dtype), out) and bool(torch.isfinite(lse[:batch, :heads]).all())
    with pytest.raises(tq4.UnsupportedError, match="key_packed_size"):
        compat.triton_turboquant_decode_attention(g["q"], g["cache"], g["block_table"], g["seq_lens"], hadamard, g["centroids"], 1.0, bits,
                                                  int(g["key_packed_size"]) + 16, value_bits, key_fp8=fp8)


@pytest.mark.parametrize("dim", DIMS)
def test_tq4_compress_and_decompress(dim, device="cpu"):
    g = golden(f"tqv/d{dim}", device)
    rotation_t = g["rotation_seed42"].T
    halves = rotation_t[:, 0::2].contiguous(), rotation_t[:, 1::2].contiguous()
    for side in "kv":
        packed, norms = compat.tq4_compress(g[f"b4/{side}"], *halves, g["b4/boundaries"])
        assert packed.shape == g[f"b4/{side}_packed"].shape and norms.shape == g[f"b4/{side}_norms"].shape
        torch.testing.assert_close(norms, g[f"b4/{side}_norms"], rtol=1e-6, atol=0)
        # Codes within rounding of a boundary may differ (tests/golden says how near): two float32 products in another order. A zero vector lies on
        # one: turboquant-vllm's CPU path, which wrote the file, takes the code below it, its Triton kernel and tq4 the one above.
        assert (packed != g[f"b4/{side}_packed"])[norms[..., 0] > 0].float().mean().item() < 1e-3
        back = compat.tq4_decompress(g[f"b4/{side}_packed"], g[f"b4/{side}_norms"], g["b4/centroids"])
        torch.testing.assert_close(back, g[f"b4/{side}_dequant_rotated"], rtol=1e-3, atol=1e-6)
        out = torch.empty(back.shape, dtype=torch.float32, device=device)
        assert compat.tq4_decompress(g[f"b4/{side}_packed"], g[f"b4/{side}_norms"], g["b4/centroids"], out=out) is out
        torch.testing.assert_close(out.half(), back, rtol=1e-3, atol=1e-6)
    flat = torch.empty(packed.numel() // (dim // 2), dim // 2, dtype=torch.uint8, device=device), torch.empty(norms.numel(), device=device)
    assert compat.tq4_compress(g["b4/v"], *halves, g["b4/boundaries"], out=flat)[0] is flat[0] and torch.equal(flat[0].view(packed.shape), packed)


@pytest.mark.parametrize("bits", [2, 3])
def test_fewer_bits_are_nibbles_too(bits, device="cpu"):
    g = golden("tqv/d128", device)
    rotation_t = g["rotation_seed42"].T
    packed, norms = compat.tq4_compress(g["b4/k"], rotation_t[:, 0::2].contiguous(), rotation_t[:, 1::2].contiguous(), g[f"b{bits}/boundaries"])
    codes = torch.stack([packed >> 4, packed & 15], -1).flatten(-2).long()
    y = g["b4/k"].float() @ rotation_t / (g["b4/k"].float().norm(dim=-1, keepdim=True) + 1e-10)
    expected = torch.bucketize(y, g[f"b{bits}/boundaries"], right=True)
    assert (codes != expected).float().mean().item() < 1e-3
    back = compat.tq4_decompress(packed, norms, g[f"b{bits}/centroids"], dtype=torch.float32)
    torch.testing.assert_close(back, g[f"b{bits}/centroids"][codes] * norms, rtol=1e-6, atol=0)


def plain_attention(q, k, v, scale, causal):
    """float64; query i sees keys 0..i where causal."""
    q, k, v = q.double(), k.double(), v.double()
    group = q.shape[1] // k.shape[1]
    logits = q @ k.repeat_interleave(group, 1).transpose(-1, -2) * scale
    if causal and q.shape[2] > 1:
        rows, columns = torch.arange(q.shape[2])[:, None], torch.arange(k.shape[2])[None]
        logits = logits.masked_fill((columns > rows).to(q.device), -torch.inf)
    return torch.softmax(logits, -1) @ v.repeat_interleave(group, 1)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("q_len, tokens", [(1, 20), (7, 20), (20, 20), (25, 20)])
def test_triton_flash_attention(q_len, tokens, causal, device="cpu"):
    g = golden("tqv/d64", device)
    rotation, centroids = g["rotation_seed42"], g["b4/centroids"]
    # [batch 2, heads 2, tokens]: two halves of the file's tokens, strided
    k, k_norms, v, v_norms = (g[f"b4/{name}"].unflatten(0, (2, -1))[:, :tokens].transpose(1, 2) for name in ("k_packed", "k_norms", "v_packed", "v_norms"))
    keys, values = (centroids[torch.stack([x >> 4, x & 15], -1).flatten(-2).long()] * n @ rotation for x, n in ((k, k_norms), (v, v_norms)))
    q = torch.randn(2, 4, q_len, 64, generator=torch.Generator().manual_seed(5)).half().to(device)
    out = compat.triton_flash_attention_tq4_kv(q, k, k_norms, v, v_norms.squeeze(-1), centroids, rotation, is_causal=causal)
    assert out.shape == q.shape and out.dtype == q.dtype
    assert relative(out, plain_attention(q, keys, values, 1 / 8, causal)) < 2e-3
    for dtype in (torch.float16, torch.bfloat16):
        exact = values.to(dtype)
        out = compat.triton_flash_attention_tq4(q.to(dtype), k, k_norms, centroids, rotation, exact, sm_scale=0.2, is_causal=causal)
        assert out.dtype == dtype and relative(out, plain_attention(q.to(dtype), keys, exact, 0.2, causal)) < (2e-3 if dtype == torch.float16 else 1e-2)


def test_changed_tables_are_seen():
    g = golden("tqv/d64")
    arguments = (g["b4/k_packed"], g["b4/k_norms"])
    before = compat.tq4_decompress(*arguments, g["b4/centroids"])
    g["b4/centroids"].mul_(2)
    torch.testing.assert_close(compat.tq4_decompress(*arguments, g["b4/centroids"]), 2 * before)


def test_misuse():
    g = golden("tqv/d64")
    with pytest.raises(tq4.DTypeError):
        compat.tq4_decompress(g["b4/k_packed"].numpy(), g["b4/k_norms"], g["b4/centroids"])
    with pytest.raises(tq4.ShapeError):
        compat.tq4_decompress(g["b4/k_packed"][0], g["b4/k_norms"], g["b4/centroids"])
    with pytest.raises(tq4.ShapeError, match="codebook"):
        compat.tq4_decompress(g["b4/k_packed"], g["b4/k_norms"], g["b4/centroids"][:5])
    with pytest.raises(tq4.Error):
        compat.fused_paged_tq4_decode(g["page/q"], g["page/cache"], g["page/block_table"], g["page/seq_lens"] + 1000, g["b4/centroids"], g["rotation_seed42"], 2, 64, 16)
    with pytest.raises(tq4.ShapeError):
        compat.fused_paged_tq4_decode(g["page/q"], g["page/cache"], g["page/block_table"], g["page/seq_lens"], g["b4/centroids"], g["rotation_seed42"], 2, 128, 16)
    with pytest.raises(tq4.ShapeError):
        compat.fused_paged_tq4_decode(g["page/q"], g["page/cache"], g["page/block_table"], g["page/seq_lens"], g["b4/centroids"], g["rotation_seed42"][:5], 2, 64, 16)


def test_random_arguments_never_crash():
    """In a process of its own, so that a crash is a failure of this test and not the end of the run."""
    script = "import sys; sys.path[:0] = {!r}; import test_compat; test_compat.fuzz()".format([str(p) for p in sys.path])
    result = subprocess.run([sys.executable, "-X", "faulthandler", "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    refused, done = map(int, result.stdout.split())
    assert refused > 500 and done > 50, (refused, done)


def fuzz(device="cpu", rounds=1500):
    """Every drop-in with some of its arguments replaced by tensors of other shapes, dtypes, strides and devices, and by things that are no tensors."""
    torch.set_num_threads(1)
    rng = random.Random(3)
    g, v = golden("tqv/d64", device), golden("vllm/turboquant_4bit_nc/d64", device)
    rotation, centroids = g["rotation_seed42"], g["b4/centroids"]
    k, k_norms, w, w_norms = (g[f"b4/{name}"].transpose(0, 1)[None, :, :20].contiguous() for name in ("k_packed", "k_norms", "v_packed", "v_norms"))
    q = torch.randn(1, 4, 3, 64).half().to(device)
    hadamard = torch.from_numpy(tq4.rotation(64, "hadamard")).to(device)
    calls = [
        (compat.fused_paged_tq4_decode, [g["page/q"], g["page/cache"], g["page/block_table"], g["page/seq_lens"], centroids, rotation, 2, 64, g["page/cache"].shape[1], None, None]),
        (compat.triton_turboquant_decode_attention, [v["q"], v["cache"], v["block_table"], v["seq_lens"], hadamard, v["centroids"], 0.125, 4, int(v["key_packed_size"]), 4, False, True, None, None, None, None]),
        (compat.triton_flash_attention_tq4_kv, [q, k, k_norms, w, w_norms, centroids, rotation, None, False]),
        (compat.triton_flash_attention_tq4, [q, k, k_norms, centroids, rotation, q[:, :2, :1].expand(1, 2, 20, 64), None, False]),
        (compat.tq4_compress, [g["b4/k"], rotation.T[:, 0::2], rotation.T[:, 1::2], g["b4/boundaries"], None]),
        (compat.tq4_decompress, [g["b4/k_packed"], g["b4/k_norms"], centroids, None, None]),
    ]

    def thing(like):
        kind = rng.random()
        if isinstance(like, torch.Tensor) and kind < 0.7:
            return rng.choice([lambda: like.double(), lambda: like.int(), lambda: like[..., :1], lambda: like[:0], lambda: like.unsqueeze(0), lambda: like.flatten(), lambda: like.transpose(0, -1),
                               lambda: like.cpu().numpy(), lambda: like.to("meta"), lambda: like.half(), lambda: like.contiguous()])()
        return rng.choice([None, 0, -1, 2**70, 1.5, float("nan"), "k", b"abc", [], {}, object(), torch.float16, torch.zeros(3, device=device), torch.zeros(2, 3, 64, device=device), (1, 2)])

    refused = done = 0
    for _ in range(rounds):
        function, good = rng.choice(calls)
        arguments = [thing(x) if rng.random() < 0.15 else x for x in good]
        try:
            function(*arguments)
            done += 1
        except tq4.Error:
            refused += 1
    print(refused, done)
