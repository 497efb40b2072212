// Pages: a paged cache on CPU tensors, through the library's reference reader, writer and attention. Slow and exact: it is what the CUDA
// kernels are tested against, and what lets code written for pages run without a GPU.
#include <nanobind/nanobind.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "bindings.h"
#include "page_codec.h"
#include "planes.h"
#include "tensor.h"
#include "tq4/attention.h"

namespace tq4::python {
namespace {

constexpr std::initializer_list<DType> kFloats{DType::F16, DType::BF16, DType::F32};

class Pages {
 public:
  explicit Pages(PageCodec codec) : c_(std::move(codec)) {}
  const PageCodec& codec() const { return c_; }

  /// k, v [n, num_kv_heads, D]; slots [n]; positions [n] or None.
  void append(nb::handle cache, nb::handle k, nb::handle v, nb::handle slot_mapping, nb::handle positions) const {
    const Tensor pages = cache_tensor(cache, true);
    const Tensor slots = tensor_on(slot_mapping, "slot_mapping", {DType::I64, DType::I32}, false, 0);
    need_shape(slots.shape, {-1}, "slot_mapping");
    const std::int64_t n = slots.dim(0);
    const Tensor kt = vectors(k, "k", n), vt = vectors(v, "v", n);
    const std::vector<std::int64_t> slot = integers(slots), at = positions_of(positions, n);
    nb::gil_scoped_release unlocked;
    const Planes kp = encode(kt, Side::K, at), vp = encode(vt, Side::V, at);
    write_pages(c_.layout, kp.in(c_.k), vp.in(c_.v), slot.data(), n, pages.as<std::uint8_t>(), blocks(pages));
  }

  /// q [num_seqs, q_len, num_q_heads, D] or without q_len, out like q, lse [num_seqs, q_len, num_q_heads] fp32 or None. repeat: times over (experiments/
  /// python_overhead).
  void attend(nb::handle cache, nb::handle q, nb::handle block_table, nb::handle seq_lens, nb::handle out, nb::handle lse, double sm_scale,
              int window, double soft_cap, nb::handle alibi_slopes, nb::handle sink_logits, int repeat) const {
    const Tensor pages = cache_tensor(cache, false);
    Tensor qt = tensor_on(q, "q", kFloats, false, 0);
    const bool one = qt.ndim() == 3;  // one query a sequence, without its axis
    if (one) qt.insert_axis(1);
    const int dim = c_.layout.head_dim, kv_heads = c_.layout.num_kv_heads;
    need_shape(qt.shape, {-1, -1, -1, dim}, "q");
    need_rows(qt, "q");
    const std::int64_t seqs = qt.dim(0), q_len = qt.dim(1), heads = qt.dim(2);
    if (heads < 1 || heads % kv_heads != 0) {
      throw Refusal{"ShapeError",
                    "q has " + std::to_string(heads) + " heads, no multiple of the " + std::to_string(kv_heads) + " kv heads"};
    }
    const Table table = table_of(block_table, seq_lens, seqs, blocks(pages));
    Tensor result = tensor_on(out, "out", kFloats, false, 0, true), lse_tensor;
    if (one && result.ndim() == 3) result.insert_axis(1);
    need_shape(result.shape, qt.shape, "out");
    need_dense(result, "out");
    float* lse_data = nullptr;
    if (!lse.is_none()) {
      lse_tensor = tensor_on(lse, "lse", {DType::F32}, false, 0, true);
      if (one && lse_tensor.ndim() == 2) lse_tensor.insert_axis(1);
      need_shape(lse_tensor.shape, {seqs, q_len, heads}, "lse");
      need_dense(lse_tensor, "lse");
      lse_data = lse_tensor.as<float>();
    }
    const std::vector<float> slopes = per_head(alibi_slopes, "alibi_slopes", heads), sinks = per_head(sink_logits, "sink_logits", heads);
    AttentionOptions options;
    options.sm_scale = sm_scale;
    options.window = window;
    options.soft_cap = soft_cap;
    options.alibi_slopes = slopes.empty() ? nullptr : slopes.data();
    options.sink_logits = sinks.empty() ? nullptr : sinks.data();
    nb::gil_scoped_release unlocked;
    const std::int64_t row = q_len * heads * dim;
    std::vector<float> query(static_cast<std::size_t>(row)), rounded(query.size()), keys, values;
    std::vector<double> attended(query.size()), logs(static_cast<std::size_t>(q_len * heads));
    std::vector<std::uint8_t> dense;
    for (std::int64_t i = 0; i < seqs * repeat; ++i) {
      const std::int64_t s = i % seqs;
      to_float(gather_rows(qt, s * q_len * heads, q_len * heads, dense), qt.dtype, query.size(), query.data());
      read(pages, table, s, false, keys, values);
      reference_attention(query.data(), keys.data(), values.data(), static_cast<int>(q_len), table.lens[static_cast<std::size_t>(s)],
                          static_cast<int>(heads), kv_heads, dim, options, attended.data(), logs.data());
      std::transform(attended.begin(), attended.end(), rounded.begin(), [](double x) { return static_cast<float>(x); });
      from_float(rounded.data(), rounded.size(), result.dtype,
                 static_cast<std::uint8_t*>(result.data) + static_cast<std::size_t>(s * row) * dtype_size(result.dtype));
      if (lse_data != nullptr)
        std::transform(logs.begin(), logs.end(), lse_data + s * q_len * heads, [](double x) { return static_cast<float>(x); });
    }
  }

