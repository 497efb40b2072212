"""PagedCache: compressed keys and values in pages, as serving engines keep them. On CPU tensors through the library's reference, on CUDA
tensors through its kernels, on the caller's current stream."""

from __future__ import annotations

import json
from typing import Any, Mapping

from . import _core
from ._checks import choice, integer, number
from ._codec import Codec, as_calibration, codec_spec
from ._errors import DTypeError, Error, OperationError, ShapeError, UnsupportedError, UsageError
from ._frameworks import Workspaces, device_index, framework, on_device, strides, tensor_device, zero_bytes

LAYOUTS = ("native", "turboquant-vllm", "vllm")


class PagedCache:
    """Pages of compressed keys and values of one layer: `data` is uint8 [num_blocks, ...], slot s is token s % block_size of block s // block_size.

    spec, rotation, seed, codebook, scale_rule, scale_dtype, calibration and layer are as for tq4.Codec (a Codec serves as spec too); sinks and
    window must be 0: pages hold compressed tokens only. layout: "native" (what the fused CUDA kernel reads fastest), "turboquant-vllm" or "vllm"
    (those projects' bytes). data: pages the caller owns (any strides that the layout can have); otherwise they are allocated on `device`.
    """

    def __init__(
        self,
        spec: str | Mapping[str, Any] | Codec,
        num_kv_heads: int,
        head_dim: int,
        num_blocks: int | None = None,
        *,
        block_size: int = 16,
        layout: str = "native",
        device: Any = "cpu",
        data: Any = None,
        calibration: Any = None,
        layer: int = 0,
        **changes: Any,
    ) -> None:
        if isinstance(spec, Codec):
            calibration = spec.calibration if calibration is None else calibration
            spec = spec.spec
        self._spec_json = codec_spec(spec, **changes)
        members = json.loads(self._spec_json)
        if members["sinks"] or members["window"]:
            raise UnsupportedError("pages hold compressed tokens only: sinks and window must be 0 (tq4.hf.TQ4Cache keeps exact tokens)")
        self.num_kv_heads, self.head_dim = integer(num_kv_heads, "num_kv_heads", 1, 2**16), integer(head_dim, "head_dim")
        self.block_size = integer(block_size, "block_size", 1, 2**20)
        self.layout = choice(layout, "layout", LAYOUTS)
        self.device = device_index(device) if data is None else tensor_device(data)
        block, token, head = (0, 0, 0) if data is None else self._strides_of(data)
        arguments = (self._spec_json, self.layout, self.num_kv_heads, self.head_dim, self.block_size, as_calibration(calibration), integer(layer, "layer"))
        with on_device(self.device):
            if self.device is None:
                self._pages: Any = _core.Pages(*arguments, None, None, block, token, head)
            else:
                self._pages = _core.GpuPages(*arguments, None, None, block, token, head, self.device)
        if data is None:
            if num_blocks is None:
                raise UsageError("give num_blocks or data")
            data = zero_bytes((integer(num_blocks, "num_blocks", 1, 2**31 - 1), self._pages.block_bytes), self.device)
        elif num_blocks is not None and integer(num_blocks, "num_blocks") != data.shape[0]:
            raise ShapeError(f"data has {data.shape[0]} blocks, not num_blocks = {num_blocks}")
        self.data = data
        self.num_blocks = int(data.shape[0])
        self._workspaces = Workspaces()

    def _strides_of(self, data: Any) -> tuple[int, int, int]:
        """Bytes from block to block, token to token, head to head."""
        if str(data.dtype) not in ("uint8", "torch.uint8"):
            raise DTypeError(f"data must be uint8, not {data.dtype}")
        axes = {"native": 2, "turboquant-vllm": 3, "vllm": 4}[self.layout]
        if len(data.shape) != axes:
            raise ShapeError(f"data of layout {self.layout} has {axes} axes, not shape {tuple(data.shape)}")
        step = strides(data)
        if step[-1] != 1:
            raise ShapeError("bytes along the last axis of data must lie side by side")
        if self.layout != "native" and data.shape[1] != self.block_size:
            raise ShapeError(f"data has {data.shape[1]} tokens a block, not block_size = {self.block_size}")
        if self.layout == "vllm" and data.shape[2] != self.num_kv_heads:
            raise ShapeError(f"data has {data.shape[2]} kv heads, not {self.num_kv_heads}")
        return step[0], step[1] if axes > 2 else 0, step[2] if axes > 3 else 0

    @property
    def spec(self) -> dict[str, Any]:
        members: dict[str, Any] = json.loads(self._spec_json)
        return members

    @property
    def block_bytes(self) -> int:
        """Bytes from block to block."""
        return int(self._pages.block_bytes)

    @property
    def token_bytes(self) -> int:
        """Bytes of codes and scales a token takes, keys and values of all heads together."""
        return int(self._pages.token_head_bytes) * self.num_kv_heads

    def append(self, k: Any, v: Any, slot_mapping: Any, *, positions: Any = None, stream: int | None = None) -> None:
        """Encode k, v [n, num_kv_heads, head_dim] (fp16, bf16, fp32; any strides with contiguous vectors) into the slots of slot_mapping [n]
        int64; negative slots are skipped. positions [n] int64: for calibrations that centre keys before RoPE. Slots past the pages are a
        UsageError on the CPU; on a GPU, where the host does not see them, they are skipped."""
        if self.device is None:
            self._pages.append(self.data, k, v, slot_mapping, positions)
        else:
            with on_device(self.device):
                self._pages.append(self.data, k, v, slot_mapping, positions, stream)

    def attend(
        self,
        q: Any,
        block_table: Any,
        seq_lens: Any,
        out: Any = None,
        lse: Any = None,
        *,
        sm_scale: float | None = None,
        window: int = 0,
        soft_cap: float = 0.0,
        alibi_slopes: Any = None,
        sink_logits: Any = None,
        max_seq_len: int | None = None,
        stream: int | None = None,
    ) -> Any:
        """Attention of q [num_seqs, num_q_heads, head_dim], or [num_seqs, q_len, num_q_heads, head_dim] with the last q_len tokens of each
        sequence (causal among themselves; at most 16 on a GPU), over the first seq_lens [num_seqs] tokens of the pages in block_table
        [num_seqs, max_blocks] (both int32).

        out: like q, is written and returned; lse: float32 of q's shape without head_dim, takes the natural log of the sum of exponentials.
        sm_scale: default 1 / sqrt(head_dim). window: the last `window` keys up to a query's own position. soft_cap: logits become
        cap * tanh(logit / cap). alibi_slopes, sink_logits: [num_q_heads] float32. max_seq_len: an upper bound of seq_lens that holds as long
        as a captured CUDA graph is replayed; default what the block table has room for. On a GPU, calls of one shape share scratch memory: they
        must not run at the same time on several streams.
        """
        shape = tuple(getattr(q, "shape", ()))
        if len(shape) not in (3, 4):
            raise ShapeError("q must be [num_seqs, num_q_heads, head_dim] or [num_seqs, q_len, num_q_heads, head_dim]")
        if out is None:
            out = framework(q).empty_like(q)
        scale = 0.0 if sm_scale is None else number(sm_scale, "sm_scale")
        last, cap = integer(window, "window", 0), number(soft_cap, "soft_cap")
        if self.device is None:
            self._pages.attend(self.data, q, block_table, seq_lens, out, lse, scale, last, cap, alibi_slopes, sink_logits)
            return out
        if max_seq_len is None:
            columns: tuple[int, ...] = getattr(block_table, "shape", ())
            max_seq_len = columns[1] * self.block_size if len(columns) == 2 else 0
        key = (*shape[:-1], max_seq_len)
        # The fused kernel's counters lie where the general path keeps partial results: a workspace serves one of them.
        general = cap != 0 or alibi_slopes is not None or sink_logits is not None
        with on_device(self.device):
            workspace = self._workspaces.of((*key, general), self.device, lambda: self._workspace_bytes(key))
            self._pages.attend(self.data, q, block_table, seq_lens, out, lse, scale, last, cap, alibi_slopes, sink_logits, max_seq_len, False, workspace, stream)
        return out

    def _workspace_bytes(self, key: tuple[int, ...]) -> int:
        num_seqs, *middle, heads, longest = (integer(size, "q's shape or max_seq_len", 0) for size in key)
        return int(self._pages.workspace_bytes(self.data, num_seqs, middle[0] if middle else 1, heads, longest))

    def path(self, num_seqs: int, num_q_heads: int, q_len: int = 1, max_seq_len: int = 1) -> str:
        """What attend runs: "reference" on the CPU, "fused-sm90", "slots-sm90" or "general" on a GPU."""
        if self.device is None:
            return "reference"
        return str(self._pages.path(self.data, integer(num_seqs, "num_seqs", 1), integer(q_len, "q_len", 1), integer(num_q_heads, "num_q_heads", 1), integer(max_seq_len, "max_seq_len", 1)))

    def dequant(
        self,
        block_table: Any,
        seq_lens: Any,
        max_seq_len: int | None = None,
        *,
        dtype: Any = None,
        rotated: bool = False,
        k_out: Any = None,
        v_out: Any = None,
        stream: int | None = None,
    ) -> tuple[Any, Any]:
        """Keys and values of each sequence, [num_seqs, num_kv_heads, max_seq_len, head_dim] of `dtype` (float16 by default) in the framework of
        seq_lens; rows past a sequence's end are 0. rotated: leave them in the codec's rotated space. k_out, v_out: tensors to write instead
        (their rows past the end are left alone)."""
        if (k_out is None) != (v_out is None):
            raise UsageError("give both k_out and v_out, or neither")
        if k_out is None:
            k_out, v_out = (self._rows(seq_lens, max_seq_len, dtype) for _ in "kv")
        if self.device is None:
            self._pages.dequant(self.data, block_table, seq_lens, k_out, v_out, bool(rotated))
        else:
            with on_device(self.device):
                self._pages.dequant(self.data, block_table, seq_lens, k_out, v_out, bool(rotated), stream)
        return k_out, v_out

    def _rows(self, seq_lens: Any, max_seq_len: int | None, dtype: Any) -> Any:
        """Zeros [num_seqs, num_kv_heads, max_seq_len, head_dim] beside seq_lens."""
        module = framework(seq_lens)
        if len(seq_lens.shape) != 1:
            raise ShapeError(f"seq_lens must have one axis, not shape {tuple(seq_lens.shape)}")
        try:
            longest = (int(seq_lens.max()) if seq_lens.shape[0] else 0) if max_seq_len is None else integer(max_seq_len, "max_seq_len", 0)
            shape = (int(seq_lens.shape[0]), self.num_kv_heads, max(longest, 0), self.head_dim)
            place = {"device": seq_lens.device} if module.__name__ == "torch" else {}
            return module.zeros(shape, dtype=module.float16 if dtype is None else dtype, **place)
        except MemoryError as error:
            raise OperationError(f"no memory for {shape}: {error}") from None
        except (TypeError, ValueError, RuntimeError) as error:
            raise error if isinstance(error, Error) else DTypeError(f"dtype {dtype!r}, seq_lens of {seq_lens.dtype}: {error}") from None

    def __repr__(self) -> str:
        place = "cpu" if self.device is None else f"cuda:{self.device}"
        return f"tq4.PagedCache({_core.spec_name(self._spec_json)!r}, {self.num_blocks} blocks of {self.block_size} tokens, {self.token_bytes} B a token, {self.layout}, {place})"
