// A tape: a flat program of scalar instructions, run for W stages at a time (optctl/tape/ writes it).
#pragma once

#include <algorithm>
#include <cmath>

#include "functions.h"
#include "simd.h"

namespace optctl::OPTCTL_ISA {

// In the order of OPERATIONS in optctl/tape/expressions.py.
#define OPTCTL_OPERATIONS(X) \
  X(load) X(lookup) X(add) X(sub) X(mul) X(div) X(muladd) X(negmuladd) X(mulsub) X(add_m) X(sub_m) X(rsub_m) \
  X(mul_m) X(div_m) X(muladd_m) X(negmuladd_m) X(mulsub_m) X(muladd_c) X(negmuladd_c) X(neg) X(abs) X(sign) \
  X(floor) X(ceil) X(round) X(rint) X(trunc) X(sqrt) X(isfinite) X(min) X(max) X(select) X(eq) X(ne) X(lt) X(le) \
  X(sin) X(cos) X(exp) X(log) X(pow) X(tan) X(asin) X(acos) X(atan) X(atan2) X(sinh) X(cosh) X(tanh) X(asinh) \
  X(acosh) X(atanh) X(exp2) X(expm1) X(log1p) X(cbrt) X(erf) X(erfc) X(rem)

constexpr int tape_lanes = 16;  // fewer cost more jumps, more do not fit into the first cache

// Run instructions [from, to); slots is (slots, W), aligned to 64 bytes.
template <int W>
__attribute__((noinline)) void run_tape(const int32_t* code, int64_t from, int64_t to, const double* memory,
                                        double* slots) {
  constexpr int L = std::min(W, machine_lanes<double>);
  using V = typename Vec<double, L>::Register;
  using F = Functions<L>;
  auto get = [](const double* p) { return Vec<double, L>::load(p).v; };

// One vector after another, and one lane after another; each case jumps to the next one's by itself.
#define OPTCTL_NEXT                                                \
  p += 5;                                                          \
  if (p == end) return;                                            \
  goto* cases[p[0]];
#define OPTCTL_EACH(name, expression)                              \
  name : {                                                         \
    double* const d = slot(1);                                     \
    OPTCTL_UNROLL                                                  \
    for (int i = 0; i < W; i += L) {                               \
      [[maybe_unused]] const auto A = [&] { return get(slot(2) + i); }; \
      [[maybe_unused]] const auto B = [&] { return get(slot(3) + i); }; \
      [[maybe_unused]] const auto C = [&] { return get(slot(4) + i); }; \
      Vec<double, L>{expression}.store(d + i);                     \
    }                                                              \
    OPTCTL_NEXT                                                    \
  }
#define OPTCTL_LANES(name, expression)                             \
  name : {                                                         \
    double* const d = slot(1);                                     \
    const double *px = slot(2), *py = slot(3);                     \
    for (int i = 0; i < W; ++i) {                                  \
      const double x = px[i];                                      \
      [[maybe_unused]] const double y = py[i];                     \
      d[i] = expression;                                           \
    }                                                              \
    OPTCTL_NEXT                                                    \
  }

#define OPTCTL_CASE(name) &&name,
  static const void* const cases[] = {OPTCTL_OPERATIONS(OPTCTL_CASE)};
#undef OPTCTL_CASE
  const V zero{}, one = zero + 1.0;
  const int32_t *p = code + 5 * from, *const end = code + 5 * to;
  const auto slot = [&](int k) { return slots + int64_t{W} * p[k]; };
  if (p == end) return;
  goto* cases[p[0]];

  OPTCTL_EACH(load, zero + memory[p[2]])
  lookup : {
    double* const d = slot(1);
    const double* const index = slot(2);
    for (int i = 0; i < W; ++i) d[i] = memory[p[3] + p[4] * (index[i] > 0 ? static_cast<int64_t>(index[i]) : 0)];
    OPTCTL_NEXT
  }
  OPTCTL_EACH(add, A() + B())
  OPTCTL_EACH(sub, A() - B())
  OPTCTL_EACH(mul, A() * B())
  OPTCTL_EACH(div, A() / B())
  OPTCTL_EACH(muladd, A() * B() + C())
  OPTCTL_EACH(negmuladd, C() - A() * B())
  OPTCTL_EACH(mulsub, A() * B() - C())
  OPTCTL_EACH(add_m, memory[p[2]] + B())
  OPTCTL_EACH(sub_m, memory[p[2]] - B())
  OPTCTL_EACH(rsub_m, B() - memory[p[2]])
  OPTCTL_EACH(mul_m, memory[p[2]] * B())
  OPTCTL_EACH(div_m, memory[p[2]] / B())
  OPTCTL_EACH(muladd_m, memory[p[2]] * B() + C())
  OPTCTL_EACH(negmuladd_m, C() - memory[p[2]] * B())
  OPTCTL_EACH(mulsub_m, memory[p[2]] * B() - C())
  OPTCTL_EACH(muladd_c, A() * B() + memory[p[4]])
  OPTCTL_EACH(negmuladd_c, memory[p[4]] - A() * B())
  OPTCTL_EACH(neg, -A())
  OPTCTL_EACH(min, A() < B() || A() != A() ? A() : B())
  OPTCTL_EACH(max, A() > B() || A() != A() ? A() : B())
  OPTCTL_EACH(select, A() != zero ? B() : C())
  OPTCTL_EACH(eq, A() == B() ? one : zero)
  OPTCTL_EACH(ne, A() != B() ? one : zero)
  OPTCTL_EACH(lt, A() < B() ? one : zero)
  OPTCTL_EACH(le, A() <= B() ? one : zero)
  OPTCTL_LANES(abs, std::fabs(x))
  OPTCTL_EACH(isfinite, A() - A() == zero ? one : zero)
  OPTCTL_LANES(sign, x > 0 ? 1.0 : x < 0 ? -1.0 : x)
  OPTCTL_LANES(floor, std::floor(x))
  OPTCTL_LANES(ceil, std::ceil(x))
  OPTCTL_LANES(round, std::round(x))
  OPTCTL_LANES(rint, std::nearbyint(x))
  OPTCTL_LANES(trunc, x == x ? std::trunc(x) : 0.0)
  OPTCTL_EACH(sqrt, F::sqrt(A()))
  OPTCTL_EACH(sin, F::sin(A()))
  OPTCTL_EACH(cos, F::cos(A()))
  OPTCTL_LANES(tan, std::tan(x))
  OPTCTL_LANES(asin, std::asin(x))
  OPTCTL_LANES(acos, std::acos(x))
  OPTCTL_LANES(atan, std::atan(x))
  OPTCTL_LANES(atan2, std::atan2(x, y))
  OPTCTL_LANES(sinh, std::sinh(x))
  OPTCTL_LANES(cosh, std::cosh(x))
  OPTCTL_EACH(tanh, F::tanh(A()))
  OPTCTL_LANES(asinh, std::asinh(x))
  OPTCTL_LANES(acosh, std::acosh(x))
  OPTCTL_LANES(atanh, std::atanh(x))
  OPTCTL_EACH(exp, F::exp(A()))
  OPTCTL_LANES(exp2, std::exp2(x))
  OPTCTL_LANES(expm1, std::expm1(x))
  OPTCTL_EACH(log, F::log(A()))
  OPTCTL_LANES(log1p, std::log1p(x))
  OPTCTL_LANES(cbrt, std::cbrt(x))
  OPTCTL_LANES(erf, std::erf(x))
  OPTCTL_LANES(erfc, std::erfc(x))
  OPTCTL_LANES(pow, std::pow(x, y))
  OPTCTL_LANES(rem, std::fmod(x, y))
#undef OPTCTL_EACH
#undef OPTCTL_LANES
#undef OPTCTL_NEXT
}

}  // namespace optctl::OPTCTL_ISA
