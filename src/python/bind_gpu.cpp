// GpuPages: the CUDA operations of tq4/gpu.h and tq4/prefill.h on CUDA tensors, launched on the caller's current stream. Each call checks
// dtypes, shapes and strides on the host, launches and returns; nothing is copied, allocated or synchronised. In a build without CUDA the
// class is there and its constructor says that there is no device.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include "bindings.h"
#include "page_codec.h"
#include "tensor.h"
#include "tq4/error.h"
#include "tq4/gpu.h"
#include "tq4/prefill.h"

namespace tq4::python {
namespace {

constexpr std::initializer_list<DType> kFloats{DType::F16, DType::BF16, DType::F32};
constexpr std::initializer_list<DType> kHalves{DType::F16, DType::BF16};

gpu::DeviceCodec device_codec(PageCodec&& c) {
  if (c.own) return gpu::DeviceCodec(c.spec, c.layout.num_kv_heads, std::move(c.k), std::move(c.v));
  return gpu::DeviceCodec(c.spec, c.layout.head_dim, c.layout.num_kv_heads, c.layer);
}

class GpuPages {
 public:
  /// Tables go to the current device, which must be `device`.
  GpuPages(PageCodec codec, int device)
      : layout_(codec.layout),
        piece_(codec.piece),
        positions_(codec.layer != nullptr && !codec.layer->k.rope_mu.empty()),
        device_(device),
        codec_(device_codec(std::move(codec))) {}

  void append(nb::handle cache, nb::handle k, nb::handle v, nb::handle slot_mapping, nb::handle positions,
              std::optional<std::uintptr_t> stream) const {
    gpu::StoreParams p;
    const Tensor kt = vectors(k, "k", kFloats), vt = vectors(v, "v", kFloats);
    p.n = kt.dim(0);
    need_shape(vt.shape, kt.shape, "v");
    if (vt.dtype != kt.dtype) throw Refusal{"DTypeError", "k and v must be of one dtype"};
    const Tensor slots = on(slot_mapping, "slot_mapping", {DType::I64});
    need_shape(slots.shape, {p.n}, "slot_mapping");
    need_dense(slots, "slot_mapping");
    Tensor at;
    if (!positions.is_none()) {
      at = on(positions, "positions", {DType::I64});
      need_shape(at.shape, {p.n}, "positions");
      need_dense(at, "positions");
      p.positions = at.as<std::int64_t>();
    } else if (positions_) {
      throw Refusal{"UsageError", "this calibration centres keys before RoPE: append needs positions"};
    }
    if (p.n == 0) return;
    p.k = kt.data;
    p.v = vt.data;
    p.dtype = kt.dtype;
    p.k_token_stride = kt.stride(0);
    p.k_head_stride = kt.stride(1);
    p.v_token_stride = vt.stride(0);
    p.v_head_stride = vt.stride(1);
    p.slot_mapping = slots.as<std::int64_t>();
    p.cache = pages(cache, true);
    gpu::store(codec_, p, stream_of(kt, stream));
  }

  /// q, out [num_seqs, q_len, num_q_heads, D] or without q_len; lse [num_seqs, q_len, num_q_heads]. workspace: uint8, zeroed when it was allocated, at least
  /// workspace_bytes of the same shapes. repeat: launches in a row (experiments/python_overhead).
  void attend(nb::handle cache, nb::handle q, nb::handle block_table, nb::handle seq_lens, nb::handle out, nb::handle lse, double sm_scale,
              int window, double soft_cap, nb::handle alibi_slopes, nb::handle sink_logits, std::int64_t max_seq_len, bool general,
              nb::handle workspace, std::optional<std::uintptr_t> stream, int repeat) const {
    Tensor qt = on(q, "q", kHalves);
    const bool one = qt.ndim() == 3;  // one query a sequence, without its axis
    if (one) qt.insert_axis(1);
    const int dim = layout_.head_dim;
    need_shape(qt.shape, {-1, -1, -1, dim}, "q");
    need_dense(qt, "q");
    gpu::DecodeParams p = decode_params(static_cast<int>(qt.dim(0)), static_cast<int>(qt.dim(1)), static_cast<int>(qt.dim(2)), max_seq_len,
                                        soft_cap, general);
    Tensor result = on(out, "out", kHalves, true);
    if (one && result.ndim() == 3) result.insert_axis(1);
    need_shape(result.shape, qt.shape, "out");
    need_dense(result, "out");
    if (result.dtype != qt.dtype) throw Refusal{"DTypeError", "out must be of q's dtype"};
    p.q = qt.data;
    p.q_dtype = qt.dtype;
    p.out = result.data;
    if (!lse.is_none()) {
      Tensor t = on(lse, "lse", {DType::F32}, true);
      if (one && t.ndim() == 2) t.insert_axis(1);
      need_shape(t.shape, {qt.dim(0), qt.dim(1), qt.dim(2)}, "lse");
      need_dense(t, "lse");
      p.lse = t.as<float>();
    }
    if (p.num_seqs == 0 || p.q_len == 0) return;
    p.cache = pages(cache, false);
    const Tensor table = table_of(block_table, p.num_seqs), lens = lens_of(seq_lens, p.num_seqs);
    p.block_table = table.as<std::int32_t>();
    p.block_table_stride = table.dim(0) > 1 ? table.stride(0) : table.dim(1);
    p.seq_lens = lens.as<std::int32_t>();
    p.sm_scale = static_cast<float>(sm_scale);
    p.window = window;
    p.alibi_slopes = per_head(alibi_slopes, "alibi_slopes", p.num_q_heads);
    p.sink_logits = per_head(sink_logits, "sink_logits", p.num_q_heads);
    const Tensor room = on(workspace, "workspace", {DType::U8}, true);
    need_dense(room, "workspace");
    p.workspace = room.data;
    p.workspace_bytes = static_cast<std::size_t>(room.size());
    for (int i = 0; i < repeat; ++i) gpu::decode(codec_, p, stream_of(qt, stream));
  }

