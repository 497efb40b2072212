"""Drop-ins side by side with the peers' own packages on the same CUDA tensors. Skipped, visibly, where a package or the device is missing."""
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("h5py", reason="h5py is not installed")

import tq4  # noqa: E402

if not tq4._core.cuda_compiled() or not torch.cuda.is_available():
    pytest.skip("no CUDA device, or a build without the CUDA backend", allow_module_level=True)

from test_compat import golden, relative  # noqa: E402
from tq4 import compat  # noqa: E402


def peer(module, name):
    found = pytest.importorskip(module, reason=f"{module} is not installed", exc_type=ImportError)
    return getattr(found, name)


def test_fused_paged_tq4_decode():
    theirs = peer("turboquant_vllm.triton.fused_paged_tq4_attention", "fused_paged_tq4_decode")
    g = golden("tqv/d128", "cuda")
    arguments = (g["page/q"], g["page/cache"], g["page/block_table"], g["page/seq_lens"], g["b4/centroids"], g["rotation_seed42"], 2, 128, 16)
    assert relative(compat.fused_paged_tq4_decode(*arguments), theirs(*arguments)) < 3e-3


def test_tq4_compress_and_decompress():
    theirs, back = peer("turboquant_vllm.triton.tq4_compress", "tq4_compress"), peer("turboquant_vllm.triton.tq4_decompress", "tq4_decompress")
    g = golden("tqv/d128", "cuda")
    rotation_t = g["rotation_seed42"].T
    x = torch.randn(500, 8, 128, device="cuda").half()
    arguments = (x, rotation_t[:, 0::2].contiguous(), rotation_t[:, 1::2].contiguous(), g["b4/boundaries"])
    packed, norms = compat.tq4_compress(*arguments)
    their_packed, their_norms = theirs(*arguments)
    torch.testing.assert_close(norms, their_norms, rtol=1e-5, atol=0)
    assert (packed != their_packed).float().mean().item() < 1e-3
    torch.testing.assert_close(compat.tq4_decompress(packed, norms, g["b4/centroids"]), back(packed, norms, g["b4/centroids"]), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_triton_flash_attention(causal):
    both = peer("turboquant_vllm.triton.flash_attention_tq4_kv", "triton_flash_attention_tq4_kv")
    keys_only = peer("turboquant_vllm.triton.flash_attention_tq4", "triton_flash_attention_tq4")
    g = golden("tqv/d128", "cuda")
    rotation, centroids = g["rotation_seed42"], g["b4/centroids"]
    k, k_norms, v, v_norms = (g[f"b4/{name}"].transpose(0, 1)[None].contiguous() for name in ("k_packed", "k_norms", "v_packed", "v_norms"))
    q = torch.randn(1, 4, 40, 128, device="cuda").half()
    assert relative(compat.triton_flash_attention_tq4_kv(q, k, k_norms, v, v_norms, centroids, rotation, is_causal=causal),
                    both(q, k, k_norms, v, v_norms, centroids, rotation, is_causal=causal)) < 4e-3
    values = torch.randn(1, 2, k.shape[2], 128, device="cuda").half()
    assert relative(compat.triton_flash_attention_tq4(q, k, k_norms, centroids, rotation, values, is_causal=causal),
                    keys_only(q, k, k_norms, centroids, rotation, values, is_causal=causal)) < 4e-3


def test_triton_turboquant_decode_attention():
    theirs = peer("vllm.v1.attention.ops.triton_turboquant_decode", "triton_turboquant_decode_attention")
    g = golden("vllm/turboquant_4bit_nc/d128", "cuda")
    hadamard = torch.from_numpy(tq4.rotation(128, "hadamard")).cuda()
    arguments = (g["q"], g["cache"], g["block_table"], g["seq_lens"], hadamard, g["centroids"], 128**-0.5, 4, int(g["key_packed_size"]), 4, False, True)
    assert relative(compat.triton_turboquant_decode_attention(*arguments), theirs(*arguments)) < 3e-3
