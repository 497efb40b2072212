"""tq4.open: .tq4 files as lazy arrays. Opening reads the header; indexing decodes only the heads and tokens asked for, verifying the checksums
of the blocks it touches."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Iterator, Mapping

import numpy as np

from . import _core
from ._checks import integer, path_text
from ._errors import Error, UsageError


class LazyArray:
    """Keys or values of one layer, [num_kv_heads, tokens, head_dim] float32, decoded when indexed.

    array[head], array[:, 100:200], array[2, -1, :64] decode what they return and nothing more along heads and tokens (a step decodes what it
    skips); numpy.asarray(array) decodes all. Integers, slices and ... are taken.
    """

    dtype = np.dtype(np.float32)
    ndim = 3

    def __init__(self, file: _core.Container, layer_index: int, side: str, shape: tuple[int, int, int], threads: int) -> None:
        self._file, self._layer_index, self._side, self._threads = file, layer_index, side, threads
        self.shape = shape

    @property
    def size(self) -> int:
        return self.shape[0] * self.shape[1] * self.shape[2]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        parts = list(key) if isinstance(key, tuple) else [key]
        ellipses = [i for i, part in enumerate(parts) if part is Ellipsis]
        if len(ellipses) > 1 or len(parts) - len(ellipses) > 3:
            raise UsageError(f"at most three indices and one ..., not {len(parts)}")
        at = ellipses[0] if ellipses else len(parts)
        parts[at : at + len(ellipses)] = [slice(None)] * (3 - len(parts) + len(ellipses))
        ranges: list[tuple[int, int]] = []
        inner: list[Any] = []
        for axis, part in enumerate(parts):
            first, count, rest = _range(part, self.shape[axis], axis)
            ranges.append((first, count))
            inner.append(rest)
        (head, heads), (token, tokens) = ranges[0], ranges[1]
        out = np.empty((heads, tokens, self.shape[2]), np.float32)
        self._file.decode(self._layer_index, self._side, head, heads, token, tokens, out, self._threads)
        decoded: np.ndarray = out[inner[0], inner[1], parts[2]]
        return decoded

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[head] for head in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise UsageError("a lazy array cannot be had without decoding into new memory (copy=False)")
        return self[...].astype(dtype or np.float32, copy=False)

    def __repr__(self) -> str:
        return f"<tq4 lazy {self._side} {self.shape} float32>"


def _range(part: Any, size: int, axis: int) -> tuple[int, int, Any]:
    """First element, how many to decode, and the index that picks the answer out of those."""
    if isinstance(part, slice):
        try:
            picked = range(*part.indices(size))
        except (TypeError, ValueError) as error:
            raise UsageError(f"index of axis {axis}: {error}") from None
        if not picked:
            return 0, 0, slice(None)
        first, last = min(picked[0], picked[-1]), max(picked[0], picked[-1])
        return first, last - first + 1, slice(None, None, picked.step)
    number = integer(part, f"index of axis {axis}", -(2**62), 2**62)
    if not -size <= number < size:
        # IndexError is what ends Python's own loops over a sequence.
        raise LazyIndexError(f"index {number} of axis {axis} is past its {size} elements")
    return number % size, 1, 0


class LazyIndexError(UsageError, IndexError):
    """An index past the end of a lazy array."""


@dataclass(frozen=True)
class Layer:
    """One layer of a file. k and v are lazy arrays; a layer kept in fp16 has passthrough set and says why in `reason`."""

    number: int
    num_kv_heads: int
    head_dim: int
    tokens: int
    dtype: str
    passthrough: bool
    reason: str
    exact_first: int
    exact_last: int
    k_bytes: int
    v_bytes: int
    k: LazyArray
    v: LazyArray


class File(Mapping[int, Layer]):
    """A .tq4 file: a mapping from layer numbers to layers. `spec` and `name` say the codec, `model` and `attributes` what the dump said."""

    def __init__(self, path: Any, threads: int = 1) -> None:
        self.path = path_text(path, "path")
        count = integer(threads, "threads", 0, 4096)
        self._file = _core.open_container(self.path)
        info = self._file.info()
        self.name: str = info["spec_name"]
        self.spec: dict[str, Any] = json.loads(info["spec_json"])
        self.model: str = info["model"]
        self.producer: str = info["producer"]
        self.attributes: dict[str, str] = info["attributes"]
        self.calibrated: bool = info["calibrated"]
        self.file_bytes: int = info["file_bytes"]
        self.original_bytes: int = info["original_bytes"]
        self._layers: dict[int, Layer] = {}
        for index, layer in enumerate(info["layers"]):
            shape = (layer["num_kv_heads"], layer["tokens"], layer["head_dim"])
            self._layers[layer["number"]] = Layer(
                **layer, k=LazyArray(self._file, index, "k", shape, count), v=LazyArray(self._file, index, "v", shape, count)
            )

    def __getitem__(self, number: int) -> Layer:
        try:
            return self._layers[number]
        except (KeyError, TypeError):
            raise LayerError(f"{self.path} has no layer {number!r}; it has {list(self._layers)}") from None

    def __iter__(self) -> Iterator[int]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    @property
    def layers(self) -> list[Layer]:
        return list(self._layers.values())

    def verify(self) -> None:
        """Check every checksum of the file; BadInputError names the first tensor and block that is wrong."""
        self._file.verify()

    def __repr__(self) -> str:
        return f"<tq4 file {self.path!r}: {self.name}, {len(self)} layers>"


class LayerError(UsageError, KeyError):
    """A layer that the file does not have."""

    __str__ = Error.__str__  # KeyError shows its argument quoted


def open(path: Any, threads: int = 1) -> File:  # noqa: A001
    """Open a .tq4 file. BadInputError where it is none, is cut short or its header is damaged. threads: for decoding; 0 = all cores."""
    return File(path, threads)
