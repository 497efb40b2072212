// The device codec and the refusals of the GPU operations.
#include "gpu/gpu_test.h"
#include "tq4/error.h"

namespace tq4::gpu {
namespace {

TEST(Device, InfoNamesTheDevice) {
  TQ4_REQUIRE_DEVICE();
  const DeviceInfo info = device_info(0);
  EXPECT_FALSE(info.name.empty());
  EXPECT_GT(info.sm_count, 0);
  EXPECT_GE(info.compute_major, 8);
  EXPECT_THROW(device_info(device_count()), Error);
}

TEST(Device, TablesAreTheHostCodecs) {
  TQ4_REQUIRE_DEVICE();
  const DeviceCodec codec(spec_from_name("tq4"), 64, 2);
  std::vector<float> forward(64 * 64), transposed(64 * 64);
  cuda_ok(cudaMemcpy(forward.data(), codec.k().forward, forward.size() * 4, cudaMemcpyDeviceToHost));
  cuda_ok(cudaMemcpy(transposed.data(), codec.k().forward_t, forward.size() * 4, cudaMemcpyDeviceToHost));
  EXPECT_EQ(forward, codec.host(Side::K).rotation().matrix);
  for (std::size_t i = 0; i < 64; ++i) {
    for (std::size_t j = 0; j < 64; ++j) ASSERT_EQ(forward[i * 64 + j], transposed[j * 64 + i]);
  }
  std::vector<std::uint16_t> hi(64 * 64), lo(64 * 64);
  cuda_ok(cudaMemcpy(hi.data(), codec.v().inverse_hi, hi.size() * 2, cudaMemcpyDeviceToHost));
  cuda_ok(cudaMemcpy(lo.data(), codec.v().inverse_lo, lo.size() * 2, cudaMemcpyDeviceToHost));
  for (std::size_t i = 0; i < 64; ++i) {
    for (std::size_t j = 0; j < 64; ++j) {
      const float sum = half_to_float(hi[i * 64 + j]) + half_to_float(lo[i * 64 + j]);
      ASSERT_NEAR(sum, codec.host(Side::V).rotation().matrix[j * 64 + i], 6e-8f);
    }
  }
}

TEST(Device, RefusesByName) {
  TQ4_REQUIRE_DEVICE();
  const DeviceCodec codec(spec_from_name("tq4"), 128, 8);
  DecodeParams p;
  p.num_q_heads = 32;
  p.num_seqs = 1;
  p.max_seq_len = 16;
  Device<std::uint8_t> memory(1 << 20);
  p.cache = {make_layout(LayoutKind::Native, codec.spec(), 8, 128, 16), memory.get(), 1};
  EXPECT_NO_THROW(decode_path(codec, p));
  const auto message = [&](const DecodeParams& params) {
    try {
      decode_path(codec, params);
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  DecodeParams q = p;
  q.q_len = 17;
  EXPECT_NE(message(q).find("q_len"), std::string::npos) << message(q);
  q = p;
  q.num_q_heads = 30;
  EXPECT_NE(message(q).find("num_q_heads"), std::string::npos) << message(q);
  q = p;
  q.q_dtype = DType::F32;
  EXPECT_NE(message(q).find("float16"), std::string::npos) << message(q);
  q = p;
  q.cache.layout.spec = spec_from_name("tq3");
  EXPECT_NE(message(q).find("another codec"), std::string::npos) << message(q);
  const DeviceCodec prod(spec_from_name("tq4-prod"), 128, 8);
  EncodeParams e;
  e.n = 1;
  EXPECT_THROW(encode(prod, Side::K, e, nullptr), Error);
}

}  // namespace
}  // namespace tq4::gpu
