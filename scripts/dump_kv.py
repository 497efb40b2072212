#!/usr/bin/env python3
"""Writes a dump (keys, values, queries of every layer) from any Hugging Face causal language model, for `tq4 compress` and `tq4 eval`.

    dump_kv.py --model meta-llama/Llama-3.2-1B --text book.txt --max-tokens 4096 --queries 256 -o llama.h5
    dump_kv.py --model ./checkpoint --tokens ids.npy --layers 1,4,7 --dtype bfloat16 -o small.h5

Keys and values come from the model's own cache object (`cache.layers[i].keys / .values`), so they are what the model stores: after RoPE in
the models that rotate before caching. Queries are caught where the registered attention function receives them, after RoPE as well. That
same place tells the softmax scale, the sliding window and the soft cap of each layer. Beside them go `o_gram` (what calibrating values
wants) and the model's loss on each token. The schema is in src/io/FORMAT.md. Needs torch, transformers >= 4.56 and h5py.
"""
import argparse
import inspect
import pathlib
import sys

import h5py
import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

HOOK = "tq4_dump"
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


class QueryCatcher:
    """Registers itself as an attention implementation that notes what it is given and then calls the real one.

    `base` is "sdpa" (fused, light on memory) or "eager" (the model's own function: right for soft caps and learned sinks)."""

    def __init__(self, base, first_query):
        self.base, self.first_query, self.position = base, first_query, 0
        self.queries, self.facts, self.modules = {}, {}, {}

    def __enter__(self):
        ALL_ATTENTION_FUNCTIONS.register(HOOK, self)
        ALL_MASK_ATTENTION_FUNCTIONS.register(HOOK, ALL_MASK_ATTENTION_FUNCTIONS[self.base])
        return self

    def __exit__(self, *_):
        ALL_ATTENTION_FUNCTIONS._global_mapping.pop(HOOK, None)
        ALL_MASK_ATTENTION_FUNCTIONS._global_mapping.pop(HOOK, None)

    def __call__(self, module, query, key, value, attention_mask, **kwargs):
        layer = module.layer_idx
        skip = max(0, self.first_query - self.position)
        if query.shape[2] > skip:
            self.queries.setdefault(layer, []).append(query[0, :, skip:].detach().to("cpu"))
        self.modules[layer] = module
        self.facts[layer] = {"sm_scale": kwargs.get("scaling") or query.shape[-1] ** -0.5,
                             "sliding_window": kwargs.get("sliding_window") or 0, "logit_softcap": kwargs.get("softcap") or 0.0}
        real = ALL_ATTENTION_FUNCTIONS["sdpa"] if self.base == "sdpa" else sys.modules[type(module).__module__].eager_attention_forward
        return real(module, query, key, value, attention_mask, **kwargs)


