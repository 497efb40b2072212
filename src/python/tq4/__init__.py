"""tq4: KV-cache compression (TurboQuant, arXiv 2504.19874) for NumPy arrays and torch tensors.

    import numpy as np, tq4
    codec = tq4.Codec("k4v3", head_dim=128)
    encoded = codec.encode(np.random.randn(8, 1024, 128).astype(np.float16), "k")
    keys = codec.decode(encoded)

tq4.PagedCache keeps pages of compressed tokens and attends to them, on the CPU or a CUDA device; tq4.hf.TQ4Cache goes under a Hugging Face
model; tq4.compat has peers' functions by their own names. Tensors come through DLPack, the buffer protocol or __cuda_array_interface__ and are
not copied; `import tq4` imports NumPy and nothing else. Every refusal is a tq4.Error.
"""

from ._codec import Codec, Encoded
from ._container import File, Layer, LazyArray, open
from ._core import Calibration
from ._errors import (
    BadInputError,
    DeviceError,
    DTypeError,
    Error,
    HeadDimError,
    NoDeviceError,
    OperationError,
    ShapeError,
    StrideError,
    UnsupportedError,
    UsageError,
)
from ._pages import PagedCache
from ._tables import Codebook, codebook, rotation

__version__ = "0.1.0"
__all__ = [
    "BadInputError",
    "Calibration",
    "Codebook",
    "Codec",
    "DTypeError",
    "DeviceError",
    "Encoded",
    "Error",
    "File",
    "HeadDimError",
    "Layer",
    "LazyArray",
    "NoDeviceError",
    "OperationError",
    "PagedCache",
    "ShapeError",
    "StrideError",
    "UnsupportedError",
    "UsageError",
    "codebook",
    "open",
    "rotation",
]
