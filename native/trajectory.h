// The functions of a trajectory problem, run from tapes, in the units of the iterations.
//
// optctl/shooting/{expansion,scaling}.py are the definition.
#pragma once

#include <vector>

#include "dense.h"
#include "scaling.h"
#include "tape.h"

namespace optctl::OPTCTL_ISA {

// The functions of the problem, two tapes for each place: its values, and its expansion, which begins with the values.
//   stage (x, u, t[, costate, y]):  l, g, h, f;   slope, A, B, J, upper triangle of W
//   end   (x[, y]):                 l, g, h;      slope, J, W
//   start (x):                      l;            slope, W
class ProblemFunctions {
 public:
  ProblemFunctions(const Layout& layout, const int32_t* program, const double* memory, const Expansion& e, const Scaling& by)
      : p_(layout), e_(e), by_(by), times_(layout.N), costs_(layout.N), reached_(layout.N * layout.nx) {
    for (int64_t t = 0; t < p_.N; ++t) times_[t] = static_cast<double>(t);
    for (StageTape* tape : {&stage_values_, &stage_expansion_}) program = tape->read(program, memory, p_.N);
    for (StageTape* tape : {&end_values_, &end_expansion_, &start_values_, &start_expansion_})
      program = tape->read(program, memory, 1);
    const int nx = p_.nx, nu = p_.nu, nz = p_.nz;
    const double per_cost = 1 / by.cost();
    auto slope = [&](int i) { return by.z(i) * per_cost; };
    auto bend = [&](int i, int j) { return by.z(i) * by.z(j) * per_cost; };
    auto square = [&](int k) { return bend(k / nx, k % nx); };
    stage_out_ = stage_outputs(e.at);
    append(stage_out_, e.qs, nx, slope);
    append(stage_out_, e.rs, nu, [&](int i) { return slope(nx + i); });
    append(stage_out_, e.A, nx * nx, [&](int k) { return by.over(k / nx) * by.z(k % nx); });
    append(stage_out_, e.B, nx * nu, [&](int k) { return by.over(k / nu) * by.z(nx + k % nu); });
    for (int b = 0; b < 2; ++b)
      append(stage_out_, e.J[b], p_.path[b] * nz, [&](int k) { return by.row(path_inequality + b, k / nz) * by.z(k % nz); });
    mirrored_.assign(stage_out_.size(), Field{nullptr, 0});
    for (int i = 0; i < nz; ++i)
      for (int j = i; j < nz; ++j) {
        stage_out_.push_back({e.W + i * nz + j, nz * nz, bend(i, j)});
        mirrored_.push_back({e.W + j * nz + i, nz * nz, bend(i, j)});
      }
    end_out_ = end_outputs(e.at);
    append(end_out_, e.qs + p_.N * nx, nx, slope);
    for (int b = 0; b < 2; ++b)
      append(end_out_, e.Jf[b], p_.end[b] * nx, [&](int k) { return by.row(terminal_inequality + b, k / nx) * by.z(k % nx); });
    append(end_out_, e.Wf, nx * nx, square);
    start_out_ = start_outputs();
    append(start_out_, e.q0, nx, slope);
    append(start_out_, e.W0, nx * nx, square);
  }

  void evaluate(const Unknowns& z, Values& v) {
    stage_values_.run(stage_inputs(z), stage_outputs(v));
    end_values_.run(state(z.xs + p_.N * p_.nx), end_outputs(v));
    start_values_.run(state(z.xs), start_outputs());
    finish(z, v);
  }

  // Fills the expansion that was given to the constructor.
  void expand(const Unknowns& z) {
    std::vector<Field> in = stage_inputs(z);
    append(in, z.costates + p_.nx, p_.nx, [&](int i) { return by_.over(i) * by_.cost(); });
    append_multipliers(in, z, path_inequality, p_.path);
    stage_expansion_.run(in, stage_out_, &mirrored_);
    in = state(z.xs + p_.N * p_.nx);
    append_multipliers(in, z, terminal_inequality, p_.end);
    end_expansion_.run(in, end_out_);
    start_expansion_.run(state(z.xs), start_out_);
    finish(z, e_.at);
  }

  const Expansion& expansion() const { return e_; }
  double cost() const { return cost_; }

 private:
  std::vector<Field> state(double* x) const {
    std::vector<Field> in;
    append(in, x, p_.nx, [&](int i) { return by_.z(i); });
    return in;
  }

  // Those of the inequalities and the equalities, m of each, from block `first` on.
  void append_multipliers(std::vector<Field>& in, const Unknowns& z, int first, const int* m) const {
    for (int b = 0; b < 2; ++b)
      append(in, z.y + p_.block[first + b], m[b], [&](int i) { return by_.row(first + b, i) * by_.cost(); });
  }

  // Values of rows, likewise.
  void append_rows(std::vector<Field>& out, const Values& v, int first, const int* m) const {
    for (int b = 0; b < 2; ++b)
      append(out, v.c + p_.block[first + b], m[b], [&](int i) { return by_.row(first + b, i); });
  }

  std::vector<Field> stage_inputs(const Unknowns& z) {
    std::vector<Field> in = state(z.xs);
    append(in, z.us, p_.nu, [&](int i) { return by_.z(p_.nx + i); });
    in.push_back({times_.data(), 1});
    return in;
  }

  std::vector<Field> stage_outputs(const Values& v) {
    std::vector<Field> out;
    out.push_back({costs_.data(), 1, 1 / by_.cost()});
    append_rows(out, v, path_inequality, p_.path);
    append(out, reached_.data(), p_.nx, [&](int i) { return by_.over(i); });
    return out;
  }

  std::vector<Field> end_outputs(const Values& v) {
    std::vector<Field> out;
    out.push_back({&end_cost_, 1, 1 / by_.cost()});
    append_rows(out, v, terminal_inequality, p_.end);
    return out;
  }

  std::vector<Field> start_outputs() { return {{&start_cost_, 1, 1 / by_.cost()}}; }

  // Sum the cost, close the gaps' formula, and fill in the rows that are bounds.
  void finish(const Unknowns& z, const Values& v) {
    cost_ = end_cost_ + start_cost_;
    for (double l : costs_) cost_ += l;
    const double* later = z.xs + p_.nx;
    for (int64_t i = 0; i < p_.N * p_.nx; ++i) v.gaps[i] = reached_[i] - later[i];
    for (int b = x0_min; b <= u_max; ++b) {
      if (p_.block[b] < 0) continue;
      const double *value = p_.of_bound(z, b), *bound = p_.bounds + p_.block[b], sign = b % 2 ? 1 : -1;
      const int first = b <= x_max ? 0 : p_.nx, width = b <= x_max ? p_.nx : p_.nu;
      double* c = v.c + p_.block[b];
      for (int64_t i = 0; i < p_.bound_size(b); i += width)
        for (int j = 0; j < width; ++j) {
          const double away = sign * (value[i + j] * by_.z(first + j) - bound[i + j]);
          c[i + j] = (std::isfinite(bound[i + j]) ? away : -1) * by_.row(b, j);
        }
    }
  }

  Layout p_;
  Expansion e_;
  const Scaling& by_;
  StageTape stage_values_, stage_expansion_, end_values_, end_expansion_, start_values_, start_expansion_;
  std::vector<Field> stage_out_, mirrored_, end_out_, start_out_;
  std::vector<double> times_, costs_, reached_;
  double end_cost_ = 0, start_cost_ = 0, cost_ = 0;
};

}  // namespace optctl::OPTCTL_ISA
