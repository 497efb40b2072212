#!/usr/bin/env python3
"""Prefill from compressed planes against PyTorch's fp16 attention backends on the decoded values, in one run.

python3 bench.py libtq4_prefill.so OUT.json [--lengths 1024,8192] [--rounds 10]

Shape: one sequence, 32 query heads, 8 key heads, head_dim 128, fp16, causal and not. Each round times every candidate once (a few calls between two
events), so that clocks and heat are shared; medians over rounds. Candidates: tq4 (decoding of the planes included), its general kernel, its int8
logits; torch flash, cuDNN and memory-efficient attention on K and V decoded beforehand, with K and V repeated to 32 heads beforehand and, where
served, with enable_gqa. Errors are against float64 attention on the decoded values (some rows)."""
import argparse
import ctypes
import json
import statistics
import subprocess
import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

HEADS, KV_HEADS, DIM = 32, 8, 128


class Call(ctypes.Structure):
    _fields_ = ([(n, ctypes.c_void_p) for n in ("q", "k_codes", "v_codes", "k_scale", "v_scale", "cu_q", "cu_k", "out", "workspace", "lse")]
                + [(n, ctypes.c_int64) for n in ("workspace_bytes", "tokens")]
                + [(n, ctypes.c_int) for n in ("num_seqs", "q_len", "num_q_heads", "causal", "general", "int8")])


def load(path):
    lib = ctypes.CDLL(path)
    lib.tq4_codec.restype = ctypes.c_void_p
    lib.tq4_error.restype = ctypes.c_char_p
    lib.tq4_prefill_workspace.restype = ctypes.c_int64
    return lib


def address(t):
    return ctypes.c_void_p(t.data_ptr())


