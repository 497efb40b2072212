"""Codec: keys and values to bytes and back. Encoded: those bytes, as arrays one can look at, store and send. CPU tensors give NumPy arrays, CUDA
tensors stay on their device, in their framework."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Mapping

import numpy as np

from . import _core
from ._checks import choice, integer, path_text, side as check_side, text
from ._errors import DeviceError, DTypeError, HeadDimError, ShapeError, UsageError
from ._frameworks import cast, device_index, empty_beside, framework, moved, on_device, on_gpu, tensor_device


@dataclass(frozen=True)
class Encoded:
    """Encoded vectors of one side; `...` are the axes the input had before head_dim. Planes are NumPy arrays, or torch or CuPy tensors on a GPU;
    there scale, zero and residual_norm are fp32, as kernels write and read them, with values rounded to scale_dtype, to which `to("cpu")` and
    tobytes narrow them.

    codes [..., code_bytes] uint8: the index of coordinate j in bits [j*b, (j+1)*b) of a row, LSB first. scale [...] (fp16 or fp32, as the spec
    says), zero [...] (uniform codecs), signs [..., head_dim/8] and residual_norm [...] (prod codecs); None where the codec has no such plane.
    """

    side: str
    head_dim: int
    codes: Any
    scale: Any = None
    zero: Any = None
    signs: Any = None
    residual_norm: Any = None
    scale_dtype: str = "float16"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the vectors: the axes before head_dim, then head_dim."""
        return (*self.codes.shape[:-1], self.head_dim)

    def __repr__(self) -> str:
        return f"<tq4 encoded {self.side} {self.shape}, {self.nbytes} bytes>"

    @property
    def planes(self) -> tuple[Any, ...]:
        return (self.codes, self.scale, self.zero, self.signs, self.residual_norm)

    @property
    def nbytes(self) -> int:
        return sum(plane.nbytes for plane in self.planes if plane is not None)

    def to(self, device: Any) -> Encoded:
        """The same with planes as NumPy arrays ("cpu") or as tensors on a GPU ("cuda", "cuda:1": torch's, or CuPy's where only that is loaded)."""
        index = device_index(device)
        planes = [None if plane is None else moved(plane, index) for plane in self.planes]
        if index is None:
            for real in (1, 2, 4):
                if planes[real] is not None and on_gpu(self.planes[real]):
                    planes[real] = cast(planes[real], self.scale_dtype)
        return Encoded(self.side, self.head_dim, *planes, scale_dtype=self.scale_dtype)

    def tobytes(self) -> bytes:
        """All planes, one after another (codes, scale, zero, signs, residual_norm), C order, little endian; Codec.frombytes is the inverse."""
        return b"".join(plane.tobytes() for plane in self.to("cpu").planes if plane is not None)


