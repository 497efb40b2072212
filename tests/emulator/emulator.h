// Runs CUDA kernels on the host, one after the other, for tests of their correctness without a GPU. The kernels of src/cuda are compiled as plain
// C++ against the headers of tests/emulator/include: <cuda_runtime.h> and its kin (keywords, types, intrinsics, a small runtime on malloc),
// cuda/ptx.cuh (what our kernels write as PTX) and cuda/launch.cuh (launches). This header is what those and the tests use of the engine.
//
// Every thread of a block is a fiber with a stack of its own; blocks run one after the other. __syncthreads, __syncwarp, shuffles, votes, ldmatrix,
// mma and their like are meeting points: the last lane to arrive does the work for all. Lanes that meet at different points, a barrier
// that not all reach, a misaligned or out-of-range shared-memory access, a wait nobody will end: each is an Error with the place in words.
// What real hardware leaves open is drawn from a seed, so that code that relies on luck fails for some seed and always for the same one:
//   - the order of blocks, of warps between their meeting points, and of lanes within a warp;
//   - when asynchronous copies arrive: at once, at any later moment, or no sooner than somebody waits. Until then their destination holds 0xff
//     (NaN in fp16 and fp32), as does shared memory when a block begins;
//   - which lane elect.sync names.
// How to run it: docs/gpu.md. Not modelled: memory ordering between blocks (every access is sequentially consistent), caches, clusters, L2 policies, time. Fences do
// nothing. Results of mma are sums in fp32 in another order than the hardware's, ex2.approx is exp2f: compare with tolerances as on a GPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>

namespace tq4::emulator {

/// A kernel broke a rule of CUDA. what() says which thread of which kernel did what.
struct Error : std::logic_error {
  using std::logic_error::logic_error;
};

/// When asynchronous copies arrive.
enum class Copies { Eager, Random, Lazy };

struct Options {
  std::uint64_t seed = 1;  ///< 0: blocks, warps and lanes in ascending order, lane 0 elected
  Copies copies = Copies::Random;
  int sm_count = 4;  ///< what cudaGetDeviceProperties says; the fused decode kernel launches as many blocks
};
/// Of the launches to come. At the start: seed, copies and sm_count of TQ4_EMULATOR=seed[,eager|random|lazy[,sm_count]] where that is set.
Options& options();

struct Index {
  unsigned x, y, z;
};

/// kernel() on every thread of `blocks` thread blocks of `threads` threads with `shared_bytes` of dynamic shared memory. Throws Error.
/// ascending: blocks in the order of their index whatever the seed, for kernels whose blocks wait for lower ones.
void emulate(const char* name, Index blocks, unsigned threads, std::size_t shared_bytes, const std::function<void()>& kernel,
             bool ascending = false);

// ---- For the headers that stand in for CUDA's: what a thread does ----

const Index& thread_index();
const Index& block_index();
const Index& block_size();
const Index& grid_size();
int lane_id();

[[noreturn]] void fail(const std::string& what);

/// Shared memory by its 32-bit address: checked for range (the block's dynamic part) and alignment to `bytes`, a power of two.
std::uint8_t* shared_at(std::uint32_t address, std::size_t bytes);
/// The same for `bytes` that need only `alignment`.
std::uint8_t* shared_range(std::uint32_t address, std::size_t bytes, std::size_t alignment);
std::uint32_t shared_address_of(const void* p);
constexpr std::uint32_t kSharedBase = 1024;      ///< where dynamic shared memory begins
constexpr std::uint32_t kSharedEnd = 228 << 10;  ///< of an SM's shared memory

/// A meeting point of the lanes of `mask`. Every lane passes its own `operand`; the last to arrive calls work(operands) with those of all 32 lanes
/// (null outside of mask). `what` names the instruction: lanes that meet must agree on it.
using WarpWork = void (*)(void* const* operands);
void meet(const char* what, std::uint32_t mask, void* operand, WarpWork work);
void barrier();
/// Barrier `id` of `threads` threads; a thread that does not wait is only counted.
void named_barrier(int id, int threads, bool waits);

/// Draws below n of the seed's stream.
std::uint32_t draw(std::uint32_t n);

// cp.async of this thread
void copy_async(std::uint32_t to, const void* from, int bytes, int valid);
void copy_async_commit();
void copy_async_wait(int pending);

// mbarriers and bulk copies
void mbarrier_init(std::uint32_t bar, int count);
void mbarrier_arrive_expect(std::uint32_t bar, int bytes);
void mbarrier_wait(std::uint32_t bar, std::uint32_t parity);
void bulk_copy(std::uint32_t to, const void* from, int bytes, std::uint32_t bar);
/// Of this thread, from shared to global memory: it reads at once or as late as the wait.
void bulk_store(void* to, std::uint32_t from, int bytes);
void bulk_stores_wait();

}  // namespace tq4::emulator
