"""The tables a codec is made of: Lloyd-Max codebooks and rotation matrices."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from . import _core
from ._checks import integer, text


@dataclass(frozen=True)
class Codebook:
    """A scalar quantizer for one coordinate of a unit vector in R^dim.

    centroids: 2**bits ascending float64; boundaries: 2**bits - 1 between them. A value's code is the number of boundaries <= it.
    mse is E|x - Q(x)|^2 of a whole unit vector; paper_bound is Theorem 1's sqrt(3) pi / 2 * 4**-bits; shannon_bound is 4**-bits.
    """

    kind: str
    bits: int
    dim: int
    centroids: np.ndarray = field(repr=False)
    boundaries: np.ndarray = field(repr=False)
    mse: float
    entropy_bits: float
    paper_bound: float
    shannon_bound: float


def codebook(bits: int, dim: int, kind: str = "sphere") -> Codebook:
    """Solve Lloyd-Max for `bits` (1..8) bits at head_dim `dim`. kind: "sphere" (exact), "gaussian", "turboquant-vllm", "vllm"."""
    bits, dim, kind = integer(bits, "bits"), integer(dim, "dim"), text(kind, "kind")
    return Codebook(kind, bits, dim, *_core.codebook(bits, dim, kind))


def rotation(dim: int, kind: str = "haar", seed: int = 42) -> np.ndarray:
    """The orthogonal float32 [dim, dim] matrix R of a codec: y = R x, x = R.T y. The same bits on every CPU.

    kind: "haar", "haar-torch" (turboquant-vllm's matrix of that seed), "hadamard", "hadamard-signed", "none".
    """
    return np.asarray(_core.rotation(integer(dim, "dim"), text(kind, "kind"), integer(seed, "seed", 0, 2**64 - 1)))
