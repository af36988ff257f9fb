// A trajectory problem as the interior point method sees it: sizes, rows, and its functions run from tapes.
//
// optctl/shooting/{rows,expansion}.py are the definition; the order of the rows is theirs.
#pragma once

#include <vector>

#include "dense.h"
#include "tape.h"

namespace optctl::OPTCTL_ISA {

enum BlockName {
  x0_min, x0_max, x_min, x_max, u_min, u_max, path_inequality, path_equality, terminal_inequality, terminal_equality,
  block_count
};

enum RowKind { inequality = 1, equality = 2, elastic = 4, soft = 8 };

// What does not change during a solve.
struct Layout {
  int64_t N, rows, history;
  int nx, nu, nz;
  int path[2], end[2];         // rows of a stage and of the end: inequalities, equalities
  int64_t block[block_count];  // where each block of rows begins, -1 if there is none
  bool has_soft;
  const int32_t* kind;         // of each row
  const double *bounds, *l1, *l2, *x0_free;

  // What the block of bounds b bounds: x_0, x_1..x_N or the inputs; and how many numbers that is.
  double* of_bound(const struct Unknowns& z, int b) const;
  int64_t bound_size(int b) const { return b <= x0_max ? nx : b <= x_max ? N * nx : N * nu; }
};

// A point in all unknowns, or a direction.
struct Unknowns {
  double *xs, *us, *costates, *s, *y, *e, *v;
};

inline double* Layout::of_bound(const Unknowns& z, int b) const {
  return b <= x0_max ? z.xs : b <= x_max ? z.xs + nx : z.us;
}

struct Values {
  double *gaps, *c;
};

struct Expansion {
  Values at;
  double *q0, *qs, *rs, *A, *B;
  double *J[2], *Jf[2];  // Jacobians of the path's and of the end's rows: inequalities, equalities
  double *W0, *W, *Wf;
};

// The functions of the problem, two tapes for each place: its values, and its expansion, which begins with the values.
//   stage (x, u, t[, costate, y]):  l, g, h, f;   slope, A, B, J, upper triangle of W
//   end   (x[, y]):                 l, g, h;      slope, J, W
//   start (x):                      l;            slope, W
class ProblemFunctions {
 public:
  ProblemFunctions(const Layout& layout, const int32_t* program, const double* memory, const Expansion& e)
      : p_(layout), e_(e), times_(layout.N), costs_(layout.N), reached_(layout.N * layout.nx) {
    for (int64_t t = 0; t < p_.N; ++t) times_[t] = static_cast<double>(t);
    for (StageTape* tape : {&stage_values_, &stage_expansion_}) program = tape->read(program, memory, p_.N);
    for (StageTape* tape : {&end_values_, &end_expansion_, &start_values_, &start_expansion_})
      program = tape->read(program, memory, 1);
    const int nx = p_.nx, nu = p_.nu, nz = p_.nz;
    stage_out_ = stage_outputs(e.at);
    append(stage_out_, e.qs, nx);
    append(stage_out_, e.rs, nu);
    append(stage_out_, e.A, nx * nx);
    append(stage_out_, e.B, nx * nu);
    for (int b = 0; b < 2; ++b) append(stage_out_, e.J[b], p_.path[b] * nz);
    mirrored_.assign(stage_out_.size(), Field{nullptr, 0});
    for (int i = 0; i < nz; ++i)
      for (int j = i; j < nz; ++j) {
        stage_out_.push_back({e.W + i * nz + j, nz * nz});
        mirrored_.push_back({e.W + j * nz + i, nz * nz});
      }
    end_out_ = end_outputs(e.at);
    append(end_out_, e.qs + p_.N * nx, nx);
    for (int b = 0; b < 2; ++b) append(end_out_, e.Jf[b], p_.end[b] * nx);
    append(end_out_, e.Wf, nx * nx);
    append(start_out_, &start_cost_, 1);
    append(start_out_, e.q0, nx);
    append(start_out_, e.W0, nx * nx);
  }

  void evaluate(const Unknowns& z, Values& v) {
    stage_values_.run(stage_inputs(z), stage_outputs(v));
    end_values_.run(state(z.xs + p_.N * p_.nx), end_outputs(v));
    start_values_.run(state(z.xs), {{&start_cost_, 1}});
    finish(z, v);
  }

  // Fills the expansion that was given to the constructor.
  void expand(const Unknowns& z) {
    std::vector<Field> in = stage_inputs(z);
    append(in, z.costates + p_.nx, p_.nx);
    for (int b : {path_inequality, path_equality}) append(in, z.y + p_.block[b], p_.path[b - path_inequality]);
    stage_expansion_.run(in, stage_out_, &mirrored_);
    in = state(z.xs + p_.N * p_.nx);
    for (int b : {terminal_inequality, terminal_equality})
      append(in, z.y + p_.block[b], p_.end[b - terminal_inequality]);
    end_expansion_.run(in, end_out_);
    start_expansion_.run(state(z.xs), start_out_);
    finish(z, e_.at);
  }

  double cost() const { return cost_; }

 private:
  std::vector<Field> state(double* x) const {
    std::vector<Field> in;
    append(in, x, p_.nx);
    return in;
  }

  std::vector<Field> stage_inputs(const Unknowns& z) {
    std::vector<Field> in = state(z.xs);
    append(in, z.us, p_.nu);
    append(in, times_.data(), 1);
    return in;
  }

  std::vector<Field> stage_outputs(const Values& v) {
    std::vector<Field> out;
    append(out, costs_.data(), 1);
    for (int b : {path_inequality, path_equality}) append(out, v.c + p_.block[b], p_.path[b - path_inequality]);
    append(out, reached_.data(), p_.nx);
    return out;
  }

  std::vector<Field> end_outputs(const Values& v) {
    std::vector<Field> out;
    append(out, &end_cost_, 1);
    for (int b : {terminal_inequality, terminal_equality})
      append(out, v.c + p_.block[b], p_.end[b - terminal_inequality]);
    return out;
  }

  // Sum the cost, close the gaps' formula, and fill in the rows that are bounds.
  void finish(const Unknowns& z, const Values& v) {
    cost_ = end_cost_ + start_cost_;
    for (double l : costs_) cost_ += l;
    const double* later = z.xs + p_.nx;
    for (int64_t i = 0; i < p_.N * p_.nx; ++i) v.gaps[i] = reached_[i] - later[i];
    for (int b = x0_min; b <= u_max; ++b) {
      if (p_.block[b] < 0) continue;
      const double *value = p_.of_bound(z, b), *bound = p_.bounds + p_.block[b], sign = b % 2 ? 1 : -1;
      for (int64_t i = 0; i < p_.bound_size(b); ++i)
        v.c[p_.block[b] + i] = std::isfinite(bound[i]) ? sign * (value[i] - bound[i]) : -1;
    }
  }

  Layout p_;
  Expansion e_;
  StageTape stage_values_, stage_expansion_, end_values_, end_expansion_, start_values_, start_expansion_;
  std::vector<Field> stage_out_, mirrored_, end_out_, start_out_;
  std::vector<double> times_, costs_, reached_;
  double end_cost_ = 0, start_cost_ = 0, cost_ = 0;
};

}  // namespace optctl::OPTCTL_ISA
