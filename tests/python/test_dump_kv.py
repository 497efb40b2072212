"""scripts/dump_kv.py on randomly initialised tiny models of several architectures, against what the models themselves compute, and on the
command line. Skipped, visibly, where torch, transformers or h5py are missing. TQ4_TEST_CHECKPOINT=DIR adds a real checkpoint."""
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
h5py = pytest.importorskip("h5py")

SCRIPTS = pathlib.Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))
import dump_kv  # noqa: E402

TOKENS = 90
COMMON = dict(vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=256)
MODELS = {
    "llama": lambda: transformers.LlamaConfig(**COMMON, num_key_value_heads=2, head_dim=32),
    "mistral-sliding": lambda: transformers.MistralConfig(**COMMON, num_key_value_heads=2, head_dim=16, sliding_window=16),
    "qwen2-bias": lambda: transformers.Qwen2Config(**COMMON, num_key_value_heads=1),
    "gemma2-softcap": lambda: transformers.Gemma2Config(**COMMON, num_key_value_heads=2, head_dim=32, sliding_window=16, query_pre_attn_scalar=20),
    "gemma3-mixed": lambda: transformers.Gemma3TextConfig(**COMMON, num_key_value_heads=1, head_dim=32, sliding_window=16,
                                                          layer_types=["sliding_attention", "sliding_attention", "full_attention"]),
    "gpt-neox-partial": lambda: transformers.GPTNeoXConfig(**COMMON),
}


def make(name):
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(MODELS[name]()).eval()
    with torch.no_grad():   # random biases, where there are any: their effect must be in the dump
        for key, parameter in model.named_parameters():
            if key.endswith("bias"):
                parameter.normal_(0, 0.5)
    return model


def tokens():
    return np.random.default_rng(0).integers(3, 97, TOKENS)


def rebuild_attention(group, attributes):
    """Attention output [Hq, Sq, D] from the dump alone, in float64."""
    q, k, v = (group[name][:].astype(np.float64) for name in "qkv")
    start, each = int(group["q"].attrs["q_start"]), q.shape[0] // k.shape[0]
    logits = np.einsum("hqd,hkd->hqk", q, np.repeat(k, each, 0)) * group.attrs["sm_scale"]
    cap, window = group.attrs["logit_softcap"], int(group.attrs["sliding_window"])
    if cap:
        logits = cap * np.tanh(logits / cap)
    query, key = np.arange(start, start + q.shape[1])[:, None], np.arange(k.shape[1])[None]
    hidden = (key > query) | ((key <= query - window) if window else False)
    logits[:, hidden] = -np.inf
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("hqk,hkd->hqd", weights / weights.sum(-1, keepdims=True), np.repeat(v, each, 0))


@pytest.mark.parametrize("name", MODELS)
def test_dump_explains_the_attention_of_the_model(name, tmp_path):
    """q, k, v, scale, window and soft cap in the dump reproduce the attention outputs seen inside the model."""
    model, seen = make(name), {}
    attentions = [module for module in model.modules() if hasattr(module, "layer_idx") and type(module).__name__.endswith("Attention")]
    for module in attentions:
        projection = next(getattr(module, p) for p in ("o_proj", "dense", "out_proj") if hasattr(module, p))
        projection.register_forward_pre_hook(lambda _, inputs, layer=module.layer_idx: seen.setdefault(layer, []).append(inputs[0][0]))
    dump_kv.dump(model, tokens(), tmp_path / "x.h5", queries=25, dtype="float32", attention="eager", chunk=40)
    with h5py.File(tmp_path / "x.h5") as file:
        assert sorted(key for key in file if key.startswith("layer_")) == ["layer_000", "layer_001", "layer_002"]
        assert file.attrs["seq_len"] == TOKENS and file["token_ids"].shape == (TOKENS,) and file["nll"].shape == (TOKENS - 1,)
        for layer in range(3):
            group = file[f"layer_{layer:03d}"]
            assert group["k"].shape == group["v"].shape and group["k"].shape[1] == TOKENS, "sliding layers keep all tokens in a dump"
            assert group["q"].attrs["q_start"] == TOKENS - 25
            model_out = torch.cat(seen[layer])[-25:].reshape(25, group["q"].shape[0], -1).permute(1, 0, 2).numpy()
            np.testing.assert_allclose(rebuild_attention(group, file.attrs), model_out, atol=2e-5)
            projection = next(getattr(attentions[layer], p) for p in ("o_proj", "dense") if hasattr(attentions[layer], p)).weight.detach().numpy()
            heads, dim = group["q"].shape[0], group["k"].shape[2]
            slices = [projection[:, h * dim:(h + 1) * dim] for h in range(heads)]
            each = heads // group["k"].shape[0]
            gram = sum(w.T.astype(np.float64) @ w for w in slices[:each])
            np.testing.assert_allclose(group["o_gram"][0], gram, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "mistral-sliding", "qwen2-bias"])
