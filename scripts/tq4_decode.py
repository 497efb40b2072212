#!/usr/bin/env python3
"""An independent decoder of .tq4 containers, written from src/io/FORMAT.md alone: NumPy and safetensors, no tq4.

    tq4_decode.py x.tq4                # verify, print a line a layer
    tq4_decode.py x.tq4 -o back.npz    # decode everything to float32 arrays layer_003_k, layer_003_v of [heads, tokens, head_dim]

It exists to prove the specification: a test compares it with the library for every kind of codec. Checksums are verified when the package
`xxhash` is installed. Section numbers in comments are FORMAT.md's.
"""
import argparse
import json
import struct
import sys

import numpy as np
from safetensors import safe_open

try:
    import xxhash
except ImportError:
    xxhash = None


def verify(path):
    """1.2: raises ValueError where a checksum is wrong; returns False when xxhash is not installed."""
    if xxhash is None:
        return False
    with open(path, "rb") as file:
        prefix = file.read(8)
        text = file.read(struct.unpack("<Q", prefix)[0])
        header = json.loads(text)
        blocks = header["checksums"]["shape"][0]
        sums = file.read(8 * blocks)
        seal = header["__metadata__"]["xxh3"]
        zeroed = text.replace(b'"xxh3":"' + seal.encode(), b'"xxh3":"' + b"0" * 16)
        if xxhash.xxh3_64_hexdigest(prefix + zeroed + sums) != seal:
            raise ValueError(f"{path}: the checksum of the header is wrong")
        block_bytes = int(header["__metadata__"]["block_bytes"])
        for i, expected in enumerate(np.frombuffer(sums, "<u8")):
            if xxhash.xxh3_64_intdigest(file.read(block_bytes)) != expected:
                raise ValueError(f"{path}: the checksum of block {i} is wrong")
        if file.read(1):
            raise ValueError(f"{path}: bytes follow the last block")
    return True


def unpack(rows, count, width):
    """1.7: codes of `width` bits, least significant bit first, from the uint8 array [..., bytes] to integers [..., count]."""
    bits = np.unpackbits(rows, axis=-1, bitorder="little")[..., : count * width]
    weights = (1 << np.arange(width)).astype(np.int64)
    return bits.reshape(*rows.shape[:-1], count, width).astype(np.int64) @ weights


def fp8(codes, kind):
    """1.7, step 2."""
    bias = 7 if kind == "e4m3" else 15
    sign = np.where(codes & 0x80, -1.0, 1.0)
    exponent, mantissa = (codes >> 3 & 15).astype(np.int64), (codes & 7) / 8
    value = sign * np.where(exponent == 0, np.ldexp(mantissa, 1 - bias), np.ldexp(1 + mantissa, exponent - bias))
    return np.where(codes & 0x7F == 0x7F, np.nan, value) if kind == "e4m3" else value


