// The gradient engine on tapes: one rollout, costs and dynamics expanded to first order, one costate sweep.
//
// optctl/adjoint/gradient.py is the definition.
#pragma once

#include <cmath>
#include <vector>

#include "dense.h"
#include "tape.h"

namespace optctl::OPTCTL_ISA {

// States from xs[0] on; the last nx results of the tape of (x, u, t) are the next state.
inline void roll(StageTape& tape, int64_t N, int nx, int nu, double* xs, const double* us) {
  std::vector<double> in(nx + nu + 1);
  for (int64_t t = 0; t < N; ++t, xs += nx, us += nu) {
    std::copy_n(xs, nx, in.begin());
    std::copy_n(us, nu, in.begin() + nx);
    in.back() = static_cast<double>(t);
    tape.step(in.data(), tape.outputs() - nx, xs + nx);
  }
}

// The costates of a block of stages, one after another, from the slopes and Jacobians that a tape has found there:
//     costate_t = q + A' costate_{t+1},    gu_t = r + B' costate_{t+1}.
// What is zero at all stages plays no part.
class CostateSweep {
 public:
  // Outputs of the tape from `slope` on: q, r, A (nx, nx), B (nx, nu).
  CostateSweep(const StageTape& tape, int nx, int nu, int slope) : tape_(tape), nx_(nx), nu_(nu), slope_(slope) {}

  void operator()(int64_t begin, double* costates, double* gus) {
    if (ends_.empty()) find();
    const double* base = tape_.result(0);
    for (int64_t l = tape_.lanes_from(begin) - 1; l >= 0; --l) {
      const double *const later = costates + (begin + l + 1) * nx_, *const lane = base + l;
      const Entry* e = entries_.data();
      for (int j = 0; j < nx_ + nu_; ++j) {
        double sum = lane[starts_[j]];
        for (const Entry* const end = entries_.data() + ends_[j]; e != end; ++e) sum += lane[e->place] * later[e->row];
        (j < nx_ ? costates + (begin + l) * nx_ + j : gus + (begin + l) * nu_ + j - nx_)[0] = sum;
      }
    }
  }

 private:
  struct Entry {
    ptrdiff_t place;  // beside output 0
    int row;
  };

  void find() {
    for (int j = 0; j < nx_ + nu_; ++j) {
      starts_.push_back(tape_.result(slope_ + j) - tape_.result(0));
      for (int i = 0; i < nx_; ++i) {
        const int A = slope_ + nx_ + nu_, k = j < nx_ ? A + i * nx_ + j : A + nx_ * nx_ + i * nu_ + j - nx_;
        if (!tape_.vanishes(k)) entries_.push_back({tape_.result(k) - tape_.result(0), i});
      }
      ends_.push_back(entries_.size());
    }
  }

