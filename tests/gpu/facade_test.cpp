// A CPU-only build has the whole GPU interface; every call says that there is no device.
#include <gtest/gtest.h>

#include "tq4/error.h"
#include "tq4/gpu.h"

TEST(GpuFacade, SaysThatThereIsNoDevice) {
  EXPECT_FALSE(tq4::gpu::compiled());
  EXPECT_EQ(tq4::gpu::device_count(), 0);
  try {
    tq4::gpu::DeviceCodec codec(tq4::spec_from_name("tq4"), 128, 8);
    FAIL() << "no exception";
  } catch (const tq4::Error& error) {
    EXPECT_EQ(error.code(), tq4::ErrorCode::NoDevice);
    EXPECT_NE(error.message().find("TQ4_CUDA"), std::string::npos) << error.message();
  }
}
