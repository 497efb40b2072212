"""tq4.hf.TQ4Cache under tiny random models (no data needed): the fp16 pass-through gives an uncompressed cache's tokens in every architecture and
attention; codes are what the codec gives; exact sinks and window; padding, beams, crop; misuse. And under the small trained model where its files
are (TQ4_TEST_MODEL, or ../shared/data/lm beside the repository): the same tokens, and the losses of experiments/perplexity window by window."""
import os
import random
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
try:
    import tq4.hf
except ImportError as error:
    pytest.skip(f"this transformers ({transformers.__version__}) lacks what tq4.hf needs: {error}", allow_module_level=True)

import tq4  # noqa: E402
from test_errors import random_thing  # noqa: E402

ROOT = Path(__file__).resolve().parents[3]
torch.set_num_threads(1)  # tiny work: more threads only wait for each other
MODEL = Path(os.environ.get("TQ4_TEST_MODEL", ROOT.parent / "shared" / "data" / "lm"))
SMALL = dict(vocab_size=96, hidden_size=128, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=64,
             max_position_embeddings=512, eos_token_id=None, pad_token_id=0)

CONFIGS = {
    "llama-gqa": lambda: transformers.LlamaConfig(**SMALL),
    "llama-mha": lambda: transformers.LlamaConfig(**{**SMALL, "num_key_value_heads": 4}),
    "qwen2-bias": lambda: transformers.Qwen2Config(**{k: v for k, v in SMALL.items() if k != "head_dim"}, use_sliding_window=False),
    "qwen3-qk-norm": lambda: transformers.Qwen3Config(**SMALL),
    "mistral-sliding": lambda: transformers.MistralConfig(**SMALL, sliding_window=24),
    "gemma2-alternating-softcap": lambda: transformers.Gemma2Config(**SMALL, sliding_window=24, query_pre_attn_scalar=64),
}


def model_of(name, dtype=torch.float32, device="cpu"):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name]()).eval().to(dtype)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("bias"):
                parameter.normal_(0, 0.5)
            elif "q_proj" in parameter_name or "k_proj" in parameter_name:
                parameter.mul_(6)  # attention that looks at something
    return model.to(device)


def prompt(batch=2, tokens=40, device="cpu"):
    ids = torch.randint(1, 96, (batch, tokens), generator=torch.Generator().manual_seed(1)).to(device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def greedy(model, cache, inputs, count=30, **options):
    return model.generate(**inputs, past_key_values=cache, max_new_tokens=count, do_sample=False, **options)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("attention", ["tq4", "eager", "sdpa"])
@pytest.mark.parametrize("exact", [(0, 0), (4, 16)], ids=["codes", "sinks+window"])
def test_pass_through_gives_the_same_tokens(name, attention, exact):
    if name.startswith("gemma2") and attention == "sdpa":
        pytest.skip("transformers: sdpa has no soft cap")
    model = model_of(name, torch.float16)  # its keys and values are fp16, so that nothing is lost
    model.set_attn_implementation("eager" if attention == "eager" or name.startswith("gemma2") else "sdpa")
    inputs = prompt()
    expected = greedy(model, transformers.DynamicCache(config=model.config), inputs)
    model.set_attn_implementation(attention)
    cache = tq4.hf.TQ4Cache(model, "fp16", sinks=exact[0], window=exact[1])
    assert torch.equal(greedy(model, cache, inputs), expected)
    assert cache.get_seq_length() == 69 and all(isinstance(layer, tq4.hf.TQ4Layer) for layer in cache.layers)
    # Several prompts in one cache, in pieces of many tokens and of few.
    cache = tq4.hf.TQ4Cache(model, "fp16", sinks=exact[0], window=exact[1])
    with torch.no_grad():
        pieces = [model(piece, past_key_values=cache).logits for piece in torch.split(inputs["input_ids"], [17, 3, 19, 1], 1)]
        whole = model(inputs["input_ids"]).logits
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=0, atol=0.02 * whole.abs().max().item())


