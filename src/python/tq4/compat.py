"""Other projects' functions by their own names and signatures, on tq4's kernels: replace the import and keep the call.

    from tq4.compat import fused_paged_tq4_decode, triton_flash_attention_tq4, triton_flash_attention_tq4_kv, tq4_compress, tq4_decompress
    from tq4.compat import triton_turboquant_decode_attention

The first five are turboquant-vllm 1.5's (turboquant_vllm.triton), the last vLLM's (vllm.v1.attention.ops.triton_turboquant_decode). Same torch
tensors in, same results out: CUDA tensors go through the kernels on the current stream, CPU tensors through the library's reference. Differences:
arguments are checked (tq4.Error instead of an assertion); queries are rotated in fp32, not rounded to fp16 in between; the first call with a
codebook and rotation copies them to make the kernels' tables, so it must not be inside a CUDA graph's capture.
"""

from __future__ import annotations

import json
import math
import sys
import weakref
from collections import OrderedDict
from typing import Any

from . import _core
from ._checks import boolean, integer, number
from ._codec import spec_members
from ._errors import DeviceError, DTypeError, ShapeError, UnsupportedError, UsageError
from ._frameworks import Workspaces, framework, on_device, tensor_device

__all__ = [
    "fused_paged_tq4_decode",
    "tq4_compress",
    "tq4_decompress",
    "triton_flash_attention_tq4",
    "triton_flash_attention_tq4_kv",
    "triton_turboquant_decode_attention",
]


def fused_paged_tq4_decode(
    q: Any,
    kv_cache: Any,
    block_table: Any,
    seq_lens: Any,
    centroids: Any,
    rotation: Any,
    num_kv_heads: int,
    head_dim: int,
    block_size: int,
    sm_scale: float | None = None,
    out: Any = None,
) -> Any:
    """Decode attention over turboquant-vllm's pages: q [num_seqs, H_Q, head_dim] fp16/bf16, kv_cache [num_blocks, block_size, total_bytes] uint8
    (padded rows too), block_table [num_seqs, max_blocks] int32, seq_lens [num_seqs] int32, centroids [16], rotation [head_dim, head_dim] fp32."""
    dim, size = integer(head_dim, "head_dim"), integer(block_size, "block_size")
    _need(q, "q", (None, None, dim))
    _need(kv_cache, "kv_cache", (None, size, None), "uint8", q)
    _need(rotation, "rotation", (dim, dim), "float")
    step = kv_cache.stride()
    pages = _pages(tensor_device(q), _turboquant_vllm(_bits(centroids)), "turboquant-vllm", num_kv_heads, dim, size, (rotation, centroids, None), (rotation, centroids, None), step[:2])
    return _attend(pages, q, kv_cache, block_table, seq_lens, sm_scale, out)


