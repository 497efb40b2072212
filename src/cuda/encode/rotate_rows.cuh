// The product and the coding of many fp16 or bf16 rows: four warpgroups a block take 64 rows each, which cp.async brings to shared memory while those before
// are coded, so that no registers but the sums are held. With warpgroup products only (rotate.cuh's kernel serves the other devices), so that fewer kernels
// are built.
#pragma once

#include "cuda/encode/rotate_args.cuh"
#include "cuda/tiles/product.cuh"

namespace tq4::gpu {

constexpr int kRowTileThreads = 512, kTileRows = 64;
__host__ __device__ constexpr std::size_t row_tiles_shared_bytes(int dim, int parts) {
  return image_shared_bytes(dim, parts) + static_cast<std::size_t>(kRowTileThreads / 128 * kTileRows * dim * 2) + kCodeTableBytes;
}

template <int D, bool kPlain, int Parts, class Sink, bool Bf16 = false>
__global__ void __launch_bounds__(kRowTileThreads, 1) rotate_row_tiles(const __grid_constant__ RotateArgs<Sink> a) {
  if (!warpgroup_products()) return;
  TQ4_DYNAMIC_SHARED(float, memory);
  constexpr int kGroups = kRowTileThreads / 128, kRowBytes = 2 * D, kTileBytes = kTileRows * kRowBytes, kChunks = D / 8,
                kCopies = kTileRows * kChunks / 128;
  const bool key = blockIdx.z == 0;
  const RotateSide& side = a.side[Sink::kSides == 1 ? 0 : blockIdx.z];
  const RowCodec codec = kPlain ? plain_codec(side.codec, D) : side.codec;
  const SideTables& tables = side.codec.t;
  const int thread = static_cast<int>(threadIdx.x), lane = thread & 31, g = lane >> 2, t = lane & 3;
  const int group = __shfl_sync(~0u, thread / 128, 0), member = thread % 128;
  if (!kPlain && !kPeerNorm<Sink> && tables.identity) {
    wait_for_previous_kernels();
    launch_dependents();
    unrotated_rows<D, kRowTileThreads>(a, side, key, blockIdx.x, gridDim.x);
    return;
  }
  const std::uint32_t image = image_address(memory),
                      mine = image + Parts * image_part_bytes(D) + static_cast<std::uint32_t>(group * kTileBytes);
  const CodeTableParts parts = code_table_parts<kRowTileThreads / 32>(tables, thread >> 5, lane);
  const unsigned rows = row_count(a), tiles = (rows + kTileRows - 1) / kTileRows, step = gridDim.x * kGroups;
  const bool together = Sink::kSides == 1 && (kPlain || (a.heads == 1 && !a.by_head && side.token_stride == D));  // rows lie so
  const WarpTiles own = warp_tiles(static_cast<unsigned>(group), kGroups, together && tiles > 4 * step ? kGroups : 0);
  unsigned tile = own.first, stride = own.stride;
  if (together && lane == 0 && (tile + 1) * kTileRows <= rows)
    prefetch_l2_bulk(
        static_cast<const std::uint16_t*>(side.x) + (std::uint64_t{tile} * kTileRows + static_cast<unsigned>(member / 32 * 16)) * D,
        16 * kRowBytes);
  const std::uint16_t* from = image_of(tables, tables.forward_image_in_order, D);
  if constexpr (Bf16) from += static_cast<std::int64_t>(tables.per_head ? gridDim.y : 1) * 2 * D * D;  // behind those of fp16
  copy_image_begin<D>(image, from, side.parts, Parts, thread, kRowTileThreads);
  wait_for_previous_kernels();
  launch_dependents();  // not earlier: see DecodeParams::fresh_tokens

  const auto fetch = [&](unsigned which) {
    const int chunk = member % kChunks, top = member / kChunks;
    const std::uint32_t to = mine + static_cast<std::uint32_t>(image_byte(kTileRows, top, 8 * chunk));
    const auto* x = static_cast<const std::uint16_t*>(side.x) + 8 * chunk;
    if (together && (which + 1) * kTileRows <= rows) {
      x += (static_cast<std::int64_t>(which) * kTileRows + top) * D;
#pragma unroll
      for (int j = 0; j < kCopies; ++j)
        copy_async_16(to + static_cast<std::uint32_t>(j * (128 / kChunks) * 128), x + j * (128 / kChunks) * D);
      copy_async_commit();
      return;
    }
#pragma unroll
    for (int j = 0; j < kCopies; ++j) {
      const unsigned row = which * kTileRows + static_cast<unsigned>(top + j * (128 / kChunks));
      const std::int64_t at = row < rows ? row_offset<D, kPlain>(a, side, row_place<kPlain>(a, row)) : 0;
      copy_async_16(to + static_cast<std::uint32_t>(j * (128 / kChunks) * 128), x + at);  // rows that are not there are not stored
    }
    copy_async_commit();
  };
  if (tile < tiles) fetch(tile);
  const CodeTable table = code_table<kRowTileThreads / 32>(
      reinterpret_cast<unsigned char*>(memory) + image_shared_bytes(D, Parts) + kGroups * kTileBytes, parts, thread >> 5, lane);
  finish_image();
  for (; tile < tiles; tile += stride, stride = step) {
    copy_async_wait<0>();
    fence_bulk_copies();
    named_barrier_sync(1 + group, 128);
    constexpr bool kHeldRows = D != 128;  // products that run hold x in registers, else there is time for the norms beside them
    [[maybe_unused]] float norm[2];
    if constexpr (kPeerNorm<Sink> && kHeldRows) norms_of_tile<D, Bf16>(norm, mine, member / 32 * 16, g, t);
    float y[D / 2];
    products_begin();
    RowFragments<D> held;
    add_product<D, Bf16>(y, mine, image, true, held);
    if constexpr (Parts > 1) add_product<D, Bf16>(y, mine, image + image_part_bytes(D), false, held);
    products_asked();
    if constexpr (kPeerNorm<Sink> && !kHeldRows) norms_of_tile<D, Bf16>(norm, mine, member / 32 * 16, g, t);
    products_wait();
    named_barrier_sync(1 + group, 128);
    if (tile + stride < tiles) fetch(tile + stride);  // what comes next arrives while this tile is coded
    RowPlace place[2];
    typename Sink::Slot slot[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const unsigned row = tile * kTileRows + static_cast<unsigned>(member / 32 * 16 + g + 8 * r);
      place[r] = row < rows ? row_place<kPlain>(a, row) : RowPlace{-1, 0};
      slot[r] = a.sink.slot(slot_of<kPlain>(a, place[r]));
    }
    const auto sum = [&](int r, int i) { return y[4 * (i / 2) + 2 * r + i % 2]; };
    const float factor[2] = {tables.image_scale, tables.image_scale};
    LaneCodes<D / 4> codes[2];
    if constexpr (kPeerNorm<Sink>) {
      table_codes_two<D / 4, false>(codes, codec, table, sum, factor, t);
      codes[0].scale = round_scale(codec, norm[0]), codes[1].scale = round_scale(codec, norm[1]);
    } else if (codec.kind == static_cast<int>(CodeKind::Fp8)) {
#pragma unroll
      for (int r = 0; r < 2; ++r) codes[r] = fp8_lanes<D / 4>([&](int i) { return sum(r, i); }, factor[r]);
    } else {
      table_codes_two<D / 4>(codes, codec, table, sum, factor, t);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) a.sink.template put<D / 4>(codec, key, slot[r], place[r].head, D / 4 * t, codes[r]);
  }
}

}  // namespace tq4::gpu