class Codec:
    """Encodes and decodes keys and values of one head_dim.

    spec is a name ("tq4", "k4v3", "k8v4", "fp8", "vllm:3bit_nc", "turboquant-vllm", ...; suffixes "-2d", "-norm", "-prod"), or the mapping or
    JSON text of another codec's `spec`. rotation, seed, codebook, scale_rule and scale_dtype, where given, replace those of both sides
    (rotation and codebook: of sides that have a codebook). calibration: a .tq4cal file's path or a Calibration, with `layer` the layer whose
    tables to use; keys and values then are [num_kv_heads, tokens, head_dim]. threads: 0 = all cores; bytes do not depend on it.

    Encoding and decoding on the CPU run outside the interpreter's lock; a codec may be used by several threads at once. CUDA tensors of torch or
    CuPy are encoded and decoded where they are, on their current stream, to the same codes but for coordinates within rounding of a boundary;
    the first call on a device copies the codec's tables there (so not inside a CUDA graph's capture). threads has no meaning there.
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
        self._layer = integer(layer, "layer")
        self._sides = {
            half: _core.SideCodec(self._spec_json, half, self._head_dim, self._calibration, self._layer) for half in ("k", "v")
        }
        self._on_gpu: dict[int, _core.GpuCodec] = {}
        members = self.spec
        self._reals: dict[str, str] = {half: members[half]["scale_dtype"] for half in ("k", "v")}
        self._stored = {half: self._planes_of(half) for half in ("k", "v")}

    @property
    def name(self) -> str:
        """The shortest name of the spec, or a descriptive one."""
        return self._name

    @property
    def spec(self) -> dict[str, Any]:
        """Every field of the codec's spec: the form files store, which Codec() takes back."""
        members: dict[str, Any] = json.loads(self._spec_json)
        return members

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
        """Encode x [..., head_dim] of fp16, bf16 or fp32: a CPU tensor (NumPy, torch or another with DLPack) or a CUDA tensor of torch or CuPy. It is
        read in place; on the CPU, where vectors do not follow one another (slices, transposed axes) they go through a buffer of 4096. Each vector
        must be contiguous.

        nonfinite: "refuse" raises BadInputError on NaN and infinity, "zero" takes them for 0. On a GPU, which the host does not wait for, a
        vector with one is not refused: its scale is not finite. position0: the position of the first token (calibrations that centre before
        RoPE need it).
        """
        half = check_side(side)
        zero = choice(nonfinite, "nonfinite", ("refuse", "zero")) == "zero"
        first = integer(position0, "position0", 0, 2**62)
        count = self._threads_of(threads)
        planes = self._encode_on_gpu(x, half, zero, first) if on_gpu(x) else self._sides[half].encode(x, count, zero, first)
        return Encoded(half, self._head_dim, *planes, scale_dtype=self._reals[half])

    def decode(
        self, encoded: Encoded, *, out: Any = None, dtype: Any = None, threads: int | None = None, rotated: bool = False, position0: int = 0
    ) -> Any:
        """Decode to [..., head_dim] in original space, or in the codec's rotated space (rotated=True: what attention kernels see).

        out: a writable C-contiguous tensor of fp32, fp16 or bf16 on the device of the codes that takes the result and is returned; otherwise a
        new NumPy array, or tensor of the codes' framework on a GPU, of `dtype` (float32, the default, float16, or torch.bfloat16 on a GPU).
        """
        if not isinstance(encoded, Encoded):
            raise UsageError(f"decode takes what encode returned, not {type(encoded).__name__}")
        half = check_side(encoded.side)
        if integer(encoded.head_dim, "head_dim") != self._head_dim:
            raise ShapeError(f"vectors of {encoded.head_dim} given to a codec of head_dim {self._head_dim}")
        first = integer(position0, "position0", 0, 2**62)
        if out is not None and dtype is not None:
            raise UsageError("give out or dtype, not both")
        if on_gpu(encoded.codes):
            return self._decode_on_gpu(encoded, half, out, dtype, bool(rotated), first)
        if out is None:
            if not isinstance(encoded.codes, np.ndarray):
                raise DTypeError(f"codes must be a NumPy array, not {type(encoded.codes).__name__}")
            out = np.empty((*encoded.codes.shape[:-1], self._head_dim), float_dtype(dtype))
        self._sides[half].decode(encoded.planes, out, self._threads_of(threads), bool(rotated), first)
        return out

    def _gpu(self, device: int) -> _core.GpuCodec:
        """The codec's tables on a device; with the device current."""
        found = self._on_gpu.get(device)
        if found is None:
            found = self._on_gpu[device] = _core.GpuCodec(self._spec_json, self._head_dim, self._calibration, self._layer, None, None, device)
        return found

    def _planes_of(self, half: str) -> tuple[tuple[str, tuple[int, ...]] | None, ...]:
        """The planes a side has: dtype they are stored with, axis of their own."""
        core = self._sides[half]
        real = (self._reals[half], ())
        signs = core.has_signs
        present = (True, core.has_scale, core.has_zero, signs, signs)
        planes = (("uint8", (core.code_bytes,)), real, real, ("uint8", (self._head_dim // 8,)), real)
        return tuple(plane if there else None for plane, there in zip(planes, present))

    def _encode_on_gpu(self, x: Any, half: str, zero: bool, first: int) -> tuple[Any, ...]:
        device = tensor_device(x)
        assert device is not None
        shape = tuple(x.shape)
        if not shape or shape[-1] != self._head_dim:
            raise HeadDimError(f"x of shape {shape} given to a codec of head_dim {self._head_dim}")
        if zero:
            x = framework(x).nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0)
        leading = shape[:-1]
        planes = tuple(empty_beside(x, *(plane and (leading + plane[1], "uint8" if plane[1] else "float32") for plane in self._stored[half])))
        with on_device(device):
            core = self._gpu(device)
            core.encode(half, x, planes, _positions(x, core.needs_positions(half), first, shape))
        return planes

    def _decode_on_gpu(self, encoded: Encoded, half: str, out: Any, dtype: Any, rotated: bool, first: int) -> Any:
        codes = encoded.codes
        device = tensor_device(codes)
        assert device is not None
        shape = (*tuple(codes.shape)[:-1], self._head_dim)
        wanted = None if out is not None else float_name(dtype, framework(codes).__name__ == "torch")
        for name, plane in zip(("scale", "zero", "signs", "residual_norm"), encoded.planes[1:]):
            if hasattr(plane, "dtype") and not on_gpu(plane):
                raise DeviceError(f"{name} is on the cpu and codes are on a GPU: Encoded.to moves all planes")
        planes = tuple(cast(plane, "float32") if index in (1, 2, 4) and on_gpu(plane) else plane for index, plane in enumerate(encoded.planes))
        with on_device(device):
            core = self._gpu(device)
            target = empty_beside(codes, (shape, wanted))[0] if wanted is not None else out
            core.decode(half, planes, target, rotated, None if rotated else _positions(codes, core.needs_positions(half), first, shape))
        return target

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
        if raw.size != n * half.vector_bytes:
            raise ShapeError(f"{raw.size} bytes given where {n} vectors of {side} take {n * half.vector_bytes}")
        planes: list[np.ndarray | None] = []
        offset = 0
        for plane in self._stored[check_side(side)]:
            if plane is None:
                planes.append(None)
                continue
            kind, own = np.dtype(plane[0]).newbyteorder("<"), plane[1]
            count = n * kind.itemsize * (own[0] if own else 1)
            planes.append(raw[offset : offset + count].view(kind).reshape(*leading, *own))
            offset += count
        return Encoded(check_side(side), self._head_dim, *planes, scale_dtype=self._reals[check_side(side)])

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
    members: dict[str, Any]
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


def _positions(like: Any, needed: bool, first: int, shape: tuple[int, ...]) -> Any:
    """int64 positions of the tokens of [heads, tokens, head_dim] beside `like`, where they are needed."""
    if not needed or len(shape) < 2:
        return None
    module = framework(like)
    place = {"device": like.device} if module.__name__ == "torch" else {}
    return module.arange(first, first + shape[-2], dtype=module.int64, **place)


def float_name(dtype: Any, torch: bool) -> str:
    """As float_dtype, by name; also "bfloat16" where torch makes the tensor."""
    if torch and str(dtype) in ("bfloat16", "torch.bfloat16"):
        return "bfloat16"
    return float_dtype(dtype).name


def float_dtype(dtype: Any) -> np.dtype:
    """float32 or float16 from whatever names it: a NumPy dtype, its name, torch.float16."""
    if dtype is None:
        return np.dtype(np.float32)
    name = str(dtype).removeprefix("torch.") if type(dtype).__module__ == "torch" else dtype
    try:
        found = np.dtype(name)
    except (TypeError, ValueError, SyntaxError):
        raise DTypeError(f"dtype must be float32 or float16, not {dtype!r}") from None
    if found not in (np.dtype(np.float32), np.dtype(np.float16)):
        raise DTypeError(f"dtype must be float32 or float16, not {found}")
    return found
