// GpuCodec: vectors in CUDA tensors to planes and back, and attention over planes, launched on the caller's current stream. Nothing is copied or
// synchronised. A calibrated codec has tables a head; each head is a codec of its own here, so that tensors are [num_kv_heads, tokens, D] in
// memory as on the CPU (the kernels take [tokens, heads, D]).
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include <array>
#include <type_traits>

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
constexpr std::int64_t kMostHeads = 65535;  ///< of one launch

LayerCalibration one_head(const LayerCalibration& layer, int head) {
  LayerCalibration one = layer;
  one.num_kv_heads = 1;
  const auto cut = [&](std::vector<float>& values) {
    const auto size = static_cast<std::ptrdiff_t>(values.size()) / layer.num_kv_heads;
    values = std::vector<float>(values.begin() + head * size, values.begin() + (head + 1) * size);
  };
  for (SideCalibration* side : {&one.k, &one.v}) {
    for (std::vector<float>* table :
         {&side->forward, &side->inverse, &side->centre, &side->rope_mu, &side->feedback, &side->feedback_gain}) {
      cut(*table);
    }
  }
  return one;
}

/// Rows of D elements that one launch encodes: [n, heads] with these strides.
struct Run {
  std::int64_t offset = 0, first = 0;  ///< elements before the first row; its number in the planes
  std::int64_t n = 0, heads = 1, token_stride = 0, head_stride = 0;
};

/// The rows of a tensor in C order, in as few launches as its strides allow: one for anything of at most two axes that do not merge.
std::vector<Run> runs_of(const Tensor& x) {
  std::vector<std::int64_t> sizes, steps;  // leading axes, merged where the outer one goes on where the inner one ends
  for (int i = 0; i + 1 < x.ndim(); ++i) {
    if (x.dim(i) == 1) continue;
    if (!sizes.empty() && steps.back() == x.dim(i) * x.stride(i)) {
      sizes.back() *= x.dim(i);
      steps.back() = x.stride(i);
    } else {
      sizes.push_back(x.dim(i));
      steps.push_back(x.stride(i));
    }
  }
  Run last;
  last.n = sizes.empty() ? 1 : sizes.back();
  last.token_stride = sizes.empty() ? 0 : steps.back();
  last.head_stride = x.shape.back();  // not 0: two zeros would mean dense
  std::size_t outer = sizes.empty() ? 0 : sizes.size() - 1;
  if (outer > 0 && sizes.back() <= kMostHeads && sizes[outer - 1] >= 16) {  // the inner axis as heads of the outer one's tokens
    last.heads = sizes.back();
    last.head_stride = steps.back();
    last.n = sizes[outer - 1];
    last.token_stride = steps[outer - 1];
    --outer;
  }
  std::int64_t count = 1;
  for (std::size_t i = 0; i < outer; ++i) count *= sizes[i];
  std::vector<Run> runs(static_cast<std::size_t>(count), last);
  for (std::int64_t r = 0; r < count; ++r) {
    std::int64_t rest = r;
    Run& run = runs[static_cast<std::size_t>(r)];
    run.first = r * last.n * last.heads;
    for (std::size_t i = outer; i-- > 0;) {
      run.offset += rest % sizes[i] * steps[i];
      rest /= sizes[i];
    }
  }
  return runs;
}

class GpuCodec {
 public:
  /// Tables go to the current device, which must be `device`. k_tables, v_tables: see own_tables; not with a calibration.
  GpuCodec(const std::string& spec_json, int head_dim, const std::shared_ptr<const Calibration>& calibration, int layer_number,
           nb::handle k_tables, nb::handle v_tables, int device)
      : device_(device), head_dim_(head_dim) {
    const CodecSpec spec = spec_from_json(spec_json);
    const LayerCalibration* layer = calibrated_layer(calibration.get(), layer_number, head_dim);
    if (layer != nullptr) {
      calibrated_ = true;
      positions_ = !layer->k.rope_mu.empty();
      for (int h = 0; h < layer->num_kv_heads; ++h) {
        const LayerCalibration one = one_head(*layer, h);
        codecs_.emplace_back(spec, head_dim, 1, &one);
      }
      return;
    }
    const std::optional<OwnTables> k = own_tables(k_tables, head_dim), v = own_tables(v_tables, head_dim);
    codecs_.emplace_back(spec, 1, side_codec(spec.k, head_dim, nullptr, k ? &*k : nullptr),
                         side_codec(spec.v, head_dim, nullptr, v ? &*v : nullptr));
  }

