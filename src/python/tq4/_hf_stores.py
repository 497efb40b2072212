"""Where a TQ4Cache layer keeps its codes: HostStore in planes on the CPU, PageStore in pages on a CUDA device. Both hold tokens by their position
in the sequence, [batch, kv_heads, tokens, head_dim], and know nothing of sinks and windows."""

from __future__ import annotations

from typing import Any

import torch

from ._codec import Codec
from ._errors import ShapeError, UnsupportedError
from ._pages import PagedCache


class HostStore:
    """Planes [batch, kv_heads, capacity, ...] of each side that grow by half; encoded and decoded by tq4.Codec."""

    attends = False

    def __init__(self, settings: Any, layer: int, keys: torch.Tensor, values: torch.Tensor, sliding_window: int | None) -> None:
        self.batch = keys.shape[0]
        self._heads = (keys.shape[1], values.shape[1])
        self._dims = (keys.shape[3], values.shape[3])
        self._codecs = [Codec(settings.spec_json, dim, calibration=settings.calibration, layer=layer, threads=settings.threads) for dim in self._dims]
        self._planes: list[list[torch.Tensor | None]] = [[], []]
        self._base = 0  # position of the first token held
        self._count = 0

    def append(self, k: torch.Tensor, v: torch.Tensor, first: int) -> None:
        if self._count == 0:
            self._base = first
        if first != self._base + self._count:
            raise ShapeError(f"token {first} does not follow token {self._base + self._count - 1}")
        for side, x in enumerate((k, v)):
            count = x.shape[2]
            if x.stride(-1) != 1:
                x = x.contiguous()
            for b in range(self.batch):
                encoded = self._codecs[side].encode(x[b], "kv"[side], position0=first)
                for index, plane in enumerate(encoded.planes):
                    if b == 0:
                        self._reserve(side, index, None if plane is None else torch.from_numpy(plane), self._count + count)
                    if plane is not None:
                        self._planes[side][index][b, :, self._count : self._count + count] = torch.from_numpy(plane)  # type: ignore[index]
        self._count += k.shape[2]

    def _reserve(self, side: int, index: int, like: torch.Tensor | None, needed: int) -> None:
        planes = self._planes[side]
        if index == len(planes):
            planes.append(None if like is None else torch.empty(self.batch, like.shape[0], needed, *like.shape[2:], dtype=like.dtype))
        plane = planes[index]
        if plane is not None and plane.shape[2] < needed:
            larger = torch.empty(self.batch, plane.shape[1], needed + needed // 2 + 16, *plane.shape[3:], dtype=plane.dtype)
            larger[:, :, : self._count] = plane[:, :, : self._count]
            planes[index] = larger

    def gather(self, begin: int, end: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens begin..end decoded to original space."""
        a, b = begin - self._base, end - self._base
        results = []
        for side in (0, 1):
            out = torch.empty(self.batch, self._heads[side], b - a, self._dims[side], dtype=dtype)
            core, threads = self._codecs[side]._sides["kv"[side]], self._codecs[side]._threads
            for i in range(self.batch):
                core.decode(tuple(None if p is None else p[i, :, a:b] for p in self._planes[side]), out[i], threads, False, begin)
            results.append(out)
        return results[0], results[1]

    def forget_before(self, position: int) -> None:
        """Compacts when more than half of the tokens held are no longer wanted."""
        gone = min(position - self._base, self._count)
        if gone <= max(self._count // 2, 16):
            return
        self._planes = [[None if p is None else p[:, :, gone : self._count].clone() for p in planes] for planes in self._planes]
        self._base += gone
        self._count -= gone

    def crop(self, end: int) -> None:
        self._count = min(self._count, max(end - self._base, 0))

    def select(self, index: torch.Tensor) -> None:
        self._planes = [[None if p is None else p.index_select(0, index) for p in planes] for planes in self._planes]
        self.batch = len(index)

    @property
    def nbytes(self) -> int:
        return sum(p.nbytes for planes in self._planes for p in planes if p is not None)


class PageStore:
    """A PagedCache in the native layout. Sequence b's block j is block j * batch + b of the pages, so that growing appends; a sliding layer's blocks
    form a ring just longer than its window."""

    attends = True
    BLOCK = 64

    def __init__(self, settings: Any, layer: int, keys: torch.Tensor, values: torch.Tensor, sliding_window: int | None) -> None:
        self.batch, self._heads, _, self._dim = keys.shape
        if values.shape[1] != self._heads or values.shape[3] != self._dim:
            raise UnsupportedError("pages on a GPU hold keys and values of one shape")
        self._device = keys.device
        self._sliding = sliding_window
        # The longest step a ring takes at once is STEP_TOKENS beyond the window; longer passes store their last tokens only.
        self._ring = None if sliding_window is None else (sliding_window + 2 * self.BLOCK - 1) // self.BLOCK + 1
        blocks = self._ring or 4
        arguments = {"block_size": self.BLOCK, "calibration": settings.calibration, "layer": layer}
        self._pages = PagedCache(settings.spec_json, self._heads, self._dim, blocks * self.batch, device=self._device, **arguments)
        self._positions = settings.calibration is not None and self._pages._pages.needs_positions
        self._blocks = blocks
        self._columns = 0
        self._table = torch.empty(0)
        self._end = 0
        self._lens = torch.zeros(self.batch, dtype=torch.int32, device=self._device)
        self._cover(1)

    def _cover(self, tokens: int) -> None:
        """Room for positions below `tokens`: more pages (unless they are a ring) and a block table that names them."""
        needed = -(-tokens // self.BLOCK)
        if self._ring is None and needed > self._blocks:
            more = max(needed, self._blocks + self._blocks // 2) - self._blocks
            data = torch.as_tensor(self._pages.data)
            self._pages.data = torch.cat([data, data.new_zeros(more * self.batch, data.shape[1])])
            self._blocks += more
            self._pages.num_blocks = self._blocks * self.batch
        columns = self._blocks if self._ring is None else self._columns if needed <= self._columns else max(needed + needed // 2, self._blocks)
        if columns != self._columns:  # also where only the pages grew: entries past the old ones would name blocks in use
            self._columns = columns
            block = torch.arange(self._columns, device=self._device) % self._blocks
            self._table = (block[None] * self.batch + torch.arange(self.batch, device=self._device)[:, None]).to(torch.int32).contiguous()

    def append(self, k: torch.Tensor, v: torch.Tensor, first: int) -> None:
        end = first + k.shape[2]
        if self._ring is not None:  # only what the next query can see
            skip = max(k.shape[2] - (self._sliding or 0) - self.BLOCK, 0)
            k, v, first = k[:, :, skip:], v[:, :, skip:], first + skip
        self._cover(end)
        positions = torch.arange(first, end, device=self._device)
        slots = (self._table[:, positions // self.BLOCK].long() * self.BLOCK + positions % self.BLOCK).reshape(-1)
        rows = [x.transpose(1, 2).reshape(-1, self._heads, self._dim) for x in (k, v)]
        at = positions.repeat(self.batch) if self._positions else None
        self._pages.append(rows[0], rows[1], slots, positions=at)
        self._end = end
        self._lens.fill_(end)

    def attend(self, query: torch.Tensor, scaling: float | None, length: int, window: int, softcap: float | None, s_aux: torch.Tensor | None) -> torch.Tensor:
        """query [batch, heads, queries, head_dim], the last tokens of each sequence, to [batch, queries, heads, head_dim]."""
        sinks = None if s_aux is None else s_aux.float().contiguous()
        q = query.transpose(1, 2).contiguous()
        return self._pages.attend(q, self._table, self._lens, sm_scale=scaling, window=window, soft_cap=softcap or 0.0, sink_logits=sinks)

    def gather(self, begin: int, end: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        skipped = begin // self.BLOCK if self._ring is not None else 0
        if skipped and self._positions:
            raise UnsupportedError("a sliding-window layer with keys centred before RoPE is not decoded on a GPU")
        shift = skipped * self.BLOCK
        lens = torch.full_like(self._lens, end - shift)
        k, v = self._pages.dequant(self._table[:, skipped:], lens, end - shift, dtype=dtype)
        return k[:, :, begin - shift :], v[:, :, begin - shift :]

    def forget_before(self, position: int) -> None:
        """The ring overwrites them."""

    def crop(self, end: int) -> None:
        self._end = min(self._end, end)
        self._lens.fill_(self._end)

    def select(self, index: torch.Tensor) -> None:
        data = self._pages.data
        self._pages.data = data.view(self._blocks, self.batch, -1)[:, index].reshape(-1, data.shape[1]).contiguous()
        self.batch = len(index)
        self._pages.num_blocks = self._blocks * self.batch
        self._lens = torch.full((self.batch,), self._end, dtype=torch.int32, device=self._device)
        columns, self._columns = self._columns, 0
        self._cover(columns * self.BLOCK)

    @property
    def nbytes(self) -> int:
        return self._pages.data.nbytes