  std::size_t workspace_bytes(nb::handle cache, int num_seqs, int q_len, int num_q_heads, std::int64_t max_seq_len) const {
    gpu::DecodeParams p = decode_params(num_seqs, q_len, num_q_heads, max_seq_len, 0, false);
    p.cache = pages(cache, false);
    return gpu::decode_workspace_bytes(codec_, p);
  }
  std::string path(nb::handle cache, int num_seqs, int q_len, int num_q_heads, std::int64_t max_seq_len) const {
    gpu::DecodeParams p = decode_params(num_seqs, q_len, num_q_heads, max_seq_len, 0, false);
    p.cache = pages(cache, false);
    return gpu::decode_path(codec_, p);
  }

  void dequant(nb::handle cache, nb::handle block_table, nb::handle seq_lens, nb::handle k_out, nb::handle v_out, bool rotated,
               std::optional<std::uintptr_t> stream) const {
    gpu::DequantPagesParams p;
    const Tensor k = on(k_out, "k_out", kFloats, true), v = on(v_out, "v_out", kFloats, true);
    need_shape(k.shape, {-1, layout_.num_kv_heads, -1, layout_.head_dim}, "k_out");
    need_shape(v.shape, k.shape, "v_out");
    need_dense(k, "k_out");
    need_dense(v, "v_out");
    if (k.dtype != v.dtype) throw Refusal{"DTypeError", "k_out and v_out must be of one dtype"};
    p.num_seqs = static_cast<int>(k.dim(0));
    p.max_seq_len = k.dim(2);
    if (k.size() == 0) return;
    const Tensor table = table_of(block_table, p.num_seqs), lens = lens_of(seq_lens, p.num_seqs);
    p.cache = pages(cache, false);
    p.block_table = table.as<std::int32_t>();
    p.block_table_stride = table.dim(0) > 1 ? table.stride(0) : table.dim(1);
    p.seq_lens = lens.as<std::int32_t>();
    p.k_out = k.data;
    p.v_out = v.data;
    p.out_dtype = k.dtype;
    p.rotated = rotated;
    gpu::dequant_pages(codec_, p, stream_of(k, stream));
  }

  /// x [n, heads, D] -> codes [n, heads, code_bytes], scale [n, heads] fp32. Codecs without zeros and signs.
  void encode(const std::string& side, nb::handle x, nb::handle codes, nb::handle scale, std::optional<std::uintptr_t> stream) const {
    const Side s = side == "k" ? Side::K : Side::V;
    const Tensor xt = vectors_of_any_heads(x, "x", kFloats);
    gpu::EncodeParams p;
    p.n = xt.dim(0);
    p.heads = static_cast<int>(xt.dim(1));
    if (xt.size() == 0) return;
    const Tensor ct = plane(codes, "codes", DType::U8, p.n, p.heads, static_cast<std::int64_t>(codec_.host(s).code_bytes()), true);
    const Tensor st = plane(scale, "scale", DType::F32, p.n, p.heads, 0, true);
    p.x = xt.data;
    p.x_dtype = xt.dtype;
    p.token_stride = xt.stride(0);
    p.head_stride = xt.stride(1);
    p.out.codes = ct.as<std::uint8_t>();
    p.out.scale = st.as<float>();
    gpu::encode(codec_, s, p, stream_of(xt, stream));
  }

