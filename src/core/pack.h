// Bit packing of codes: b-bit integers, LSB first, coordinate j in bits [j*b, (j+1)*b) of a row. Files, planes and every page layout but
// turboquant-vllm's (nibbles, the even coordinate high) hold codes in this order.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tq4::core {

/// Bytes of `count` codes of `bits` bits: ceil(count * bits / 8).
constexpr std::size_t packed_bytes(std::size_t count, int bits) { return (count * static_cast<std::size_t>(bits) + 7) / 8; }

/// codes [count], each < 2^bits, to dst [packed_bytes(count, bits)]; the unused high bits of the last byte are 0. bits 1..8.
void pack_codes(const std::uint8_t* codes, std::size_t count, int bits, std::uint8_t* dst) noexcept;
/// The inverse. Reads packed_bytes(count, bits) bytes, never more.
void unpack_codes(const std::uint8_t* src, std::size_t count, int bits, std::uint8_t* codes) noexcept;

/// Nibbles as turboquant-vllm stores them: coordinates 2i and 2i+1 in byte i, 2i in the high nibble. count is even.
void pack_nibbles_high_first(const std::uint8_t* codes, std::size_t count, std::uint8_t* dst) noexcept;
void unpack_nibbles_high_first(const std::uint8_t* src, std::size_t count, std::uint8_t* codes) noexcept;

}  // namespace tq4::core
