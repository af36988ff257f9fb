// Elementary functions of vectors of doubles. Lanes with arguments that are very large, not finite or subnormal are left
// to the standard library, each by itself: a lane's result never depends on its neighbors.
//
// Greatest errors in units of the last place, as tests/test_tape.py measures them: sin and cos 2.2, exp 1.7, log 1.0,
// tanh 3.3; the standard library's own are below 1. Zero has no sign.
//
// Moshier (1989), Methods and Programs for Mathematical Functions: the reductions and polynomials of Cephes.
#pragma once

#include <cmath>
#include <limits>

#include "simd.h"

namespace optctl::OPTCTL_ISA {

template <int L>
struct Functions {
  using V = typename Vec<double, L>::Register;
  using I = typename Vec<long long, L>::Register;

  static OPTCTL_INLINE V all(double x) { return V{} + x; }
  static OPTCTL_INLINE I bits(V x) { return (I)x; }
  static OPTCTL_INLINE V number(I x) { return (V)x; }

  // Whether some lane is true (all ones).
  static OPTCTL_INLINE bool any(I lanes) {
    long long found = 0;
    OPTCTL_UNROLL
    for (int i = 0; i < L; ++i) found |= lanes[i];
    return found != 0;
  }

  // Replace the values of those lanes whose argument is not below a bound in size.
  template <class F>
  static __attribute__((noinline)) V patched(V value, V x, double bound, F f) {
    for (int i = 0; i < L; ++i)
      if (!(std::fabs(x[i]) < bound)) value[i] = f(x[i]);
    return value;
  }

  // The logarithm of a subnormal number by its bits, since XLA's threads read such numbers as zero.
  static double log_of_lane(double x) {
    uint64_t whole;
    std::memcpy(&whole, &x, sizeof x);
    if (whole == 0 || whole >> 52) return std::log(x);
    return std::log(static_cast<double>(whole)) - 744.44007192138126;  // x = whole 2^-1074
  }

  static OPTCTL_INLINE V horner(V, double c) { return all(c); }
  template <class... Rest>
  static OPTCTL_INLINE V horner(V x, double c, Rest... lower) {
    V value = all(c);
    ((value = value * x + lower), ...);
    return value;
  }

  // The whole number nearest to x, as a double and in the low bits of an integer; |x| < 2^51.
  static OPTCTL_INLINE V nearest(V x, I& whole) {
    const V shifted = x + 0x1.8p52;
    whole = bits(shifted);
    return shifted - 0x1.8p52;
  }

  // sin(x + quarter pi/2)
  static OPTCTL_INLINE V sine(V x, int quarter) {
    I n;
    const V k = nearest(x * 0.63661977236758134308, n);
    // pi/2 in four parts, the first three of 24 bits, so that their products are exact: near a zero of sine or cosine
    // all digits of r count
    const V r = (((x - k * 0x1.921fb4p+0) - k * 0x1.4442dp-24) - k * 0x1.846988p-48) - k * 0x1.8cc51701b839ap-72;
    const V z = r * r;
    const V sin = r + r * z * horner(z, 1.58962301576546568060e-10, -2.50507477628578072866e-8, 2.75573136213857245213e-6,
                                     -1.98412698295895385996e-4, 8.33333333332211858878e-3, -1.66666666666666307295e-1);
    const V cos = 1.0 - (0.5 * z - z * z * horner(z, -1.13585365213876817300e-11, 2.08757008419747316778e-9,
                                                  -2.75573141792967388112e-7, 2.48015872888517045348e-5,
                                                  -1.38888888888730564116e-3, 4.16666666666665929218e-2));
    n += quarter;
    const V value = (n & 1) != 0 ? cos : sin;
    return number(bits(value) ^ ((n & 2) << 62));
  }

  static OPTCTL_INLINE V size(V x) { return number(bits(x) & 0x7fffffffffffffffLL); }
  static OPTCTL_INLINE bool beyond(V x, double bound) { return any(~(size(x) < bound)); }  // NaN is beyond
  static OPTCTL_INLINE V within(V x, double bound) { return size(x) < bound ? x : V{}; }

