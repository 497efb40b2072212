"""A Llama-architecture language model in plain PyTorch with its K/V cache put through a codec inside of the forward pass.

Reads a folder with config.json, model.int8.safetensors (int8 rows, `NAME.int8` and `NAME.scale`; other tensors fp16 or fp32) and heldout.npz
(`tokens`, `offsets`). Self-contained, because the machine it runs on may have nothing but PyTorch.
"""
import json
import math
import pathlib
import struct

import numpy as np
import torch


def read_safetensors(path):
    data = pathlib.Path(path).read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    kinds = {"I8": np.int8, "F16": np.float16, "F32": np.float32}
    out = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = (8 + size + x for x in entry["data_offsets"])
        if entry["dtype"] == "BF16":
            out[name] = (np.frombuffer(data[begin:end], np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(entry["shape"])
        else:
            out[name] = np.frombuffer(data[begin:end], kinds[entry["dtype"]]).reshape(entry["shape"]).astype(np.float32)
    return out


def windows(folder, first_file, last_file, ctx, count):
    """`count` windows of ctx + 1 tokens, evenly spaced over files first_file..last_file-1 (each begun by the document token 1)."""
    held = np.load(pathlib.Path(folder) / "heldout.npz")
    offsets, tokens = held["offsets"], held["tokens"].astype(np.int64)
    last_file = min(last_file, len(offsets) - 1)
    stream = np.concatenate([np.concatenate([[1], tokens[offsets[i] : offsets[i + 1]]]) for i in range(first_file, last_file)])
    whole = (len(stream) - 1) // ctx
    if count > whole:
        raise SystemExit(f"only {whole} windows of {ctx} tokens in files {first_file}..{last_file - 1}")
    starts = np.linspace(0, whole - 1, count).astype(int) * ctx
    return np.stack([stream[s : s + ctx + 1] for s in starts])


NONE_EXACT = (0, 0, 0)


def is_exact(exact, rows, columns):
    """Which of `columns` (tokens) the query at each of `rows` (positions) sees exactly, as tq4::ExactTokens has it: the first `sinks`, the last
    `window`, and with `block` those not yet in a whole block."""
    sinks, window, block = exact
    mask = (columns < sinks) | (columns > rows - window)
    return mask | (columns >= (rows + 1) // block * block) if block else mask


class Model:
    def __init__(self, folder, device, stress=1.0, stress_pairs=4):
        """stress s: in every kv head `stress_pairs` RoPE pairs of channels of K are s times larger and those of Q s times smaller. No logit
        changes, but the keys get outlier channels."""
        config = json.loads((pathlib.Path(folder) / "config.json").read_text())
        raw = read_safetensors(pathlib.Path(folder) / "model.int8.safetensors")
        self.w = {}
        for name, value in raw.items():
            if name.endswith(".int8"):
                value = value * raw[name[:-5] + ".scale"][:, None]
                self.w[name[:-5]] = torch.from_numpy(value).to(device)
            elif not name.endswith(".scale"):
                self.w[name] = torch.from_numpy(value).to(device)
        self.device = device
        self.layers, self.heads, self.kv_heads = (config[k] for k in ("num_hidden_layers", "num_attention_heads", "num_key_value_heads"))
        self.dim, self.theta, self.eps = config["head_dim"], config["rope_theta"], config["rms_norm_eps"]

        if stress != 1:
            self.add_outliers(stress, stress_pairs)

    def add_outliers(self, factor, pairs):
        pick = np.random.default_rng(0)
        half, group = self.dim // 2, self.heads // self.kv_heads
        for layer in range(self.layers):
            name = f"model.layers.{layer}.self_attn."
            k = self.w[name + "k_proj.weight"].view(self.kv_heads, self.dim, -1)
            q = self.w[name + "q_proj.weight"].view(self.kv_heads, group, self.dim, -1)
            for head in range(self.kv_heads):
                channels = pick.choice(half, pairs, replace=False)
                channels = torch.from_numpy(np.concatenate([channels, channels + half])).to(self.device)
                k[head, channels] *= factor
                q[head][:, channels] /= factor

    def rope(self, tokens):
        frequency = self.theta ** (-torch.arange(0, self.dim, 2, dtype=torch.float64) / self.dim)
        angle = torch.arange(tokens, dtype=torch.float64)[:, None] * frequency
        return angle.cos().float().to(self.device), angle.sin().float().to(self.device)

    def turn(self, x, cos, sin):
        a, b = x[..., : self.dim // 2], x[..., self.dim // 2 :]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def norm(self, x, name):
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + self.eps) * self.w[name]

    def o_gram(self, layer):
        """[kv_heads, D, D]: sum over each group's query heads of W_o,h^T W_o,h."""
        o = self.w[f"model.layers.{layer}.self_attn.o_proj.weight"].double()
        group = self.heads // self.kv_heads
        parts = [o[:, h * self.dim : (h + 1) * self.dim] for h in range(self.heads)]
        return torch.stack([sum(parts[k * group + g].T @ parts[k * group + g] for g in range(group)) for k in range(self.kv_heads)])

    def attend(self, q, k, v, k_hat, v_hat, exact_k, exact_v):
        """Query i sees the tokens of `exact_k` and `exact_v` exactly, the others as the codec returns them."""
        b, h, t, d = q.shape
        group = h // self.kv_heads
        if not any(exact_k) and not any(exact_v):
            return torch.nn.functional.scaled_dot_product_attention(q, k_hat.repeat_interleave(group, 1), v_hat.repeat_interleave(group, 1), is_causal=True)
        out = torch.empty_like(q)
        index = torch.arange(t, device=q.device)
        chunk = 512
        for b0 in range(0, t, chunk):
            b1 = min(t, b0 + chunk)
            rows, columns = index[b0:b1, None], index[None, :b1]
            group_q = q[:, :, b0:b1].reshape(b, self.kv_heads, group, b1 - b0, d)
            logits = torch.einsum("bhgqd,bhkd->bhgqk", group_q, k_hat[:, :, :b1])
            if any(exact_k):
                logits = torch.where(is_exact(exact_k, rows, columns), torch.einsum("bhgqd,bhkd->bhgqk", group_q, k[:, :, :b1]), logits)
            p = torch.softmax((logits / math.sqrt(d)).masked_fill(columns > rows, -math.inf), -1)
            p_exact = p * is_exact(exact_v, rows, columns)
            part = torch.einsum("bhgqk,bhkd->bhgqd", p_exact, v[:, :, :b1]) + torch.einsum("bhgqk,bhkd->bhgqd", p - p_exact, v_hat[:, :, :b1])
            out[:, :, b0:b1] = part.reshape(b, h, b1 - b0, d)
        return out

    def hidden(self, tokens, codec=None, exact_k=NONE_EXACT, exact_v=NONE_EXACT, capture=None):
        """tokens [B, T] -> last hidden states [B, T, hidden]. codec(layer, k, v) -> (k, v) as decoded, [B, Hk, T, D];
        exact_k, exact_v: (sinks, window, block), see is_exact; capture(layer, q, k, v) sees every layer."""
        b, t = tokens.shape
        x = self.w["model.embed_tokens.weight"][tokens]
        cos, sin = self.rope(t)
        for layer in range(self.layers):
            name = f"model.layers.{layer}."
            y = self.norm(x, name + "input_layernorm.weight")
            project = lambda which, heads: (y @ self.w[f"{name}self_attn.{which}_proj.weight"].T).view(b, t, heads, self.dim).transpose(1, 2)
            q, k, v = self.turn(project("q", self.heads), cos, sin), self.turn(project("k", self.kv_heads), cos, sin), project("v", self.kv_heads)
            if capture is not None:
                capture(layer, q, k, v)
            if codec is None:
                out = self.attend(q, k, v, k, v, NONE_EXACT, NONE_EXACT)
            else:
                out = self.attend(q, k, v, *codec(layer, k, v), exact_k, exact_v)
            x = x + out.transpose(1, 2).reshape(b, t, -1) @ self.w[name + "self_attn.o_proj.weight"].T
            y = self.norm(x, name + "post_attention_layernorm.weight")
            x = x + (torch.nn.functional.silu(y @ self.w[name + "mlp.gate_proj.weight"].T) * (y @ self.w[name + "mlp.up_proj.weight"].T)) @ self.w[
                name + "mlp.down_proj.weight"].T
        return self.norm(x, "model.norm.weight")

    def log_probabilities(self, hidden):
        return torch.log_softmax(hidden @ self.w["model.embed_tokens.weight"].T, -1)
