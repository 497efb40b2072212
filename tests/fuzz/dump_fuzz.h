// Opens a dump and reads a little of every tensor: the body of the safetensors and npy targets.
#pragma once

#include <algorithm>
#include <vector>

#include "fuzz.h"
#include "tq4/dump.h"

namespace tq4::fuzz {

template <class Open>
void open_and_read(const Open& open, const std::uint8_t* data, std::size_t size) {
  const MemoryFile file(data, size);
  expect_answer_or_refusal([&] {
    const std::unique_ptr<Dump> dump = open(file.path());
    for (std::size_t i = 0; i < dump->info().layers.size(); ++i) {
      const LayerInfo& layer = dump->info().layers[i];
      for (const Tensor tensor : {Tensor::K, Tensor::V, Tensor::Q}) {
        const bool query = tensor == Tensor::Q;
        const std::int64_t tokens = query ? layer.q_tokens : layer.tokens, count = std::min<std::int64_t>(tokens, 16);
        if (query && layer.q_tokens == 0) continue;
        std::vector<std::uint8_t> rows(static_cast<std::size_t>(count) * static_cast<std::size_t>(layer.head_dim) * 4);
        dump->read(i, tensor, (query ? layer.num_q_heads : layer.num_kv_heads) - 1, tokens - count, count, rows.data());
      }
      if (layer.has_o_gram) dump->read_o_gram(i);
    }
  });
}

}  // namespace tq4::fuzz
