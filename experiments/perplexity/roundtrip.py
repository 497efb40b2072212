"""The project's codecs, called through runner/ (libtq4_roundtrip.so): K and V of a layer in, what the decoder returns out."""
import ctypes
import os
import threading
import time

import torch

SCALES = {"least-squares": 0, "norm": 1, "unbiased": 2, "": -1}


def load_library(path):
    library = ctypes.CDLL(os.path.abspath(path))
    library.tq4_roundtrip_names.restype = ctypes.c_char_p
    library.tq4_roundtrip_open.restype = ctypes.c_void_p
    library.tq4_roundtrip_open.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
    library.tq4_roundtrip_bits.restype = ctypes.c_double
    library.tq4_roundtrip_bits.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int]
    library.tq4_roundtrip_exact.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(ctypes.c_int)]
    library.tq4_roundtrip_close.argtypes = [ctypes.c_void_p]
    library.tq4_roundtrip.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int, ctypes.c_void_p,
                                      ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
    return library


def codec_names(library):
    """All codecs of `tq4 eval --codec all`."""
    return library.tq4_roundtrip_names().decode().split()


class Roundtrip:
    """One codec; call with a layer and fp32 K and V [B, Hk, T, D]. `calibration` is the path of a .tq4cal file or empty."""

    def __init__(self, library, name, calibration="", seed=42, scale="", threads=1):
        self.library, self.threads = library, threads
        message = ctypes.create_string_buffer(500)
        self.handle = library.tq4_roundtrip_open(name.encode(), calibration.encode() if calibration else None, seed, SCALES[scale], message, 500)
        if not self.handle:
            raise SystemExit(f"{name}: {message.value.decode()}")
        self.exact_k, self.exact_v = self.exact(0), self.exact(1)
        self.lock = threading.Lock() if threads > 1 else None  # with threads of its own, one batch at a time has the processors
        self.seconds = 0.0

    def close(self):
        self.library.tq4_roundtrip_close(self.handle)

    def exact(self, side):
        out = (ctypes.c_int * 3)()
        self.library.tq4_roundtrip_exact(self.handle, side, out)
        return tuple(out)

    def bits(self, tokens, dim):
        return self.library.tq4_roundtrip_bits(self.handle, tokens, dim)

    def side(self, layer, side, x):
        b, h, t, d = x.shape
        host = torch.empty(x.shape, dtype=torch.float32, pin_memory=x.is_cuda)
        out = torch.empty(x.shape, dtype=torch.float32, pin_memory=x.is_cuda)
        host.copy_(x)
        message = ctypes.create_string_buffer(500)
        call = lambda: self.library.tq4_roundtrip(self.handle, layer, side, b, h, t, d, host.data_ptr(), out.data_ptr(), self.threads, message, 500)
        if self.lock:
            with self.lock:
                begin = time.time()
                bad = call()
        else:
            begin = time.time()
            bad = call()
        self.seconds += time.time() - begin
        if bad:
            raise SystemExit(message.value.decode())
        return out.to(x.device)

    def __call__(self, layer, k, v):
        return self.side(layer, 0, k), self.side(layer, 1, v)
