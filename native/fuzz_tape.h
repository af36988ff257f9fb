// Random tapes: every operation against the standard library, and long programs that must not depend on how many stages
// are run at once, on how often, or on the other stages.
#pragma once

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "fuzz.h"
#include "operations.h"

namespace optctl::fuzz {

enum Operation {
#define OPTCTL_NAME(name) op_##name,
  OPTCTL_OPERATIONS(OPTCTL_NAME)
#undef OPTCTL_NAME
  operations
};

inline const char* const operation_names[] = {
#define OPTCTL_NAME(name) #name,
    OPTCTL_OPERATIONS(OPTCTL_NAME)
#undef OPTCTL_NAME
};

// An operand is a slot, an address, or nothing: one letter for each of a, b, c.
inline const char* reads(int operation) {
  switch (operation) {
    case op_load: return "m..";
    case op_lookup: return "sm.";
    case op_add_m: case op_sub_m: case op_rsub_m: case op_mul_m: case op_div_m: return "ms.";
    case op_muladd_m: case op_negmuladd_m: case op_mulsub_m: return "mss";
    case op_muladd_c: case op_negmuladd_c: return "ssm";
    case op_muladd: case op_negmuladd: case op_mulsub: case op_select: return "sss";
    case op_add: case op_sub: case op_mul: case op_div: case op_min: case op_max: case op_eq: case op_ne: case op_lt:
    case op_le: case op_pow: case op_atan2: case op_rem: return "ss.";
    default: return "s..";
  }
}

// What an operation does, in the standard library's words.
inline double evaluate(int operation, double a, double b, double c) {
  switch (operation) {
    case op_load: return a;
    case op_add: case op_add_m: return a + b;
    case op_sub: case op_sub_m: return a - b;
    case op_rsub_m: return b - a;
    case op_mul: case op_mul_m: return a * b;
    case op_div: case op_div_m: return a / b;
    case op_muladd: case op_muladd_m: case op_muladd_c: return a * b + c;
    case op_negmuladd: case op_negmuladd_m: case op_negmuladd_c: return c - a * b;
    case op_mulsub: case op_mulsub_m: return a * b - c;
    case op_neg: return -a;
    case op_abs: return std::fabs(a);
    case op_sign: return a > 0 ? 1 : a < 0 ? -1 : a;
    case op_floor: return std::floor(a);
    case op_ceil: return std::ceil(a);
    case op_round: return std::round(a);
    case op_rint: return std::nearbyint(a);
    case op_trunc: return std::isnan(a) ? 0 : std::trunc(a);
    case op_sqrt: return std::sqrt(a);
    case op_isfinite: return std::isfinite(a);
    case op_min: return std::isnan(a) || std::isnan(b) ? NAN : std::min(a, b);
    case op_max: return std::isnan(a) || std::isnan(b) ? NAN : std::max(a, b);
    case op_select: return a != 0 ? b : c;
    case op_eq: return a == b;
    case op_ne: return a != b;
    case op_lt: return a < b;
    case op_le: return a <= b;
    case op_sin: return std::sin(a);
    case op_cos: return std::cos(a);
    case op_exp: return std::exp(a);
    case op_log: return std::log(a);
    case op_pow: return std::pow(a, b);
    case op_tan: return std::tan(a);
    case op_asin: return std::asin(a);
    case op_acos: return std::acos(a);
    case op_atan: return std::atan(a);
    case op_atan2: return std::atan2(a, b);
    case op_sinh: return std::sinh(a);
    case op_cosh: return std::cosh(a);
    case op_tanh: return std::tanh(a);
    case op_asinh: return std::asinh(a);
    case op_acosh: return std::acosh(a);
    case op_atanh: return std::atanh(a);
    case op_exp2: return std::exp2(a);
    case op_expm1: return std::expm1(a);
    case op_log1p: return std::log1p(a);
    case op_cbrt: return std::cbrt(a);
    case op_erf: return std::erf(a);
    case op_erfc: return std::erfc(a);
    case op_rem: return std::fmod(a, b);
    default: std::abort();
  }
}

// A tape, written instruction by instruction. The prologue comes first.
struct Program {
  std::vector<int32_t> code, inputs, outputs, once;
  std::vector<double> memory;
  int slots = 0;
  int32_t length = 0, prologue = 0;
  bool staged = true;  // it may be, of a prologue that reads inputs it must be

