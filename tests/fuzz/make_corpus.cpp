// Writes the container part of the corpus: the smallest files that together reach every tensor a container can hold. Usage: make_corpus FOLDER
#include "../unit/io/container_maker.h"

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  using namespace tq4;
  using test::layer;
  const std::string folder = std::string(argv[1]) + "/";
  const std::vector<StoredLayer> layers{layer(0, 1, 6, 32, 1, 2), layer(1, 1, 2, 32, 0, 0, true), layer(2, 1, 0, 32)};
  for (const char* name : {"tq2", "tq2.5", "tq2-prod", "tq2-2d", "fp8"}) {
    CodecSpec spec = spec_from_name(name);
    if (spec.k.kind == CodeKind::Mixed) spec.k.rotation = spec.v.rotation = RotationKind::HadamardSigned;
    if (spec.k.kind == CodeKind::Fp8) spec.v.kind = CodeKind::Uniform;
    Calibration calibration;
    calibration.spec = spec;
    for (const StoredLayer& stored : layers) calibration.layers.push_back(test::calibrate(stored, 2));
    test::write_container(folder + name + ".tq4", spec, layers, spec.k.pair_codebook ? &calibration : nullptr, true);
  }
  return 0;
}
