"""What the tensors of NumPy, torch and CuPy have in common, without importing any of them: whoever hands us a tensor has its framework loaded."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import numpy as np

from ._errors import DeviceError, DTypeError, UsageError


def framework(x: Any) -> Any:
    """The module that makes arrays like x: numpy, torch, cupy; DTypeError for anything else."""
    if isinstance(x, np.ndarray):
        return np
    torch, cupy = sys.modules.get("torch"), sys.modules.get("cupy")
    if torch is not None and isinstance(x, torch.Tensor):
        return torch
    if cupy is not None and isinstance(x, cupy.ndarray):
        return cupy
    raise DTypeError(f"a NumPy, torch or CuPy tensor is needed here, not {type(x).__name__}")


def device_index(device: Any) -> int | None:
    """None for the CPU, the ordinal for a CUDA device; from "cpu", "cuda", "cuda:1", a torch.device or an ordinal."""
    text = str(device)
    if text == "cpu":
        return None
    if text == "cuda":
        torch = sys.modules.get("torch")
        return torch.cuda.current_device() if torch is not None and torch.cuda.is_available() else 0
    if text.startswith("cuda:") and text[5:].isdigit():
        return int(text[5:])
    raise UsageError(f'device must be "cpu", "cuda" or "cuda:N", not {device!r}')


def tensor_device(x: Any) -> int | None:
    """Where x lies: None for the CPU, a CUDA ordinal otherwise."""
    module = framework(x)
    if module is np:
        return None
    if module.__name__ == "cupy":
        return int(x.device.id)
    if x.device.type == "cpu":
        return None
    if x.device.type == "cuda":
        return int(x.device.index)
    raise DeviceError(f"tensors on {x.device.type} are not served: cpu and cuda are")


def on_gpu(x: Any) -> bool:
    """Whether x is a torch or CuPy tensor on a CUDA device; cheap for anything else."""
    if getattr(x, "is_cuda", False) is True:
        return True
    cupy = sys.modules.get("cupy")
    return cupy is not None and isinstance(x, cupy.ndarray)


def empty_beside(x: Any, *wanted: tuple[tuple[int, ...], str] | None) -> list[Any]:
    """Uninitialised tensors of x's framework where x is, one for each (shape, dtype); dtypes by NumPy's name, or bfloat16 for torch. None stays."""
    module = framework(x)
    if module.__name__ != "torch":
        return [None if one is None else module.empty(*one) for one in wanted]
    device = x.device
    return [None if one is None else module.empty(one[0], dtype=getattr(module, one[1]), device=device) for one in wanted]


def cast(x: Any, dtype: str) -> Any:
    """x itself where it is of that dtype already."""
    module = framework(x)
    if module.__name__ != "torch":
        return x.astype(dtype, copy=False)
    wanted = getattr(module, dtype)
    return x if x.dtype == wanted else x.to(wanted)


def moved(x: Any, device: int | None) -> Any:
    """x as a NumPy array (None) or as a torch tensor (a CuPy array where only that is loaded) on a CUDA device."""
    module = framework(x)
    if device is None:
        return x if module is np else x.detach().cpu().numpy() if module.__name__ == "torch" else x.get()
    if "torch" not in sys.modules and "cupy" in sys.modules:
        with sys.modules["cupy"].cuda.Device(device):
            return sys.modules["cupy"].asarray(x)
    try:
        import torch
    except ImportError:
        raise DeviceError("tensors on the GPU are torch's or CuPy's, and neither is installed") from None
    return (torch.from_numpy(x) if isinstance(x, np.ndarray) else x).to(f"cuda:{device}")


def strides(x: Any) -> tuple[int, ...]:
    """In elements."""
    found = x.stride() if callable(getattr(x, "stride", None)) else tuple(step // x.itemsize for step in x.strides)
    return tuple(found)


def zero_bytes(shape: tuple[int, ...], device: int | None) -> Any:
    """A zeroed uint8 tensor: NumPy on the CPU, torch (or CuPy, where only that is loaded) on a GPU."""
    if device is None:
        return np.zeros(shape, np.uint8)
    if "torch" not in sys.modules and "cupy" in sys.modules:
        with sys.modules["cupy"].cuda.Device(device):
            return sys.modules["cupy"].zeros(shape, np.uint8)
    try:
        import torch
    except ImportError:
        raise DeviceError("memory on the GPU comes from torch or CuPy, and neither is installed: give data=") from None
    return torch.zeros(shape, dtype=torch.uint8, device=f"cuda:{device}")


class Workspaces(dict[tuple[int, ...], Any]):
    """Zeroed scratch on a GPU, one for each of the last 16 shapes: kernels leave a workspace as the next call of the same shapes needs it."""

    def of(self, key: tuple[int, ...], device: int | None, bytes_needed: Any) -> Any:
        """The workspace of `key`, made where it is missing: bytes_needed() bytes of it."""
        room = self.get(key)
        if room is None:
            count = bytes_needed()
            if len(self) >= 16:
                self.pop(next(iter(self)))
            room = self[key] = zero_bytes((max(count, 256),), device)
        return room


def on_device(device: int | None) -> Any:
    """A context in which `device` is the current one; free where it already is."""
    torch = sys.modules.get("torch")
    if device is None or torch is None or not (torch.cuda.is_initialized() or torch.cuda.is_available()) or torch.cuda.current_device() == device:
        return contextlib.nullcontext()  # without a device at all, the call that wants one says so
    return torch.cuda.device(device)
