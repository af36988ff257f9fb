// A tape: a flat program of scalar instructions, run for W stages at a time (optctl/tape/ writes it).
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "functions.h"
#include "operations.h"
#include "simd.h"

namespace optctl::OPTCTL_ISA {

constexpr int tape_lanes = 16;  // fewer cost more jumps, more do not fit into the first cache
constexpr int row_lanes = 32;   // of a batch, whose tapes may be long
constexpr int step_lanes = 2;   // where stages come one after another

// Run instructions [from, to); slots is (slots, W), aligned to 64 bytes; memory holds `size` numbers.
template <int W>
__attribute__((noinline)) void run_tape(const int32_t* code, int64_t from, int64_t to, const double* memory,
                                        int64_t size, double* slots) {
  constexpr int L = std::min(W, machine_lanes<double>);
  using V = typename Vec<double, L>::Register;
  using F = Functions<L>;
  auto get = [](const double* p) { return Vec<double, L>::load(p).v; };

// One vector after another, and one lane after another; each case jumps to the next one's by itself.
#define OPTCTL_NEXT                                                \
  p += 5;                                                          \
  if (p == end) return;                                            \
  goto* cases[p[0]];
#define OPTCTL_JUMP                                                \
  p += int64_t{5} * p[4];                                          \
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
    for (int i = 0; i < W; ++i) {  // whatever the index is, even NaN, nothing outside of the memory is read
      const double k = index[i] > 0 ? index[i] : 0;
      const int64_t at = p[3] + p[4] * static_cast<int64_t>(k < 0x1p31 ? k : 0x1p31);
      d[i] = memory[at < 0 ? 0 : at < size ? at : size - 1];
    }
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
  OPTCTL_EACH(copy, A())
  leave : {  // a loop that is done in all lanes
    const double* const on = slot(2);
    bool going = false;
    for (int i = 0; i < W; ++i) going |= on[i] != 0;
    if (going) {
      OPTCTL_NEXT
    }
    OPTCTL_JUMP
  }
  repeat : {
    double* const turns = slot(1);
    turns[0] += 1;
    if (!(turns[0] < p[3])) {
      OPTCTL_NEXT
    }
    OPTCTL_JUMP
  }
#undef OPTCTL_JUMP
#undef OPTCTL_EACH
#undef OPTCTL_LANES
#undef OPTCTL_NEXT
}

// Numbers t = 0, 1, ... lie `step` apart.
struct Field {
  double* p;
  ptrdiff_t step;
  double unit = 1;  // what numbers are multiplied by on their way to the tape, or from it
};

// One function of a stage as a tape, run over all stages, `tape_lanes` at a time.
class StageTape {
 public:
  // Reads its part of the program; returns what lies behind it.
  const int32_t* read(const int32_t* program, const double* memory, int64_t count) {
    length_ = program[0], prologue_ = program[1], slots_ = program[2], inputs_count_ = program[3];
    outputs_count_ = program[4];
    numbers_ = program[6];
    staged_ = program[7];
    code_ = program + 8;
    inputs_ = code_ + 5 * length_;
    outputs_ = inputs_ + inputs_count_;
    once_ = outputs_ + outputs_count_;
    memory_ = memory + program[5];
    count_ = count;
    const int64_t blocks = (count + tape_lanes - 1) / tape_lanes;
    size_ = slots_ * tape_lanes;
    const size_t room = std::max<size_t>(size_ * (staged_ ? blocks : 1), count > 1 ? slots_ * row_lanes : 0) + 8;
    space_.resize(room);
    const auto address = reinterpret_cast<std::uintptr_t>(space_.data());
    first_ = space_.data() + (64 - address % 64) % 64 / sizeof(double);
    return once_ + outputs_count_;
  }

  // Input k of stage t is in[k].p[t * in[k].step]; likewise the outputs, which go to `also`, too, where it is not null.
  void run(const std::vector<Field>& in, const std::vector<Field>& out, const std::vector<Field>* also = nullptr) {
    for (int64_t begin = 0; begin < count_; begin += tape_lanes) {
      run_block(in, begin, !started_);
      for (int k = 0; k < outputs_count_; ++k)
        if (!(started_ && once_[k])) save(k, begin, out[k]), also ? save(k, begin, (*also)[k]) : void();
    }
    started_ = true;
  }

  // The stages from `begin` on, as many as stand side by side; `first` says whether it is their first time. Their results
  // stay where `result` finds them until the next block.
  void run_block(const std::vector<Field>& in, int64_t begin, bool first) {
    const int64_t lanes = lanes_from(begin);
    slots_now_ = first_ + (staged_ ? begin / tape_lanes * size_ : 0);
    for (int k = 0; k < inputs_count_; ++k) {
      if (inputs_[k] < 0) continue;
      double* to = slots_now_ + inputs_[k] * tape_lanes;
      const double* from = in[k].p + begin * in[k].step;
      for (int64_t l = 0; l < lanes; ++l) to[l] = from[l * in[k].step];
      for (int64_t l = lanes; l < tape_lanes; ++l) to[l] = to[lanes - 1];
      if (in[k].unit == 1) continue;  // no product, which would lose subnormal numbers on XLA's threads
      for (int64_t l = 0; l < tape_lanes; ++l) to[l] *= in[k].unit;
    }
    if (staged_ ? first : !shared_) run_tape<tape_lanes>(code_, 0, prologue_, memory_, numbers_, slots_now_);
    shared_ = true;
    run_tape<tape_lanes>(code_, prologue_, length_, memory_, numbers_, slots_now_);
  }