  const StageTape& tape_;
  int nx_, nu_, slope_;
  std::vector<ptrdiff_t> starts_;
  std::vector<Entry> entries_;
  std::vector<size_t> ends_;
};

// The program holds tapes
//   of a stage:              values (x, u, t): ..., f, then slopes (x, u, t): l, rows, f; slope, A, B, Jacobians of rows
//   of the end, the start:   slopes (x): l, rows; slope, Jacobians of rows
//   with `bends` >= 1 the upper triangle of the curvature in z of a stage, and all of it at the ends, behind these;
//   with 2 it is that of cost + costate'f, and the slopes have the costates and the prices of rows as inputs, too
//   and where np > 0, of a stage (x, u, t, costate), the end (x) and the start (x): derivatives in np parameters
// Results: cost, xs (N+1, nx) from its first row on where `rolls`, else as given; the next states (N, nx); A, B, the
// slopes of the costs qs (N+1, nx), rs (N, nu), q0 (nx); costates (N+1, nx); the derivatives gus (N, nu), gx0 (nx),
// gp (np). With `signs` (N+1, nx), then (N, nu): sizes[0] = sum |d_i slope_i| and sizes[1] = d'W d of the cost along
// d = sign max(1, |z|), each component of z = (xs, us) by itself. With `bends` W (N, nz, nz) of the cost, and Wf, W0; with
// 2 also V, that of cost + costate'f. Of those that nobody asks for, which are null, reached, A, B, qs, rs and q0 may be.
struct GradientResults {
  double *cost, *xs, *reached, *A, *B, *qs, *rs, *q0, *costates, *gus, *gx0, *gp, *sizes, *W, *Wf, *W0, *V;
};

inline void gradient(const int32_t* program, const double* memory, int64_t N, int nx, int nu, int np, bool rolls, int bends,
                     const double* us, const double* signs, const GradientResults& r) {
  const auto as_it_is = [](int) { return 1.0; };
  const int nz = nx + nu;
  StageTape values, stage, end, start;
  program = values.read(program, memory, 1);
  program = stage.read(program, memory, N);
  program = end.read(program, memory, 1);
  program = start.read(program, memory, 1);
  if (rolls) roll(values, N, nx, nu, r.xs, us);
  std::vector<double> times(N), costs(N), q0(nx);
  for (int64_t t = 0; t < N; ++t) times[t] = static_cast<double>(t);
  double nothing = 0, of_end, of_start;
  std::vector<Field> in;
  append(in, r.xs, nx, as_it_is);
  append(in, const_cast<double*>(us), nu, as_it_is);
  in.push_back({times.data(), 1});
  const auto at = [&](StageTape& tape, double* x, double* cost, double* slope, double* bend) {
    const int rows = (tape.outputs() - 1 - nx - (bends ? nx * nx : 0)) / (1 + nx);
    std::vector<Field> in, out{{cost, 1}};
    append(in, x, nx, as_it_is);
    in.insert(in.end(), rows, Field{&nothing, 0});
    out.resize(1 + rows, Field{nullptr, 0});
    append(out, slope, nx, as_it_is);
    out.resize(out.size() + rows * nx, Field{nullptr, 0});
    if (bends) append(out, bend, nx * nx, as_it_is);
    tape.run(in, out);
  };
  double* const last = r.costates + N * nx;
  at(end, r.xs + N * nx, &of_end, last, r.Wf);
  at(start, r.xs, &of_start, q0.data(), r.W0);
  if (r.qs) std::copy_n(last, nx, r.qs + N * nx);
  if (r.q0) std::copy_n(q0.data(), nx, r.q0);

  const int upper = bends ? nz * (nz + 1) / 2 : 0;
  const int rows = (stage.outputs() - 1 - nx - nz - nx * nz - upper) / (1 + nz);
  const int slope = 1 + rows + nx, bend = stage.outputs() - upper;  // the first outputs of each
  std::vector<Field> out(stage.outputs(), Field{nullptr, 0}), mirrored = out, bent = out, bent_mirrored = out;
  const auto put = [&](int first, double* p, int columns) {
    for (int k = 0; p && k < columns; ++k) out[first + k] = {p + k, columns};
  };
  put(0, costs.data(), 1);
  put(1 + rows, r.reached, nx);
  put(slope, r.qs, nx);
  put(slope + nx, r.rs, nu);
  put(slope + nz, r.A, nx * nx);
  put(slope + nz + nx * nx, r.B, nx * nu);
  for (int i = 0, k = bend; bends && i < nz; ++i)
    for (int j = i; j < nz; ++j, ++k) {
      out[k] = {r.W + i * nz + j, nz * nz}, mirrored[k] = {r.W + j * nz + i, nz * nz};
      if (bends == 2) bent[k] = {r.V + i * nz + j, nz * nz}, bent_mirrored[k] = {r.V + j * nz + i, nz * nz};
    }
  std::vector<Field> plain = in, priced = in;  // no costates, then those found; rows play no part
  plain.insert(plain.end(), nx + rows, Field{&nothing, 0});
  append(priced, r.costates + nx, nx, as_it_is);
  priced.insert(priced.end(), rows, Field{&nothing, 0});
  CostateSweep sweep(stage, nx, nu, slope);
  for (int64_t begin = (N - 1) / tape_lanes * tape_lanes; N && begin >= 0; begin -= tape_lanes) {
    stage.run_block(plain, begin, true);
    for (int k = 0; k < stage.outputs(); ++k) stage.save(k, begin, out[k]), stage.save(k, begin, mirrored[k]);
    sweep(begin, r.costates, r.gus);
    if (bends != 2) continue;
    stage.run_block(priced, begin, false);
    for (int k = bend; k < stage.outputs(); ++k) stage.save(k, begin, bent[k]), stage.save(k, begin, bent_mirrored[k]);
  }
  *r.cost = of_end + of_start;
  for (const double l : costs) *r.cost += l;
  for (int i = 0; i < nx; ++i) r.gx0[i] = r.costates[i] + q0[i];
  if (signs) {
    double steep = 0, curved = 0;
    std::vector<double> d(nz);
    const auto along = [](double sign, double value) { return sign * std::max(1.0, std::fabs(value)); };
    for (int64_t t = 0; t <= N; ++t) {
      for (int i = 0; i < nx; ++i) {
        d[i] = along(signs[t * nx + i], r.xs[t * nx + i]);
        steep += std::fabs(d[i] * (r.qs[t * nx + i] + (t ? 0 : q0[i])));
      }
      for (int i = 0; t < N && i < nu; ++i) {
        d[nx + i] = along(signs[(N + 1) * nx + t * nu + i], us[t * nu + i]);
        steep += std::fabs(d[nx + i] * r.rs[t * nu + i]);
      }
      const auto add = [&](const double* W, int n) {
        for (int i = 0; i < n; ++i)
          for (int j = 0; j < n; ++j) curved += W[i * n + j] * d[i] * d[j];
      };
      if (t < N) add(r.W + t * nz * nz, nz);
      if (t == N) add(r.Wf, nx);
      if (t == 0) add(r.W0, nx);
    }
    r.sizes[0] = steep, r.sizes[1] = curved;
  }
  if (!np) return;
  std::vector<double> part(np * std::max<int64_t>(N, 1));
  const auto add = [&](int64_t count) {
    for (int64_t t = 0; t < count; ++t)
      for (int i = 0; i < np; ++i) r.gp[i] += part[t * np + i];
  };
  std::fill_n(r.gp, np, 0.0);
  std::vector<Field> of_part;
  append(of_part, part.data(), np, as_it_is);
  append(in, r.costates + nx, nx, as_it_is);
  StageTape of_params;
  program = of_params.read(program, memory, N);
  of_params.run(in, of_part);
  add(N);
  for (double* x : {r.xs + N * nx, r.xs}) {
    StageTape tape;
    std::vector<Field> state;
    append(state, x, nx, as_it_is);
    program = tape.read(program, memory, 1);
    tape.run(state, of_part);
    add(1);
  }
}

// The Hessian of the cost in (us, x_0) times a direction: one tangent rollout, one second-order costate sweep. W (N, ., .)
// holds the curvature of the Lagrangian of each stage in (x, u), Wf and W0 those of the ends. The states' and the
// costates' derivatives (N+1, nx) come along.
inline void hessian_product(int64_t N, int nx, int nu, const double* A, const double* B, const double* W,
                            const double* Wf, const double* W0, const double* dx0, const double* dus, double* gx0,
                            double* gus, double* dxs, double* dcostates) {
  const int nz = nx + nu;
  std::vector<double> dz((N + 1) * nz), costate(nx), earlier(nz);
  std::copy_n(dx0, nx, dz.begin());
  for (int64_t t = 0; t < N; ++t) {
    double *z = dz.data() + t * nz, *next = z + nz;
    std::copy_n(dus + t * nu, nu, z + nx);
    for (int i = 0; i < nx; ++i) {
      double sum = 0;
      for (int j = 0; j < nx; ++j) sum += A[(t * nx + i) * nx + j] * z[j];
      for (int j = 0; j < nu; ++j) sum += B[(t * nx + i) * nu + j] * z[nx + j];
      next[i] = sum;
    }
  }
  for (int64_t t = 0; t <= N; ++t) std::copy_n(dz.data() + t * nz, nx, dxs + t * nx);
  add_transposed_product(nx, nx, Wf, dz.data() + N * nz, costate.data());  // it is symmetric, as W and W0 are
  std::copy_n(costate.begin(), nx, dcostates + N * nx);
  for (int64_t t = N - 1; t >= 0; --t) {
    std::fill(earlier.begin(), earlier.end(), 0.0);
    add_transposed_product(nz, nz, W + t * nz * nz, dz.data() + t * nz, earlier.data());
    std::copy_n(earlier.begin() + nx, nu, gus + t * nu);
    add_transposed_product(nx, nu, B + t * nx * nu, costate.data(), gus + t * nu);
    add_transposed_product(nx, nx, A + t * nx * nx, costate.data(), earlier.data());
    std::copy_n(earlier.begin(), nx, costate.begin());
    std::copy_n(earlier.begin(), nx, dcostates + t * nx);
  }
  add_transposed_product(nx, nx, W0, dx0, costate.data());
  std::copy(costate.begin(), costate.end(), gx0);
}

// A rollout under feedback, u = clip(u_aim + K (x - x_aim), low, high), from xs[0] on, and its cost. The program holds
// the tapes of the values of a stage, the end and the start.
inline void follow(const int32_t* program, const double* memory, int64_t N, int nx, int nu, const double* x_aim,
                   const double* u_aim, const double* K, const double* low, const double* high, double* xs, double* us,
                   double* cost) {
  StageTape stage, end, start;
  program = stage.read(program, memory, 1);
  program = end.read(program, memory, 1);
  program = start.read(program, memory, 1);
  std::vector<double> in(nx + nu + 1), out(stage.outputs() + end.outputs() + start.outputs());
  start.step(xs, 0, out.data());
  *cost = out[0];
  for (int64_t t = 0; t < N; ++t) {
    const double* x = xs + t * nx;
    double* u = us + t * nu;
    for (int i = 0; i < nu; ++i) {
      double sum = u_aim[t * nu + i];
      for (int j = 0; j < nx; ++j) sum += K[(t * nu + i) * nx + j] * (x[j] - x_aim[t * nx + j]);
      sum = sum < low[t * nu + i] ? low[t * nu + i] : sum;  // NaN stays
      u[i] = sum > high[t * nu + i] ? high[t * nu + i] : sum;
    }
    std::copy_n(x, nx, in.begin());
    std::copy_n(u, nu, in.begin() + nx);
    in.back() = static_cast<double>(t);
    stage.step(in.data(), 0, out.data());
    *cost += out[0];
    std::copy_n(out.data() + stage.outputs() - nx, nx, xs + (t + 1) * nx);
  }
  end.step(xs + N * nx, 0, out.data());
  *cost += out[0];
}

}  // namespace optctl::OPTCTL_ISA