class Problem:
    def __init__(self, lib, spec, length, causal):
        self.lib, self.length, self.causal = lib, length, causal
        self.codec = ctypes.c_void_p(lib.tq4_codec(spec.encode(), DIM, KV_HEADS))
        assert self.codec.value, lib.tq4_error()
        self.stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        g = torch.Generator(device="cuda").manual_seed(length)
        self.q = torch.randn(length, HEADS, DIM, generator=g, device="cuda", dtype=torch.float16)
        self.planes, self.decoded = [], []
        for side in (0, 1):
            x = torch.randn(length, KV_HEADS, DIM, generator=g, device="cuda", dtype=torch.float16)
            codes = torch.empty(length * KV_HEADS * lib.tq4_code_bytes(self.codec, side), device="cuda", dtype=torch.uint8)
            scale = torch.empty(length * KV_HEADS, device="cuda")
            y = torch.empty_like(x)
            n = ctypes.c_int64(length)
            self.check(lib.tq4_encode(self.codec, side, address(x), n, address(codes), address(scale), self.stream))
            self.check(lib.tq4_dequant(self.codec, side, address(codes), address(scale), n, address(y), self.stream))
            self.planes.append((codes, scale))
            self.decoded.append(y)
        self.cu = torch.tensor([0, length], device="cuda", dtype=torch.int32)
        self.out = torch.empty_like(self.q)
        self.lse = torch.empty(length, HEADS, device="cuda")
        self.calls = {"tq4": self.call(), "tq4 general": self.call(general=1), "tq4 int8": self.call(int8=1)}

    def check(self, status):
        assert status == 0, self.lib.tq4_error()

    def call(self, **flags):
        c = Call(q=self.q.data_ptr(), k_codes=self.planes[0][0].data_ptr(), v_codes=self.planes[1][0].data_ptr(),
                 k_scale=self.planes[0][1].data_ptr(), v_scale=self.planes[1][1].data_ptr(), cu_q=self.cu.data_ptr(), cu_k=self.cu.data_ptr(),
                 out=self.out.data_ptr(), lse=self.lse.data_ptr(), tokens=self.length, num_seqs=1, q_len=self.length, num_q_heads=HEADS,
                 causal=int(self.causal), **flags)
        c.workspace_bytes = self.lib.tq4_prefill_workspace(self.codec, ctypes.byref(c))
        self.workspace = getattr(self, "workspace", None)
        if self.workspace is None or self.workspace.numel() < c.workspace_bytes:
            self.workspace = torch.empty(max(c.workspace_bytes, 0), device="cuda", dtype=torch.uint8)
            self.kept = getattr(self, "kept", []) + [self.workspace]
        c.workspace = self.workspace.data_ptr()
        return c

    def run(self, name):
        self.check(self.lib.tq4_prefill(self.codec, ctypes.byref(self.calls[name]), self.stream))

    def candidates(self):
        found = {name: (lambda name=name: self.run(name)) for name in self.calls}
        q, k, v = (t.transpose(0, 1)[None] for t in (self.q, *self.decoded))
        q = q.contiguous()
        wide_k, wide_v = (t.repeat_interleave(HEADS // KV_HEADS, 1).contiguous() for t in (k, v))
        k, v = k.contiguous(), v.contiguous()
        for name, backend in (("flash", SDPBackend.FLASH_ATTENTION), ("cudnn", SDPBackend.CUDNN_ATTENTION),
                              ("efficient", SDPBackend.EFFICIENT_ATTENTION)):
            for gqa in (False, True):
                def attend(backend=backend, gqa=gqa):
                    with sdpa_kernel(backend):
                        return scaled_dot_product_attention(q, k if gqa else wide_k, v if gqa else wide_v, is_causal=self.causal, enable_gqa=gqa)
                try:
                    attend()
                    torch.cuda.synchronize()
                    found[f"torch {name}" + (" gqa" if gqa else "")] = attend
                except RuntimeError as e:
                    print(f"torch {name} gqa={gqa}: {str(e).splitlines()[0][:120]}")
        return found

    def rows(self):
        g = torch.Generator().manual_seed(1)
        return torch.cat([torch.arange(min(64, self.length)), torch.randint(0, self.length, (64,), generator=g),
                          torch.arange(max(0, self.length - 64), self.length)]).unique().cuda()

    def errors(self, out, reference, rows):
        """Relative (Frobenius) error, the largest error over the output's root mean square, and the mean one."""
        d = out[rows].double() - reference
        rms = reference.square().mean().sqrt()
        return {"relative": (d.norm() / reference.norm()).item(), "max_over_rms": (d.abs().max() / rms).item(),
                "mean_over_rms": (d.abs().mean() / rms).item()}

    def reference(self, rows):
        k, v = (t.double().repeat_interleave(HEADS // KV_HEADS, 1) for t in self.decoded)
        logits = torch.einsum("rhd,shd->hrs", self.q[rows].double(), k) / DIM**0.5
        if self.causal:
            logits.masked_fill_(torch.arange(self.length, device="cuda")[None, None, :] > rows[None, :, None], float("-inf"))
        return torch.einsum("hrs,shd->rhd", logits.softmax(-1), v)


def measure(candidates, rounds):
    seconds = {name: [] for name in candidates}
    calls = {}
    for name, f in candidates.items():  # warm
        f()
        torch.cuda.synchronize()
        t = time.perf_counter()
        f(), f()
        torch.cuda.synchronize()
        calls[name] = max(1, min(20, round(0.006 / ((time.perf_counter() - t) / 2))))
    for _ in range(rounds):
        for name, f in candidates.items():
            start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            f()
            start.record()
            for _ in range(calls[name]):
                f()
            stop.record()
            stop.synchronize()
            seconds[name].append(start.elapsed_time(stop) * 1e-3 / calls[name])
    return seconds


def main():
    a = argparse.ArgumentParser()
    a.add_argument("library")
    a.add_argument("out")
    a.add_argument("--lengths", default="1024,2048,4096,8192,16384")
    a.add_argument("--rounds", type=int, default=10)
    a.add_argument("--spec", default="tq4")
    a.add_argument("--commit", default="")
    o = a.parse_args()
    lib = load(o.library)
    result = {"what": "prefill from planes, 1 sequence, 32/8 heads, head_dim 128, fp16", "spec": o.spec, "commit": o.commit,
              "gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "cuda": torch.version.cuda,
              "cudnn": torch.backends.cudnn.version(), "rounds": o.rounds, "points": [],
              "driver": subprocess.run(["nvidia-smi", "--query-gpu=driver_version,clocks.sm,clocks.max.sm,power.draw", "--format=csv,noheader"],
                                       capture_output=True, text=True).stdout.strip()}
    for causal in (True, False):
        for length in map(int, o.lengths.split(",")):
            p = Problem(lib, o.spec, length, causal)
            rows = p.rows()
            reference = p.reference(rows)
            errors = {}
            for name in p.calls:
                p.out.fill_(float("nan"))
                p.run(name)
                torch.cuda.synchronize()
                errors[name] = p.errors(p.out, reference, rows)
                if name == "tq4":
                    exact = p.out.clone()
                elif name == "tq4 int8":
                    d = (p.out.float() - exact.float()).abs()
                    rms = exact.float().square().mean().sqrt()
                    errors["int8 against fp16, all rows"] = {"max_over_rms": (d.max() / rms).item(), "mean_over_rms": (d.mean() / rms).item()}
            candidates = p.candidates()
            for name, f in candidates.items():
                if name.startswith("torch"):
                    errors[name] = p.errors(f()[0].transpose(0, 1), reference, rows)
            seconds = measure(candidates, o.rounds)
            flop = 4 * length * length * DIM * HEADS * (0.5 if causal else 1)
            median = {n: statistics.median(s) for n, s in seconds.items()}
            best = min((m, n) for n, m in median.items() if n.startswith("torch"))
            point = {"tokens": length, "causal": causal, "best_torch": best[1], "seconds": seconds, "median": median,
                     "tflops": {n: flop / m / 1e12 for n, m in median.items()}, "speed_vs_best_torch": {n: best[0] / m for n, m in median.items()},
                     "errors": errors}
            result["points"].append(point)
            print(f"{'causal' if causal else 'full'} {length}: " + "; ".join(
                f"{n} {m * 1e6:.0f} us {flop / m / 1e12:.0f} T {best[0] / m:.2f}x" for n, m in median.items()))
            for n, e in errors.items():
                print("   ", n, " ".join(f"{k} {v:.2e}" for k, v in e.items()))
            with open(o.out, "w") as f:
                json.dump(result, f, indent=1)
            del p, candidates, reference
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
