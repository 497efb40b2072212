"""The exceptions of the package. Each is a tq4.Error and also a ValueError (an argument or a file is wrong) or a RuntimeError (this machine or
this build cannot do it), so that code which knows nothing of tq4 catches them too."""


class Error(Exception):
    """Anything tq4 refuses or fails at."""


class UsageError(Error, ValueError):
    """An argument is wrong: name, range, combination."""


class DTypeError(UsageError):
    """Not a tensor, or one of another element type than the call takes."""


class ShapeError(UsageError):
    """A tensor's shape does not fit."""


class StrideError(UsageError):
    """A tensor is not C-contiguous."""


class HeadDimError(ShapeError):
    """Vectors of another length than the codec's head_dim, or a head_dim no codec serves."""


class BadInputError(Error, ValueError):
    """A file or a tensor is corrupt, cut short, holds NaN or infinity, or is not what it says it is."""


class OperationError(Error, RuntimeError):
    """Something failed that the caller could not have known: disk full, out of memory."""


class UnsupportedError(Error, RuntimeError):
    """A combination that is valid but that no code path here serves."""


class DeviceError(UnsupportedError):
    """A tensor on a device (GPU) given to a call that works on CPU tensors."""


class NoDeviceError(Error, RuntimeError):
    """A CUDA device was asked for and there is none, or this build has no CUDA."""
