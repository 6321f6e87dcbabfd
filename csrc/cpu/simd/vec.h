// Vectors of the instruction set a file is compiled for (AVFAST_ISA), by the vector extensions of GCC and Clang.
//
// Everything is in an unnamed namespace: the same source is compiled once per instruction set, and a function shared
// by the linker would run wide instructions on a narrow machine. For the same reason no file that includes this one
// may use a template or inline function of the standard library that could be emitted out of line.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "cpu/half.h"
#include "cpu/simd/kernels.h"

#ifdef __F16C__
#include <immintrin.h>
#endif

namespace avfast::AVFAST_ISA {
namespace {

#ifdef __AVX2__
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

#define AVFAST_INLINE inline __attribute__((always_inline))

// Vec<A>: a vector of the accumulation type, Mask<A>: of integers as wide, which comparisons also give.
template <typename A>
struct Lanes;
template <>
struct Lanes<float> {
  static constexpr int kCount = kVectorBytes / 4;
  using Int = int32_t;
  typedef float V __attribute__((vector_size(kVectorBytes)));
  typedef int32_t M __attribute__((vector_size(kVectorBytes)));
};
template <>
struct Lanes<double> {
  static constexpr int kCount = kVectorBytes / 8;
  using Int = int64_t;
  typedef double V __attribute__((vector_size(kVectorBytes)));
  typedef int64_t M __attribute__((vector_size(kVectorBytes)));
};
template <typename A>
using Vec = typename Lanes<A>::V;
template <typename A>
using Mask = typename Lanes<A>::M;
template <typename A>
using MaskInt = typename Lanes<A>::Int;
template <typename A>
constexpr int kLanes = Lanes<A>::kCount;

typedef uint32_t Bits32 __attribute__((vector_size(kVectorBytes)));
typedef uint16_t Bits16 __attribute__((vector_size(kVectorBytes / 2)));

// The type sums and comparisons are done in.
template <typename T>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};
template <typename T>
using Acc = typename Accumulate<T>::type;

template <typename To, typename From>
AVFAST_INLINE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

template <typename A>
AVFAST_INLINE Vec<A> splat(A x) {
  return Vec<A>{} + x;
}
template <typename A>
AVFAST_INLINE Mask<A> splat_int(MaskInt<A> x) {
  return Mask<A>{} + x;
}

// Whether any lane of a comparison is true.
template <typename M>
AVFAST_INLINE bool any(M mask) {
  uint64_t words[sizeof(M) / 8], all = 0;
  std::memcpy(words, &mask, sizeof(M));
  for (uint64_t word : words) all |= word;
  return all != 0;
}

// --- half types ----------------------------------------------------------------------------------------------

AVFAST_INLINE Vec<float> widen(Bits16 h, BFloat16) {
  return bit_cast<Vec<float>>(__builtin_convertvector(h, Bits32) << 16);
}

AVFAST_INLINE Bits16 narrow(Vec<float> x, BFloat16) {
  const Bits32 u = bit_cast<Bits32>(x);
  const Bits32 rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  const Bits32 nan = (u >> 16) | 0x40;
  return __builtin_convertvector(x == x ? rounded : nan, Bits16);
}

#ifdef __F16C__
AVFAST_INLINE Vec<float> widen(Bits16 h, Half) { return _mm256_cvtph_ps(bit_cast<__m128i>(h)); }

AVFAST_INLINE Bits16 narrow(Vec<float> x, Half) {
  return bit_cast<Bits16>(_mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
#else
// Exponents differ in bias by 112: a half's bits moved into place are that much too small, subnormals included.
AVFAST_INLINE Vec<float> widen(Bits16 h, Half) {
  const Bits32 u = __builtin_convertvector(h, Bits32);
  const Bits32 magnitude = (u & 0x7fff) << 13;
  const Bits32 finite = bit_cast<Bits32>(bit_cast<Vec<float>>(magnitude) * 0x1p112f);
  const Bits32 special = magnitude | 0x7f800000;
  return bit_cast<Vec<float>>((magnitude >= (0x7c00u << 13) ? special : finite) | ((u & 0x8000) << 16));
}

AVFAST_INLINE Bits16 narrow(Vec<float> x, Half) {
  const Bits32 u = bit_cast<Bits32>(x), magnitude = u & 0x7fffffff;
  const Bits32 normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Adding 0.5 leaves a subnormal half, rounded to nearest even, in the low bits of the sum.
  const Bits32 subnormal = bit_cast<Bits32>(bit_cast<Vec<float>>(magnitude) + 0.5f) - 0x3f000000;
  const Bits32 special = magnitude > Bits32{} + 0x7f800000 ? Bits32{} + 0x7e00 : Bits32{} + 0x7c00;
  const Bits32 finite = magnitude < 0x38800000u ? subnormal : normal;
  const Bits32 half = magnitude >= 0x47800000u ? special : finite;
  return __builtin_convertvector(half | ((u >> 16) & 0x8000), Bits16);
}
#endif

// --- loads and stores: a vector of T in memory, of Acc<T> in registers; no alignment needed ---------------------

template <typename T>
AVFAST_INLINE Vec<Acc<T>> load(const T* from) {
  if constexpr (sizeof(T) == 2) {
    Bits16 bits;
    std::memcpy(&bits, from, sizeof(bits));
    return widen(bits, T{});
  } else {
    Vec<T> x;
    std::memcpy(&x, from, sizeof(x));
    return x;
  }
}

template <typename T>
AVFAST_INLINE void store(T* to, Vec<Acc<T>> x) {
  if constexpr (sizeof(T) == 2) {
    const Bits16 bits = narrow(x, T{});
    std::memcpy(to, &bits, sizeof(bits));
  } else {
    std::memcpy(to, &x, sizeof(x));
  }
}

// The first `count` values of a vector, for ends that a whole vector would overrun.
template <typename T>
AVFAST_INLINE Vec<Acc<T>> load_part(const T* from, int64_t count, Acc<T> rest) {
  T part[kLanes<Acc<T>>];
  store(part, splat(rest));
  for (int64_t i = 0; i < count; ++i) part[i] = from[i];
  return load(part);
}

template <typename T>
AVFAST_INLINE void store_part(T* to, Vec<Acc<T>> x, int64_t count) {
  T part[kLanes<Acc<T>>];
  store(part, x);
  for (int64_t i = 0; i < count; ++i) to[i] = part[i];
}

// --- transposing a square of vectors -----------------------------------------------------------------------------

// Exchanges bit `D` of the row number with bit `D` of the lane number.
template <int D, typename V, size_t... J>
AVFAST_INLINE void exchange(V& low, V& high, std::index_sequence<J...>) {
  constexpr int kCount = sizeof...(J);
  const V a = __builtin_shufflevector(low, high, (J & D ? static_cast<int>(J) - D + kCount : static_cast<int>(J))...);
  const V b = __builtin_shufflevector(low, high, (J & D ? static_cast<int>(J) + kCount : static_cast<int>(J) + D)...);
  low = a;
  high = b;
}

template <int D, int L, typename V>
AVFAST_INLINE void transpose_from(V* rows) {
  if constexpr (D < L) {
    for (int i = 0; i < L; ++i)
      if ((i & D) == 0) exchange<D>(rows[i], rows[i + D], std::make_index_sequence<L>{});
    transpose_from<2 * D, L>(rows);
  }
}

template <int L, typename V>
AVFAST_INLINE void transpose(V (&rows)[L]) {
  transpose_from<1, L>(rows);
}

// --- exp ---------------------------------------------------------------------------------------------------------

// kPolynomial: the coefficients of r, r^2, ... that bring 1 + c1 r + c2 r^2 + ... closest to exp(r), relative to it,
// over |r| <= ln(2) / 2 (Remez exchange): to 2^-23.4 for float, 2^-58 for double.
template <typename A>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  static constexpr int kMantissaBits = 23;
  static constexpr float kLowest = -87.3f, kShift = 0x1.8p23f + 127;  // leaves the biased exponent in the low bits
  static constexpr float kLog2e = 0x1.715476p0f, kLn2High = 0x1.62e4p-1f, kLn2Low = 0x1.7f7d1cp-20f;
  static constexpr float kPolynomial[] = {0x1.fffff6p-1f, 0x1.fffdc4p-2f, 0x1.555a6cp-3f, 0x1.573a84p-5f,
                                          0x1.0fa80ep-7f};
};
template <>
struct ExpConstants<double> {
  static constexpr int kMantissaBits = 52;
  static constexpr double kLowest = -708.3, kShift = 0x1.8p52 + 1023;
  static constexpr double kLog2e = 0x1.71547652b82fep0, kLn2High = 0x1.62e42fefap-1, kLn2Low = 0x1.cf79abc9e3b3ap-40;
  static constexpr double kPolynomial[] = {0x1p0,
                                           0x1.000000000000bp-1,
                                           0x1.55555555554b3p-3,
                                           0x1.5555555550169p-5,
                                           0x1.111111112f90ap-7,
                                           0x1.6c16c1856456cp-10,
                                           0x1.a01a01119ecbep-13,
                                           0x1.a01997419b5e4p-16,
                                           0x1.71df49015ff1fp-19,
                                           0x1.28afb05860af9p-22,
                                           0x1.ad5960aff6cbfp-26};
};

// exp(x) for x <= 0 within 2 ulp, exactly 1 at 0; 0 where the result would be subnormal, NaN for NaN.
//
// x = n ln 2 + r with |r| <= ln(2) / 2.
template <typename A>
AVFAST_INLINE Vec<A> exp_nonpositive(Vec<A> x) {
  using C = ExpConstants<A>;
  constexpr int kDegree = sizeof(C::kPolynomial) / sizeof(A);
  const Vec<A> shifted = x * C::kLog2e + C::kShift;  // n in the low bits of the mantissa
  const Vec<A> n = shifted - C::kShift;
  const Vec<A> r = (x - n * C::kLn2High) - n * C::kLn2Low;
  Vec<A> p = splat(C::kPolynomial[kDegree - 1]);
#pragma GCC unroll 16
  for (int k = kDegree - 2; k >= 0; --k) p = p * r + C::kPolynomial[k];
  p = p * r + A(1);
  const Mask<A> power = bit_cast<Mask<A>>(shifted) << C::kMantissaBits;  // 2^n
  return x < C::kLowest ? Vec<A>{} : p * bit_cast<Vec<A>>(power);
}

}  // namespace
}  // namespace avfast::AVFAST_ISA