  /// k_out, v_out [num_seqs, num_kv_heads, max_seq_len, D]; rows past a sequence's end are left alone.
  void dequant(nb::handle cache, nb::handle block_table, nb::handle seq_lens, nb::handle k_out, nb::handle v_out, bool rotated) const {
    const Tensor pages = cache_tensor(cache, false);
    const Tensor k = cpu_tensor(k_out, "k_out", kFloats, true), v = cpu_tensor(v_out, "v_out", kFloats, true);
    const std::int64_t dim = c_.layout.head_dim, heads = c_.layout.num_kv_heads;
    need_shape(k.shape, {-1, heads, -1, dim}, "k_out");
    need_shape(v.shape, k.shape, "v_out");
    const Table table = table_of(block_table, seq_lens, k.shape[0], blocks(pages));
    const std::int64_t room = k.shape[2];
    nb::gil_scoped_release unlocked;
    std::vector<float> keys, values;
    for (std::int64_t s = 0; s < k.shape[0]; ++s) {
      const std::int64_t length = table.lens[static_cast<std::size_t>(s)], count = std::min(length, room);
      read(pages, table, s, rotated, keys, values);
      for (std::int64_t h = 0; h < heads; ++h) {
        for (const auto& [from, to] : {std::pair{&keys, &k}, std::pair{&values, &v}}) {
          from_float(from->data() + h * length * dim, static_cast<std::size_t>(count * dim), to->dtype,
                     static_cast<std::uint8_t*>(to->data) + static_cast<std::size_t>((s * heads + h) * room * dim) * dtype_size(to->dtype));
        }
      }
    }
  }

 private:
  struct Table {
    std::vector<std::int64_t> blocks, lens;
    std::int64_t columns = 0;
  };

  static std::vector<std::int64_t> integers(const Tensor& t) {
    std::vector<std::int64_t> values(static_cast<std::size_t>(t.size()));
    const std::int64_t columns = t.ndim() == 2 ? t.dim(1) : 1;
    for (std::int64_t i = 0; i < t.size(); ++i) {
      const std::int64_t at = t.ndim() == 2 ? i / columns * t.stride(0) + i % columns * t.stride(1) : i * t.stride(0);
      values[static_cast<std::size_t>(i)] = t.dtype == DType::I64 ? t.as<std::int64_t>()[at] : t.as<std::int32_t>()[at];
    }
    return values;
  }