  /// codes [n, heads, code_bytes] (nibble rows: D/2), scale [n, heads] fp32 -> out [n, heads, D].
  void dequant_planes(const std::string& side, nb::handle codes, nb::handle scale, nb::handle out, bool rotated, bool high_nibble_first,
                      std::optional<std::uintptr_t> stream) const {
    const Side s = side == "k" ? Side::K : Side::V;
    const Tensor x = on(out, "out", kFloats, true);
    need_shape(x.shape, {-1, -1, layout_.head_dim}, "out");
    need_dense(x, "out");
    gpu::DequantParams p;
    p.n = x.dim(0);
    p.heads = static_cast<int>(x.dim(1));
    if (x.size() == 0) return;
    const std::int64_t row = high_nibble_first ? layout_.head_dim / 2 : static_cast<std::int64_t>(codec_.host(s).code_bytes());
    const Tensor ct = plane(codes, "codes", DType::U8, p.n, p.heads, row, false),
                 st = plane(scale, "scale", DType::F32, p.n, p.heads, 0, false);
    p.in.codes = ct.as<std::uint8_t>();
    p.in.scale = st.as<float>();
    p.out = x.data;
    p.out_dtype = x.dtype;
    p.rotated = rotated;
    p.high_nibble_first = high_nibble_first;
    gpu::dequant(codec_, s, p, stream_of(x, stream));
  }

  /// Dense sequences of one length: q, out [seqs, q_len, num_q_heads, D]; codes [seqs * tokens, num_kv_heads, bytes], scales [.., num_kv_heads]
  /// or None for a side without. Query i is at position i - q_len + tokens where causal. workspace: 2 * seqs * tokens * num_kv_heads * D fp16.
  void attend_planes(nb::handle q, nb::handle k_codes, nb::handle k_scale, nb::handle v_codes, nb::handle v_scale, nb::handle cu_q,
                     nb::handle cu_k, std::int64_t tokens, nb::handle out, bool causal, double sm_scale, nb::handle workspace,
                     std::optional<std::uintptr_t> stream) const {
    const Tensor qt = on(q, "q", kHalves), result = on(out, "out", kHalves, true);
    need_shape(qt.shape, {-1, -1, -1, layout_.head_dim}, "q");
    need_shape(result.shape, qt.shape, "out");
    need_dense(qt, "q");
    need_dense(result, "out");
    gpu::PrefillParams p;
    p.q = qt.data;
    p.dtype = qt.dtype;
    p.out = result.data;
    p.num_seqs = static_cast<int>(qt.dim(0));
    p.max_q_len = static_cast<int>(qt.dim(1));
    p.num_q_heads = static_cast<int>(qt.dim(2));
    p.max_kv_len = tokens;
    const std::int64_t n = p.num_seqs * tokens;
    const int heads = layout_.num_kv_heads;
    const Tensor kc = plane(k_codes, "k_codes", DType::U8, n, heads, static_cast<std::int64_t>(codec_.host(Side::K).code_bytes()), false);
    const Tensor vc = plane(v_codes, "v_codes", DType::U8, n, heads, static_cast<std::int64_t>(codec_.host(Side::V).code_bytes()), false);
    p.k_planes.codes = kc.as<std::uint8_t>();
    p.v_planes.codes = vc.as<std::uint8_t>();
    if (codec_.host(Side::K).has_scale()) p.k_planes.scale = plane(k_scale, "k_scale", DType::F32, n, heads, 0, false).as<float>();
    if (codec_.host(Side::V).has_scale()) p.v_planes.scale = plane(v_scale, "v_scale", DType::F32, n, heads, 0, false).as<float>();
    const Tensor q_ends = on(cu_q, "cu_q", {DType::I32}), k_ends = on(cu_k, "cu_k", {DType::I32});
    need_shape(q_ends.shape, {p.num_seqs + 1}, "cu_q");
    need_shape(k_ends.shape, {p.num_seqs + 1}, "cu_k");
    p.cu_q = q_ends.as<std::int32_t>();
    p.cu_k = k_ends.as<std::int32_t>();
    p.causal = causal;
    p.sm_scale = static_cast<float>(sm_scale);
    const Tensor room = on(workspace, "workspace", {DType::U8}, true);
    p.workspace = room.data;
    p.workspace_bytes = static_cast<std::size_t>(room.size());
    gpu::prefill(codec_, p, stream_of(qt, stream));
  }
  std::size_t planes_workspace_bytes(int num_seqs, std::int64_t tokens) const {
    gpu::PrefillParams p;
    p.num_seqs = num_seqs;
    p.max_kv_len = tokens;
    return gpu::prefill_workspace_bytes(codec_, p);
  }

