// A calibration is refused on dumps of another model or shape, and accepted on dumps that hold only some of its layers.
#include <gtest/gtest.h>

#include "memory_dump.h"
#include "tq4/calibration.h"

namespace {

tq4::Calibration calibration_for(const tq4::DumpInfo& info) {
  tq4::Calibration c;
  c.model = info.model;
  for (const tq4::LayerInfo& layer : info.layers) {
    tq4::LayerCalibration tables;
    tables.layer = layer.layer, tables.num_kv_heads = layer.num_kv_heads, tables.head_dim = layer.head_dim;
    c.layers.push_back(tables);
  }
  c.fingerprint = tq4::calibration_fingerprint(c.model, c.layers);
  return c;
}

TEST(CheckCalibration, AcceptsItsModelAndPartsOfIt) {
  tq4::test::MemoryDump dump(3, 2, 2, 10, 10, 32);
  const tq4::Calibration c = calibration_for(dump.info());
  EXPECT_NO_THROW(tq4::check_calibration(c, dump.info()));
  dump.mutable_info().layers.erase(dump.mutable_info().layers.begin());
  EXPECT_NO_THROW(tq4::check_calibration(c, dump.info()));
}

TEST(CheckCalibration, RefusesWhatItDoesNotFit) {
  const tq4::test::MemoryDump dump(2, 2, 2, 10, 10, 32);
  const auto refused = [](const tq4::Calibration& c, const tq4::DumpInfo& info, const std::string& why) {
    try {
      tq4::check_calibration(c, info);
      ADD_FAILURE() << "accepted: " << why;
    } catch (const tq4::Error& e) {
      EXPECT_EQ(e.code(), tq4::ErrorCode::BadInput);
      EXPECT_NE(std::string(e.what()).find(why), std::string::npos) << e.what();
    }
  };
  const tq4::Calibration c = calibration_for(dump.info());
  tq4::DumpInfo other = dump.info();
  other.model = "another";
  refused(c, other, "fingerprints differ");
  other = dump.info();
  other.layers[1].layer = 9;
  refused(c, other, "no layer 9");
  other = dump.info();
  other.layers[1].head_dim = 64;
  refused(c, other, "layer 4 has 2 kv heads of 64");
  tq4::Calibration forged = c;
  forged.layers[0].num_kv_heads = 1;
  refused(forged, dump.info(), "fingerprints differ");
}

}  // namespace