def triton_turboquant_decode_attention(
    query: Any,
    kv_cache: Any,
    block_table: Any,
    seq_lens: Any,
    Pi: Any,  # noqa: N803
    centroids: Any,
    scale: float,
    mse_bits: int,
    key_packed_size: int,
    value_quant_bits: int,
    key_fp8: bool = False,
    norm_correction: bool = False,
    PiT: Any = None,  # noqa: N803
    mid_o_buf: Any = None,
    output_buf: Any = None,
    lse_buf: Any = None,
    buf_holder: Any = None,
    max_num_kv_splits: int = 32,
) -> Any:
    """Decode attention over vLLM's TurboQuant pages: query [B, Hq, D], kv_cache [num_blocks, block_size, Hk, slot] uint8. output_buf and lse_buf,
    where large enough, take the output (fp32) and the log-sum-exp as well; PiT, mid_o_buf, buf_holder and max_num_kv_splits are not needed here.
    FP8 keys are read as E4M3."""
    _need(query, "query", (None, None, None))
    _need(kv_cache, "kv_cache", (None, None, None, None), "uint8", query)
    batch, heads, dim = query.shape
    for buffer, name, shape in ((output_buf, "output_buf", (None, None, None)), (lse_buf, "lse_buf", (None, None))):
        if buffer is not None:
            _need(buffer, name, shape, "float", query)
            if any(have < want for have, want in zip(buffer.shape[1:], (heads, dim))):
                raise ShapeError(f"{name} of shape {tuple(buffer.shape)} has no room for {heads} heads of {dim}")
    fp8_keys = boolean(key_fp8, "key_fp8")
    members = spec_members("vllm:k8v4" if fp8_keys else "vllm:4bit_nc")
    members["v"]["bits"] = integer(value_quant_bits, "value_quant_bits", 2, 8)
    if fp8_keys:
        needed, tables = dim, None
    else:
        bits = integer(mse_bits, "mse_bits", 1, 8)
        members["k"].update(bits=bits, norm_correction=boolean(norm_correction, "norm_correction"), rotation="haar")
        _need(Pi, "Pi", (dim, dim), "float")
        _need(centroids, "centroids", (1 << bits,), "float")
        needed, tables = math.ceil(dim * bits / 8) + 2, (Pi, centroids, None)
    if integer(key_packed_size, "key_packed_size") != needed:
        raise UnsupportedError(f"key_packed_size {key_packed_size}: keys of this preset take {needed} bytes")
    pages = _pages(tensor_device(query), json.dumps(members), "vllm", kv_cache.shape[2], dim, kv_cache.shape[1], tables, None, kv_cache.stride()[:3])
    torch = framework(query)
    lse = torch.empty(batch, heads, dtype=torch.float32, device=query.device) if lse_buf is not None else None
    out = _attend(pages, query, kv_cache, block_table, seq_lens, scale, None, lse)
    if output_buf is not None and output_buf.shape[0] >= batch:
        output_buf[:batch, :heads, :dim].copy_(out)
    if lse is not None and lse_buf.shape[0] >= batch:
        lse_buf[:batch, :heads].copy_(lse)
    return out


def triton_flash_attention_tq4_kv(
    q: Any,
    k_packed: Any,
    k_norms: Any,
    v_packed: Any,
    v_norms: Any,
    centroids: Any,
    rotation: Any,
    sm_scale: float | None = None,
    is_causal: bool = False,
) -> Any:
    """Attention with compressed keys and values: q [batch, H_Q, seq_q, head_dim] fp16/bf16, packed [batch, H_KV, seq_kv, head_dim // 2] uint8,
    norms [batch, H_KV, seq_kv] or [..., 1] fp32. is_causal: query i sees keys 0..i."""
    return _flash(q, k_packed, k_norms, v_packed, v_norms, centroids, rotation, sm_scale, is_causal)


def triton_flash_attention_tq4(
    q: Any,
    k_packed: Any,
    k_norms: Any,
    centroids: Any,
    rotation: Any,
    v: Any,
    sm_scale: float | None = None,
    is_causal: bool = False,
) -> Any:
    """As triton_flash_attention_tq4_kv with values [batch, H_KV, seq_kv, head_dim] fp16/bf16 (bf16 values are converted to an fp16 copy)."""
    return _flash(q, k_packed, k_norms, v, None, centroids, rotation, sm_scale, is_causal)


