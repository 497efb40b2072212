// GpuPages: the CUDA operations of tq4/gpu.h on pages in CUDA tensors, launched on the caller's current stream. Each call checks
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

  const PageLayout& layout() const { return layout_; }
  bool needs_positions() const { return positions_; }
  int device() const { return device_; }

 private:
  Tensor on(nb::handle object, const char* name, std::initializer_list<DType> allowed, bool writable = false) const {
    return tensor_on(object, name, allowed, true, device_, writable);
  }

  gpu::PagedCache pages(nb::handle cache, bool writable) const {
    const Tensor t = on(cache, "the cache", {DType::U8}, writable);
    need_pages(layout_, piece_, t);
    return {layout_, t.as<std::uint8_t>(), t.dim(0)};
  }

  Tensor vectors(nb::handle object, const char* name, std::initializer_list<DType> allowed) const {
    Tensor t = on(object, name, allowed);
    need_vectors(t, name, layout_.head_dim);
    need_shape(t.shape, {-1, layout_.num_kv_heads, -1}, name);
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

void need_cuda() {
  if (gpu::compiled()) return;
  throw Error(ErrorCode::NoDevice, "this build has no CUDA backend: install where nvcc is found (CUDA 13)");
}

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
            need_cuda();
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
           nb::arg("k_out").none(), nb::arg("v_out").none(), nb::arg("rotated"), nb::arg("stream") = Stream());
}

}  // namespace tq4::python