  const PageLayout& layout() const { return layout_; }
  bool needs_positions() const { return positions_; }
  int device() const { return device_; }

 private:
  Tensor on(nb::handle object, const char* name, std::initializer_list<DType> allowed, bool writable = false) const {
    return tensor_on(object, name, allowed, true, device_, writable);
  }

  /// The stream given, else the current one of the tensor's framework.
  static gpu::Stream stream_of(const Tensor& t, std::optional<std::uintptr_t> stream) {
    if (stream) return reinterpret_cast<gpu::Stream>(*stream);
    if (t.has_stream) return t.stream;
    throw Refusal{"UsageError", "these tensors do not tell their framework's current stream: pass stream=<cudaStream_t as an integer>"};
  }

  gpu::PagedCache pages(nb::handle cache, bool writable) const {
    if (layout_.block_stride == 0) throw Refusal{"UsageError", "this codec was made without a page layout"};
    const Tensor t = on(cache, "the cache", {DType::U8}, writable);
    need_pages(layout_, piece_, t);
    return {layout_, t.as<std::uint8_t>(), t.dim(0)};
  }

  Tensor vectors_of_any_heads(nb::handle object, const char* name, std::initializer_list<DType> allowed) const {
    Tensor t = on(object, name, allowed);
    if (t.ndim() == 3 && t.dim(2) != layout_.head_dim) {
      throw Refusal{"HeadDimError", std::string(name) + " of shape " + shape_text(t.shape) + " has vectors of " + std::to_string(t.dim(2)) +
                                        "; this codec is for head_dim " + std::to_string(layout_.head_dim)};
    }
    need_shape(t.shape, {-1, -1, layout_.head_dim}, name);
    need_rows(t, name);
    return t;
  }
  Tensor vectors(nb::handle object, const char* name, std::initializer_list<DType> allowed) const {
    Tensor t = vectors_of_any_heads(object, name, allowed);
    need_shape(t.shape, {-1, layout_.num_kv_heads, -1}, name);
    return t;
  }

  Tensor plane(nb::handle object, const char* name, DType dtype, std::int64_t n, std::int64_t heads, std::int64_t row,
               bool writable) const {
    Tensor t = on(object, name, {dtype}, writable);
    need_shape(t.shape, row > 0 ? std::vector<std::int64_t>{n, heads, row} : std::vector<std::int64_t>{n, heads}, name);
    need_dense(t, name);
    return t;
  }

  Tensor table_of(nb::handle object, std::int64_t seqs) const {
    Tensor t = on(object, "block_table", {DType::I32});
    need_shape(t.shape, {seqs, -1}, "block_table");
    need_rows(t, "block_table");
    return t;
  }
  Tensor lens_of(nb::handle object, std::int64_t seqs) const {
    Tensor t = on(object, "seq_lens", {DType::I32});
    need_shape(t.shape, {seqs}, "seq_lens");
    need_dense(t, "seq_lens");
    return t;
  }
  const float* per_head(nb::handle object, const char* name, std::int64_t heads) const {
    if (object.is_none()) return nullptr;
    const Tensor t = on(object, name, {DType::F32});
    need_shape(t.shape, {heads}, name);
    need_dense(t, name);
    return t.as<float>();
  }

  gpu::DecodeParams decode_params(int num_seqs, int q_len, int num_q_heads, std::int64_t max_seq_len, double soft_cap, bool general) const {
    if (num_q_heads < 1 || num_q_heads % layout_.num_kv_heads != 0) {
      throw Refusal{"ShapeError", "q has " + std::to_string(num_q_heads) + " heads, no multiple of the " +
                                      std::to_string(layout_.num_kv_heads) + " kv heads"};
    }
    gpu::DecodeParams p;
    p.num_seqs = num_seqs;
    p.q_len = q_len;
    p.num_q_heads = num_q_heads;
    p.max_seq_len = max_seq_len;
    p.soft_cap = static_cast<float>(soft_cap);
    p.general_path = general;
    return p;
  }