class Container:
    def __init__(self, path):
        self.verified = verify(path)
        self.file = safe_open(path, "np")
        meta = self.file.metadata()
        if meta.get("format") != "tq4" or int(meta["format_version"]) > 1:
            raise ValueError(f"{path}: not a tq4 container of version 1")
        self.spec, self.layers = json.loads(meta["spec"]), json.loads(meta["layers"])
        self.names = set(self.file.keys())
        self.calibration = {entry["layer"]: entry for entry in json.loads(meta["calibration"])["layers"]} if "calibration" in meta else {}

    def get(self, name):
        return self.file.get_tensor(name) if name in self.names else None

    def centroids(self, spec, table, codes_bytes, dim, pair_points):
        """1.7, step 1: [heads, tokens, D]."""
        width = spec["bits"] - 1 if spec["kind"] == "prod" else spec["bits"]
        levels = self.get(f"{table}.centroids")
        if spec["kind"] == "mixed":
            outliers = -(-dim // 32) * 8
            head = outliers * (width + 1) // 8
            c = np.concatenate([self.get(f"{table}.outlier_centroids")[unpack(codes_bytes[..., :head], outliers, width + 1)],
                                levels[unpack(codes_bytes[..., head:], dim - outliers, width)]], axis=-1)
        elif spec["pair_codebook"]:
            codes = unpack(codes_bytes, dim, width)
            points = pair_points if pair_points is not None else self.get(f"{table}.pairs")
            c = points[codes[..., 0::2] | codes[..., 1::2] << width].reshape(codes.shape).astype(np.float64)
        else:
            c = levels[unpack(codes_bytes, dim, width)]
        if spec["norm_correction"]:
            c = c / np.sqrt((c * c).sum(-1, keepdims=True) + 1e-16)
        return c

    def transformed(self, prefix, spec, table, dim, pair_points):
        """1.7, step 2: y of every encoded token."""
        codes = self.get(prefix + "codes")
        real = lambda part: self.get(prefix + part).astype(np.float64)[..., None]
        if spec["kind"] == "fp8":
            return fp8(codes, spec["fp8"])
        if spec["kind"] == "fp16":
            return np.ascontiguousarray(codes).view("<f2").astype(np.float64)
        if spec["kind"] == "uniform":
            return real("scale") * unpack(codes, dim, spec["bits"]) + real("zero")
        y = real("scale") * self.centroids(spec, table, codes, dim, pair_points)
        if spec["kind"] == "prod":
            signs = 2.0 * np.unpackbits(self.get(prefix + "signs"), axis=-1, bitorder="little") - 1
            y += np.sqrt(np.pi / 2) / dim * real("residual_norm") * (signs @ self.get(f"{table}.qjl").astype(np.float64))
        return y

    def original(self, y, layer, side, table, positions):
        """1.7, step 3."""
        part = lambda name: self.get(f"calibration.layer_{layer['layer']:03d}.{side}.{name}")
        inverse, forward, rotation = part("inverse"), part("forward"), self.get(f"{table}.rotation")
        if inverse is None and forward is not None:
            inverse = forward.transpose(0, 2, 1)
        if inverse is not None:
            x = np.einsum("hij,hsj->hsi", inverse.astype(np.float64), y)
        else:
            x = y @ rotation.astype(np.float64) if rotation is not None else y
        mu = part("rope_mu")
        if mu is not None:
            about = self.calibration[layer["layer"]]
            half = about["rope_dim"] // 2
            angle = positions[:, None] * about["rope_theta"] ** (-2.0 * np.arange(half) / max(1, 2 * half))
            centre = np.repeat(mu[:, None, :].astype(np.float64), len(positions), axis=1)
            low, high = mu[:, None, :half], mu[:, None, half : 2 * half]
            centre[..., :half] = low * np.cos(angle) - high * np.sin(angle)
            centre[..., half : 2 * half] = high * np.cos(angle) + low * np.sin(angle)
            return x + centre
        return x + part("centre")[:, None, :] if part("centre") is not None else x

    def decode(self, layer, side):
        """float32 [heads, tokens, head_dim] of side "k" or "v" of an element of self.layers (1.5)."""
        prefix, dim, heads, tokens = f"layer_{layer['layer']:03d}.{side}.", layer["head_dim"], layer["num_kv_heads"], layer["tokens"]
        out = np.zeros((heads, tokens, dim), np.float32)
        first = tokens if layer["passthrough"] else layer["exact_first"]
        last = tokens - layer["exact_last"]
        exact = self.get(prefix + "exact")
        if exact is not None:
            out[:, :first], out[:, last:] = exact[:, :first], exact[:, first:]
        if first < last:
            table = f"table_{layer[side + '_table']}"
            pair_points = self.get(f"calibration.layer_{layer['layer']:03d}.{side}.pair_points")
            y = self.transformed(prefix, self.spec[side], table, dim, pair_points)
            out[:, first:last] = self.original(y, layer, side, table, np.arange(first, last))
        return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("container")
    parser.add_argument("-o", "--output", help=".npz to write")
    args = parser.parse_args()
    container = Container(args.container)
    print("checksums verified" if container.verified else "checksums not verified: pip install xxhash", file=sys.stderr)
    arrays = {}
    for layer in container.layers:
        for side in "kv":
            x = container.decode(layer, side)
            arrays[f"layer_{layer['layer']:03d}_{side}"] = x
            print(f"layer {layer['layer']} {side}: {list(x.shape)} rms {np.sqrt((x.astype(np.float64) ** 2).mean()) if x.size else 0:.6g}")
    if args.output:
        np.savez(args.output, **arrays)


if __name__ == "__main__":
    main()
