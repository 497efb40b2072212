// How the work of a launch is dealt, worked out on the device from seq_lens, so that a captured graph stays right while lengths grow.
// A unit is a tile of 16 compressed tokens of one (sequence, kv head) pair or, as many bytes, 4 of its exact ones, which come first.
// The units of all pairs form one line, cut into equal pieces (but see late_units()), one a thread block (stream-K); fit_pieces() says how long.
// Pairs go by kv head, then sequence: short sequences, whose pairs cost more than their units, then do not come num_kv_heads at a time. A block works
// through its piece in rounds of at most C::Pairs pairs; within a round every warp takes an equal share of consecutive units. Parts of a pair meet
// again in the merge.
#pragma once

#include "cuda/decode_attention/fused_params.h"
#include "cuda/ptx.cuh"

namespace tq4::gpu::fused {

constexpr int kTile = 16;  // tokens a tile
constexpr int kExact = 4;  // tokens an exact unit: consecutive rows of the buffers of exact tokens

/// a / b for a >= 0, b > 0, without a slow integer division: two estimates in floats, and what these may be off by.
__device__ __forceinline__ int divide(int a, int b) {
  const float inverse = inverse_fast(__int2float_rn(b));
  int q = __float2int_rz(__int2float_rn(a) * inverse);
  q += __float2int_rz(__int2float_rn(a - q * b) * inverse);
  const int r = a - q * b;
  return q + (r >= b) - (r < 0);
}
/// The same for quotients below 2^20: one estimate.
__device__ __forceinline__ int divide_near(int a, int b) {
  const int q = __float2int_rz(__int2float_rn(a) * inverse_fast(__int2float_rn(b)));
  const int r = a - q * b;
  return q + (r >= b) - (r < 0);
}

/// The tokens of a sequence: exact ones in [0, sinks) and [recent, seq_len), compressed ones in [begin, end). Of the ring of recent ones ring_rows rows are
/// read; while it is not full there are rows among them that hold no token.
struct Tokens {
  int seq_len, sinks, recent, ring_rows, begin, end;
  __device__ __forceinline__ Tokens() {}
  __device__ __forceinline__ Tokens(const Params& p, int length) : seq_len(length) {
    sinks = min(p.sinks, length);
    recent = p.recent > 0 ? max(p.sinks, length - p.recent) : length;
    ring_rows = length > recent ? min(p.recent, length) : 0;
    begin = p.sinks;
    if (p.window > 0) begin = max(begin, length - p.q_len + 1 - p.window);
    end = min(recent, length);
    begin = min(begin, end);
  }
  __device__ __forceinline__ int sink_units() const { return (sinks + kExact - 1) / kExact; }
  __device__ __forceinline__ int exact_units() const { return sink_units() + (ring_rows + kExact - 1) / kExact; }
  __device__ __forceinline__ int first_tile() const { return begin / kTile; }
  __device__ __forceinline__ int tiles() const { return end > begin ? (end + kTile - 1) / kTile - begin / kTile : 0; }
  /// A sequence without tokens still has one (empty) unit, so that its output gets written.
  __device__ __forceinline__ int units() const { return max(exact_units() + tiles(), 1); }
};

/// A block's piece of the line: [begin, end). length: of all pieces but the last ones (late_units()).
struct Plan {
  int length, begin, end;
};

/// One (sequence, kv head). Small on purpose: what follows from seq_len is worked out where it is needed.
struct Pair {
  int seq, head, seq_len;
  int begin, units;  // where its units begin on the line, and how many there are
  int empty;         // units without tokens at every pair's end (make_plan())
  __device__ __forceinline__ int end() const { return begin + units; }
  __device__ __forceinline__ Tokens tokens(const Params& p) const { return Tokens(p, seq_len); }
  /// The next pair on the line (the caller knows there is one).
  __device__ __forceinline__ void next(const Params& p) {
    begin += units;
    if (++seq == p.num_seqs) {
      seq = 0;
      ++head;
    }
    if (p.num_seqs > 1) {
      seq_len = __ldg(p.seq_lens + seq);
      units = Tokens(p, seq_len).units() + empty;
    }
  }
};

// Pieces are equal but for those of the last blocks of a launch: these begin last, on multiprocessors that the launch before frees last, and have
// no tiles asked for early. Where work is long their pieces are two and a half tiles a warp shorter; the length of the others says whether it is.
// Not only where launches overlap, or results would depend on it.

template <int Warps>
__device__ __forceinline__ int late_units(int length) {
  return Warps >= 8 && length > 24 * Warps ? 5 * Warps / 2 : 0;
}
__device__ __forceinline__ int late_blocks() { return (int)gridDim.x / 16; }
/// First unit of block `block`. late: late_units().
__device__ __forceinline__ int piece_begin(int block, int length, int late) {
  return block * length - max(block - (int)gridDim.x + late_blocks(), 0) * late;
}
/// The block whose piece unit `unit` is in.
__device__ __forceinline__ int block_of(int unit, int length, int late) {
  const int first_late = (int)gridDim.x - late_blocks(), at = first_late * length;
  return unit < at ? divide_near(unit, length) : first_late + divide_near(unit - at, length - late);
}

/// How long a block's piece is, and how many empty units end every pair. `units`: of all pairs of a head; shortest, longest: of a pair. Most: 0, or for
/// the kernel of vLLM's slots by how many units at most a piece is made longer.
/// - Where half of the blocks do with two tiles a warp (four, with a block for nearly every pair; slots: four), no more take part: fewer parts to merge, and the
///   next launch begins on the other multiprocessors.
/// - Few pairs of short pieces leave a block a pair unused (not slots): those in which pairs end are the last to end, and the next launch need not wait for their
///   multiprocessors.
/// - Pairs of one length (those of one sequence, above all) and pieces of up to `Fitted` tiles (slots: all) are fitted to each other where that costs a sixteenth or
///   less: whole pairs a piece, or whole pieces a pair.
/// - Else empty units stand for the work at a pair's end, or blocks with many short pairs end last.
template <int Warps, int Most, int Fitted>
__device__ __forceinline__ void fit_pieces(const Params& p, int units, int shortest, int longest, int& length, int& empty) {
  constexpr int kFitted = Most > 0 ? 0x3fffffff : Fitted;  // the longest piece that is
  const int total = units * p.num_kv_heads, pairs = p.num_seqs * p.num_kv_heads, half = (int)gridDim.x / 2;
  int blocks = (int)gridDim.x;
  if (total <= half * (Most > 0 || pairs * 2 > half ? 4 : 2) * Warps) {
    blocks = half;
  } else if (Most == 0 && pairs * 12 <= blocks && total <= blocks * 12 * Warps) {
    blocks = (divide_near(blocks, pairs) - 1) * pairs;
  }
  length = divide(total + blocks - 1, blocks);
  empty = 0;
  if (shortest == longest && length <= kFitted) {
    int fitted;
    if (pairs <= blocks) {
      const int most = divide_near(blocks, pairs);
      fitted = divide(longest + most - 1, most);
    } else {
      fitted = divide_near(pairs + blocks - 1, blocks) * longest;
    }
    const int little = length / 16 + 1;
    if (fitted <= kFitted && fitted - length <= (Most > 0 ? min(little, Most) : little)) {
      if (pairs <= blocks) empty = divide_near(longest + fitted - 1, fitted) * fitted - longest;
      length = fitted;
      return;
    }
  }
  empty = min(length / 32, longest / (shortest == longest ? 64 : 32));
  const int all = (units + empty * p.num_seqs) * p.num_kv_heads;
  length = divide(all + blocks - 1, blocks);
  if (const int late = late_units<Warps>(length))
    length = divide(all + late * late_blocks() + blocks - 1, blocks);  // of all blocks, work being long
}

/// The plan and the pair at the beginning of the block's piece, by one warp or by each for itself; the lanes scan the sequences, 32 a round. Returns
/// false when the block has no work. own_length: seq_lens[lane] (anything where there is no such sequence). Warps: of a block, to fit pieces and pairs
/// to each other; 0: equal pieces without empty units. Most, Fitted: fit_pieces().
template <int Warps = 0, int Most = 0, int Fitted = 0>
__device__ __forceinline__ bool make_plan(const Params& p, int lane, int own_length, Plan& plan, Pair& pair) {
  int mine = lane < p.num_seqs ? Tokens(p, own_length).units() : 0;
  int total = mine, shortest = lane < p.num_seqs ? mine : 0x7fffffff, longest = mine;
#pragma unroll 1
  for (int b = lane + 32; b < p.num_seqs; b += 32) {
    const int units = Tokens(p, __ldg(p.seq_lens + b)).units();
    total += units;
    shortest = min(shortest, units);
    longest = max(longest, units);
  }
  int head_units = __reduce_add_sync(~0u, total);  // of one head
  pair.empty = 0;
  if constexpr (Warps > 0) {
    fit_pieces<Warps, Most, Fitted>(p, head_units, __reduce_min_sync(~0u, shortest), __reduce_max_sync(~0u, longest), plan.length,
                                    pair.empty);
    head_units += pair.empty * p.num_seqs;
    mine += lane < p.num_seqs ? pair.empty : 0;
  }
  total = head_units * p.num_kv_heads;
  if constexpr (Warps == 0) plan.length = divide(total + gridDim.x - 1, gridDim.x);
  const int late = Warps > 0 ? late_units<Warps>(plan.length) : 0;
  plan.begin = piece_begin((int)blockIdx.x, plan.length, late);
  plan.end = min(piece_begin((int)blockIdx.x + 1, plan.length, late), total);
  if (plan.begin >= total) return false;
  pair.head = divide_near(plan.begin, head_units);
  int base = pair.head * head_units;
  pair.seq = 0;
  if (p.num_seqs > 1) {
#pragma unroll 1
    for (;; pair.seq += 32) {
      if (pair.seq > 0) mine = pair.seq + lane < p.num_seqs ? Tokens(p, __ldg(p.seq_lens + pair.seq + lane)).units() + pair.empty : 0;
      int sum = mine;
#pragma unroll
      for (int o = 1; o < 32; o <<= 1) {
        const int up = __shfl_up_sync(~0u, sum, o);
        if (lane >= o) sum += up;
      }
      const unsigned past = __ballot_sync(~0u, base + sum > plan.begin);
      if (past) {
        const int l = __ffs(past) - 1;
        base += __shfl_sync(~0u, sum - mine, l);
        pair.seq += l;
        break;
      }
      base += __shfl_sync(~0u, sum, 31);
    }
  }
  pair.seq_len = pair.seq < 32 ? __shfl_sync(~0u, own_length, pair.seq) : __ldg(p.seq_lens + pair.seq);
  pair.units = Tokens(p, pair.seq_len).units() + pair.empty;
  pair.begin = base;
  return true;
}

/// A round and the block's piece: in shared memory while tiles need the registers. A pair that began in lower blocks makes its block wait for them in the end: where a
/// piece takes several rounds, that pair is a round of its own and the last, or every block would wait for the one before it to finish all its rounds.
struct Round {
  int length, piece_begin, piece_end;  // Plan
  int begin, end, pairs;               // units of this round, and how many pairs they belong to
  int number;                          // 0, 1, ...
  int opening;                         // the pair that began in lower blocks: 0 in its turn, 1 to come last, 2 this round
  __device__ __forceinline__ bool first() const { return number == 0; }
  __device__ __forceinline__ bool last() const { return opening == 2 || (opening == 0 && end == piece_end); }
  __device__ __forceinline__ void rest(std::uint32_t at) const {
    sts128_words<0>(at, length, piece_begin, piece_end, begin);
    sts128_words<16>(at, end, pairs, number, opening);
  }
  __device__ __forceinline__ void wake(std::uint32_t at) {
    lds128_ordered<0>(at, length, piece_begin, piece_end, begin);
    lds128_ordered<16>(at, end, pairs, number, opening);
  }
};

/// A warp's way through its share of a round: segment by segment, a segment being the part of one pair in the share.
struct Walk {
  Pair pair;
  int slot;      // of the pair in the round
  int pos, end;  // units left of this warp's share
  __device__ __forceinline__ void enter(const Params& p, const Pair& first, int round_begin, int round_end, int warp, int warps) {
    pair = first;
    slot = 0;
    const int n = round_end - round_begin;
    pos = round_begin + n * warp / warps;
    end = round_begin + n * (warp + 1) / warps;
#pragma unroll 1
    while (pos < end && pos >= pair.end()) next_pair(p);
  }
  __device__ __forceinline__ void next_pair(const Params& p) {
    pair.next(p);
    ++slot;
  }
  __device__ __forceinline__ int segment_end() const { return min(end, pair.end()); }
  /// To shared memory and back: 32 bytes that belong to this warp.
  __device__ __forceinline__ void rest(std::uint32_t at, int lane) const {
    __syncwarp();  // the others have read what was there
    if (lane == 0) {
      sts128_words<0>(at, pair.seq, pair.head, pair.seq_len, pair.begin);
      sts128_words<16>(at, pair.units, slot | pair.empty << 8, pos, end);
    }
    __syncwarp();
  }
  __device__ __forceinline__ void wake(std::uint32_t at) {
    lds128_ordered<0>(at, pair.seq, pair.head, pair.seq_len, pair.begin);
    lds128_ordered<16>(at, pair.units, slot, pos, end);
    pair.empty = slot >> 8;
    slot &= 255;
  }
};

}  // namespace tq4::gpu::fused