  PageLayout layout_;
  std::int64_t piece_;
  bool positions_;
  int device_;
  gpu::DeviceCodec codec_;
};

}  // namespace

void bind_gpu(nb::module_& m) {
  m.def("cuda_compiled", &gpu::compiled);
  m.def("cuda_device_count", &gpu::device_count);
  using Stream = std::optional<std::uintptr_t>;
  nb::class_<GpuPages>(m, "GpuPages")
      .def(
          "__init__",
          [](GpuPages* self, const std::string& spec_json, const std::string& layout, int num_kv_heads, int head_dim, int block_size,
             std::shared_ptr<Calibration> calibration, int layer, nb::object k_tables, nb::object v_tables, std::int64_t block_stride,
             std::int64_t token_stride, std::int64_t head_stride, int device) {
            if (!gpu::compiled()) {
              throw Error(ErrorCode::NoDevice, "this build has no CUDA backend: install with --config-settings=cmake.define.TQ4_CUDA=ON");
            }
            new (self) GpuPages(PageCodec(spec_json, layout, num_kv_heads, head_dim, block_size, std::move(calibration), layer, k_tables,
                                          v_tables, block_stride, token_stride, head_stride),
                                device);
          },
          nb::arg("spec_json"), nb::arg("layout"), nb::arg("num_kv_heads"), nb::arg("head_dim"), nb::arg("block_size"),
          nb::arg("calibration").none(), nb::arg("layer"), nb::arg("k_tables").none(), nb::arg("v_tables").none(), nb::arg("block_stride"),
          nb::arg("token_stride"), nb::arg("head_stride"), nb::arg("device"))
      .def_prop_ro("block_bytes", [](const GpuPages& p) { return p.layout().block_stride; })
      .def_prop_ro("token_head_bytes", [](const GpuPages& p) { return token_head_bytes(p.layout()); })
      .def_prop_ro("needs_positions", &GpuPages::needs_positions)
      .def_prop_ro("device", &GpuPages::device)
      .def("append", &GpuPages::append, nb::arg("cache").none(), nb::arg("k").none(), nb::arg("v").none(), nb::arg("slot_mapping").none(),
           nb::arg("positions").none(), nb::arg("stream") = Stream())
      .def("attend", &GpuPages::attend, nb::arg("cache").none(), nb::arg("q").none(), nb::arg("block_table").none(),
           nb::arg("seq_lens").none(), nb::arg("out").none(), nb::arg("lse").none(), nb::arg("sm_scale"), nb::arg("window"),
           nb::arg("soft_cap"), nb::arg("alibi_slopes").none(), nb::arg("sink_logits").none(), nb::arg("max_seq_len"), nb::arg("general"),
           nb::arg("workspace").none(), nb::arg("stream") = Stream(), nb::arg("repeat") = 1)
      .def("workspace_bytes", &GpuPages::workspace_bytes, nb::arg("cache").none(), nb::arg("num_seqs"), nb::arg("q_len"),
           nb::arg("num_q_heads"), nb::arg("max_seq_len"))
      .def("path", &GpuPages::path, nb::arg("cache").none(), nb::arg("num_seqs"), nb::arg("q_len"), nb::arg("num_q_heads"),
           nb::arg("max_seq_len"))
      .def("dequant", &GpuPages::dequant, nb::arg("cache").none(), nb::arg("block_table").none(), nb::arg("seq_lens").none(),
           nb::arg("k_out").none(), nb::arg("v_out").none(), nb::arg("rotated"), nb::arg("stream") = Stream())
      .def("encode", &GpuPages::encode, nb::arg("side"), nb::arg("x").none(), nb::arg("codes").none(), nb::arg("scale").none(),
           nb::arg("stream") = Stream())
      .def("dequant_planes", &GpuPages::dequant_planes, nb::arg("side"), nb::arg("codes").none(), nb::arg("scale").none(),
           nb::arg("out").none(), nb::arg("rotated"), nb::arg("high_nibble_first"), nb::arg("stream") = Stream())
      .def("attend_planes", &GpuPages::attend_planes, nb::arg("q").none(), nb::arg("k_codes").none(), nb::arg("k_scale").none(),
           nb::arg("v_codes").none(), nb::arg("v_scale").none(), nb::arg("cu_q").none(), nb::arg("cu_k").none(), nb::arg("tokens"),
           nb::arg("out").none(), nb::arg("causal"), nb::arg("sm_scale"), nb::arg("workspace").none(), nb::arg("stream") = Stream())
      .def("planes_workspace_bytes", &GpuPages::planes_workspace_bytes, nb::arg("num_seqs"), nb::arg("tokens"));
}

}  // namespace tq4::python
