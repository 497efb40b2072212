"""tq4: KV-cache compression (TurboQuant, arXiv 2504.19874) for NumPy arrays and torch tensors on the CPU.

    import numpy as np, tq4
    codec = tq4.Codec("k4v3", head_dim=128)
    encoded = codec.encode(np.random.randn(8, 1024, 128).astype(np.float16), "k")
    keys = codec.decode(encoded)

Tensors come through DLPack or the buffer protocol and are not copied; torch is never imported. Every refusal is a tq4.Error.
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
    "ShapeError",
    "StrideError",
    "UnsupportedError",
    "UsageError",
    "codebook",
    "open",
    "rotation",
]
