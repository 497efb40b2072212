"""Codec: keys and values to bytes and back. Encoded: those bytes, as NumPy arrays one can look at, store and send."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Mapping

import numpy as np

from . import _core
from ._checks import choice, integer, path_text, side as check_side, text
from ._errors import DTypeError, ShapeError, UsageError


@dataclass(frozen=True)
class Encoded:
    """Encoded vectors of one side; `...` are the axes the input had before head_dim.

    codes [..., code_bytes] uint8: the index of coordinate j in bits [j*b, (j+1)*b) of a row, LSB first. scale [...] (fp16 or fp32, as the spec
    says), zero [...] (uniform codecs), signs [..., head_dim/8] and residual_norm [...] (prod codecs); None where the codec has no such plane.
    """

    side: str
    head_dim: int
    codes: np.ndarray
    scale: np.ndarray | None = None
    zero: np.ndarray | None = None
    signs: np.ndarray | None = None
    residual_norm: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the vectors: the axes before head_dim, then head_dim."""
        return (*self.codes.shape[:-1], self.head_dim)

    @property
    def planes(self) -> tuple[Any, ...]:
        return (self.codes, self.scale, self.zero, self.signs, self.residual_norm)

    @property
    def nbytes(self) -> int:
        return sum(plane.nbytes for plane in self.planes if plane is not None)

    def tobytes(self) -> bytes:
        """All planes, one after another (codes, scale, zero, signs, residual_norm), C order, little endian; Codec.frombytes is the inverse."""
        return b"".join(plane.tobytes() for plane in self.planes if plane is not None)


