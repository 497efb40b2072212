// Sizes and refusals of the page layouts: the byte counts peers publish, and a reason for every spec that has no place.
#include <gtest/gtest.h>

#include <string>

#include "tq4/error.h"
#include "tq4/layout.h"

namespace tq4 {
namespace {

/// The message of the Error that fn throws; fails when it throws none.
template <class Fn>
std::string refusal(ErrorCode code, const Fn& fn) {
  try {
    fn();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return {};
}

TEST(LayoutSizes, VllmSlotsAtHeadDim128) {
  const std::pair<const char*, int> presets[] = {{"vllm:k8v4", 196}, {"vllm:4bit_nc", 134}, {"vllm:k3v4_nc", 118}, {"vllm:3bit_nc", 102}};
  for (const auto& [name, slot] : presets) {
    const PageLayout layout = make_layout(LayoutKind::Vllm, spec_from_name(name), 8, 128, 16);
    EXPECT_EQ(layout.head_stride, slot) << name;
    EXPECT_EQ(layout.token_stride, 8 * slot) << name;
    EXPECT_EQ(layout.block_stride, 16 * 8 * slot) << name;
    EXPECT_EQ(page_bytes(layout), layout.block_stride) << name;
    EXPECT_EQ(token_head_bytes(layout), slot) << name;
  }
  // 15 + 2 + 20 + 4 = 41 bytes at head_dim 40: the slot is rounded up to an even number, the bytes to read are not.
  const PageLayout odd = make_layout(LayoutKind::Vllm, spec_from_name("vllm:k3v4_nc"), 2, 40, 16);
  EXPECT_EQ(odd.head_stride, 42);
  EXPECT_EQ(token_head_bytes(odd), 41);
}

TEST(LayoutSizes, TurboquantVllmRowsDenseAndPadded) {
  const CodecSpec spec = spec_from_name("turboquant-vllm");
  const PageLayout dense = make_layout(LayoutKind::TurboquantVllm, spec, 4, 128, 16);
  EXPECT_EQ(dense.token_stride, 4 * 136);
  EXPECT_EQ(page_bytes(dense), 16 * 4 * 136);
  EXPECT_EQ(token_head_bytes(dense), 136);
  const PageLayout padded = padded_turboquant_vllm_layout(spec, 4, 128, 16);
  EXPECT_EQ(padded.token_stride, 4 * 256);
  EXPECT_EQ(page_bytes(padded), 16 * 4 * 256);
  EXPECT_EQ(token_head_bytes(padded), 136);
  // Three-bit codes take a nibble too.
  EXPECT_EQ(make_layout(LayoutKind::TurboquantVllm, spec_from_name("turboquant-vllm-k3v2"), 4, 128, 16).token_stride, 4 * 136);
}

TEST(LayoutSizes, NativeTiles) {
  const NativeTile k4v4 = native_tile(spec_from_name("tq4"), 128);
  EXPECT_EQ(k4v4.k_row, 64);
  EXPECT_EQ(k4v4.v_piece, 8);
  EXPECT_EQ(k4v4.v_offset, 1024);
  EXPECT_EQ(k4v4.bytes, 2048);
  EXPECT_EQ(k4v4.scale_offset, 0);
  EXPECT_EQ(k4v4.zero_offset, -1);
  EXPECT_EQ(k4v4.scale_bytes, 64);
  const NativeTile vllm = native_tile(spec_from_name("vllm:k3v4_nc"), 128);
  EXPECT_EQ(vllm.k_row, 48);
  EXPECT_EQ(vllm.bytes, 16 * 48 + 16 * 64);
  EXPECT_EQ(vllm.zero_offset, 64);
  EXPECT_EQ(vllm.scale_bytes, 96);
  const PageLayout layout = make_layout(LayoutKind::Native, spec_from_name("tq4"), 8, 128, 64);
  EXPECT_EQ(layout.block_stride, 8 * 4 * (2048 + 64));
  EXPECT_EQ(page_bytes(layout), layout.block_stride);
  EXPECT_EQ(token_head_bytes(layout), 132);
}

TEST(LayoutSizes, EveryPartOfANativeTileIsAlignedTo16) {
  for (int dim = 32; dim <= 512; dim += 8) {
    for (const char* name : {"tq1", "tq2", "tq3", "tq4", "tq8", "k8v4", "fp8", "vllm:k8v4", "vllm:3bit_nc", "tq2.5", "fp16"}) {
      const CodecSpec spec = spec_from_name(name);
      NativeTile tile;
      try {
        tile = native_tile(spec, dim);
      } catch (const Error&) {
        continue;  // value rows that are no multiple of 8 bytes; the refusal has its own test
      }
      for (const int offset : {tile.k_offset, tile.v_offset, tile.bytes, tile.scale_offset, tile.scale_bytes})
        EXPECT_EQ(offset % 16, 0) << name << " " << dim;
      if (tile.k_row % 8 == 0) {
        EXPECT_EQ(tile.bytes % 128, 0) << name << " " << dim;
      }
      if (tile.zero_offset >= 0) {
        EXPECT_EQ(tile.zero_offset % 16, 0) << name << " " << dim;
      }
    }
  }
}

TEST(LayoutRefusals, NameWhatHasNoPlace) {
  const CodecSpec tq4 = spec_from_name("tq4");
  auto make = [](LayoutKind kind, const CodecSpec& spec, int dim = 128, int block = 16) {
    return [=] { make_layout(kind, spec, 2, dim, block); };
  };
  EXPECT_NE(refusal(ErrorCode::Unsupported, make(LayoutKind::Native, spec_from_name("k4v4-prod"))).find("residual signs"),
            std::string::npos);
  EXPECT_NE(refusal(ErrorCode::Unsupported, make(LayoutKind::Native, spec_from_name("turboquant-vllm"))).find("float16"),
            std::string::npos);
  EXPECT_NE(refusal(ErrorCode::Unsupported, make(LayoutKind::Native, spec_from_name("tq3"), 72)).find("27"), std::string::npos);
  CodecSpec uniform_keys = spec_from_name("vllm:4bit_nc");
  uniform_keys.k = uniform_keys.v;
  EXPECT_NE(refusal(ErrorCode::Unsupported, make(LayoutKind::Native, uniform_keys)).find("zeros of uniform keys"), std::string::npos);
  EXPECT_NE(refusal(ErrorCode::Unsupported, make(LayoutKind::Vllm, uniform_keys)).find("keys"), std::string::npos);
  EXPECT_NE(refusal(ErrorCode::Unsupported, make(LayoutKind::Vllm, tq4)).find("values"), std::string::npos);
  EXPECT_NE(refusal(ErrorCode::Unsupported, make(LayoutKind::TurboquantVllm, tq4)).find("float32"), std::string::npos);
  CodecSpec five = spec_from_name("turboquant-vllm");
  five.v.bits = 5;
  EXPECT_NE(refusal(ErrorCode::Unsupported, make(LayoutKind::TurboquantVllm, five)).find("2 to 4"), std::string::npos);
  EXPECT_NE(refusal(ErrorCode::Usage, make(LayoutKind::Native, tq4, 128, 24)).find("multiple of 16"), std::string::npos);
  EXPECT_NE(refusal(ErrorCode::Unsupported, make(LayoutKind::Native, tq4, 100)).find("head_dim"), std::string::npos);
  refusal(ErrorCode::Usage, [&] { make_layout(LayoutKind::Native, tq4, 0, 128, 16); });
}

TEST(LayoutNames, RoundTripAndRefuse) {
  for (const LayoutKind kind : {LayoutKind::Native, LayoutKind::TurboquantVllm, LayoutKind::Vllm})
    EXPECT_EQ(layout_from_name(layout_name(kind)), kind);
  EXPECT_EQ(layout_from_name("vLLM"), LayoutKind::Vllm);
  EXPECT_NE(refusal(ErrorCode::Usage, [] { layout_from_name("nativ"); }).find("native"), std::string::npos);
}

}  // namespace
}  // namespace tq4
