#!/usr/bin/env python3
"""python3 check.py libtq4_prefill.so: prefill from planes against float64 attention on the decoded values, over head sizes, groups, batches of sequences
of different lengths (queries of 1 among them), causal and not, each path; then the call in a CUDA graph, replayed as it was and with a sequence of
other lengths. Exits 1 where an error exceeds its limit (fp16 2e-3, int8 3e-2) or bits differ between two calls."""
import ctypes
import sys

import torch

import bench


def main():
    lib = bench.load(sys.argv[1])
    stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
    worst, failed = {}, 0
    for seed, (dim, heads, kv_heads, q_lens, prefixes) in enumerate([
            (128, 32, 8, [1000, 1, 77], [0, 300, 128]), (128, 8, 8, [129, 640], [0, 1]), (128, 7, 1, [333], [4000]), (128, 6, 2, [64, 64, 1, 1], [64, 0, 0, 999]),
            (64, 32, 8, [1000, 1, 77], [0, 300, 128]), (64, 5, 1, [700], [3]), (64, 16, 16, [128, 256], [0, 128]), (128, 16, 1, [2049], [0])]):
        for spec in ("tq4", "k4v3", "tq2", "k8v4"):
            codec = ctypes.c_void_p(lib.tq4_codec(spec.encode(), dim, kv_heads))
            g = torch.Generator(device="cuda").manual_seed(seed)
            kv_lens = [q + p for q, p in zip(q_lens, prefixes)]
            cu_q, cu_k = (torch.tensor([0] + n, device="cuda").cumsum(0).int() for n in (q_lens, kv_lens))
            q = 2 * torch.randn(sum(q_lens), heads, dim, generator=g, device="cuda", dtype=torch.float16)
            planes, decoded = [], []
            for side in (0, 1):
                x = torch.randn(sum(kv_lens), kv_heads, dim, generator=g, device="cuda", dtype=torch.float16)
                n = ctypes.c_int64(sum(kv_lens))
                codes = torch.empty(sum(kv_lens) * kv_heads * lib.tq4_code_bytes(codec, side), device="cuda", dtype=torch.uint8)
                scale, y = torch.ones(sum(kv_lens) * kv_heads, device="cuda"), torch.empty_like(x)
                assert lib.tq4_encode(codec, side, bench.address(x), n, bench.address(codes), bench.address(scale), stream) == 0, lib.tq4_error()
                assert lib.tq4_dequant(codec, side, bench.address(codes), bench.address(scale), n, bench.address(y), stream) == 0, lib.tq4_error()
                planes.append((codes, scale)), decoded.append(y)
            for causal in (True, False):
                want = torch.cat([attention(q[a:b], decoded[0][c:d], decoded[1][c:d], causal) for a, b, c, d in zip(cu_q, cu_q[1:], cu_k, cu_k[1:])])
                for path, flags in (("hopper", {}), ("general", {"general": 1}), ("int8", {"int8": 1})):
                    if path == "int8" and dim != 128:
                        continue
                    out, lse = torch.full_like(q, float("nan")), torch.empty(sum(q_lens), heads, device="cuda")
                    c = bench.Call(q=q.data_ptr(), k_codes=planes[0][0].data_ptr(), v_codes=planes[1][0].data_ptr(), k_scale=planes[0][1].data_ptr(),
                                   v_scale=planes[1][1].data_ptr(), cu_q=cu_q.data_ptr(), cu_k=cu_k.data_ptr(), out=out.data_ptr(), lse=lse.data_ptr(),
                                   tokens=max(kv_lens), num_seqs=len(q_lens), q_len=max(q_lens), num_q_heads=heads, causal=int(causal), **flags)
                    c.workspace_bytes = lib.tq4_prefill_workspace(codec, ctypes.byref(c))
                    workspace = torch.full((c.workspace_bytes,), 255, device="cuda", dtype=torch.uint8)  # NaN where nothing is written
                    c.workspace = workspace.data_ptr()
                    assert lib.tq4_prefill(codec, ctypes.byref(c), stream) == 0, lib.tq4_error()
                    first = out.clone()
                    assert lib.tq4_prefill(codec, ctypes.byref(c), stream) == 0
                    same = torch.equal(first, out)
                    error = ((out.double() - want).norm() / want.norm()).item()
                    key = (path, dim)
                    worst[key] = max(worst.get(key, 0), error)
                    graph = torch.cuda.CUDAGraph()
                    with torch.cuda.graph(graph):
                        capturing = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
                        assert lib.tq4_prefill(codec, ctypes.byref(c), capturing) == 0, lib.tq4_error()
                    replayed = [replay(graph, out)]
                    cu_q[-1] -= 1
                    cu_k[-1] -= 1
                    replayed.append(replay(graph, out))
                    out.fill_(float("nan"))
                    assert lib.tq4_prefill(codec, ctypes.byref(c), stream) == 0
                    last = int(cu_q[-1])
                    graphs = torch.equal(replayed[0], first) and torch.equal(replayed[1][:last], out[:last])
                    cu_q[-1] += 1
                    cu_k[-1] += 1
                    if not graphs:
                        failed += 1
                        print("FAILED in a graph", path, dim, heads, kv_heads, q_lens, prefixes, spec, causal)
                    out.copy_(first)
                    if not error < (3e-2 if path == "int8" else 2e-3) or not same:
                        failed += 1
                        print("FAILED", path, dim, heads, kv_heads, q_lens, prefixes, spec, causal, error, "same twice:", same)
    for key, error in sorted(worst.items()):
        print(*key, f"worst relative error {error:.2e}")
    print("failed:", failed)
    sys.exit(failed > 0)


def replay(graph, out):
    out.fill_(float("nan"))
    graph.replay()
    return out.clone()


def attention(q, k, v, causal):
    group = q.shape[1] // k.shape[1]
    k, v = (t.double().repeat_interleave(group, 1) for t in (k, v))
    logits = torch.einsum("rhd,shd->hrs", q.double(), k) / q.shape[2]**0.5
    if causal:
        first = k.shape[0] - q.shape[0]
        logits.masked_fill_(torch.arange(k.shape[0], device="cuda")[None, None, :] > first + torch.arange(q.shape[0], device="cuda")[None, :, None], float("-inf"))
    return torch.einsum("hrs,shd->rhd", logits.softmax(-1), v)


if __name__ == "__main__":
    main()
