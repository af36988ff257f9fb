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
// 2 also V, that of cost + costate'f.
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
  std::vector<double> times(N), costs(N);
  for (int64_t t = 0; t < N; ++t) times[t] = static_cast<double>(t);
  double nowhere, of_end, of_start;
  const auto skip = [&](std::vector<Field>& out, int count) { out.insert(out.end(), count, Field{&nowhere, 0}); };
  const auto state = [&](double* x) {
    std::vector<Field> in;
    append(in, x, nx, as_it_is);
    return in;
  };
  std::vector<Field> in = state(r.xs), out;
  append(in, const_cast<double*>(us), nu, as_it_is);
  in.push_back({times.data(), 1});
  const int upper = bends ? nz * (nz + 1) / 2 : 0;
  const int rows = (stage.outputs() - 1 - nx - nz - nx * nz - upper) / (1 + nz);
  out.push_back({costs.data(), 1});
  skip(out, rows);
  append(out, r.reached, nx, as_it_is);
  append(out, r.qs, nx, as_it_is);
  append(out, r.rs, nu, as_it_is);
  append(out, r.A, nx * nx, as_it_is);
  append(out, r.B, nx * nu, as_it_is);
  skip(out, rows * nz);
  const auto curvature = [&](std::vector<Field>& out, double* W) {
    std::vector<Field> mirrored(out.size(), Field{nullptr, 0});
    for (int i = 0; bends && i < nz; ++i)
      for (int j = i; j < nz; ++j) {
        out.push_back({W + i * nz + j, nz * nz});
        mirrored.push_back({W + j * nz + i, nz * nz});
      }
    return mirrored;
  };
  double nothing = 0;
  std::vector<Field> priced = in;
  priced.insert(priced.end(), nx + rows, Field{&nothing, 0});  // no costates yet, and rows play no part
  std::vector<Field> mirrored = curvature(out, r.W);
  stage.run(priced, out, &mirrored);
  const auto at = [&](StageTape& tape, double* x, double* cost, double* slope, double* bend) {
    const int rows = (tape.outputs() - 1 - nx - (bends ? nx * nx : 0)) / (1 + nx);
    std::vector<Field> out{{cost, 1}};
    skip(out, rows);
    append(out, slope, nx, as_it_is);
    skip(out, rows * nx);
    if (bends) append(out, bend, nx * nx, as_it_is);
    std::vector<Field> in = state(x);
    in.insert(in.end(), rows, Field{&nothing, 0});
    tape.run(in, out);
  };
  at(end, r.xs + N * nx, &of_end, r.qs + N * nx, r.Wf);
  at(start, r.xs, &of_start, r.q0, r.W0);
  *r.cost = of_end + of_start;
  for (const double l : costs) *r.cost += l;
  double* later = r.costates + N * nx;
  std::copy_n(r.qs + N * nx, nx, later);
  for (int64_t t = N - 1; t >= 0; --t, later -= nx) {
    std::copy_n(r.rs + t * nu, nu, r.gus + t * nu);
    std::copy_n(r.qs + t * nx, nx, later - nx);
    add_transposed_product(nx, nu, r.B + t * nx * nu, later, r.gus + t * nu);
    add_transposed_product(nx, nx, r.A + t * nx * nx, later, later - nx);
  }
  for (int i = 0; i < nx; ++i) r.gx0[i] = r.costates[i] + r.q0[i];
  if (bends == 2) {
    std::copy_n(r.W, N * nz * nz, r.V);  // what does not vary was stored for good
    priced.resize(in.size());
    append(priced, r.costates + nx, nx, as_it_is);
    priced.insert(priced.end(), rows, Field{&nothing, 0});
    std::vector<Field> bent;
    skip(bent, 1 + rows + nx + nz + nx * nz + rows * nz);
    mirrored = curvature(bent, r.V);
    stage.run(priced, bent, &mirrored);
  }
  if (signs) {
    double steep = 0, bent = 0;
    std::vector<double> d(nz);
    const auto along = [](double sign, double value) { return sign * std::max(1.0, std::fabs(value)); };
    for (int64_t t = 0; t <= N; ++t) {
      for (int i = 0; i < nx; ++i) {
        d[i] = along(signs[t * nx + i], r.xs[t * nx + i]);
        steep += std::fabs(d[i] * (r.qs[t * nx + i] + (t ? 0 : r.q0[i])));
      }
      for (int i = 0; t < N && i < nu; ++i) {
        d[nx + i] = along(signs[(N + 1) * nx + t * nu + i], us[t * nu + i]);
        steep += std::fabs(d[nx + i] * r.rs[t * nu + i]);
      }
      const auto add = [&](const double* W, int n) {
        for (int i = 0; i < n; ++i)
          for (int j = 0; j < n; ++j) bent += W[i * n + j] * d[i] * d[j];
      };
      if (t < N) add(r.W + t * nz * nz, nz);
      if (t == N) add(r.Wf, nx);
      if (t == 0) add(r.W0, nx);
    }
    r.sizes[0] = steep, r.sizes[1] = bent;
  }
  if (!np) return;
  std::vector<double> part(np * std::max<int64_t>(N, 1));
  const auto add = [&](int64_t count) {
    for (int64_t t = 0; t < count; ++t)
      for (int i = 0; i < np; ++i) r.gp[i] += part[t * np + i];
  };
  std::fill_n(r.gp, np, 0.0);
  out.clear();
  append(out, part.data(), np, as_it_is);
  append(in, r.costates + nx, nx, as_it_is);
  StageTape of_params;
  program = of_params.read(program, memory, N);
  of_params.run(in, out);
  add(N);
  for (double* x : {r.xs + N * nx, r.xs}) {
    StageTape tape;
    program = tape.read(program, memory, 1);
    tape.run(state(x), out);
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