def o_gram(module, num_q_heads, num_kv_heads, head_dim):
    """[Hk, D, D]: sum over the query heads of each group of W_o,h^T W_o,h; None where the output projection has another form."""
    for name in ("o_proj", "out_proj", "dense", "c_proj"):
        projection = getattr(module, name, None)
        weight = getattr(projection, "weight", None)
        if weight is None or weight.dim() != 2:
            continue
        matrix = weight.detach().float().cpu()
        if type(projection).__name__ == "Conv1D":   # GPT-2 keeps [in, out]
            matrix = matrix.T
        if matrix.shape[1] == num_q_heads * head_dim:
            heads = matrix.T.reshape(num_kv_heads, num_q_heads // num_kv_heads, head_dim, -1)
            return torch.einsum("kgdh,kgeh->kde", heads, heads).numpy()
    return None


def rope_attributes(config, layer_type=None):
    """rope_theta, rope_dim fraction and whether positions are rotations, from the several places configurations keep them."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if layer_type is not None and isinstance(rope.get(layer_type), dict):
        rope = rope[layer_type]
    theta = rope.get("rope_theta") or getattr(config, "rope_theta", None) or getattr(config, "rotary_emb_base", None)
    fraction = rope.get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None) or getattr(config, "rotary_pct", None) or 1.0
    return {"rope_theta": float(theta or 0), "rope_applied": bool(theta), "rope_fraction": float(fraction),
            "rope_type": str(rope.get("rope_type", "default"))}


def store(group, name, tensor, dtype, compression):
    """One tensor [heads, tokens, D] as a dataset; bfloat16 as its 16-bit pattern with the attribute dtype = "bfloat16"."""
    tensor = tensor.to(DTYPES[dtype]).contiguous()
    array = tensor.view(torch.int16).numpy().view(np.uint16) if dtype == "bfloat16" else tensor.numpy()
    options = {}
    if compression and array.size:
        options = {"compression": "gzip", "compression_opts": compression, "shuffle": True, "chunks": (1, min(512, array.shape[1]), array.shape[2])}
    dataset = group.create_dataset(name, data=array, **options)
    if dtype == "bfloat16":
        dataset.attrs["dtype"] = "bfloat16"


@torch.no_grad()
def dump(model, tokens, output, *, layers=None, queries=256, dtype="float16", attention="sdpa", chunk=1024, compression=0, grams=True,
         attributes=None):
    """Runs `model` once over the 1-D sequence `tokens` in pieces of `chunk` and writes the dump to the path `output`.

    `queries`: how many of the last positions keep their queries (None: all). `layers`: layer numbers (None: all)."""
    tokens = torch.as_tensor(np.asarray(tokens).astype(np.int64))
    total = len(tokens)
    config = model.config.get_text_config(decoder=True)
    first_query = 0 if queries is None else max(0, total - queries)
    cache = DynamicCache()   # without a config every layer keeps all tokens, sliding windows too (the mask still applies them)
    losses, previous = [], model.config._attn_implementation
    logits_before = None
    with QueryCatcher(attention, first_query) as catcher:
        model.set_attn_implementation(HOOK)
        try:
            for begin in range(0, total, chunk):
                catcher.position = begin
                piece = tokens[begin:begin + chunk].to(model.device)
                logits = model(piece[None], past_key_values=cache, use_cache=True).logits[0].float()
                ahead = logits[:-1] if logits_before is None else torch.cat([logits_before, logits[:-1]])
                target = piece[1:] if logits_before is None else piece
                losses.append(torch.nn.functional.cross_entropy(ahead, target, reduction="none").cpu())
                logits_before = logits[-1:]
        finally:
            model.set_attn_implementation(previous)
    losses = torch.cat(losses) if losses else torch.zeros(0)
    wanted = range(len(cache.layers)) if layers is None else layers
    chosen = [i for i in wanted if i in catcher.modules]
    missing = sorted(set(wanted) - set(chosen))
    if layers is not None and missing:
        raise SystemExit(f"dump_kv.py: no attention layer {missing} in this model; it has {sorted(catcher.modules)}")
    if not chosen:
        raise SystemExit("dump_kv.py: the model never called a registered attention function, so no queries could be caught")

    with h5py.File(output, "w") as file:
        for i in chosen:
            keys, values = cache.layers[i].keys[0].cpu(), cache.layers[i].values[0].cpu()
            if keys.shape != values.shape:
                raise SystemExit(f"dump_kv.py: layer {i} caches keys {tuple(keys.shape)} and values {tuple(values.shape)}; a dump needs equal shapes")
            query = torch.cat(catcher.queries.pop(i), dim=1) if i in catcher.queries else None
            group = file.create_group(f"layer_{i:03d}")
            store(group, "k", keys, dtype, compression)
            store(group, "v", values, dtype, compression)
            layer_type = (getattr(config, "layer_types", None) or [None] * (i + 1))[i]
            group.attrs.update(catcher.facts[i] | rope_attributes(config, layer_type) | {"head_dim": keys.shape[2]})
            if query is not None:
                store(group, "q", query, dtype, compression)
                group["q"].attrs["q_start"] = total - query.shape[1]
                gram = o_gram(catcher.modules[i], query.shape[0], keys.shape[0], keys.shape[2]) if grams else None
                if gram is not None:
                    group.create_dataset("o_gram", data=gram, **({"compression": "gzip", "shuffle": True} if compression else {}))
            fact, heads = catcher.facts[i], (query.shape[0] if query is not None else config.num_attention_heads, keys.shape[0])
        file.create_dataset("token_ids", data=tokens.numpy().astype(np.uint32))
        file.create_dataset("nll", data=losses.numpy())   # nll[i]: loss of predicting token i + 1
        file.attrs.update({"model": type(model).__name__, "num_layers": len(cache.layers), "num_q_heads": heads[0], "num_kv_heads": heads[1],
                           "head_dim": keys.shape[2], "sm_scale": fact["sm_scale"], "seq_len": total, "causal": True, "dtype": dtype,
                           "q_positions": "all" if first_query == 0 else f"last {total - first_query}",
                           "nll": float(losses.mean()) if len(losses) else 0.0}
                          | rope_attributes(config, (getattr(config, "layer_types", None) or [None])[0]) | (attributes or {}))
    return losses


def layer_list(text):
    """"0..3,7" -> [0, 1, 2, 3, 7]"""
    numbers = []
    for part in text.split(","):
        first, _, last = part.partition("..")
        numbers.extend(range(int(first), int(last or first) + 1))
    return sorted(set(numbers))


def read_tokens(path):
    """A .npy of token ids, or text with ids separated by white space or commas."""
    if path.suffix == ".npy":
        return np.load(path).reshape(-1)
    return np.array(path.read_text().replace(",", " ").split(), dtype=np.int64)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="model name or folder, as for AutoModelForCausalLM")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--text", type=pathlib.Path, help="text file, tokenised with the model's tokenizer")
    source.add_argument("--tokens", type=pathlib.Path, help=".npy or text file of token ids")
    parser.add_argument("-o", "--output", type=pathlib.Path, required=True, help="HDF5 file to write")
    parser.add_argument("--force", action="store_true", help="replace OUTPUT if it exists")
    parser.add_argument("--max-tokens", type=int, default=4096, help="stop after so many tokens (default 4096)")
    parser.add_argument("--layers", type=layer_list, help="layers to keep, e.g. 0..3,30 (default: all)")
    parser.add_argument("--queries", default="256", help="keep the queries of the last N positions, or 'all' (default 256)")
    parser.add_argument("--dtype", choices=DTYPES, default="float16", help="element type in the dump (default float16)")
    parser.add_argument("--run-dtype", choices=DTYPES, help="element type to run the model in (default: the checkpoint's)")
    parser.add_argument("--attention", choices=("sdpa", "eager"), default="sdpa",
                        help="implementation under the hook; eager for models with soft caps or sinks (default sdpa)")
    parser.add_argument("--chunk", type=int, default=1024, help="tokens a forward pass (default 1024)")
    parser.add_argument("--device", default="cpu", help="torch device (default cpu)")
    parser.add_argument("--gzip", type=int, default=0, metavar="LEVEL", help="compress the datasets (default 0: off)")
    parser.add_argument("--no-o-gram", action="store_true", help="leave out the Gram matrices of the output projections")
    parser.add_argument("--name", help="attribute `model` (default: --model)")
    parser.add_argument("--source", help="attribute `source`: where the text comes from (default: the input's file name)")
    args = parser.parse_args()
    if args.output.exists() and not args.force:
        raise SystemExit(f"dump_kv.py: {args.output} exists; give --force to replace it")
    if args.text:
        tokens = AutoTokenizer.from_pretrained(args.model)(args.text.read_text(), return_tensors="np")["input_ids"][0]
    else:
        tokens = read_tokens(args.tokens)
    options = {"dtype" if "dtype" in inspect.signature(AutoModelForCausalLM.from_pretrained).parameters else "torch_dtype":
               DTYPES[args.run_dtype] if args.run_dtype else "auto"}
    model = AutoModelForCausalLM.from_pretrained(args.model, **options).to(args.device).eval()
    partial = args.output.with_name(f".{args.output.name}.partial")
    try:
        losses = dump(model, tokens[:args.max_tokens], partial, layers=args.layers, queries=None if args.queries == "all" else int(args.queries),
                      dtype=args.dtype, attention=args.attention, chunk=args.chunk, compression=args.gzip, grams=not args.no_o_gram,
                      attributes={"model": args.name or args.model, "source": args.source or (args.text or args.tokens).name})
        partial.replace(args.output)
    finally:
        partial.unlink(missing_ok=True)
    print(f"{args.output}: {len(losses) + 1} tokens, loss {losses.mean():.4f} nats a token, {args.output.stat().st_size / 1e6:.1f} MB", file=sys.stderr)


if __name__ == "__main__":
    main()