  Tensor cache_tensor(nb::handle cache, bool writable) const {
    Tensor pages = tensor_on(cache, "the cache", {DType::U8}, false, 0, writable);
    need_pages(c_.layout, c_.piece, pages);
    return pages;
  }
  static std::int64_t blocks(const Tensor& pages) { return pages.dim(0); }

  Tensor vectors(nb::handle object, const char* name, std::int64_t n) const {
    Tensor t = tensor_on(object, name, kFloats, false, 0);
    if (t.ndim() == 3 && t.dim(2) != c_.layout.head_dim) {
      throw Refusal{"HeadDimError", std::string(name) + " of shape " + shape_text(t.shape) + " has vectors of " + std::to_string(t.dim(2)) +
                                        "; this cache is for head_dim " + std::to_string(c_.layout.head_dim)};
    }
    need_shape(t.shape, {n, c_.layout.num_kv_heads, c_.layout.head_dim}, name);
    need_rows(t, name);
    return t;
  }

  std::vector<std::int64_t> positions_of(nb::handle positions, std::int64_t n) const {
    const bool needed = c_.layer != nullptr && !c_.layer->k.rope_mu.empty();
    if (positions.is_none()) {
      if (needed) throw Refusal{"UsageError", "this calibration centres keys before RoPE: append needs positions"};
      return {};
    }
    const Tensor t = tensor_on(positions, "positions", {DType::I64, DType::I32}, false, 0);
    need_shape(t.shape, {n}, "positions");
    return needed ? integers(t) : std::vector<std::int64_t>{};
  }

  std::vector<float> per_head(nb::handle object, const char* name, std::int64_t heads) const {
    if (object.is_none()) return {};
    const Tensor t = cpu_tensor(object, name, {DType::F32});
    need_shape(t.shape, {heads}, name);
    return {t.as<float>(), t.as<float>() + heads};
  }

  Table table_of(nb::handle block_table, nb::handle seq_lens, std::int64_t seqs, std::int64_t num_blocks) const {
    const Tensor lens = tensor_on(seq_lens, "seq_lens", {DType::I32, DType::I64}, false, 0);
    need_shape(lens.shape, {seqs}, "seq_lens");
    const Tensor pages = tensor_on(block_table, "block_table", {DType::I32, DType::I64}, false, 0);
    need_shape(pages.shape, {seqs, -1}, "block_table");
    Table table{integers(pages), integers(lens), pages.dim(1)};
    const std::int64_t size = c_.layout.block_size;
    for (std::int64_t s = 0; s < seqs; ++s) {
      const std::int64_t length = table.lens[static_cast<std::size_t>(s)];
      if (length < 0 || length > table.columns * size) {
        throw Refusal{"UsageError", "seq_lens[" + std::to_string(s) + "] = " + std::to_string(length) + " does not fit the block table's " +
                                        std::to_string(table.columns) + " blocks of " + std::to_string(size)};
      }
      for (std::int64_t b = 0; b * size < length; ++b) {
        const std::int64_t block = table.blocks[static_cast<std::size_t>(s * table.columns + b)];
        if (block < 0 || block >= num_blocks) {
          throw Refusal{"UsageError", "block_table[" + std::to_string(s) + ", " + std::to_string(b) + "] = " + std::to_string(block) +
                                          " is none of the cache's " + std::to_string(num_blocks) + " blocks"};
        }
      }
    }
    return table;
  }

