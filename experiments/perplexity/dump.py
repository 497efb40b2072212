"""Calibration dumps: K, V, the last queries and o_gram of every layer, one HDF5 file a window (schema: FORMAT.md, "Dump").

    python dump.py --model DIR --files 0:100 --windows 16 --ctx 4096 --out DIR      # needs h5py
"""
import argparse
import pathlib

import h5py
import torch

from model import Model, windows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--files", default="0:100", help="files A:B of heldout.npz, none of which run.py tests on")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--ctx", type=int, default=4096)
    parser.add_argument("--queries", type=int, default=2048, help="the last N queries of each head")
    parser.add_argument("--stress", type=float, default=1, help="scale of the outlier channels (model.py)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    model = Model(arguments.model, arguments.device, arguments.stress)
    first, last = (int(x) for x in arguments.files.split(":"))
    arguments.out.mkdir(parents=True, exist_ok=True)
    for number, tokens in enumerate(windows(arguments.model, first, last, arguments.ctx, arguments.windows)):
        with h5py.File(arguments.out / f"cal_{number:02d}.h5", "w") as file:
            file.attrs.update({"model": f"small Llama-architecture language model{f', outliers {arguments.stress:g}x' if arguments.stress != 1 else ''}", "num_q_heads": model.heads, "num_kv_heads": model.kv_heads,
                               "head_dim": model.dim, "sm_scale": model.dim**-0.5, "rope_applied": True, "rope_theta": model.theta, "causal": True,
                               "source": f"files {arguments.files}, window {number}"})

            def capture(layer, q, k, v):
                group = file.create_group(f"layer_{layer}")
                group["k"], group["v"] = k[0].half().cpu().numpy(), v[0].half().cpu().numpy()
                group["q"] = q[0, :, -arguments.queries :].half().cpu().numpy()
                group["q"].attrs["q_start"] = arguments.ctx - arguments.queries
                group["o_gram"] = model.o_gram(layer).float().cpu().numpy()

            model.hidden(torch.from_numpy(tokens[None, :-1]).to(arguments.device), capture=capture)


if __name__ == "__main__":
    main()
