"""tq4.PagedCache on CPU tensors: what is appended is what Codec gives, wherever it lies; attention is softmax attention on dequantised values;
each layout, strided input, calibration; every misuse a tq4.Error."""
import math

import numpy as np
import pytest

import tq4
from test_codec import vectors

HEADS, DIM, BLOCK = 2, 64, 16
LAYOUTS = {"native": "k4v3", "turboquant-vllm": "turboquant-vllm", "vllm": "vllm:3bit_nc"}


def filled(layout="native", spec=None, tokens=(37, 5, 0), seed=0, **options):
    """A cache of several sequences on permuted pages, and what went into it."""
    rng = np.random.default_rng(seed)
    columns = max(-(-max(tokens) // BLOCK), 1)
    cache = tq4.PagedCache(spec or LAYOUTS[layout], HEADS, DIM, len(tokens) * columns + 3, block_size=BLOCK, layout=layout, **options)
    table = rng.permutation(cache.num_blocks)[: len(tokens) * columns].reshape(len(tokens), columns).astype(np.int32)
    k, v = (rng.standard_normal((sum(tokens), HEADS, DIM)).astype(np.float16) for _ in "kv")
    slots = np.concatenate([table[s, np.arange(n) // BLOCK].astype(np.int64) * BLOCK + np.arange(n) % BLOCK for s, n in enumerate(tokens)])
    cache.append(k, v, slots)
    return cache, table, np.array(tokens, np.int32), k, v


def softmax_attention(q, k, v, scale, window=0, soft_cap=0.0, slopes=None, sinks=None):
    """float64; q [q_len, heads, D], k and v [kv_heads, n, D]."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    q_len, heads, _ = q.shape
    n = k.shape[1]
    out, lse = np.zeros(q.shape), np.full((q_len, heads), -np.inf)
    for i in range(q_len):
        position = n - q_len + i
        first = max(position + 1 - window, 0) if window else 0
        for h in range(heads):
            keys, values = (x[h // (heads // k.shape[0]), first : position + 1] for x in (k, v))
            if not len(keys):
                continue
            logits = keys @ q[i, h] * scale
            if soft_cap:
                logits = soft_cap * np.tanh(logits / soft_cap)
            if slopes is not None:
                logits = logits + slopes[h] * (np.arange(first, position + 1) - position)
            total = np.exp(logits).sum() + (np.exp(sinks[h]) if sinks is not None else 0)
            out[i, h], lse[i, h] = np.exp(logits) @ values / total, np.log(total)
    return out, lse


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pages_hold_what_the_codec_gives(layout):
    cache, table, lens, k, v = filled(layout)
    codec = tq4.Codec(cache.spec, DIM)
    keys, values = cache.dequant(table, lens, dtype=np.float32)
    assert keys.shape == values.shape == (3, HEADS, 37, DIM)
    first = 0
    for s, n in enumerate(lens):
        for given, got, side in ((k, keys, "k"), (v, values, "v")):
            expected = codec.decode(codec.encode(given[first : first + n].transpose(1, 0, 2), side))
            np.testing.assert_array_equal(got[s, :, :n], expected)
            assert not got[s, :, n:].any()
        first += n
    assert cache.dequant(table, lens)[0].dtype == np.float16 and cache.dequant(table, lens, 40)[0].shape[2] == 40
    rotated = cache.dequant(table, lens, dtype=np.float32, rotated=True)[0]
    np.testing.assert_allclose(np.linalg.norm(rotated[0], axis=-1), np.linalg.norm(keys[0], axis=-1), rtol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("q_len", [1, 3])
@pytest.mark.parametrize("options", [{}, {"sm_scale": 0.3}, {"window": 7}, {"soft_cap": 5.0}, {"alibi": True, "sinks": True}], ids=str)
def test_attention(layout, q_len, options):
    cache, table, lens, _, _ = filled(layout)
    q = np.random.default_rng(1).standard_normal((3, q_len, 6, DIM)).astype(np.float32)
    named = {name: value for name, value in options.items() if name in ("sm_scale", "window", "soft_cap")}
    slopes = np.linspace(0.1, 0.6, 6, dtype=np.float32) if "alibi" in options else None
    sinks = np.linspace(-1, 2, 6, dtype=np.float32) if "sinks" in options else None
    lse = np.empty((3, q_len, 6), np.float32)
    out = cache.attend(q, table, lens, lse=lse, alibi_slopes=slopes, sink_logits=sinks, **named)
    keys, values = cache.dequant(table, lens, dtype=np.float32)
    for s, n in enumerate(lens):
        expected, logs = softmax_attention(q[s], keys[s, :, :n], values[s, :, :n], options.get("sm_scale", 1 / math.sqrt(DIM)),
                                           options.get("window", 0), options.get("soft_cap", 0.0), slopes, sinks)
        np.testing.assert_allclose(out[s], expected, rtol=2e-5, atol=2e-6)
        if n or sinks is None:
            np.testing.assert_allclose(lse[s], logs, rtol=1e-5, atol=1e-6)


def test_one_query_a_sequence_and_out():
    cache, table, lens, _, _ = filled()
    q = vectors((3, 4, DIM))
    out, lse = np.empty_like(q), np.empty((3, 4), np.float32)
    assert cache.attend(q, table, lens, out, lse) is out
    again = cache.attend(q[:, None], table, lens)
    np.testing.assert_array_equal(out, again[:, 0])
    assert cache.attend(q.astype(np.float16), table, lens).dtype == np.float16
    assert cache.path(3, 4) == "reference" and np.isneginf(lse[2]).all() and not out[2].any()


def test_negative_slots_are_skipped_and_strides_are_taken():
    cache, table, lens, k, v = filled(tokens=(20,))
    before = cache.data.copy()
    cache.append(k, v, np.full(20, -1))
    np.testing.assert_array_equal(cache.data, before)
    other = tq4.PagedCache("k4v3", HEADS, DIM, cache.num_blocks)
    wide = np.zeros((HEADS, 25, 2 * DIM), np.float16)
    wide[:, :20, :DIM] = k.transpose(1, 0, 2)
    slots = table[0, np.arange(20) // BLOCK].astype(np.int32) * BLOCK + np.arange(20, dtype=np.int32) % BLOCK
    other.append(wide[:, :20, :DIM].transpose(1, 0, 2), np.ascontiguousarray(v), slots)
    np.testing.assert_array_equal(other.data, before)


def test_data_of_the_caller():
    cache, table, lens, _, _ = filled("vllm")
    slot = cache.block_bytes // BLOCK // HEADS
    wide = np.zeros((cache.num_blocks, HEADS, BLOCK, slot + 10), np.uint8).transpose(0, 2, 1, 3)  # heads outside tokens, padded slots
    wide[..., :slot] = cache.data.reshape(cache.num_blocks, BLOCK, HEADS, slot)
    view = tq4.PagedCache("vllm:3bit_nc", HEADS, DIM, data=wide, layout="vllm")
    q = vectors((3, 2, DIM))
    np.testing.assert_array_equal(view.attend(q, table, lens), cache.attend(q, table, lens))


def test_calibrated(calibration_file):
    calibration = tq4.Codec("k4v4-2d", 128, calibration=calibration_file, layer=4).calibration
    number, heads, dim = calibration.layers[1]
    rng = np.random.default_rng(3)
    k, v = (rng.standard_normal((20, heads, dim)).astype(np.float32) for _ in "kv")
    codec = tq4.Codec("k4v4-2d", dim, calibration=calibration, layer=number)
    cache = tq4.PagedCache(codec, heads, dim, 2, layer=number)
    cache.append(k, v, np.arange(20))
    keys, values = cache.dequant(np.array([[0, 1]], np.int32), np.array([20], np.int32), dtype=np.float32)
    for x, got, side in ((k, keys, "k"), (v, values, "v")):
        np.testing.assert_allclose(got[0], codec.decode(codec.encode(x.transpose(1, 0, 2), side)), rtol=0, atol=1e-6)
    with pytest.raises(tq4.ShapeError, match="kv heads"):
        tq4.PagedCache(codec, heads + 1, dim, 2, layer=number)


def good():
    return tq4.PagedCache("k4v3", HEADS, DIM, 4)


TABLE, LENS = np.zeros((1, 2), np.int32), np.array([20], np.int32)
MISUSES = [
    (lambda: tq4.PagedCache("k4v3", HEADS, 100, 4), tq4.HeadDimError, "100"),
    (lambda: tq4.PagedCache("k4v3", 0, DIM, 4), tq4.UsageError, "num_kv_heads"),
    (lambda: tq4.PagedCache("k4v3", HEADS, DIM), tq4.UsageError, "num_blocks"),
    (lambda: tq4.PagedCache("k4v3", HEADS, DIM, 4, block_size=24), tq4.UsageError, "multiple of 16"),
    (lambda: tq4.PagedCache("k4v3", HEADS, DIM, 4, layout="odd"), tq4.UsageError, "layout"),
    (lambda: tq4.PagedCache("k4v3", HEADS, DIM, 4, layout="vllm"), tq4.UnsupportedError, "vllm"),
    (lambda: tq4.PagedCache("k4v3-prod", HEADS, DIM, 4), tq4.UnsupportedError, "signs"),
    (lambda: tq4.PagedCache({**tq4.Codec("k4v3", DIM).spec, "window": 16}, HEADS, DIM, 4), tq4.UnsupportedError, "window"),
    (lambda: tq4.PagedCache("k4v3", HEADS, DIM, 4, device="tpu"), tq4.UsageError, "device"),
    (lambda: tq4.PagedCache("k4v3", HEADS, DIM, data=np.zeros((4, 10), np.uint8)), tq4.Error, None),
    (lambda: tq4.PagedCache("k4v3", HEADS, DIM, data=np.zeros((4, 3456), np.int8)), tq4.DTypeError, "uint8"),
    (lambda: tq4.PagedCache("k4v3", HEADS, DIM, 4, data=5), tq4.Error, None),
    (lambda: tq4.PagedCache("vllm:3bit_nc", HEADS, DIM, layout="vllm", data=np.zeros((4, 16, 2, 20), np.uint8)), tq4.ShapeError, "slot"),
    (lambda: good().append(vectors((3, HEADS, DIM)), vectors((3, HEADS, DIM)), np.array([0, 1, 64])), tq4.UsageError, None),
    (lambda: good().append(vectors((3, HEADS, 32)), vectors((3, HEADS, DIM)), np.arange(3)), tq4.HeadDimError, "32"),
    (lambda: good().append(vectors((3, HEADS, DIM)), vectors((4, HEADS, DIM)), np.arange(3)), tq4.ShapeError, "v must"),
    (lambda: good().append(vectors((3, 1, DIM)), vectors((3, HEADS, DIM)), np.arange(3)), tq4.ShapeError, "k must"),
    (lambda: good().append(vectors((3, HEADS, DIM)), vectors((3, HEADS, DIM)), np.arange(3.0)), tq4.DTypeError, "slot_mapping"),
    (lambda: good().append(vectors((3, HEADS, DIM), dtype=np.float64), vectors((3, HEADS, DIM)), np.arange(3)), tq4.DTypeError, "float64"),
    (lambda: good().append(vectors((3, DIM, HEADS)).transpose(0, 2, 1), vectors((3, HEADS, DIM)), np.arange(3)), tq4.StrideError, "last axis"),
    (lambda: good().append(np.full((1, HEADS, DIM), np.nan, np.float32), vectors((1, HEADS, DIM)), np.arange(1)), tq4.BadInputError, None),
    (lambda: good().attend(vectors((1, 3, DIM)), TABLE, LENS), tq4.ShapeError, "3 heads"),
    (lambda: good().attend(vectors((1, 2, 32)), TABLE, LENS), tq4.ShapeError, "q must"),
    (lambda: good().attend(vectors((1, DIM)), TABLE, LENS), tq4.ShapeError, "q must"),
    (lambda: good().attend([1, 2], TABLE, LENS), tq4.ShapeError, "q must"),
    (lambda: good().attend(vectors((1, 2, DIM)), TABLE, np.array([33], np.int32)), tq4.UsageError, "seq_lens"),
    (lambda: good().attend(vectors((1, 2, DIM)), TABLE, np.array([-1], np.int32)), tq4.UsageError, "seq_lens"),
    (lambda: good().attend(vectors((1, 2, DIM)), TABLE + 4, LENS), tq4.UsageError, "block_table"),
    (lambda: good().attend(vectors((2, 2, DIM)), TABLE, LENS), tq4.ShapeError, "seq_lens"),
    (lambda: good().attend(vectors((1, 2, DIM)), TABLE, LENS, out=np.empty((1, 2, 32), np.float32)), tq4.ShapeError, "out"),
    (lambda: good().attend(vectors((1, 2, DIM)), TABLE, LENS, lse=np.empty((1, 3), np.float32)), tq4.ShapeError, "lse"),
    (lambda: good().attend(vectors((1, 2, DIM)), TABLE, LENS, lse=np.empty((1, 2))), tq4.DTypeError, "lse"),
    (lambda: good().attend(vectors((1, 2, DIM)), TABLE, LENS, window=-1), tq4.UsageError, "window"),
    (lambda: good().attend(vectors((1, 2, DIM)), TABLE, LENS, sm_scale="a"), tq4.UsageError, "sm_scale"),
    (lambda: good().attend(vectors((1, 2, DIM)), TABLE, LENS, alibi_slopes=np.ones(3, np.float32)), tq4.ShapeError, "alibi"),
    (lambda: good().dequant(TABLE, LENS, k_out=np.empty((1, 2, 20, DIM), np.float32)), tq4.UsageError, "both"),
    (lambda: good().dequant(TABLE, LENS, dtype=np.int8), tq4.DTypeError, "k_out"),
]


@pytest.mark.parametrize("call, error, words", MISUSES, ids=[str(i) for i in range(len(MISUSES))])
def test_misuse(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_no_cuda_is_said():
    if tq4._core.cuda_compiled() and tq4._core.cuda_device_count():
        pytest.skip("there is a CUDA device")
    with pytest.raises(tq4.NoDeviceError):
        tq4.PagedCache("k4v3", HEADS, DIM, 4, device="cuda")


def fuzz(rng, thing):
    """One random call for test_errors' fuzzing."""
    cache = good()
    pick = lambda value: thing(rng) if rng.random() < 0.3 else value
    k = vectors((3, HEADS, DIM))
    return rng.choice([
        lambda: cache.append(pick(k), pick(k), pick(np.arange(3)), positions=pick(None)),
        lambda: cache.attend(pick(vectors((1, 2, DIM))), pick(TABLE), pick(LENS), pick(None), pick(None), sm_scale=pick(None), window=pick(0), soft_cap=pick(0.0), alibi_slopes=pick(None)),
        lambda: cache.dequant(pick(TABLE), pick(LENS), pick(None), dtype=pick(None), k_out=pick(None), v_out=pick(None)),
        lambda: tq4.PagedCache(pick("k4v3"), pick(HEADS), pick(DIM), pick(4), block_size=pick(16), layout=pick("native"), device=pick("cpu"), data=pick(None), layer=pick(0), calibration=pick(None)),
    ])