  /// Vectors [n, heads] of a side, token-major. With per-head tables, runs of consecutive positions a head.
  Planes encode(const Tensor& x, Side side, const std::vector<std::int64_t>& positions) const {
    const Codec& codec = side == Side::K ? c_.k : c_.v;
    const std::int64_t n = x.dim(0), heads = c_.layout.num_kv_heads;
    Planes planes(codec, n * heads);
    std::vector<std::uint8_t> dense;
    if (c_.layer == nullptr) {
      codec.encode(gather_rows(x, 0, n * heads, dense), x.dtype, n * heads, planes.out(codec), {}, {});
      return planes;
    }
    const std::size_t row = static_cast<std::size_t>(codec.head_dim()) * dtype_size(x.dtype);
    std::vector<std::uint8_t> vector;
    for (std::int64_t h = 0; h < heads; ++h) {
      for (std::int64_t t = 0; t < n; ++t) {
        const std::int64_t index = t * heads + h;
        vector.resize(row);
        const HeadTransform transform =
            head_transform(c_.layer, side, static_cast<int>(h), positions.empty() ? 0 : positions[static_cast<std::size_t>(t)]);
        codec.encode(gather_rows(x, index, 1, vector), x.dtype, 1, planes.out(codec, index), transform, {});
      }
    }
    return planes;
  }

  /// Keys and values of sequence s, [heads, length, D].
  void read(const Tensor& pages, const Table& table, std::int64_t s, bool rotated, std::vector<float>& keys,
            std::vector<float>& values) const {
    const std::int64_t length = table.lens[static_cast<std::size_t>(s)], heads = c_.layout.num_kv_heads, dim = c_.layout.head_dim;
    std::vector<std::int64_t> slots(static_cast<std::size_t>(length));
    for (std::int64_t t = 0; t < length; ++t) {
      slots[static_cast<std::size_t>(t)] =
          table.blocks[static_cast<std::size_t>(s * table.columns + t / c_.layout.block_size)] * c_.layout.block_size +
          t % c_.layout.block_size;
    }
    const Planes kp(c_.k, length * heads), vp(c_.v, length * heads);
    read_pages(c_.layout, pages.as<std::uint8_t>(), blocks(pages), slots.data(), length, kp.out(c_.k), vp.out(c_.v));
    std::vector<float> vectors(static_cast<std::size_t>(length * heads * dim));
    for (const Side side : {Side::K, Side::V}) {
      const Codec& codec = side == Side::K ? c_.k : c_.v;
      const EncodedIn in = (side == Side::K ? kp : vp).in(codec);
      std::vector<float>& to = side == Side::K ? keys : values;
      to.resize(vectors.size());
      if (rotated) {
        codec.decode_rotated(in, length * heads, vectors.data(), {});
      } else if (c_.layer == nullptr) {
        codec.decode(in, length * heads, vectors.data(), {}, {});
      } else {
        for (std::int64_t i = 0; i < length * heads; ++i) {
          codec.decode((side == Side::K ? kp : vp).in(codec, i), 1, vectors.data() + i * dim,
                       head_transform(c_.layer, side, static_cast<int>(i % heads), i / heads), {});
        }
      }
      for (std::int64_t i = 0; i < length * heads; ++i) {
        std::memcpy(to.data() + (i % heads * length + i / heads) * dim, vectors.data() + i * dim,
                    static_cast<std::size_t>(dim) * sizeof(float));
      }
    }
  }