  // One point after another where no input is fixed: the prologue, and then all results of each point, lane 0 of `in`.
  void begin() { run_tape<step_lanes>(code_, 0, prologue_, memory_, numbers_, first_); }
  void again(const double* in, double* out) {
    for (int k = 0; k < inputs_count_; ++k)
      if (inputs_[k] >= 0) std::fill_n(first_ + inputs_[k] * step_lanes, step_lanes, in[k]);
    run_tape<step_lanes>(code_, prologue_, length_, memory_, numbers_, first_);
    for (int k = 0; k < outputs_count_; ++k) out[k] = first_[outputs_[k] * step_lanes];
  }

  // All rows at once, as often as wanted. Outputs behind `out` are added up over the rows: `few` of them to sums, the rest
  // to lanes (., row_lanes), which whoever wants them adds up in the end. A tape that is run so is not run otherwise.
  void rows(const std::vector<Field>& in, const std::vector<Field>& out, int few = 0, double* sums = nullptr,
            double* lanes_of_sums = nullptr) {
    const int alone = static_cast<int>(out.size());
    if (few) std::fill_n(sums, few, 0.0);
    for (int64_t begin = 0; begin < count_; begin += row_lanes) {
      const int64_t lanes = count_ - begin < row_lanes ? count_ - begin : row_lanes;
      for (int k = 0; k < inputs_count_; ++k) {
        if (inputs_[k] < 0) continue;
        double* to = first_ + inputs_[k] * row_lanes;
        const double* from = in[k].p + begin * in[k].step;
        for (int64_t l = 0; l < row_lanes; ++l) to[l] = from[(l < lanes ? l : lanes - 1) * in[k].step];
      }
      run_tape<row_lanes>(code_, shared_ && !staged_ ? prologue_ : 0, length_, memory_, numbers_, first_);
      shared_ = true;
      for (int k = 0; k < outputs_count_; ++k) {
        const double* from = first_ + outputs_[k] * row_lanes;
        if (k < alone) {
          double* const p = out[k].p + begin * out[k].step;
          for (int64_t l = 0; l < lanes; ++l) p[l * out[k].step] = from[l];
        } else if (k < alone + few) {
          for (int64_t l = 0; l < lanes; ++l) sums[k - alone] += from[l];
        } else {
          double* const to = lanes_of_sums + (k - alone - few) * row_lanes;
          if (lanes == row_lanes)
            for (int l = 0; l < row_lanes; ++l) to[l] += from[l];
          else
            for (int64_t l = 0; l < lanes; ++l) to[l] += from[l];
        }
      }
    }
  }

  int64_t lanes_from(int64_t begin) const { return count_ - begin < tape_lanes ? count_ - begin : tape_lanes; }

  // Output k of the last block, a number a lane.
  const double* result(int k) const { return slots_now_ + outputs_[k] * tape_lanes; }

  // Copy output k of the last block, which begins at `begin`; a field may be nowhere.
  void save(int k, int64_t begin, Field to) const {
    if (!to.p) return;
    const double* from = result(k);
    const int64_t lanes = lanes_from(begin);
    double* p = to.p + begin * to.step;
    if (to.unit == 1) {
      for (int64_t l = 0; l < lanes; ++l) p[l * to.step] = from[l];
    } else {
      for (int64_t l = 0; l < lanes; ++l) p[l * to.step] = from[l] * to.unit;
    }
  }

  // Whether output k is zero at all stages; known when a block has been run.
  bool vanishes(int k) const { return once_[k] && !staged_ && *result(k) == 0; }

  // One stage after another: lane 0 of `in`, then what the outputs from `first` on are. A tape that steps is not run.
  void step(const double* in, int first, double* out) {
    for (int k = 0; k < inputs_count_; ++k)
      if (inputs_[k] >= 0) std::fill_n(first_ + inputs_[k] * step_lanes, step_lanes, in[k]);
    run_tape<step_lanes>(code_, shared_ && !staged_ ? prologue_ : 0, length_, memory_, numbers_, first_);
    shared_ = true;
    for (int k = first; k < outputs_count_; ++k) out[k - first] = first_[outputs_[k] * step_lanes];
  }

  int inputs() const { return inputs_count_; }
  int outputs() const { return outputs_count_; }

 private:
  int64_t length_, prologue_, slots_, count_, size_, numbers_;
  int inputs_count_, outputs_count_;
  bool staged_;  // whether the prologue reads inputs; else its results are those of all stages
  const int32_t *code_, *inputs_, *outputs_, *once_;
  const double* memory_;
  std::vector<double> space_;
  double *first_, *slots_now_ = nullptr;
  bool started_ = false, shared_ = false;  // whether all blocks have been run; whether some have
};

// Append the fields of `columns` numbers a stage, with the unit of each.
template <class Unit>
void append(std::vector<Field>& fields, double* p, int columns, Unit unit) {
  for (int k = 0; k < columns; ++k) fields.push_back({p + k, columns, unit(k)});
}

}  // namespace optctl::OPTCTL_ISA