  GpuCodec(const GpuCodec&) = delete;
  GpuCodec& operator=(const GpuCodec&) = delete;

  bool needs_positions(const std::string& side) const { return positions_ && side_of(side) == Side::K; }

  /// x [..., D] with any strides of the leading axes to planes (codes, scale, zero, signs, residual_norm) of [..., own axis]; reals are fp32.
  /// positions [tokens] int64 where needs_positions.
  void encode(const std::string& side_name, nb::handle x, nb::handle planes, nb::handle positions,
              std::optional<std::uintptr_t> stream) const {
    const Side side = side_of(side_name);
    const Tensor in = on(x, "x", kFloats);
    need_vectors(in, "x", head_dim_);
    const std::vector<std::int64_t> leading = leading_of(in);
    const std::array<Tensor, 5> to = planes_of(side, planes, leading, static_cast<std::int64_t>(host(side).code_bytes()), true);
    const Tensor at = positions_of(side, positions, leading);
    if (in.size() == 0) return;
    gpu::EncodeParams p;
    p.x_dtype = in.dtype;
    p.positions = at.as<const std::int64_t>();
    const auto launch = [&](const gpu::DeviceCodec& codec, const Run& run) {
      p.x = in.as<const std::uint8_t>() + run.offset * static_cast<std::int64_t>(dtype_size(in.dtype));
      p.n = run.n;
      p.heads = static_cast<int>(run.heads);
      p.token_stride = run.token_stride;
      p.head_stride = run.head_stride;
      p.out = {row<std::uint8_t>(to[0], run.first), row<float>(to[1], run.first), row<float>(to[2], run.first),
               row<std::uint8_t>(to[3], run.first), row<float>(to[4], run.first)};
      gpu::encode(codec, side, p, stream_of(in, stream));
    };
    if (!calibrated_) {
      for (const Run& run : runs_of(in)) launch(codecs_.front(), run);
      return;
    }
    for (std::int64_t h = 0; h < leading[0]; ++h)
      launch(codecs_[static_cast<std::size_t>(h)], {h * in.stride(0), h * leading[1], leading[1], 1, in.stride(1), head_dim_});
  }

  /// Dense planes to out [..., D], dense. high_nibble_first: codes are turboquant-vllm's nibbles, D / 2 bytes a vector.
  void decode(const std::string& side_name, nb::handle planes, nb::handle out, bool rotated, nb::handle positions, bool high_nibble_first,
              std::optional<std::uintptr_t> stream) const {
    const Side side = side_of(side_name);
    const Tensor x = on(out, "out", kFloats, true);
    need_vectors(x, "out", head_dim_);
    need_dense(x, "out");
    const std::vector<std::int64_t> leading = leading_of(x);
    const std::int64_t code_bytes = high_nibble_first ? head_dim_ / 2 : static_cast<std::int64_t>(host(side).code_bytes());
    const std::array<Tensor, 5> from = planes_of(side, planes, leading, code_bytes, false);
    const Tensor at = rotated ? Tensor{} : positions_of(side, positions, leading);
    if (x.size() == 0) return;
    gpu::DequantParams p;
    p.out_dtype = x.dtype;
    p.rotated = rotated;
    p.positions = at.as<const std::int64_t>();
    p.high_nibble_first = high_nibble_first;
    const bool by_head = calibrated_ && !rotated;
    p.n = by_head ? leading[1] : elements(leading);
    for (std::int64_t h = 0; h < (by_head ? leading[0] : 1); ++h) {
      const std::int64_t first = h * p.n;
      p.in = {row<std::uint8_t>(from[0], first), row<float>(from[1], first), row<float>(from[2], first), row<std::uint8_t>(from[3], first),
              row<float>(from[4], first)};
      p.out = x.as<std::uint8_t>() + first * head_dim_ * static_cast<std::int64_t>(dtype_size(x.dtype));
      gpu::dequant(codecs_[static_cast<std::size_t>(h)], side, p, stream_of(x, stream));
    }
  }