  int slot() { return slots++; }
  int input() { return inputs.push_back(slots), slot(); }
  int address(double value) { return memory.push_back(value), static_cast<int>(memory.size()) - 1; }
  void output(int slot, bool is_once = false) { outputs.push_back(slot), once.push_back(is_once); }
  int add(int operation, int a, int b = 0, int c = 0) { return add_to(slot(), operation, a, b, c); }
  int add_to(int d, int operation, int a, int b = 0, int c = 0) {
    for (int32_t word : {operation, d, a, b, c}) code.push_back(word);
    return ++length, d;
  }
  void end_prologue() { prologue = length; }

  // As program.py packs it.
  void pack(std::vector<int32_t>& to, int offset) const {
    for (size_t n : {size_t(length), size_t(prologue), size_t(slots), inputs.size(), outputs.size(), size_t(offset),
                     memory.size(), size_t(staged)})
      to.push_back(static_cast<int32_t>(n));
    for (const auto* part : {&code, &inputs, &outputs, &once}) to.insert(to.end(), part->begin(), part->end());
  }
};

template <class T>
std::shared_ptr<T> in_room(const std::vector<T>& numbers) {
  const auto made = room<T>(numbers.size());
  std::copy(numbers.begin(), numbers.end(), made.get());
  return made;
}

// Of any size, or special.
inline double any_number() {
  static const double special[] = {0.0, -0.0, 1.0, -1.0, 0.5, -2.0, INFINITY, -INFINITY, NAN, 1e5, -1e5, 700, -745, 709.9,
                                   5e-324, -5e-324, 1e-310, 2.3e-308, 1.7e308, -1e300, 2147483648.0, 9.3e18, -1e19};
  if (chance(20)) return special[between(0, sizeof special / sizeof *special - 1)];
  const double sign = chance(50) ? 1 : -1, size = std::uniform_real_distribution<double>(1, 2)(source);
  return sign * std::ldexp(size, chance(70) ? between(-6, 6) : between(-1074, 1023));
}

// Equal, or both NaN, or within a few units of the last place of the largest term.
inline bool close(double got, double want, double terms) {
  if (std::isnan(want) || std::isnan(got)) return std::isnan(want) == std::isnan(got);
  if (got == want) return true;
  const double size = std::max(std::fabs(want), terms);
  return std::isfinite(size) && std::fabs(got - want) <= 4 * std::numeric_limits<double>::epsilon() * size + 1e-323;
}

// Every operation of numbers that are given: the results are all there is.
inline void check_operations(TapeRunner run) {
  Program p;
  const int64_t N = between(1, 40);
  const int inputs[] = {p.input(), p.input(), p.input()};
  std::vector<int32_t> made;
  for (int operation = 0; operation < operations; ++operation) {
    const char* kinds = reads(operation);
    int32_t operands[3] = {0, 0, 0};
    for (int k = 0; k < 3; ++k) operands[k] = kinds[k] == 's' ? inputs[k] : kinds[k] == 'm' ? p.address(any_number()) : 0;
    if (operation == op_lookup) {
      for (int k = 0; k < 5; ++k) p.address(any_number());
      operands[1] = between(0, p.memory.size() - 1), operands[2] = between(-3, 3);
    }
    for (int32_t operand : operands) made.push_back(operand);
    p.output(p.add(operation, operands[0], operands[1], operands[2]));
  }
  std::vector<int32_t> packed;
  p.pack(packed, 0);
  const auto program = in_room(packed);
  const auto memory = in_room(p.memory);
  const auto values = room<double>(3 * N), results = room<double>(operations * N);
  for (int64_t i = 0; i < 3 * N; ++i) values.get()[i] = any_number();
  run(program.get(), memory.get(), N, values.get(), results.get(), 1);
  for (int64_t t = 0; t < N; ++t)
    for (int operation = 0; operation < operations; ++operation) {
      const char* kinds = reads(operation);
      double x[3] = {0, 0, 0};
      for (int k = 0; k < 3; ++k)
        x[k] = kinds[k] == 's' ? values.get()[3 * t + k] : kinds[k] == 'm' ? p.memory[made[3 * operation + k]] : 0;
      double want;
      if (operation == op_lookup) {
        const double index = x[0] > 0 ? std::min(std::trunc(x[0]), 0x1p31) : 0;
        const double at = made[3 * operation + 1] + made[3 * operation + 2] * index;
        want = p.memory[static_cast<size_t>(std::min(std::max(at, 0.0), p.memory.size() - 1.0))];
      } else {
        want = evaluate(operation, x[0], x[1], x[2]);
      }
      const bool fused = operation >= op_muladd && operation <= op_mulsub;
      const bool sum = fused || (operation >= op_muladd_m && operation <= op_negmuladd_c);
      const double got = results.get()[t * operations + operation], product = x[0] * x[1];
      // A fused product does not overflow where the rounded one does.
      if (sum && (!std::isfinite(product) || !std::isfinite(want))) continue;
      expect(close(got, want, sum ? std::max(std::fabs(product), std::fabs(x[2])) : 0),
             std::string(operation_names[operation]) + " of " + std::to_string(x[0]) + ", " + std::to_string(x[1]), got, want);
    }
}

inline Program random_program() {
  Program p;
  std::vector<int> defined, kept, free;
  const int inputs = between(0, 6), length = between(0, chance(20) ? 400 : 40);
  for (int k = 0; k < inputs; ++k) {
    if (chance(10)) p.inputs.push_back(-1);
    else defined.push_back(p.input()), free.push_back(defined.back());
  }
  for (int k = between(1, 9); k > 0; --k) p.address(any_number());
  const int prologue = chance(50) ? between(0, length) : 0, given = p.slots;
  p.staged = chance(50);
  for (int i = 0; i < length; ++i) {
    const bool before = i < prologue;
    int operation = between(0, operations - 1);
    if (defined.empty()) operation = op_load;
    const char* kinds = reads(operation);
    int32_t operands[3] = {0, 0, 0};
    for (int k = 0; k < 3; ++k) {
      if (kinds[k] == 's') operands[k] = defined[between(0, defined.size() - 1)];
      if (kinds[k] == 's' && before) p.staged |= operands[k] < given;
      if (kinds[k] == 'm') operands[k] = between(0, p.memory.size() - 1);
    }
    if (operation == op_lookup) operands[2] = between(-4, 4);
    // The body may write over what it was given, but not over the prologue's results.
    const int d = !before && !free.empty() && chance(50) ? free[between(0, free.size() - 1)] : p.slot();
    p.add_to(d, operation, operands[0], operands[1], operands[2]);
    if (std::find(defined.begin(), defined.end(), d) == defined.end()) defined.push_back(d);
    if (before) kept.push_back(d);
    else if (std::find(free.begin(), free.end(), d) == free.end()) free.push_back(d);
    if (i + 1 == prologue) p.end_prologue();
  }
  for (int k = defined.empty() ? 0 : between(0, 8); k > 0; --k) {
    const int slot = defined[between(0, defined.size() - 1)];
    p.output(slot, std::find(kept.begin(), kept.end(), slot) != kept.end() && chance(50));
  }
  if (!p.slots) p.slot();
  return p;
}

inline bool same(double a, double b) { return a == b || (std::isnan(a) && std::isnan(b)); }

// All stages at once and several times, against each stage by itself.
inline void check_programs(TapeRunner run) {
  const Program p = random_program();
  const int64_t N = between(0, 50), in = p.inputs.size(), out = p.outputs.size();
  std::vector<int32_t> packed;
  const int offset = between(0, 3);
  p.pack(packed, offset);
  std::vector<double> numbers(offset, NAN);
  numbers.insert(numbers.end(), p.memory.begin(), p.memory.end());
  const auto program = in_room(packed);
  const auto memory = in_room(numbers);
  const auto values = room<double>(in * N), results = room<double>(out * N);
  for (int64_t i = 0; i < in * N; ++i) values.get()[i] = any_number();
  run(program.get(), memory.get(), N, values.get(), results.get(), between(1, 3));
  for (int64_t t = 0; t < N; ++t) {
    const auto one = room<double>(in), alone = room<double>(out);
    std::copy_n(values.get() + t * in, in, one.get());
    run(program.get(), memory.get(), 1, one.get(), alone.get(), 1);
    for (int64_t k = 0; k < out; ++k)
      if (!expect(same(results.get()[t * out + k], alone.get()[k]), "a stage among others", results.get()[t * out + k],
                  alone.get()[k]))
        return;
  }
}

}  // namespace optctl::fuzz