  PageCodec c_;
};

/// The library's reference on dense tensors: q, out [seqs, q_len, num_q_heads, D], k, v [seqs, num_kv_heads, tokens, D], all fp32.
void attention(nb::handle q, nb::handle k, nb::handle v, nb::handle out, nb::handle lse, double sm_scale, bool causal, int window,
               double soft_cap) {
  const Tensor qt = cpu_tensor(q, "q", {DType::F32}), kt = cpu_tensor(k, "k", {DType::F32}), vt = cpu_tensor(v, "v", {DType::F32});
  need_shape(qt.shape, {-1, -1, -1, -1}, "q");
  need_shape(kt.shape, {qt.dim(0), -1, -1, qt.dim(3)}, "k");
  need_shape(vt.shape, kt.shape, "v");
  const Tensor result = cpu_tensor(out, "out", {DType::F32}, true);
  need_shape(result.shape, qt.shape, "out");
  Tensor logs;
  if (!lse.is_none()) {
    logs = cpu_tensor(lse, "lse", {DType::F32}, true);
    need_shape(logs.shape, {qt.dim(0), qt.dim(1), qt.dim(2)}, "lse");
  }
  nb::gil_scoped_release unlocked;
  AttentionOptions options;
  options.sm_scale = sm_scale;
  options.causal = causal;
  options.window = window;
  options.soft_cap = soft_cap;
  const std::int64_t rows = qt.dim(1) * qt.dim(2), query = rows * qt.dim(3), keys = kt.dim(1) * kt.dim(2) * kt.dim(3);
  std::vector<double> attended(static_cast<std::size_t>(query)), log(static_cast<std::size_t>(rows));
  for (std::int64_t s = 0; s < qt.dim(0); ++s) {
    reference_attention(qt.as<float>() + s * query, kt.as<float>() + s * keys, vt.as<float>() + s * keys, static_cast<int>(qt.dim(1)),
                        kt.dim(2), static_cast<int>(qt.dim(2)), static_cast<int>(kt.dim(1)), static_cast<int>(qt.dim(3)), options,
                        attended.data(), log.data());
    const auto narrow = [](double x) { return static_cast<float>(x); };
    std::transform(attended.begin(), attended.end(), static_cast<float*>(result.data) + s * query, narrow);
    if (logs.data != nullptr) std::transform(log.begin(), log.end(), static_cast<float*>(logs.data) + s * rows, narrow);
  }
}

}  // namespace

void bind_pages(nb::module_& m) {
  m.def("reference_attention", &attention, nb::arg("q").none(), nb::arg("k").none(), nb::arg("v").none(), nb::arg("out").none(),
        nb::arg("lse").none(), nb::arg("sm_scale"), nb::arg("causal"), nb::arg("window"), nb::arg("soft_cap"));
  nb::class_<Pages>(m, "Pages")
      .def(
          "__init__",
          [](Pages* self, const std::string& spec_json, const std::string& layout, int num_kv_heads, int head_dim, int block_size,
             std::shared_ptr<Calibration> calibration, int layer, nb::object k_tables, nb::object v_tables, std::int64_t block_stride,
             std::int64_t token_stride, std::int64_t head_stride) {
            new (self) Pages(PageCodec(spec_json, layout, num_kv_heads, head_dim, block_size, std::move(calibration), layer, k_tables,
                                       v_tables, block_stride, token_stride, head_stride));
          },
          nb::arg("spec_json"), nb::arg("layout"), nb::arg("num_kv_heads"), nb::arg("head_dim"), nb::arg("block_size"),
          nb::arg("calibration").none(), nb::arg("layer"), nb::arg("k_tables").none(), nb::arg("v_tables").none(), nb::arg("block_stride"),
          nb::arg("token_stride"), nb::arg("head_stride"))
      .def_prop_ro("block_bytes", [](const Pages& p) { return p.codec().layout.block_stride; })
      .def_prop_ro("token_head_bytes", [](const Pages& p) { return token_head_bytes(p.codec().layout); })
      .def_prop_ro("needs_positions", [](const Pages& p) { return p.codec().layer != nullptr && !p.codec().layer->k.rope_mu.empty(); })
      .def("append", &Pages::append, nb::arg("cache").none(), nb::arg("k").none(), nb::arg("v").none(), nb::arg("slot_mapping").none(),
           nb::arg("positions").none())
      .def("attend", &Pages::attend, nb::arg("cache").none(), nb::arg("q").none(), nb::arg("block_table").none(),
           nb::arg("seq_lens").none(), nb::arg("out").none(), nb::arg("lse").none(), nb::arg("sm_scale"), nb::arg("window"),
           nb::arg("soft_cap"), nb::arg("alibi_slopes").none(), nb::arg("sink_logits").none(), nb::arg("repeat") = 1)
      .def("dequant", &Pages::dequant, nb::arg("cache").none(), nb::arg("block_table").none(), nb::arg("seq_lens").none(),
           nb::arg("k_out").none(), nb::arg("v_out").none(), nb::arg("rotated"));
}

}  // namespace tq4::python
