// The two half types as the CPU stores them; arithmetic happens in float.
#pragma once

#include <cstdint>
#include <cstring>

namespace avfast {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

inline float float_from_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

inline uint32_t bits_from_float(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}

inline float to_float(BFloat16 x) { return float_from_bits(uint32_t{x.bits} << 16); }

inline BFloat16 to_bfloat16(float x) {
  const uint32_t u = bits_from_float(x);
  if (x != x) return {static_cast<uint16_t>(u >> 16 | 0x40)};
  return {static_cast<uint16_t>((u + 0x7fff + (u >> 16 & 1)) >> 16)};  // nearest, ties to even
}

// The exponents' biases differ by 112.
inline float to_float(Half x) {
  const uint32_t magnitude = (x.bits & 0x7fffu) << 13, sign = (x.bits & 0x8000u) << 16;
  const bool special = magnitude >= 0x7c00u << 13;  // infinity or NaN
  const float scaled = float_from_bits(magnitude) * 0x1p112f;
  return float_from_bits((special ? magnitude | 0x7f800000u : bits_from_float(scaled)) | sign);
}

inline Half to_half(float x) {
  const uint32_t u = bits_from_float(x), magnitude = u & 0x7fffffffu;
  uint32_t half;
  if (magnitude >= 0x47800000u)  // 2^16 and beyond, infinity, NaN
    half = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  else if (magnitude < 0x38800000u)  // subnormal: adding 0.5 leaves it rounded in the low bits
    half = bits_from_float(float_from_bits(magnitude) + 0.5f) - 0x3f000000u;
  else
    half = (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
  return {static_cast<uint16_t>(half | (u >> 16 & 0x8000u))};
}

}  // namespace avfast
