// Vectors of the machine's width, and rows of matrices held in whole vectors.
//
// This header is compiled once for each instruction set (OPTCTL_ISA names it), so everything lives in a namespace of
// that name: the library picks the best one when it is loaded.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#ifndef OPTCTL_ISA
#define OPTCTL_ISA portable
#endif
#define OPTCTL_INLINE inline __attribute__((always_inline))
#define OPTCTL_UNROLL _Pragma("GCC unroll 16")

namespace optctl::OPTCTL_ISA {

#if defined(__AVX512F__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
constexpr int vector_bytes = 64;
#elif defined(__AVX2__)
constexpr int vector_bytes = 32;
#else
constexpr int vector_bytes = 16;
#endif

template <class T>
constexpr int machine_lanes = vector_bytes / static_cast<int>(sizeof(T));

// Lanes for rows of n numbers: the machine's, or fewer where the whole row fits into fewer (but 16 bytes at least).
template <class T>
constexpr int lanes_for(int n) {
  int lanes = machine_lanes<T>;
  while (lanes > 16 / static_cast<int>(sizeof(T)) && lanes / 2 >= n) lanes /= 2;
  return lanes;
}

constexpr int round_up(int n, int step) { return (n + step - 1) / step * step; }

#if defined(__AVX2__) && !defined(__AVX512VL__)
#define OPTCTL_MASKS_OF_AVX2
// Masks of the first n lanes.
OPTCTL_INLINE __m256i first_of_4(int n) {
  return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
}
OPTCTL_INLINE __m256i first_of_8(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
#endif

// W lanes of T in a register.
template <class T, int W>
struct Vec {
  typedef T Register __attribute__((vector_size(W * sizeof(T))));
  static constexpr int lanes = W;
  Register v;

  static OPTCTL_INLINE Vec zero() { return {Register{}}; }

  static OPTCTL_INLINE Vec load(const T* p) {
    Vec out;
    std::memcpy(&out.v, p, sizeof out.v);
    return out;
  }

  // p[0], p[step], p[2 step], ... , n of them.
  static OPTCTL_INLINE Vec load_strided(const T* p, int step, int n) {
    Vec out = zero();
    if (n >= W) {
      OPTCTL_UNROLL
      for (int i = 0; i < W; ++i) out.v[i] = p[i * step];
    } else {
      for (int i = 0; i < n; ++i) out.v[i] = p[i * step];
    }
    return out;
  }

  OPTCTL_INLINE void store(T* p) const { std::memcpy(p, &v, sizeof v); }

  // The first n lanes from memory, zeros in the others; nothing beyond p[n-1] is touched.
  static OPTCTL_INLINE Vec load(const T* p, int n) {
    if (n >= W) return load(p);
    if (n <= 0) return zero();
#if defined(__AVX512F__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
    const unsigned mask = (1u << n) - 1u;
    if constexpr (sizeof(T) == 8 && W == 8) return {(Register)_mm512_maskz_loadu_pd((__mmask8)mask, p)};
    if constexpr (sizeof(T) == 8 && W == 4) return {(Register)_mm256_maskz_loadu_pd((__mmask8)mask, p)};
    if constexpr (sizeof(T) == 8 && W == 2) return {(Register)_mm_maskz_loadu_pd((__mmask8)mask, p)};
    if constexpr (sizeof(T) == 4 && W == 16) return {(Register)_mm512_maskz_loadu_ps((__mmask16)mask, p)};
    if constexpr (sizeof(T) == 4 && W == 8) return {(Register)_mm256_maskz_loadu_ps((__mmask8)mask, p)};
    if constexpr (sizeof(T) == 4 && W == 4) return {(Register)_mm_maskz_loadu_ps((__mmask8)mask, p)};
#endif
#ifdef OPTCTL_MASKS_OF_AVX2
    if constexpr (sizeof(T) == 8 && W == 4) return {(Register)_mm256_maskload_pd(p, first_of_4(n))};
    if constexpr (sizeof(T) == 4 && W == 8) return {(Register)_mm256_maskload_ps(p, first_of_8(n))};
#endif
    Vec out = zero();
    for (int i = 0; i < n; ++i) out.v[i] = p[i];
    return out;
  }

  // Store the first n lanes.
  OPTCTL_INLINE void store(T* p, int n) const {
    if (n >= W) return store(p);
    if (n <= 0) return;
#if defined(__AVX512F__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
    const unsigned mask = (1u << n) - 1u;
    if constexpr (sizeof(T) == 8 && W == 8) return _mm512_mask_storeu_pd(p, (__mmask8)mask, (__m512d)v);
    if constexpr (sizeof(T) == 8 && W == 4) return _mm256_mask_storeu_pd(p, (__mmask8)mask, (__m256d)v);
    if constexpr (sizeof(T) == 8 && W == 2) return _mm_mask_storeu_pd(p, (__mmask8)mask, (__m128d)v);
    if constexpr (sizeof(T) == 4 && W == 16) return _mm512_mask_storeu_ps(p, (__mmask16)mask, (__m512)v);
    if constexpr (sizeof(T) == 4 && W == 8) return _mm256_mask_storeu_ps(p, (__mmask8)mask, (__m256)v);
    if constexpr (sizeof(T) == 4 && W == 4) return _mm_mask_storeu_ps(p, (__mmask8)mask, (__m128)v);
#endif
#ifdef OPTCTL_MASKS_OF_AVX2
    if constexpr (sizeof(T) == 8 && W == 4) return _mm256_maskstore_pd(p, first_of_4(n), (__m256d)v);
    if constexpr (sizeof(T) == 4 && W == 8) return _mm256_maskstore_ps(p, first_of_8(n), (__m256)v);
#endif
    for (int i = 0; i < n; ++i) p[i] = v[i];
  }

  OPTCTL_INLINE T sum() const {
    T total = v[0];
    OPTCTL_UNROLL
    for (int i = 1; i < W; ++i) total += v[i];
    return total;
  }

  // Whether a lane of a is above that of b.
  friend OPTCTL_INLINE bool any_above(Vec a, Vec b) {
    const auto above = a.v > b.v;
    auto any = above[0];
    OPTCTL_UNROLL
    for (int i = 1; i < W; ++i) any |= above[i];
    return any != 0;
  }
  friend OPTCTL_INLINE Vec operator+(Vec a, Vec b) { return {a.v + b.v}; }
  friend OPTCTL_INLINE Vec operator-(Vec a, Vec b) { return {a.v - b.v}; }
  friend OPTCTL_INLINE Vec operator*(T a, Vec b) { return {a * b.v}; }
  friend OPTCTL_INLINE Vec operator*(Vec a, Vec b) { return {a.v * b.v}; }
};

}  // namespace optctl::OPTCTL_ISA