@pytest.mark.parametrize("attention", ["tq4", "sdpa"])
def test_attention_sees_what_the_codec_gives(attention):
    """One decode step with 3-bit codes equals softmax attention over tq4.Codec's round trip, exact sinks and window in place."""
    model = model_of("llama-gqa")
    model.set_attn_implementation(attention)
    ids = prompt(1, 41)["input_ids"]
    cache = tq4.hf.TQ4Cache(model, "k3v3", sinks=4, window=8)
    codec = tq4.Codec("k3v3", 64)
    plain = transformers.DynamicCache()
    with torch.no_grad():
        model(ids[:, :40], past_key_values=cache)
        model(ids[:, :40], past_key_values=plain)
        got = model(ids[:, 40:], past_key_values=cache).logits
        for layer in plain.layers:
            for name, side in (("keys", "k"), ("values", "v")):
                x = getattr(layer, name)
                back = torch.from_numpy(codec.decode(codec.encode(x[0].half(), side)))[None]
                back[:, :, :4], back[:, :, 33:] = x[:, :, :4].half(), x[:, :, 33:].half()
                setattr(layer, name, back)
        expected = model(ids[:, 40:], past_key_values=plain).logits
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


def test_stored_prefill_is_what_single_steps_see():
    """prefill="stored" over 40 tokens gives the logits of 40 passes of one token, window and sinks included."""
    model = model_of("mistral-sliding")
    model.set_attn_implementation("tq4")
    ids = prompt(2, 40)["input_ids"]
    for exact in ({}, {"sinks": 3, "window": 6}):
        with torch.no_grad():
            at_once = model(ids, past_key_values=tq4.hf.TQ4Cache(model, "k3v3", prefill="stored", **exact)).logits
            cache = tq4.hf.TQ4Cache(model, "k3v3", **exact)
            steps = torch.cat([model(ids[:, i : i + 1], past_key_values=cache).logits for i in range(40)], 1)
        # Later layers see hidden states that differ in rounding, so a code at a boundary may flip.
        assert ((at_once - steps).norm() / steps.norm()).item() < 0.02


def test_memory_is_codes():
    model = model_of("llama-gqa", torch.float16)
    cache = tq4.hf.TQ4Cache(model, "k4v3")
    with torch.no_grad():
        model(prompt(2, 400)["input_ids"], past_key_values=cache)
    plain = 3 * 2 * 2 * 2 * 400 * 64 * 2
    assert cache.nbytes < plain / 3.5, (cache.nbytes, plain)
    assert not any(isinstance(x, torch.Tensor) for layer in cache.layers for x in (layer.keys, layer.values))
    held = sum(t.nbytes for layer in cache.layers for planes in layer._store._planes for t in planes if t is not None)
    assert held == cache.nbytes and "3 of 3 layers" in repr(cache)


def test_a_sliding_layer_forgets():
    model = model_of("mistral-sliding")
    cache = tq4.hf.TQ4Cache(model, "k4v4")
    with torch.no_grad():
        model(prompt(1, 300)["input_ids"], past_key_values=cache)
        for _ in range(40):
            model(prompt(1, 1)["input_ids"], past_key_values=cache)
    assert cache.get_seq_length() == 340 and all(layer._store._count < 24 * 3 for layer in cache.layers)


def test_skipped_layers():
    model = model_of("mistral-sliding")
    cache = tq4.hf.TQ4Cache(model, "k2v2", skip_layers=[0, -1])
    kinds = [type(layer).__name__ for layer in cache.layers]
    assert kinds == ["DynamicSlidingWindowLayer", "TQ4Layer", "DynamicSlidingWindowLayer"]
    assert greedy(model, cache, prompt()).shape == (2, 70)
    every = tq4.hf.TQ4Cache(model, "k2v2", skip_layers=range(3))
    assert torch.equal(greedy(model, every, prompt()), greedy(model, transformers.DynamicCache(config=model.config), prompt()))


@pytest.mark.parametrize("attention", ["tq4", "sdpa"])
def test_left_padding(attention):
    model = model_of("llama-gqa", torch.float16)
    inputs = prompt()
    inputs["attention_mask"][0, :11] = 0
    inputs["input_ids"][0, :11] = 0
    expected = greedy(model, transformers.DynamicCache(config=model.config), inputs)
    model.set_attn_implementation(attention)
    for exact in ({}, {"sinks": 4, "window": 16}):
        assert torch.equal(greedy(model, tq4.hf.TQ4Cache(model, "fp16", **exact), inputs), expected)
        stored = tq4.hf.TQ4Cache(model, "fp16", prefill="stored", **exact)
        assert torch.equal(greedy(model, stored, inputs), expected)


