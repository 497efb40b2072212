// The public class with SIMD and threads against itself with the scalar reference on one thread: the same bytes for every codec, count
// of vectors and input type, and the same refusal of NaN and infinity.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "tq4/codec.h"
#include "tq4/error.h"

namespace tq4 {
namespace {

struct Encoded {
  std::vector<std::uint8_t> codes, signs;
  std::vector<float> scale, zero, residual;
  Encoded(const Codec& codec, std::int64_t n)
      : codes(static_cast<std::size_t>(n) * codec.code_bytes()),
        signs(static_cast<std::size_t>(n) * static_cast<std::size_t>(codec.head_dim()) / 8),
        scale(static_cast<std::size_t>(n)),
        zero(scale.size()),
        residual(scale.size()) {}
  EncodedOut out() { return {codes.data(), scale.data(), zero.data(), signs.data(), residual.data()}; }
  EncodedIn in() const { return {codes.data(), scale.data(), zero.data(), signs.data(), residual.data()}; }
  bool operator==(const Encoded&) const = default;
};

std::vector<float> vectors(std::int64_t n, int dim) {
  std::mt19937 gen(static_cast<std::uint32_t>(n));
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<std::size_t>(n * dim));
  for (float& v : x) v = normal(gen);
  if (n > 3) std::fill(x.begin() + 2 * dim, x.begin() + 3 * dim, 0.0f);
  return x;
}

std::vector<SideSpec> specs() {
  std::vector<SideSpec> all;
  for (const RotationKind rotation : {RotationKind::Haar, RotationKind::HadamardSigned}) {
    for (int bits = 1; bits <= 5; ++bits) {
      SideSpec s;
      s.bits = bits;
      s.rotation = rotation;
      all.push_back(s);
    }
    SideSpec s;
    s.rotation = rotation;
    s.kind = CodeKind::Prod;
    all.push_back(s);
    s.kind = CodeKind::Mixed;
    s.bits = 2;
    all.push_back(s);
    s = {};
    s.rotation = rotation;
    s.pair_codebook = true;
    s.bits = 2;
    all.push_back(s);
  }
  for (const CodeKind kind : {CodeKind::Uniform, CodeKind::Fp8, CodeKind::Fp16}) {
    SideSpec s;
    s.kind = kind;
    s.rotation = RotationKind::None;
    all.push_back(s);
  }
  SideSpec peer;
  peer.codebook = CodebookKind::TurboquantVllm;
  peer.scale_rule = ScaleRule::Norm;
  peer.scale_dtype = ScaleDType::F32;
  all.push_back(peer);
  SideSpec corrected;
  corrected.norm_correction = true;
  corrected.scale_rule = ScaleRule::Norm;
  corrected.bits = 3;
  all.push_back(corrected);
  return all;
}

Exec on(int threads, bool scalar = false) {
  Exec exec;
  exec.threads = threads;
  exec.scalar = scalar;
  return exec;
}

TEST(SimdCodec, BytesDependOnNeitherSimdNorThreads) {
  for (const int dim : {64, 40}) {
    for (const SideSpec& spec : specs()) {
      const Codec codec(spec, dim);
      SCOPED_TRACE("kind " + std::to_string(static_cast<int>(spec.kind)) + " bits " + std::to_string(spec.bits) + " dim " +
                   std::to_string(dim));
      for (const std::int64_t n : {std::int64_t{1}, std::int64_t{1000}, std::int64_t{3001}}) {
        const std::vector<float> x = vectors(n, dim);
        Encoded want(codec, n);
        codec.encode(x.data(), DType::F32, n, want.out(), {}, on(1, true));
        std::vector<float> back(x.size()), rotated(x.size());
        codec.decode(want.in(), n, back.data(), {}, on(1, true));
        codec.decode_rotated(want.in(), n, rotated.data(), on(1, true));
        for (const int threads : {1, 2, 3, 8, 0}) {
          Encoded got(codec, n);
          codec.encode(x.data(), DType::F32, n, got.out(), {}, on(threads));
          ASSERT_TRUE(want == got) << threads << " threads, " << n << " vectors";
          std::vector<float> again(x.size());
          codec.decode(want.in(), n, again.data(), {}, on(threads));
          ASSERT_EQ(0, std::memcmp(back.data(), again.data(), 4 * back.size())) << threads << " threads, " << n << " vectors";
          codec.decode_rotated(want.in(), n, again.data(), on(threads));
          ASSERT_EQ(0, std::memcmp(rotated.data(), again.data(), 4 * back.size())) << threads << " threads, " << n << " vectors";
        }
      }
    }
  }
}

TEST(SimdCodec, HalfInputAndUnalignedInput) {
  const int dim = 96;
  const std::int64_t n = 77;
  const Codec codec(SideSpec{}, dim);
  const std::vector<float> x = vectors(n, dim);
  for (const DType dtype : {DType::F16, DType::BF16, DType::F32}) {
    std::vector<unsigned char> raw(x.size() * dtype_size(dtype) + 1);
    from_float(x.data(), x.size(), dtype, raw.data());
    Encoded want(codec, n), got(codec, n), shifted(codec, n);
    codec.encode(raw.data(), dtype, n, want.out(), {}, on(1, true));
    codec.encode(raw.data(), dtype, n, got.out(), {}, on(2));
    EXPECT_TRUE(want == got);
    std::memmove(raw.data() + 1, raw.data(), raw.size() - 1);
    codec.encode(raw.data() + 1, dtype, n, shifted.out(), {}, on(1));
    EXPECT_TRUE(want == shifted);
  }
}

TEST(SimdCodec, NonfiniteIsRefusedAtItsFirstPlaceOrReplaced) {
  const int dim = 32;
  const std::int64_t n = 700;
  for (const SideSpec& spec : specs()) {
    const Codec codec(spec, dim);
    for (const float bad :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()}) {
      std::vector<float> x = vectors(n, dim);
      x[634 * 32 + 17] = bad;
      x[634 * 32 + 60] = bad;
      x[699 * 32 + 1] = bad;
      for (const int threads : {1, 4}) {
        for (const bool scalar : {false, true}) {
          Encoded out(codec, n);
          try {
            codec.encode(x.data(), DType::F32, n, out.out(), {}, on(threads, scalar));
            ADD_FAILURE() << "accepted " << bad;
          } catch (const Error& e) {
            EXPECT_EQ(e.code(), ErrorCode::BadInput);
            EXPECT_NE(std::string(e.what()).find("vector 634, coordinate 17"), std::string::npos) << e.what();
          }
        }
        Exec zero = on(threads);
        zero.nonfinite = NonFinite::Zero;
        std::vector<float> clean = x;
        for (float& v : clean) v = std::isfinite(v) ? v : 0.0f;
        Encoded want(codec, n), got(codec, n);
        codec.encode(clean.data(), DType::F32, n, want.out(), {}, on(1, true));
        codec.encode(x.data(), DType::F32, n, got.out(), {}, zero);
        EXPECT_TRUE(want == got);
      }
    }
  }
}

TEST(SimdCodec, AVectorTooLongIsRefused) {
  const Codec codec(SideSpec{}, 64);
  std::vector<float> x = vectors(100, 64);
  for (int j = 0; j < 64; ++j) x[static_cast<std::size_t>(40 * 64 + j)] = 3e38f;
  Encoded out(codec, 100);
  for (const NonFinite rule : {NonFinite::Refuse, NonFinite::Zero}) {
    Exec exec = on(2);
    exec.nonfinite = rule;
    try {
      codec.encode(x.data(), DType::F32, 100, out.out(), {}, exec);
      ADD_FAILURE() << "accepted";
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find("vector 40 is too long"), std::string::npos) << e.what();
    }
  }
}

}  // namespace
}  // namespace tq4