  static OPTCTL_INLINE V sin(V x) {
    const V value = sine(within(x, 1e5), 0);
    return beyond(x, 1e5) ? patched(value, x, 1e5, [](double t) { return std::sin(t); }) : value;
  }

  static OPTCTL_INLINE V cos(V x) {
    const V value = sine(within(x, 1e5), 1);
    return beyond(x, 1e5) ? patched(value, x, 1e5, [](double t) { return std::cos(t); }) : value;
  }

  // exp(x) = (q + p) / (q - p) 2^n
  static OPTCTL_INLINE void exponential(V x, V& p, V& q, V& power) {
    I n;
    const V k = nearest(x * 1.44269504088896340736, n);
    const V r = (x - k * 6.93145751953125e-1) - k * 1.42860682030941723212e-6;
    const V z = r * r;
    p = r * horner(z, 1.26177193074810590878e-4, 3.02994407707441961300e-2, 9.99999999999999999910e-1);
    q = horner(z, 3.00198505138664455042e-6, 2.52448340349684104192e-3, 2.27265548208155028766e-1, 2.0);
    power = number((n + 1023) << 52);
  }

  static OPTCTL_INLINE V exp(V x) {
    V p, q, power;
    exponential(within(x, 700.0), p, q, power);
    const V value = (1.0 + 2.0 * (p / (q - p))) * power;
    return beyond(x, 700.0) ? patched(value, x, 700.0, [](double t) { return std::exp(t); }) : value;
  }

  // By one division, whichever of the two forms a lane takes: the division is what takes the time.
  static OPTCTL_INLINE V tanh(V x) {
    const V z = x * x;
    V p, q, power;
    exponential(2.0 * within(x, 300.0), p, q, power);
    const auto small = z < 0.390625;
    const V above = small ? x * z * horner(z, -9.64399179425052238628e-1, -9.92877231001918586564e1, -1.61468768441708447952e3)
                          : -2.0 * (q - p);
    const V below = small ? horner(z, 1.0, 1.12811678491632931402e2, 2.23548839060100448583e3, 4.84406305325125486048e3)
                          : (q + p) * power + (q - p);
    const V value = (small ? x : all(1.0)) + above / below;
    return beyond(x, 300.0) ? patched(value, x, 300.0, [](double t) { return std::tanh(t); }) : value;
  }

  static OPTCTL_INLINE V log(V given) {
    constexpr double least = std::numeric_limits<double>::min(), most = std::numeric_limits<double>::max();
    const I normal = (given >= least) & (given <= most);
    const V x = normal ? given : all(1.0);
    // x = 2^e (1 + f) with 1 + f between 1/sqrt(2) and sqrt(2)
    const I shifted = bits(x) - 0x3fe6a09e667f3bcdLL;
    const V e = number(((shifted >> 52) + 0x1000) | 0x4330000000000000LL) - (0x1p52 + 0x1000);
    const V f = number(bits(x) - (shifted & ~0xfffffffffffffLL)) - 1.0;
    const V z = f * f;
    const V p = horner(f, 1.01875663804580931796e-4, 4.97494994976747001425e-1, 4.70579119878881725854, 14.4989225341610930846,
                       17.9368678507819816313, 7.70838733755885391666);
    const V q = horner(f, 1.0, 11.2873587189167450590, 45.2279145837532221105, 82.9875266912776603211,
                       71.1544750618563894466, 23.1251620126765340583);
    const V y = f * (z * p / q) - e * 2.121944400546905827679e-4 - 0.5 * z;
    V value = (f + y) + e * 0.693359375;
    if (any(~normal))
      for (int i = 0; i < L; ++i)
        if (!normal[i]) value[i] = log_of_lane(given[i]);
    return value;
  }

  static OPTCTL_INLINE V sqrt(V x) {
#if defined(__AVX512F__)
    if constexpr (L == 8) return (V)_mm512_maskz_sqrt_pd((__mmask8)0xff, (__m512d)x);
#endif
#if defined(__AVX2__)
    if constexpr (L == 4) return (V)_mm256_sqrt_pd((__m256d)x);
#endif
    OPTCTL_UNROLL
    for (int i = 0; i < L; ++i) x[i] = std::sqrt(x[i]);
    return x;
  }
};

}  // namespace optctl::OPTCTL_ISA