  /// Attention over dense sequences of one length with one kv head each: q, out [seqs, q_len, num_q_heads, D]; codes [seqs * tokens, 1, bytes],
  /// scales [seqs * tokens, 1] or None for a side without. Query i is at position i - q_len + tokens where causal. workspace: of workspace_bytes.
  void attend(nb::handle q, nb::handle k_codes, nb::handle k_scale, nb::handle v_codes, nb::handle v_scale, nb::handle cu_q,
              nb::handle cu_k, std::int64_t tokens, nb::handle out, bool causal, double sm_scale, nb::handle workspace,
              std::optional<std::uintptr_t> stream) const {
    const Tensor qt = on(q, "q", kHalves), result = on(out, "out", kHalves, true);
    need_shape(qt.shape, {-1, -1, -1, head_dim_}, "q");
    need_shape(result.shape, qt.shape, "out");
    need_dense(qt, "q");
    need_dense(result, "out");
    if (calibrated_) throw Refusal{"UnsupportedError", "attention over planes takes no calibration"};
    gpu::PrefillParams p;
    p.q = qt.data;
    p.dtype = qt.dtype;
    p.out = result.data;
    p.num_seqs = static_cast<int>(qt.dim(0));
    p.max_q_len = static_cast<int>(qt.dim(1));
    p.num_q_heads = static_cast<int>(qt.dim(2));
    p.max_kv_len = tokens;
    const std::int64_t n = p.num_seqs * tokens;
    const auto side_planes = [&](Side side, nb::handle codes, nb::handle scale, const char* codes_name, const char* scale_name) {
      EncodedIn planes;
      planes.codes = dense(codes, codes_name, DType::U8, {n, 1, static_cast<std::int64_t>(host(side).code_bytes())}).as<std::uint8_t>();
      if (host(side).has_scale()) planes.scale = dense(scale, scale_name, DType::F32, {n, 1}).as<float>();
      return planes;
    };
    p.k_planes = side_planes(Side::K, k_codes, k_scale, "k_codes", "k_scale");
    p.v_planes = side_planes(Side::V, v_codes, v_scale, "v_codes", "v_scale");
    p.cu_q = dense(cu_q, "cu_q", DType::I32, {p.num_seqs + 1}).as<std::int32_t>();
    p.cu_k = dense(cu_k, "cu_k", DType::I32, {p.num_seqs + 1}).as<std::int32_t>();
    p.causal = causal;
    p.sm_scale = static_cast<float>(sm_scale);
    const Tensor room = dense(workspace, "workspace", DType::U8, {-1}, true);
    p.workspace = room.data;
    p.workspace_bytes = static_cast<std::size_t>(room.size());
    gpu::prefill(codecs_.front(), p, stream_of(qt, stream));
  }
  std::size_t workspace_bytes(int num_seqs, std::int64_t tokens) const {
    gpu::PrefillParams p;
    p.num_seqs = num_seqs;
    p.max_kv_len = tokens;
    return gpu::prefill_workspace_bytes(codecs_.front(), p);
  }

 private:
  static Side side_of(const std::string& name) { return name == "k" ? Side::K : Side::V; }
  const Codec& host(Side side) const { return codecs_.front().host(side); }

  Tensor on(nb::handle object, const char* name, std::initializer_list<DType> allowed, bool writable = false) const {
    return tensor_on(object, name, allowed, true, device_, writable);
  }
  Tensor dense(nb::handle object, const char* name, DType dtype, const std::vector<std::int64_t>& shape, bool writable = false) const {
    Tensor t = on(object, name, {dtype}, writable);
    need_shape(t.shape, shape, name);
    need_dense(t, name);
    return t;
  }

  /// The axes before D; [num_kv_heads, tokens] for a calibrated codec.
  std::vector<std::int64_t> leading_of(const Tensor& x) const {
    std::vector<std::int64_t> leading(x.shape.begin(), x.shape.end() - 1);
    if (calibrated_) {
      need_shape(leading, {static_cast<std::int64_t>(codecs_.size()), -1}, "a calibrated side ([num_kv_heads, tokens] before head_dim)");
    }
    return leading;
  }