def tq4_compress(x: Any, rotation_T_even: Any, rotation_T_odd: Any, boundaries: Any, out: Any = None) -> tuple[Any, Any]:  # noqa: N803
    """x [N, H, D] fp16/bf16 (fp32) to (packed [N, H, D // 2] uint8, high nibble = even coordinate; norms [N, H, 1] fp32). rotation_T_even and
    rotation_T_odd [D, D // 2]: the even and odd columns of rotation.T. out: (packed, norms) to write, of these shapes or flattened."""
    _need(x, "x", (None, None, None))
    torch = framework(x)
    n, heads, dim = x.shape
    _need(rotation_T_even, "rotation_T_even", (dim, dim // 2), "float")
    _need(rotation_T_odd, "rotation_T_odd", (dim, dim // 2), "float")
    if out is not None:
        if not isinstance(out, (tuple, list)) or len(out) != 2:
            raise UsageError("out must be (packed, norms)")
        _need(out[0], "out[0]", n * heads * dim // 2, "uint8", x)
        _need(out[1], "out[1]", n * heads, "float", x)

    def rotation() -> Any:
        both = torch.empty(dim, dim, dtype=torch.float32)
        both[0::2] = rotation_T_even.detach().cpu().T
        both[1::2] = rotation_T_odd.detach().cpu().T
        return both

    codec = _planes(tensor_device(x), _turboquant_vllm(_bits(boundaries, 1)), dim, (rotation_T_even, rotation_T_odd, boundaries), lambda: (rotation(), None, boundaries))
    codes = torch.empty(n * heads, 1, codec.code_bytes, dtype=torch.uint8, device=x.device)
    norms = torch.empty(n * heads, 1, dtype=torch.float32, device=x.device)
    codec.encode(x.reshape(n * heads, 1, dim), codes, norms)
    packed = _high_nibble_first(codes, codec.bits).reshape(n, heads, dim // 2)
    if out is not None:
        out[0].copy_(packed.reshape(out[0].shape))
        out[1].copy_(norms.reshape(out[1].shape))
        return out[0], out[1]
    return packed, norms.reshape(n, heads, 1)


def tq4_decompress(packed: Any, norms: Any, centroids: Any, dtype: Any = None, out: Any = None) -> Any:
    """packed [N, H, D // 2] uint8 and norms [N, H, 1] fp32 to [N, H, D] of dtype (torch.float16), left in rotated space."""
    _need(packed, "packed", (None, None, None), "uint8")
    torch = framework(packed)
    n, heads, half = packed.shape
    _need(norms, "norms", n * heads, "float", packed)
    if out is not None:
        _need(out, "out", n * heads * 2 * half, "float", packed)
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise DTypeError(f"dtype must be a torch.dtype, not {type(dtype).__name__}")
    codec = _planes(tensor_device(packed), _turboquant_vllm(_bits(centroids)), 2 * half, (centroids,), lambda: (None, centroids, None))
    target = out if out is not None and out.is_contiguous() else torch.empty(n, heads, 2 * half, dtype=dtype or torch.float16, device=packed.device)
    codec.decode_rotated(packed.reshape(n * heads, 1, half).contiguous(), norms.reshape(n * heads, 1).contiguous(), target.view(n * heads, 1, 2 * half))
    if out is not None and target is not out:
        out.copy_(target.reshape(out.shape))
        return out
    return target


# ---- behind them ------------------------------------------------------------------------------------------------------------------------------


def _need(x: Any, name: str, shape: tuple[int | None, ...] | int, kind: str = "", beside: Any = None) -> None:
    """x must be a torch tensor of that shape (None takes any size; an int: so many elements in any shape), of dtype "uint8" or any "float", on a
    device that is served: that of `beside` where given."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(x, torch.Tensor):
        raise DTypeError(f"{name} must be a torch tensor, not {type(x).__name__}")
    if isinstance(shape, int):
        if x.numel() != shape:
            raise ShapeError(f"{name} must hold {shape} elements, not shape {tuple(x.shape)}")
    elif x.ndim != len(shape) or any(want is not None and have != want for have, want in zip(x.shape, shape)):
        raise ShapeError(f"{name} must have shape ({', '.join('any' if want is None else str(want) for want in shape)}), not {tuple(x.shape)}")
    if (kind == "uint8" and x.dtype != torch.uint8) or (kind == "float" and not x.dtype.is_floating_point):
        raise DTypeError(f"{name} must be {kind}, not {x.dtype}")
    if beside is None:
        tensor_device(x)
    elif x.device != beside.device:
        raise DeviceError(f"{name} is on {x.device}, not on {beside.device} as the first argument is")


def _bits(table: Any, more: int = 0) -> int:
    """Bits of a codebook of len(table) centroids (or boundaries, with more = 1)."""
    _need(table, "the codebook", (None,), "float")
    count = int(table.shape[0]) + more
    if count not in (4, 8, 16):
        raise ShapeError(f"a codebook of 4, 8 or 16 centroids is needed, not {count}")
    return count.bit_length() - 1


def _turboquant_vllm(bits: int) -> str:
    """turboquant-vllm's spec; the tables are the caller's, so the rotation is an ordinary matrix."""
    members = spec_members("turboquant-vllm")
    for side in (members["k"], members["v"]):
        side.update(bits=bits, rotation="haar")
    return json.dumps(members)


_made: OrderedDict[tuple[Any, ...], tuple[Any, Any]] = OrderedDict()


def _cached(key: tuple[Any, ...], tensors: tuple[Any, ...], make: Any) -> Any:
    """make() once for the same tensors, unchanged (torch counts in-place changes); the last 64 are kept."""
    full = (*key, *((id(t), 0 if t.is_inference() else t._version) for t in tensors))
    found = _made.get(full)
    if found is not None and all(ref() is t for ref, t in zip(found[0], tensors)):
        return found[1]
    value = make()
    _made[full] = (tuple(weakref.ref(t) for t in tensors), value)
    while len(_made) > 64:
        _made.popitem(last=False)
    return value


def _host(tables: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
    """Tables as contiguous fp32 on the CPU."""
    if tables is None:
        return None
    return tuple(None if t is None else t.detach().float().cpu().contiguous() for t in tables)


def _pages(device: int | None, spec: str, layout: str, kv_heads: Any, dim: int, block_size: int, k_tables: Any, v_tables: Any, steps: tuple[int, ...]) -> Any:
    heads = integer(kv_heads, "num_kv_heads", 1)
    block, token, head = (*steps, 0, 0)[:3]

    def make() -> Any:
        arguments = (spec, layout, heads, dim, block_size, None, 0, _host(k_tables), _host(v_tables), block, token, head)
        with on_device(device):
            return (_core.Pages(*arguments) if device is None else _core.GpuPages(*arguments, device)), Workspaces()

    tensors = tuple(t for tables in (k_tables, v_tables) if tables is not None for t in tables if t is not None)
    for t in tensors:
        framework(t)
    return _cached((device, spec, layout, heads, dim, block_size, block, token, head), tensors, make)


def _attend(made: tuple[Any, Workspaces], q: Any, cache: Any, block_table: Any, seq_lens: Any, sm_scale: float | None, out: Any, lse: Any = None) -> Any:
    pages, workspaces = made
    torch = framework(q)
    scale = 0.0 if sm_scale is None else number(sm_scale, "sm_scale")
    device = tensor_device(q)
    if out is not None:
        _need(out, "out", tuple(q.shape), "float", q)
    target = out if out is not None and out.is_contiguous() and out.dtype == q.dtype else torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse3 = None if lse is None else lse[:, None]
    if device is None:
        pages.attend(cache, q[:, None], block_table, seq_lens, target[:, None], lse3, scale, 0, 0.0, None, None)
    else:
        _need(block_table, "block_table", (q.shape[0], None), beside=q)
        longest = int(block_table.shape[1]) * int(cache.shape[1])
        with on_device(device):
            workspace = workspaces.of((*q.shape, longest), device, lambda: pages.workspace_bytes(cache, q.shape[0], 1, q.shape[1], longest))
            pages.attend(cache, q.contiguous()[:, None], block_table, seq_lens, target[:, None], lse3, scale, 0, 0.0, None, None, longest, False, workspace)
    if out is not None and target is not out:
        out.copy_(target)
        return out
    return target


class _PlaneCodec:
    """One codec with tables of the caller's, on planes [n, heads, ...] of either device."""

    def __init__(self, device: int | None, spec: str, dim: int, tables: Any) -> None:
        members = json.loads(spec)
        self.bits, self.device = members["k"]["bits"], device
        self.code_bytes = dim * self.bits // 8
        host = _host(tables)
        with on_device(device):
            if device is None:
                self._codec: Any = _core.SideCodec(spec, "k", dim, None, 0, host)
            else:
                self._codec = _core.GpuCodec(spec, dim, None, 0, host, host if members["v"]["kind"] == "mse" else None, device)

    def encode(self, x: Any, codes: Any, norms: Any) -> None:
        if self.device is None:
            found = self._codec.encode(x, 1, False, 0)
            torch = framework(x)
            codes.copy_(torch.from_numpy(found[0]))
            norms.copy_(torch.from_numpy(found[1]))
        else:
            with on_device(self.device):
                self._codec.encode("k", x, (codes, norms, None, None, None), None)

    def decode_rotated(self, packed: Any, norms: Any, target: Any) -> None:
        if self.device is None:
            codes = _low_nibble_first(packed, self.bits)
            self._codec.decode((codes, norms.float(), None, None, None), target, 1, True, 0)
        else:
            with on_device(self.device):
                self._codec.decode("k", (packed, norms.float(), None, None, None), target, True, None, True)

    def decode(self, packed: Any, norms: Any, target: Any) -> None:
        """To original space, CPU only."""
        self._codec.decode((_low_nibble_first(packed, self.bits), norms.float(), None, None, None), target, 1, False, 0)


def _planes(device: int | None, spec: str, dim: int, tensors: tuple[Any, ...], tables: Any) -> _PlaneCodec:
    codec: _PlaneCodec = _cached(("planes", device, spec, dim), tensors, lambda: _PlaneCodec(device, spec, dim, tables()))
    return codec


def _codes_of(packed: Any) -> Any:
    """Indices [..., D] of nibbles, the high one first."""
    torch = framework(packed)
    return torch.stack([packed >> 4, packed & 15], -1).flatten(-2)


def _low_nibble_first(packed: Any, bits: int) -> Any:
    """turboquant-vllm's nibbles as tq4's code rows (LSB first; 2 and 3 bits are packed densely)."""
    if bits == 4:
        return (packed >> 4) | (packed << 4)
    torch = framework(packed)
    ones = (_codes_of(packed)[..., None] >> torch.arange(bits, dtype=torch.uint8, device=packed.device)) & 1
    groups = ones.flatten(-2).unflatten(-1, (-1, 8))
    return (groups << torch.arange(8, dtype=torch.uint8, device=packed.device)).sum(-1).to(torch.uint8)


def _high_nibble_first(codes: Any, bits: int) -> Any:
    """The inverse of _low_nibble_first."""
    if bits == 4:
        return (codes >> 4) | (codes << 4)
    torch = framework(codes)
    ones = ((codes[..., None] >> torch.arange(8, dtype=torch.uint8, device=codes.device)) & 1).flatten(-2)
    index = (ones.unflatten(-1, (-1, bits)) << torch.arange(bits, dtype=torch.uint8, device=codes.device)).sum(-1).to(torch.uint8)
    return (index[..., 0::2] << 4) | index[..., 1::2]


def _flash(q: Any, k_packed: Any, k_norms: Any, v: Any, v_norms: Any, centroids: Any, rotation: Any, sm_scale: float | None, is_causal: bool) -> Any:
    """Each kv head of each batch entry is a sequence of its own, so that packed tensors are read where they lie."""
    _need(q, "q", (None, None, None, None), "float")
    torch = framework(q)
    batch, q_heads, q_len, dim = q.shape
    half = dim // 2
    _need(k_packed, "k_packed", (batch, None, None, half), "uint8", q)
    heads, tokens = k_packed.shape[1:3]
    if heads == 0 or q_heads % heads:
        raise ShapeError(f"q of shape {tuple(q.shape)} does not fit packed keys of shape {tuple(k_packed.shape)}")
    _need(k_norms, "k_norms", batch * heads * tokens, "float", q)
    if v_norms is None:
        _need(v, "v", (batch, heads, tokens, dim), "float", q)
    else:
        _need(v, "v_packed", (batch, heads, tokens, half), "uint8", q)
        _need(v_norms, "v_norms", batch * heads * tokens, "float", q)
    _need(rotation, "rotation", (dim, dim), "float")
    causal_rows = boolean(is_causal, "is_causal")
    scale = 1.0 / math.sqrt(dim) if sm_scale is None else number(sm_scale, "sm_scale")
    group = q_heads // heads
    # [batch * heads, q_len, group, D]: the group's queries of a token side by side
    rows = q.reshape(batch, heads, group, q_len, dim).permute(0, 1, 3, 2, 4).reshape(batch * heads, q_len, group, dim).contiguous()
    parts = []
    if causal_rows and q_len > 1:  # query i sees keys 0..i; those past the last key see all
        seen = min(q_len, tokens)
        parts.append((rows[:, :seen], seen, True))
        if seen < q_len:
            parts.append((rows[:, seen:], tokens, False))
    else:
        parts.append((rows, tokens, False))
    outs = [_flash_part(part.contiguous(), count, causal, k_packed, k_norms, v, v_norms, centroids, rotation, scale) for part, count, causal in parts]
    out = outs[0] if len(outs) == 1 else torch.cat(outs, 1)
    return out.reshape(batch, heads, q_len, group, dim).permute(0, 1, 3, 2, 4).reshape(batch, q_heads, q_len, dim)


def _flash_part(rows: Any, tokens: int, causal: bool, k_packed: Any, k_norms: Any, v: Any, v_norms: Any, centroids: Any, rotation: Any, scale: float) -> Any:
    torch = framework(rows)
    device = tensor_device(rows)
    batch, heads, _, half = k_packed.shape
    sequences, dim = batch * heads, 2 * half
    bits = _bits(centroids)
    members = json.loads(_turboquant_vllm(bits))
    if v_norms is None:
        members["v"] = spec_members("fp16")["v"]
    spec = json.dumps(members)
    codec = _planes(device, spec, dim, (rotation, centroids), lambda: (rotation, centroids, None))

    def packed_of(x: Any) -> Any:
        return x[:, :, :tokens].reshape(sequences * tokens, 1, half)

    def norms_of(x: Any) -> Any:
        return x.reshape(batch, heads, -1)[:, :, :tokens].reshape(sequences * tokens, 1).float().contiguous()

    if device is None:
        keys, values = (torch.empty(sequences * tokens, 1, dim) for _ in "kv")
        codec.decode(packed_of(k_packed), norms_of(k_norms), keys)
        if v_norms is None:
            values.copy_(v[:, :, :tokens].reshape(values.shape))
        else:
            codec.decode(packed_of(v), norms_of(v_norms), values)
        out = torch.empty(rows.shape)
        _core.reference_attention(rows.float(), keys.view(sequences, 1, tokens, dim), values.view(sequences, 1, tokens, dim), out, None, scale, bool(causal), 0, 0.0)
        return out.to(rows.dtype)
    k_codes = _low_nibble_first(packed_of(k_packed), bits).contiguous()
    if v_norms is None:
        v_codes = v[:, :, :tokens].to(torch.float16).contiguous().view(torch.uint8).reshape(sequences * tokens, 1, 2 * dim)
    else:
        v_codes = _low_nibble_first(packed_of(v), bits).contiguous()
    with on_device(device):
        core = codec._codec
        out = torch.empty_like(rows)
        room = torch.empty(max(core.workspace_bytes(sequences, tokens), 256), dtype=torch.uint8, device=rows.device)
        ends = torch.arange(sequences + 1, dtype=torch.int32, device=rows.device)
        core.attend(rows, k_codes, norms_of(k_norms), v_codes, None if v_norms is None else norms_of(v_norms), ends * rows.shape[1], ends * tokens, tokens, out, bool(causal), scale, room)
    return out
