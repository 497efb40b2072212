// Writes containers of every kind of codec, each with the library's decoding beside it, for the test of the independent decoder
// (tests/python/check_decoder.py). Usage: decoder_cases FOLDER. x.tq4 goes with x.f32: layer by layer K then V, [heads, tokens, D] fp32.
#include <cstdio>
#include <filesystem>
#include <fstream>

#include "container_maker.h"

namespace {

using namespace tq4;

void write_case(const std::string& stem, const CodecSpec& spec, const std::vector<StoredLayer>& layers, const Calibration* calibration) {
  test::write_container(stem + ".tq4", spec, layers, calibration, true);
  const auto container = open_container(stem + ".tq4");
  std::ofstream out(stem + ".f32", std::ios::binary | std::ios::trunc);
  for (std::size_t i = 0; i < layers.size(); ++i) {
    for (const Side side : {Side::K, Side::V}) {
      for (int head = 0; head < layers[i].shape.num_kv_heads; ++head) {
        std::vector<float> x(static_cast<std::size_t>(layers[i].shape.tokens) * static_cast<std::size_t>(layers[i].shape.head_dim));
        container->decode(i, side, head, 0, layers[i].shape.tokens, x.data());
        out.write(reinterpret_cast<const char*>(x.data()), static_cast<std::streamsize>(x.size() * sizeof(float)));
      }
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return std::fputs("usage: decoder_cases FOLDER\n", stderr), 2;
  const std::string folder = std::string(argv[1]) + "/";
  std::filesystem::create_directories(folder);
  using test::layer;
  const std::vector<StoredLayer> layers{layer(0, 2, 40, 64), layer(3, 3, 33, 128, 4, 9), layer(12, 1, 10, 96),
                                        layer(1000, 1, 12, 64, 0, 0, true), layer(1001, 2, 0, 64)};
  for (const char* name : {"tq1", "tq2", "tq3", "tq4", "tq5", "tq8", "tq2.5", "tq3.5", "k4v3", "fp8", "fp16", "k8v4", "tq3-prod",
                           "tq4-prod", "tq4-2d", "tq3-2d", "tq2-2d", "vllm:4bit_nc", "turboquant-vllm"}) {
    std::string stem = name;
    for (char& c : stem) c = c == ':' ? '_' : c;
    // The peers' codecs serve powers of two only.
    std::vector<StoredLayer> of_spec = layers;
    if (std::string(name).starts_with("vllm") || std::string(name).starts_with("turbo")) of_spec.erase(of_spec.begin() + 2);
    write_case(folder + stem, spec_from_name(name), of_spec, nullptr);
  }
  CodecSpec odd = spec_from_name("fp8");
  odd.v.fp8 = Fp8Kind::E4B15;
  odd.k = spec_from_name("tq3").k;
  odd.k.rotation = RotationKind::HadamardSigned;
  odd.k.scale_dtype = ScaleDType::F32;
  write_case(folder + "e4b15", odd, layers, nullptr);
  CodecSpec uniform = spec_from_name("tq4");
  uniform.v.kind = CodeKind::Uniform;
  uniform.v.bits = 3;
  uniform.v.rotation = RotationKind::None;
  write_case(folder + "uniform", uniform, layers, nullptr);
  for (const char* name : {"tq3", "tq4-2d"}) {
    Calibration calibration;
    calibration.spec = spec_from_name(name);
    for (const StoredLayer& stored : layers)
      calibration.layers.push_back(test::calibrate(stored, calibration.spec.k.pair_codebook ? calibration.spec.k.bits : 0));
    calibration.layers[0].k.inverse.clear();  // then decoding takes the transpose of forward
    write_case(folder + "calibrated-" + name, calibration.spec, layers, &calibration);
  }
  return 0;
}
