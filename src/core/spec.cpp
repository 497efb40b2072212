// What a spec may say: the checks every codec goes through before tables are built.
#include "tq4/spec.h"

#include <string>

#include "tq4/error.h"

namespace tq4 {
namespace {

void check_bits(const SideSpec& side, int lowest, int highest, const char* kind) {
  if (side.bits >= lowest && side.bits <= highest) return;
  throw Error(ErrorCode::Usage, std::string(kind) + " codecs have " + std::to_string(lowest) + " to " + std::to_string(highest) +
                                    " bits, not " + std::to_string(side.bits));
}

}  // namespace

void validate(const SideSpec& side, int head_dim) {
  if (head_dim < 32 || head_dim > 512 || head_dim % 8 != 0) {
    throw Error(ErrorCode::Unsupported, "head_dim must be a multiple of 8 from 32 to 512, not " + std::to_string(head_dim));
  }
  switch (side.kind) {
    case CodeKind::Mse: check_bits(side, 1, 8, "mse"); break;
    case CodeKind::Prod: check_bits(side, 2, 5, "prod"); break;
    case CodeKind::Mixed: check_bits(side, 1, 7, "mixed"); break;
    case CodeKind::Uniform: check_bits(side, 2, 8, "uniform"); break;
    case CodeKind::Fp8:
    case CodeKind::Fp16: break;
    default: throw Error(ErrorCode::Usage, "unknown code kind");
  }
  if (side.pair_codebook) {
    if (side.kind != CodeKind::Mse) throw Error(ErrorCode::Usage, "a pair codebook needs an mse codec");
    check_bits(side, 2, 4, "pair");
    if (side.codebook != CodebookKind::Sphere && side.codebook != CodebookKind::Gaussian) {
      throw Error(ErrorCode::Usage, "a pair codebook takes the place of the peers' codebooks; choose sphere or gaussian");
    }
  }
  if (side.norm_correction && (side.kind != CodeKind::Mse || side.scale_rule != ScaleRule::Norm)) {
    throw Error(ErrorCode::Usage, "norm correction needs an mse codec whose stored scale is the norm");
  }
}

int mixed_outlier_channels(int head_dim) { return (head_dim / 4 + 7) / 8 * 8; }

}  // namespace tq4
