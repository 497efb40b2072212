// The tables a codec decodes with, as tensors: codebooks, rotation, pair table, QJL matrix. A container keeps one set a distinct pair of
// side spec and head_dim; a codec read from a file is made of what the file says, so that files outlive changes of the generators.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "io/sealed_file.h"
#include "tq4/codec.h"

namespace tq4::io {

/// The tensors of table `number` with pointers to their data, which live in `codec`.
struct TableTensors {
  std::vector<PlannedTensor> tensors;
  std::vector<const void*> data;
};
TableTensors table_tensors(const Codec& codec, int number);

/// Builds the codec of `spec` from table `number` of the file and checks the rotation's fingerprint. `pairs` (4^bits points) takes the place of
/// the table's pair points where a calibration brings its own; null otherwise.
std::unique_ptr<Codec> codec_from_table(SealedFile& file, int number, const SideSpec& spec, int head_dim, std::uint64_t fingerprint,
                                        const std::vector<float>* pairs);

}  // namespace tq4::io