def test_pieces_and_implementations_agree(name, tmp_path):
    model = make(name)
    whole = dump_kv.dump(model, tokens(), tmp_path / "a.h5", queries=None, dtype="float32", chunk=1000)
    pieces = dump_kv.dump(model, tokens(), tmp_path / "b.h5", queries=None, dtype="float32", chunk=7)
    np.testing.assert_allclose(whole, pieces, atol=1e-4)
    logits = model(torch.tensor(tokens())[None]).logits[0].float()
    expected = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(tokens())[1:], reduction="none").detach()
    np.testing.assert_allclose(whole, expected, atol=1e-4)
    with h5py.File(tmp_path / "a.h5") as a, h5py.File(tmp_path / "b.h5") as b:
        for layer in ("layer_000", "layer_002"):
            for tensor in "kvq":
                np.testing.assert_allclose(a[layer][tensor][:], b[layer][tensor][:], atol=1e-4)


def test_attributes_of_layers(tmp_path):
    dump_kv.dump(make("gemma3-mixed"), tokens(), tmp_path / "x.h5", attention="eager")
    with h5py.File(tmp_path / "x.h5") as file:
        assert [int(file[f"layer_00{i}"].attrs["sliding_window"]) for i in range(3)] == [16, 16, 0]
        assert file["layer_000"].attrs["rope_theta"] != file["layer_002"].attrs["rope_theta"], "Gemma 3 has a theta for each kind of layer"
        assert file["layer_000/k"].dtype == np.float16


def test_bfloat16_and_selection(tmp_path):
    model = make("llama")
    dump_kv.dump(model, tokens(), tmp_path / "a.h5", dtype="float32")
    dump_kv.dump(model, tokens(), tmp_path / "b.h5", dtype="bfloat16", layers=[1], compression=4, grams=False)
    with h5py.File(tmp_path / "a.h5") as a, h5py.File(tmp_path / "b.h5") as b:
        assert [key for key in b if key.startswith("layer_")] == ["layer_001"] and "o_gram" not in b["layer_001"]
        assert b["layer_001/k"].attrs["dtype"] == "bfloat16"
        bits = b["layer_001/k"][:].astype(np.uint32) << 16
        np.testing.assert_allclose(bits.view(np.float32), a["layer_001/k"][:], rtol=2 ** -8)
    with pytest.raises(SystemExit, match="no attention layer"):
        dump_kv.dump(model, tokens(), tmp_path / "c.h5", layers=[5])


def test_the_hook_is_gone_afterwards(tmp_path):
    model = make("llama")
    before = model.config._attn_implementation
    dump_kv.dump(model, tokens(), tmp_path / "x.h5")
    assert model.config._attn_implementation == before
    with pytest.raises(Exception):
        model.set_attn_implementation(dump_kv.HOOK)
        model(torch.tensor(tokens())[None])


def test_command_line(tmp_path):
    checkpoint = os.environ.get("TQ4_TEST_CHECKPOINT")
    if not checkpoint:
        checkpoint = tmp_path / "model"
        make("llama").save_pretrained(checkpoint)
    (tmp_path / "ids.txt").write_text(" ".join(map(str, tokens())))
    command = [sys.executable, SCRIPTS / "dump_kv.py", "--model", checkpoint, "--tokens", tmp_path / "ids.txt", "--max-tokens", "60", "--layers", "0..1",
               "--queries", "10", "-o", tmp_path / "x.h5", "--source", "a test"]
    subprocess.run(command, check=True, capture_output=True)
    with h5py.File(tmp_path / "x.h5") as file:
        assert file.attrs["source"] == "a test" and file["layer_001/k"].shape[1] == 60 and file["layer_001/q"].shape[1] == 10
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode != 0 and "--force" in again.stderr
    assert sorted(path.name for path in tmp_path.glob("*.h5")) == ["x.h5"] and not list(tmp_path.glob(".*"))