def test_beams_and_crop():
    model = model_of("llama-gqa", torch.float16)
    inputs = prompt()
    expected = greedy(model, transformers.DynamicCache(config=model.config), inputs, num_beams=3)
    assert torch.equal(greedy(model, tq4.hf.TQ4Cache(model, "fp16", sinks=2, window=5), inputs, num_beams=3), expected)
    cache = tq4.hf.TQ4Cache(model, "fp16", sinks=2, window=5)
    with torch.no_grad():
        first = model(inputs["input_ids"], past_key_values=cache).logits
        cache.crop(-20)
        assert cache.get_seq_length() == 20
        again = model(inputs["input_ids"][:, 20:], past_key_values=cache).logits
    torch.testing.assert_close(again, first[:, 20:], rtol=0, atol=0.02 * first.abs().max().item())
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([0, 3]))
    with torch.no_grad():
        model(prompt(2, 3)["input_ids"], past_key_values=cache)
    cache.reset()
    assert cache.get_seq_length() == 0 and cache.nbytes == 0
    assert torch.equal(greedy(model, cache, inputs), greedy(model, transformers.DynamicCache(config=model.config), inputs))


def test_calibrated(calibration_file):
    """A calibration of 3 layers under a model of their shapes: layer numbers are the model's, so it must have them all."""
    calibration = tq4.Codec("k4v4-2d", 128, calibration=calibration_file, layer=4).calibration
    layers, heads, dim = [number for number, _, _ in calibration.layers], *calibration.layers[0][1:]
    config = transformers.LlamaConfig(**{**SMALL, "num_hidden_layers": 8, "num_key_value_heads": heads, "num_attention_heads": 2 * heads, "head_dim": dim})
    model = transformers.LlamaForCausalLM(config).eval()
    others = [number for number in range(8) if number not in layers]
    cache = tq4.hf.TQ4Cache(model, "k4v4-2d", calibration=calibration_file, skip_layers=others)
    with torch.no_grad():
        model(prompt(1, 30)["input_ids"], past_key_values=cache)
    keys, _ = cache.layers[layers[1]]._visible(0)
    codec = tq4.Codec("k4v4-2d", dim, calibration=calibration, layer=layers[1])
    again = torch.from_numpy(codec.decode(codec.encode(keys[0].contiguous(), "k")))
    assert ((again - keys[0]).norm() / keys.norm()).item() < 0.2
    with pytest.raises(tq4.UsageError, match="no layer 0"), torch.no_grad():
        model(prompt(1, 3)["input_ids"], past_key_values=tq4.hf.TQ4Cache(model, "k4v4-2d", calibration=calibration_file))


def test_misuse():
    model = model_of("llama-gqa")
    for call, error in ((lambda: tq4.hf.TQ4Cache(model, "k9"), tq4.UsageError), (lambda: tq4.hf.TQ4Cache(5), tq4.UsageError),
                        (lambda: tq4.hf.TQ4Cache(model, prefill="maybe"), tq4.UsageError), (lambda: tq4.hf.TQ4Cache(model, skip_layers=[7]), tq4.UsageError),
                        (lambda: tq4.hf.TQ4Cache(model, window=-1), tq4.UsageError)):
        with pytest.raises(error):
            call()
    rng = random.Random(4)
    refused = 0
    for _ in range(300):
        options = {name: random_thing(rng) for name in ("spec", "calibration", "sinks", "window", "skip_layers", "prefill", "threads") if rng.random() < 0.3}
        try:
            tq4.hf.TQ4Cache(random_thing(rng) if rng.random() < 0.1 else model, **options)
        except tq4.Error:
            refused += 1
    assert 100 < refused < 300
    cache = tq4.hf.TQ4Cache(model)
    with torch.no_grad():
        model(prompt(2, 5)["input_ids"], past_key_values=cache)
        with pytest.raises(tq4.ShapeError, match="batch of 1"):
            model(prompt(1, 5)["input_ids"], past_key_values=cache)
    with pytest.raises(tq4.UsageError):
        cache.crop(3)
    view = tq4.hf._View.of(torch.zeros(1, 2, 3, 4))
    assert view.shape == (1, 2, 3, 4)
    with pytest.raises(tq4.UnsupportedError, match="attn_implementation"):
        view + 1