class Codec:
    """Encodes and decodes keys and values of one head_dim.

    spec is a name ("tq4", "k4v3", "k8v4", "fp8", "vllm:3bit_nc", "turboquant-vllm", ...; suffixes "-2d", "-norm", "-prod"), or the mapping or
    JSON text of another codec's `spec`. rotation, seed, codebook, scale_rule and scale_dtype, where given, replace those of both sides
    (rotation and codebook: of sides that have a codebook). calibration: a .tq4cal file's path or a Calibration, with `layer` the layer whose
    tables to use; keys and values then are [num_kv_heads, tokens, head_dim]. threads: 0 = all cores; bytes do not depend on it.

    Encoding and decoding run outside the interpreter's lock; a codec may be used by several threads at once.
    """

    def __init__(
        self,
        spec: str | Mapping[str, Any],
        head_dim: int,
        *,
        rotation: str | None = None,
        seed: int | None = None,
        codebook: str | None = None,
        scale_rule: str | None = None,
        scale_dtype: str | None = None,
        calibration: Any = None,
        layer: int = 0,
        threads: int = 1,
    ) -> None:
        self._head_dim = integer(head_dim, "head_dim")
        self._threads = integer(threads, "threads", 0, 4096)
        self._spec_json = codec_spec(spec, rotation=rotation, seed=seed, codebook=codebook, scale_rule=scale_rule, scale_dtype=scale_dtype)
        self._name = _core.spec_name(self._spec_json)
        self._calibration = as_calibration(calibration)
        number = integer(layer, "layer")
        self._sides = {
            half: _core.SideCodec(self._spec_json, half, self._head_dim, self._calibration, number) for half in ("k", "v")
        }

    @property
    def name(self) -> str:
        """The shortest name of the spec, or a descriptive one."""
        return self._name

    @property
    def spec(self) -> dict[str, Any]:
        """Every field of the codec's spec: the form files store, which Codec() takes back."""
        return json.loads(self._spec_json)

    @property
    def head_dim(self) -> int:
        return self._head_dim

    @property
    def calibration(self) -> _core.Calibration | None:
        return self._calibration

    def vector_bytes(self, side: str) -> int:
        """Bytes a vector of `side` ("k" or "v") takes in all: codes, scale and whatever else is stored."""
        return self._sides[check_side(side)].vector_bytes

    def theoretical_mse(self, side: str) -> float:
        """The theoretical relative squared error on random vectors; NaN where unknown."""
        return self._sides[check_side(side)].theoretical_mse

    def encode(self, x: Any, side: str = "k", *, threads: int | None = None, nonfinite: str = "refuse", position0: int = 0) -> Encoded:
        """Encode x [..., head_dim], a CPU tensor of fp16, bf16 or fp32 (NumPy, torch or another with DLPack). It is read in place; where vectors
        do not follow one another (slices, transposed axes) they go through a buffer of 4096. Each vector must be contiguous.

        nonfinite: "refuse" raises BadInputError on NaN and infinity, "zero" takes them for 0. position0: the position of the first token
        (calibrations that centre before RoPE need it).
        """
        half = check_side(side)
        zero = choice(nonfinite, "nonfinite", ("refuse", "zero")) == "zero"
        planes = self._sides[half].encode(x, self._threads_of(threads), zero, integer(position0, "position0", 0, 2**62))
        return Encoded(half, self._head_dim, *planes)

    def decode(
        self, encoded: Encoded, *, out: Any = None, dtype: Any = None, threads: int | None = None, rotated: bool = False, position0: int = 0
    ) -> Any:
        """Decode to [..., head_dim] in original space, or in the codec's rotated space (rotated=True: what attention kernels see).

        out: a writable C-contiguous CPU tensor (NumPy, torch) of fp32, fp16 or bf16 that takes the result and is returned; otherwise a new
        NumPy array of `dtype` (float32, the default, or float16).
        """
        if not isinstance(encoded, Encoded):
            raise UsageError(f"decode takes what encode returned, not {type(encoded).__name__}")
        half = check_side(encoded.side)
        if integer(encoded.head_dim, "head_dim") != self._head_dim:
            raise ShapeError(f"vectors of {encoded.head_dim} given to a codec of head_dim {self._head_dim}")
        if out is None:
            if not isinstance(encoded.codes, np.ndarray):
                raise DTypeError(f"codes must be a NumPy array, not {type(encoded.codes).__name__}")
            out = np.empty((*encoded.codes.shape[:-1], self._head_dim), float_dtype(dtype))
        elif dtype is not None:
            raise UsageError("give out or dtype, not both")
        self._sides[half].decode(encoded.planes, out, self._threads_of(threads), bool(rotated), integer(position0, "position0", 0, 2**62))
        return out

    def frombytes(self, data: Any, side: str, shape: tuple[int, ...]) -> Encoded:
        """The inverse of Encoded.tobytes. shape: of the vectors, head_dim included (Encoded.shape). Planes are read-only views of data."""
        half = self._sides[check_side(side)]
        try:
            sizes = tuple(integer(size, "shape", 0, 2**62) for size in shape)
        except TypeError:
            raise UsageError(f"shape must be a tuple of integers, not {type(shape).__name__}") from None
        if not sizes or sizes[-1] != self._head_dim:
            raise ShapeError(f"shape {sizes} must end in head_dim {self._head_dim}")
        leading = sizes[:-1]
        n = 1
        for size in leading:
            n *= size
        try:
            raw = np.frombuffer(data, np.uint8) if len(data) else np.empty(0, np.uint8)
        except (TypeError, ValueError):
            raise UsageError(f"data must be bytes, not {type(data).__name__}") from None
        real = np.dtype(self.spec[check_side(side)]["scale_dtype"]).newbyteorder("<")
        widths = [(half.code_bytes, None), (half.has_scale, real), (half.has_zero, real), (half.has_signs and self._head_dim // 8, None), (half.has_signs, real)]
        needed = sum(n * int(width) * (1 if kind is None else kind.itemsize) for width, kind in widths)
        if raw.size != needed:
            raise ShapeError(f"{raw.size} bytes given where {n} vectors of {side} take {needed}")
        planes: list[np.ndarray | None] = []
        offset = 0
        for width, kind in widths:
            count = n * int(width) * (1 if kind is None else kind.itemsize)
            piece = raw[offset : offset + count]
            offset += count
            if not width:
                planes.append(None)
            elif kind is None:
                planes.append(piece.reshape(*leading, int(width)))
            else:
                planes.append(piece.view(kind).reshape(leading))
        return Encoded(check_side(side), self._head_dim, *planes)  # type: ignore[arg-type]

    def _threads_of(self, threads: int | None) -> int:
        return self._threads if threads is None else integer(threads, "threads", 0, 4096)

    def __repr__(self) -> str:
        return f"tq4.Codec({self._name!r}, head_dim={self._head_dim}, k={self.vector_bytes('k')} B, v={self.vector_bytes('v')} B a vector)"


def codec_spec(
    spec: Any,
    *,
    rotation: str | None = None,
    seed: int | None = None,
    codebook: str | None = None,
    scale_rule: str | None = None,
    scale_dtype: str | None = None,
) -> str:
    """The spec's JSON with the changes made to both sides (rotation and codebook: to sides that have a codebook); UsageError where it is none."""
    members = spec_members(spec)
    changes: dict[str, Any] = {}
    for name, value in (("rotation", rotation), ("codebook", codebook), ("scale_rule", scale_rule), ("scale_dtype", scale_dtype)):
        if value is not None:
            changes[name] = text(value, name)
    if seed is not None:
        changes["seed"] = integer(seed, "seed", 0, 2**64 - 1)
    for half in (members["k"], members["v"]):
        book = half["kind"] in ("mse", "prod", "mixed")
        half.update({name: value for name, value in changes.items() if book or name not in ("rotation", "codebook")})
    spec_json = json.dumps(members)
    try:
        _core.spec_name(spec_json)
    except ValueError as error:
        raise UsageError(str(error)) from None
    return spec_json


def spec_members(spec: Any) -> dict[str, Any]:
    """The spec's JSON members from a name, JSON text or a mapping."""
    if isinstance(spec, str):
        spec_text = text(spec, "spec")
        try:
            members = json.loads(spec_text) if spec_text.lstrip().startswith("{") else json.loads(_core.spec_json(spec_text))
        except json.JSONDecodeError as error:
            raise UsageError(f"spec is not JSON: {error}") from None
    elif isinstance(spec, Mapping):
        try:
            members = json.loads(json.dumps(dict(spec)))
        except (TypeError, ValueError) as error:
            raise UsageError(f"spec is not a codec spec: {error}") from None
    else:
        raise UsageError(f"spec must be a name or a mapping, not {type(spec).__name__}")
    if not all(isinstance(members.get(half), dict) and "kind" in members[half] for half in ("k", "v")):
        raise UsageError('a codec spec has members "k" and "v" with a "kind" each; Codec("tq4", 128).spec shows one')
    return members


def as_calibration(value: Any) -> _core.Calibration | None:
    if value is None or isinstance(value, _core.Calibration):
        return value
    return _core.read_calibration(path_text(value, "calibration"))


def float_dtype(dtype: Any) -> np.dtype:
    """float32 or float16 from whatever names it: a NumPy dtype, its name, torch.float16."""
    if dtype is None:
        return np.dtype(np.float32)
    name = str(dtype).rsplit(".", 1)[-1] if type(dtype).__module__ == "torch" else dtype
    try:
        found = np.dtype(name)
    except (TypeError, ValueError):
        raise DTypeError(f"dtype must be float32 or float16, not {dtype!r}") from None
    if found not in (np.dtype(np.float32), np.dtype(np.float16)):
        raise DTypeError(f"dtype must be float32 or float16, not {found}")
    return found
