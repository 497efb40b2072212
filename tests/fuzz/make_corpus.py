"""Writes the safetensors and npy parts of the corpus. Usage: make_corpus.py FOLDER (needs NumPy and safetensors)."""
import pathlib
import sys

import numpy as np
from safetensors.numpy import save_file

folder = pathlib.Path(sys.argv[1])
k = np.arange(2 * 5 * 8, dtype=np.float16).reshape(2, 5, 8)
save_file({"layer_0_key": k, "layer_0_value": k, "layer_0_query": k[:, 3:].copy(), "layer_0_o_gram": np.zeros((2, 8, 8), np.float32)},
          folder / "safetensors/names.safetensors", metadata={"num_kv_heads": "2", "sm_scale": "0.125", "layer_0.q_start": "1", "causal": "false"})
save_file({"K_layer3": np.zeros((1, 300, 2, 8), np.float32), "V_layer3": np.zeros((1, 300, 2, 8), np.float64)}, folder / "safetensors/tokens_first.safetensors")
save_file({"key_cache_0": np.zeros((2, 0, 8), np.float16), "value_cache_0": np.zeros((2, 0, 8), np.float16), "other": np.zeros(3, np.int64)},
          folder / "safetensors/empty.safetensors")
np.save(folder / "npy/stacked.npy", np.stack([k, k]))
np.save(folder / "npy/layers.npy", np.zeros((2, 2, 2, 3, 4), np.float64))
np.save(folder / "npy/fortran.npy", np.asfortranarray(np.zeros((2, 2, 3, 4))))
np.savez(folder / "npy/stored.npz", layer_0_k=k, layer_0_v=k, sm_scale=np.float64(0.1), num_kv_heads=np.int64(2), model=np.str_("m"), causal=np.bool_(False))
np.savez_compressed(folder / "npy/deflated.npz", **{"layer_1.k": k, "layer_1.v": k, "layer_1.q": k})
np.savez(folder / "npy/structured.npz", layer_0_k=np.zeros(3, [("a", "<f4"), ("b", "<i2")]), layer_0_v=k)