# ---- the small trained model -----------------------------------------------------------------------------------------------------------------------

needs_model = pytest.mark.skipif(not (MODEL / "model.int8.safetensors").is_file(), reason="the small trained model is not there (TQ4_TEST_MODEL)")


def experiment():
    """experiments/python_gpu/perplexity.py, which loads the model and measures it."""
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    sys.path.append(str(ROOT / "experiments" / "python_gpu"))
    import perplexity

    return perplexity


@pytest.fixture(scope="module")
def trained():
    return experiment().load(MODEL)


@needs_model
@pytest.mark.parametrize("attention", ["tq4", "sdpa"])
def test_trained_model_gives_the_same_tokens(trained, attention):
    ids = experiment().grid(MODEL)[:1, :200]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    trained.set_attn_implementation("sdpa")
    expected = greedy(trained, transformers.DynamicCache(config=trained.config), inputs, 48)
    trained.set_attn_implementation(attention)
    assert torch.equal(greedy(trained, tq4.hf.TQ4Cache(trained, "fp16"), inputs, 48), expected)


@needs_model
@pytest.mark.parametrize("spec, seed, exact", [("k4v4", 42, (0, 0)), ("k3v3", 42, (0, 0)), ("k3v3-norm", 1, (64, 4))], ids=str)
def test_trained_model_loses_what_the_experiment_says(trained, spec, seed, exact):
    """Nats lost and KL of the experiment's first window, which has its own encoder calls and attention: the same within rounding."""
    e = experiment()
    record = e.record_of(spec, seed, exact)["per_window"]
    error = e.record_of(spec, seed, exact)["standard_error"]
    tokens = e.grid(MODEL)[:1]
    trained.set_attn_implementation("tq4")
    with torch.no_grad():
        reference = e.log_probabilities(trained, tokens[:, :-1], transformers.DynamicCache(config=trained.config))
        cache = tq4.hf.TQ4Cache(trained, tq4.Codec(spec, 128, seed=seed), window=exact[0], sinks=exact[1], prefill="stored")
        (nats,), (kl,) = e.losses(trained, tokens, reference, cache)
    print(f"{spec} {exact}: nats {nats:.6f} (experiment {record['nats'][0]:.6f}), KL {kl:.6f} ({record['kl'][0]:.6f})")
    assert abs(kl / record["kl"][0] - 1) < 0.03
    assert abs(nats - record["nats"][0]) < 4 * error


def grow_step_by_step(device, sliding_window, batch=2, tokens=680):
    """A GPU cache's store (which runs on the CPU too) grown in steps of 20, against one filled at once. A block table that does not follow every growth
    of the pages shows after 384 tokens, the second growth; the pages grow again at 576."""
    from types import SimpleNamespace

    from tq4._hf_stores import PageStore

    settings = SimpleNamespace(spec_json=tq4.Codec("k4v4", head_dim=64)._spec_json, calibration=None)
    generator = torch.Generator().manual_seed(3)
    keys, values = torch.randn(2, batch, 2, tokens, 64, generator=generator).to(torch.float16).to(device)
    query = torch.randn(batch, 4, 1, 64, generator=generator).to(torch.float16).to(device)
    stepped = PageStore(settings, 0, keys, values, sliding_window)
    window = sliding_window or 0
    for end in range(20, tokens + 1, 20):
        stepped.append(keys[:, :, end - 20 : end], values[:, :, end - 20 : end], end - 20)
        if end in (380, 400, 580, tokens):
            whole = PageStore(settings, 0, keys, values, sliding_window)
            whole.append(keys[:, :, :end], values[:, :, :end], 0)
            begin = end - window if window else 0
            for a, b in zip(stepped.gather(begin, end, torch.float16), whole.gather(begin, end, torch.float16)):
                assert a.shape[2] == end - begin and torch.equal(a, b), f"{end} tokens"
            assert torch.equal(stepped.attend(query, None, end, window, None, None), whole.attend(query, None, end, window, None, None)), f"{end} tokens"


@pytest.mark.parametrize("sliding_window", [None, 100])
def test_pages_grown_step_by_step_hold_what_pages_filled_at_once_hold(sliding_window):
    grow_step_by_step("cpu", sliding_window)
