"""TQ4Cache: a compressed Hugging Face cache for model.generate(past_key_values=...).

    import tq4.hf
    cache = tq4.hf.TQ4Cache(model, "k4v4", sinks=4, window=64)
    model.set_attn_implementation("tq4")            # optional: attends to codes on a GPU; without it layers are decoded when they are attended to
    model.generate(**inputs, past_key_values=cache)

Between steps only codes and scales (and the exact sinks and window) are in memory. On CUDA with the "tq4" attention, decode steps run the fused
kernel on the codes; otherwise one layer at a time is decoded for its attention and dropped again. Needs torch and transformers 5; importing this
module registers the attention function "tq4".
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from ._checks import choice, integer
from ._codec import Codec, as_calibration, codec_spec
from ._errors import ShapeError, UnsupportedError, UsageError
from ._hf_stores import HostStore, PageStore

__all__ = ["STEP_TOKENS", "TQ4Cache", "TQ4Layer", "tq4_attention"]

STEP_TOKENS = 16
"""A forward pass of at most this many new tokens is a decode step: the new tokens, too, are attended to as the cache holds them."""


class _Settings:
    """What the layers of one cache share."""

    def __init__(self, config: Any, spec_json: str, calibration: Any, sinks: int, window: int, prefill: str, threads: int) -> None:
        self.config, self.spec_json, self.calibration = config, spec_json, calibration
        self.sinks, self.window, self.prefill, self.threads = sinks, window, prefill, threads

    @property
    def own_attention(self) -> bool:
        return getattr(self.config, "_attn_implementation", None) == "tq4"


class TQ4Layer(CacheLayerMixin):
    """One layer: tokens below `sinks` exact, then compressed ones, then at most `window` exact ones. A sliding-window layer forgets what its
    window has passed. Positions count from the first token given to the cache, padding included."""

    is_croppable = True
    supports_early_init = False

    def __init__(self, settings: _Settings, number: int, sliding_window: int | None = None) -> None:
        super().__init__()
        self._settings, self.number, self.sliding_window = settings, number, sliding_window
        self.is_sliding = sliding_window is not None
        self._forget()

    def _forget(self) -> None:
        self.is_initialized = False
        self.cumulative_length = 0
        self._store: Any = None
        self._sinks: list[torch.Tensor] = []
        self._tail: list[torch.Tensor] = []

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        if key_states.ndim != 4 or value_states.shape[:3] != key_states.shape[:3]:
            raise ShapeError(f"keys and values must be [batch, heads, tokens, head_dim], not {tuple(key_states.shape)} and {tuple(value_states.shape)}")
        self.dtype, self.device = key_states.dtype, key_states.device
        if self.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise UnsupportedError(f"keys of {self.dtype} are not served: float32, float16 and bfloat16 are")
        self._exact_dtype = self.dtype if self.dtype != torch.float32 else torch.float16
        kind = PageStore if self.device.type == "cuda" else HostStore
        if self.device.type not in ("cpu", "cuda"):
            raise UnsupportedError(f"a cache on {self.device.type} is not served: cpu and cuda are")
        self._store = kind(self._settings, self.number, key_states, value_states, self.sliding_window)
        empty = [x[:, :, :0].to(self._exact_dtype) for x in (key_states, value_states)]
        self._sinks, self._tail = list(empty), list(empty)
        self.is_initialized = True

    # ---- a forward pass

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if key_states.shape[0] != self._store.batch:
            raise ShapeError(f"a batch of {key_states.shape[0]} given to a cache of {self._store.batch} sequences")
        new = [key_states.detach(), value_states.detach()]
        count, before = key_states.shape[-2], self.cumulative_length
        first = 0 if self.sliding_window is None else max(before - self.sliding_window + 1, 0)
        exactly = count > STEP_TOKENS and self._settings.prefill == "exact"
        if exactly:
            seen = [torch.cat([old, x], 2) for old, x in zip(self._visible(first), new)] if before else new
            self._append(new)
            self._trim(before + count)
            return seen[0], seen[1]
        if self.sliding_window is not None and self._store.attends and count > self._store.BLOCK:
            raise UnsupportedError(f'prefill="stored" on a GPU takes at most {self._store.BLOCK} tokens at a time through sliding-window layers')
        mixed = count > 1 and self._settings.window > 0 and self._settings.own_attention
        exact_before = self._visible(first) if mixed else None
        self._append(new)
        if mixed:
            view = _View.of(key_states)
            view.tq4 = _Mixed(self, exact_before, new, first)  # type: ignore[attr-defined]
        elif self._serves_codes(count):
            view = _View.of(key_states)
            view.tq4 = _Codes(self, first)  # type: ignore[attr-defined]
        else:
            seen = self._visible(first)
            self._trim(before + count)
            return seen[0], seen[1]
        return view, view

    def _serves_codes(self, count: int) -> bool:
        exact = self._settings.sinks > 0 or self._settings.window > 0
        return self._settings.own_attention and not exact and count <= STEP_TOKENS and self._store.attends and self.dtype != torch.float32

    def _append(self, new: list[torch.Tensor]) -> None:
        """Sinks fill first, then the exact tail; what the tail has no room for is compressed."""
        if self.cumulative_length < self._settings.sinks:
            room = self._settings.sinks - self.cumulative_length
            self._sinks = [torch.cat([old, x[:, :, :room].to(self._exact_dtype)], 2) for old, x in zip(self._sinks, new)]
            rest = [x[:, :, room:] for x in new]
        else:
            rest = new
        self.cumulative_length += new[0].shape[2]
        if self._settings.window == 0:
            if rest[0].shape[2]:
                self._store.append(rest[0], rest[1], self.cumulative_length - rest[0].shape[2])
            return
        kept = [torch.cat([old, x.to(self._exact_dtype)], 2) for old, x in zip(self._tail, rest)]
        leaving = kept[0].shape[2] - self._settings.window
        if leaving > 0:
            self._store.append(kept[0][:, :, :leaving], kept[1][:, :, :leaving], self.cumulative_length - kept[0].shape[2])
            kept = [x[:, :, leaving:].clone() for x in kept]
        self._tail = kept

    def _visible(self, first: int) -> list[torch.Tensor]:
        """Keys and values from token `first` on, in the model's dtype: sinks, decoded codes, exact tail."""
        sinks, tail = self._sinks[0].shape[2], self._tail[0].shape[2]
        coded = self.cumulative_length - tail
        parts: list[list[torch.Tensor]] = [[], []]
        if first < sinks:
            for side in (0, 1):
                parts[side].append(self._sinks[side][:, :, first:].to(self.dtype))
        begin = max(first, sinks)
        if begin < coded:
            for side, x in enumerate(self._store.gather(begin, coded, self.dtype)):
                parts[side].append(x)
        if tail:
            for side in (0, 1):
                parts[side].append(self._tail[side][:, :, max(first - coded, 0) :].to(self.dtype))
        return [torch.cat(pieces, 2) if len(pieces) > 1 else pieces[0] if pieces else self._sinks[side][:, :, :0].to(self.dtype) for side, pieces in enumerate(parts)]

    def _trim(self, length: int) -> None:
        """A sliding layer's codes that no later query sees go."""
        if self.sliding_window is not None:
            self._store.forget_before(length - self.sliding_window + 1)

    # ---- what transformers asks

    def get_seq_length(self) -> int:
        return self.cumulative_length

    def get_max_length(self) -> int:
        return -1 if self.sliding_window is None else self.sliding_window

    get_max_cache_shape = get_max_length

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        if isinstance(query_length, torch.Tensor):  # older versions of transformers give the positions of the queries
            query_length = query_length.shape[0]
        if self.sliding_window is None:
            return self.cumulative_length + query_length, 0
        offset = max(self.cumulative_length - self.sliding_window + 1, 0)
        return self.cumulative_length - offset + query_length, offset

    def reset(self) -> None:
        self._forget()

    def crop(self, tokens_to_remove: int) -> None:
        """Drop the last tokens (a negative number). The exact window is as short as what is left of it until new tokens fill it."""
        count = abs(integer(tokens_to_remove, "tokens_to_remove"))
        if count == 0 or not self.is_initialized:
            return
        if tokens_to_remove > 0 or count > self.cumulative_length:
            raise UsageError(f"crop takes minus the number of tokens to drop, at most {self.cumulative_length}, not {tokens_to_remove}")
        if self.sliding_window is not None and self.cumulative_length >= self.sliding_window:
            raise UnsupportedError("a sliding-window layer past its window has forgotten what cropping would bring back")
        self.cumulative_length -= count
        tail = min(count, self._tail[0].shape[2])
        self._tail = [x[:, :, : x.shape[2] - tail] for x in self._tail]
        self._sinks = [x[:, :, : self.cumulative_length] for x in self._sinks]
        self._store.crop(max(self.cumulative_length - self._tail[0].shape[2], self._sinks[0].shape[2]))

    def _batch(self, index: torch.Tensor) -> None:
        if self.is_initialized and self.cumulative_length:
            here = index.to(self.device)
            self._store.select(here)
            self._sinks = [x.index_select(0, here) for x in self._sinks]
            self._tail = [x.index_select(0, here) for x in self._tail]

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self._batch(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._batch(torch.arange(self._store.batch, device=indices.device)[indices] if self.is_initialized else indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.is_initialized:
            self._batch(torch.arange(self._store.batch).repeat_interleave(repeats))

    def offload(self) -> None:
        raise UnsupportedError("a compressed layer is not offloaded")

    @property
    def nbytes(self) -> int:
        """Bytes held between steps: codes, scales and exact tokens (buffers' spare room included)."""
        if not self.is_initialized:
            return 0
        return self._store.nbytes + sum(x.nbytes for x in (*self._sinks, *self._tail))


class TQ4Cache(Cache):
    """A cache whose attention layers keep keys and values compressed.

    model: the model, or its config. spec, calibration: as for tq4.Codec; a calibration's layer numbers are the model's. sinks, window: tokens kept
    exact at the beginning and the end (fp16, or bf16 in a bf16 model), instead of the spec's. skip_layers: numbers of layers to leave uncompressed.
    prefill: whether a forward pass of more than STEP_TOKENS tokens attends to those tokens themselves "exact" (as they are) or as "stored" (what
    decoding them one by one would see). threads: for encoding and decoding on the CPU; 0 = all cores.
    """

    def __init__(
        self,
        model: Any,
        spec: Any = "k4v4",
        *,
        calibration: Any = None,
        sinks: int | None = None,
        window: int | None = None,
        skip_layers: Iterable[int] = (),
        prefill: str = "exact",
        threads: int = 0,
    ) -> None:
        config = getattr(model, "config", model)
        if not hasattr(config, "get_text_config"):
            raise UsageError(f"TQ4Cache is made for a transformers model or its config, not {type(model).__name__}")
        if isinstance(spec, Codec):
            calibration = spec.calibration if calibration is None else calibration
            spec = spec.spec
        members = json.loads(codec_spec(spec))
        exact = [integer(members[name] if given is None else given, name, 0) for name, given in (("sinks", sinks), ("window", window))]
        members.update(sinks=0, window=0)
        text = config.get_text_config(decoder=True)
        self._settings = _Settings(text, json.dumps(members), as_calibration(calibration), *exact, choice(prefill, "prefill", ("exact", "stored")), integer(threads, "threads", 0, 4096))
        layers: list[Any] = list(DynamicCache(config=config).layers)
        if not layers:
            layers = [DynamicLayer() for _ in range(text.num_hidden_layers)]
        if not isinstance(skip_layers, Iterable):
            raise UsageError(f"skip_layers must be numbers of layers, not {type(skip_layers).__name__}")
        skipped = {integer(number, "skip_layers", -len(layers), len(layers) - 1) % len(layers) for number in skip_layers}
        for number, layer in enumerate(layers):
            if number in skipped:
                continue
            if type(layer) is DynamicSlidingWindowLayer:
                layers[number] = TQ4Layer(self._settings, number, layer.sliding_window)
            elif type(layer) is DynamicLayer:
                layers[number] = TQ4Layer(self._settings, number)
        super().__init__(layers=layers)

    @property
    def nbytes(self) -> int:
        """Bytes of all layers between steps."""
        return sum(layer.nbytes if isinstance(layer, TQ4Layer) else _plain_bytes(layer) for layer in self.layers)

    def __repr__(self) -> str:
        compressed = sum(isinstance(layer, TQ4Layer) for layer in self.layers)
        return f"tq4.hf.TQ4Cache({compressed} of {len(self.layers)} layers compressed, {self.get_seq_length()} tokens, {self.nbytes} B)"


def _plain_bytes(layer: Any) -> int:
    return sum(x.nbytes for x in (getattr(layer, "keys", None), getattr(layer, "values", None)) if isinstance(x, torch.Tensor))


class _View(torch.Tensor):
    """What update() returns where the "tq4" attention is to read codes: a stand-in that only tq4_attention understands. A model that computes with
    it (another attention, a change to the keys in between) is told so instead of silently attending to the new tokens alone."""

    @staticmethod
    def of(x: torch.Tensor) -> Any:
        return torch.Tensor._make_subclass(_View, x.detach())

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("__get__", "dim", "size", "__len__"):
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        raise UnsupportedError(
            f"this model's attention calls {getattr(func, '__name__', func)} on the cache's keys before the attention function: use another attn_implementation than \"tq4\"; TQ4Cache then gives it decoded keys"
        )


class _Codes:
    """Attend to the codes where they lie."""

    def __init__(self, layer: TQ4Layer, first: int) -> None:
        self.layer, self.first = layer, first

    def attend(self, query: torch.Tensor, mask: torch.Tensor | None, scaling: float | None, options: dict[str, Any], plain: Any) -> torch.Tensor:
        layer = self.layer
        if mask is None:
            out = layer._store.attend(query, scaling, layer.cumulative_length, layer.sliding_window or 0, options.get("softcap"), options.get("s_aux"))
        else:
            out = plain(*layer._visible(self.first), mask)
        layer._trim(layer.cumulative_length)
        return out


class _Mixed:
    """Several queries at once with an exact window: query i sees the last `window` tokens up to itself and the sinks exactly, others decoded."""

    def __init__(self, layer: TQ4Layer, before: list[torch.Tensor], new: list[torch.Tensor], first: int) -> None:
        self.layer, self.first = layer, first
        self.exact = [torch.cat([old, x], 2) for old, x in zip(before, new)]

    def attend(self, query: torch.Tensor, mask: torch.Tensor | None, scaling: float | None, options: dict[str, Any], plain: Any) -> torch.Tensor:
        layer, settings = self.layer, self.layer._settings
        stored = layer._visible(self.first)  # the tail is exact here too: no query of this pass sees it decoded
        batch, heads, count, dim = query.shape
        kv_heads, keys = stored[0].shape[1], stored[0].shape[2]
        scale = scaling if scaling is not None else dim**-0.5
        positions = torch.arange(layer.cumulative_length - count, layer.cumulative_length, device=query.device)[:, None]
        tokens = torch.arange(self.first, layer.cumulative_length, device=query.device)[None]
        grouped = query.reshape(batch, kv_heads, heads // kv_heads, count, dim)
        out = torch.empty(batch, kv_heads, heads // kv_heads, count, stored[1].shape[3], dtype=query.dtype, device=query.device)
        for begin in range(0, count, 512):
            rows = slice(begin, min(begin + 512, count))
            exact = (tokens > positions[rows] - settings.window) | (tokens < settings.sinks)
            allowed = tokens <= positions[rows]
            if layer.sliding_window is not None:
                allowed = allowed & (tokens > positions[rows] - layer.sliding_window)
            q = grouped[:, :, :, rows]
            logits = torch.where(exact, *(torch.einsum("bhgqd,bhkd->bhgqk", q, k) for k in (self.exact[0], stored[0]))) * scale
            if mask is not None:
                seen = mask[:, :, rows, :keys] if mask.dtype == torch.bool else mask[:, :, rows, :keys] > torch.finfo(mask.dtype).min / 2
                allowed = allowed & seen[:, :, None]
            p = _softmax(logits, allowed, options, heads).to(query.dtype)
            out[:, :, :, rows] = torch.einsum("bhgqk,bhkd->bhgqd", p * exact, self.exact[1]) + torch.einsum("bhgqk,bhkd->bhgqd", p * ~exact, stored[1])
        layer._trim(layer.cumulative_length)
        return out.reshape(batch, heads, count, -1).transpose(1, 2)


def _softmax(logits: torch.Tensor, allowed: torch.Tensor, options: dict[str, Any], heads: int) -> torch.Tensor:
    """Over the last axis of [batch, kv_heads, group, queries, keys], with soft cap and learned sink logits."""
    logits = logits.float()
    if options.get("softcap"):
        logits = options["softcap"] * torch.tanh(logits / options["softcap"])
    logits = logits.masked_fill(~allowed, torch.finfo(torch.float32).min)
    if options.get("s_aux") is None:
        return torch.softmax(logits, -1)
    sinks = options["s_aux"].float().reshape(1, logits.shape[1], logits.shape[2], 1, 1).expand(*logits.shape[:-1], 1)
    return torch.softmax(torch.cat([logits, sinks], -1), -1)[..., :-1]


def tq4_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function registered as "tq4": over codes where a TQ4Cache handed them out, otherwise torch's scaled_dot_product_attention (or
    plain softmax where a soft cap or learned sink logits are asked for). Returns [batch, queries, heads, head_dim]."""
    options = {name: kwargs.get(name) for name in ("softcap", "s_aux")}

    def plain(keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        if all(option is None for option in options.values()):
            return sdpa_attention_forward(module, query, keys, values, mask, dropout=dropout, scaling=scaling, is_causal=kwargs.get("is_causal"))[0]
        batch, heads, count, dim = query.shape
        kv_heads, tokens = keys.shape[1], keys.shape[2]
        rows, columns = torch.arange(tokens - count, tokens, device=query.device)[:, None], torch.arange(tokens, device=query.device)[None]
        causal = columns <= rows if mask is None and count > 1 else torch.ones(count, tokens, dtype=torch.bool, device=query.device)
        allowed = causal if mask is None else (mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2)[:, :, None]
        logits = torch.einsum("bhgqd,bhkd->bhgqk", query.reshape(batch, kv_heads, heads // kv_heads, count, dim), keys)
        p = _softmax(logits * (scaling if scaling is not None else dim**-0.5), allowed, options, heads).to(query.dtype)
        return torch.einsum("bhgqk,bhkd->bhgqd", p, values).reshape(batch, heads, count, -1).transpose(1, 2)

    if isinstance(key, _View):
        return key.tq4.attend(query, attention_mask, scaling, options, plain), None
    return plain(key, value, attention_mask), None


def tq4_mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """sdpa's mask, and none where a single query sees every key that its layer returns: the case that runs on codes."""
    padding = kwargs.get("attention_mask")
    if kwargs.get("q_length") == 1 and kwargs.get("allow_is_causal_skip", True) and not kwargs.get("use_vmap", False) and (padding is None or bool(padding.all())):
        return None
    return sdpa_mask(*args, **kwargs)


AttentionInterface.register("tq4", tq4_attention)
AttentionMaskInterface.register("tq4", tq4_mask)