  std::array<Tensor, 5> planes_of(Side side, nb::handle object, const std::vector<std::int64_t>& leading, std::int64_t code_bytes,
                                  bool writable) const {
    nb::tuple parts;
    if (!nb::try_cast(object, parts, false) || parts.size() != 5) throw Refusal{"UsageError", "encoded vectors are five planes"};
    const Codec& codec = host(side);
    std::vector<std::int64_t> codes = leading, signs = leading;
    codes.push_back(code_bytes);
    signs.push_back(head_dim_ / 8);
    std::array<Tensor, 5> planes;
    planes[0] = dense(parts[0], "codes", DType::U8, codes, writable);
    if (codec.has_scale()) planes[1] = dense(parts[1], "scale", DType::F32, leading, writable);
    if (codec.has_zero()) planes[2] = dense(parts[2], "zero", DType::F32, leading, writable);
    if (codec.has_signs()) planes[3] = dense(parts[3], "signs", DType::U8, signs, writable);
    if (codec.has_signs()) planes[4] = dense(parts[4], "residual_norm", DType::F32, leading, writable);
    return planes;
  }

  Tensor positions_of(Side side, nb::handle object, const std::vector<std::int64_t>& leading) const {
    if (!positions_ || side != Side::K) return {};
    if (object.is_none()) throw Refusal{"UsageError", "this calibration centres keys before RoPE: positions are needed"};
    return dense(object, "positions", DType::I64, {leading[1]});
  }

  /// Row `first` of a plane; null where the codec has no such plane.
  template <class T>
  static T* row(const Tensor& plane, std::int64_t first) {
    if (plane.data == nullptr) return nullptr;
    const std::int64_t width = std::is_same_v<T, float> ? 1 : plane.shape.back();
    return plane.as<T>() + first * width;
  }

  int device_, head_dim_;
  bool calibrated_ = false, positions_ = false;
  std::vector<gpu::DeviceCodec> codecs_;  ///< one, or one a head
};

}  // namespace

void bind_gpu_codec(nb::module_& m) {
  using Stream = std::optional<std::uintptr_t>;
  nb::class_<GpuCodec>(m, "GpuCodec")
      .def(
          "__init__",
          [](GpuCodec* self, const std::string& spec_json, int head_dim, std::shared_ptr<Calibration> calibration, int layer,
             nb::object k_tables, nb::object v_tables, int device) {
            need_cuda();
            new (self) GpuCodec(spec_json, head_dim, calibration, layer, k_tables, v_tables, device);
          },
          nb::arg("spec_json"), nb::arg("head_dim"), nb::arg("calibration").none(), nb::arg("layer"), nb::arg("k_tables").none(),
          nb::arg("v_tables").none(), nb::arg("device"))
      .def("needs_positions", &GpuCodec::needs_positions, nb::arg("side"))
      .def("encode", &GpuCodec::encode, nb::arg("side"), nb::arg("x").none(), nb::arg("planes").none(), nb::arg("positions").none(),
           nb::arg("stream") = Stream())
      .def("decode", &GpuCodec::decode, nb::arg("side"), nb::arg("planes").none(), nb::arg("out").none(), nb::arg("rotated"),
           nb::arg("positions").none(), nb::arg("high_nibble_first") = false, nb::arg("stream") = Stream())
      .def("attend", &GpuCodec::attend, nb::arg("q").none(), nb::arg("k_codes").none(), nb::arg("k_scale").none(),
           nb::arg("v_codes").none(), nb::arg("v_scale").none(), nb::arg("cu_q").none(), nb::arg("cu_k").none(), nb::arg("tokens"),
           nb::arg("out").none(), nb::arg("causal"), nb::arg("sm_scale"), nb::arg("workspace").none(), nb::arg("stream") = Stream())
      .def("workspace_bytes", &GpuCodec::workspace_bytes, nb::arg("num_seqs"), nb::arg("tokens"));
}

}  // namespace tq4::python
