// The algebra of the constraints' rows: products with their Jacobian, barrier terms, step lengths.
//
// optctl/shooting/{rows,primal_dual}.py state the formulas and are their definition.
#pragma once

#include <algorithm>

#include "trajectory.h"

namespace optctl::OPTCTL_ISA {

// The larger of both; NaN if any is.
inline double largest(double most, double value) { return value > most || value != value ? value : most; }

inline double largest_of(int64_t count, const double* v) {
  double most = 0;
  for (int64_t i = 0; i < count; ++i) most = largest(most, std::fabs(v[i]));
  return most;
}

// y (m) += A x. Unlike those of dense.h, these vectors are rows of packed arrays, without padding.
inline void add_product(int m, int n, const double* A, const double* x, double* y) {
  for (int i = 0; i < m; ++i) {
    double sum = 0;
    for (int j = 0; j < n; ++j) sum += A[i * n + j] * x[j];
    y[i] += sum;
  }
}

// J dz, flat.
inline void along(const Layout& p, const Expansion& e, const Unknowns& d, double* out) {
  for (int b = x0_min; b <= u_max; ++b) {
    if (p.block[b] < 0) continue;
    const double *value = p.of_bound(d, b), sign = b % 2 ? 1 : -1;
    double* to = out + p.block[b];
    for (int64_t i = 0; i < p.bound_size(b); ++i) to[i] = sign * value[i];
  }
  for (int b = 0; b < 2; ++b) {
    const int m = p.path[b], n = p.end[b];
    for (int64_t t = 0; t < p.N && m; ++t) {
      double* to = out + p.block[path_inequality + b] + t * m;
      const double *J = e.J[b] + t * m * p.nz, *dx = d.xs + t * p.nx, *du = d.us + t * p.nu;
      for (int i = 0; i < m; ++i, J += p.nz) {
        double sum = 0;
        for (int j = 0; j < p.nx; ++j) sum += J[j] * dx[j];
        for (int j = 0; j < p.nu; ++j) sum += J[p.nx + j] * du[j];
        to[i] = sum;
      }
    }
    double* to = out + p.block[terminal_inequality + b];
    std::fill(to, to + n, 0.0);
    add_product(n, p.nx, e.Jf[b], d.xs + p.N * p.nx, to);
  }
}

// g += J'v: in a free x_0 (nx,), in the states (N+1, nx), in the inputs (N, nu).
inline void add_transposed_rows(const Layout& p, const Expansion& e, const double* v, double* g0, double* gx, double* gu) {
  double* to[3] = {g0, gx + p.nx, gu};
  for (int b = x0_min; b <= u_max; ++b) {
    if (p.block[b] < 0) continue;
    const double *from = v + p.block[b], sign = b % 2 ? 1 : -1;
    for (int64_t i = 0; i < p.bound_size(b); ++i) to[b / 2][i] += sign * from[i];
  }
  for (int b = 0; b < 2; ++b) {
    const int m = p.path[b];
    for (int64_t t = 0; t < p.N && m; ++t) {
      const double *from = v + p.block[path_inequality + b] + t * m, *J = e.J[b] + t * m * p.nz;
      for (int i = 0; i < m; ++i, J += p.nz) {
        for (int j = 0; j < p.nx; ++j) gx[t * p.nx + j] += from[i] * J[j];
        for (int j = 0; j < p.nu; ++j) gu[t * p.nu + j] += from[i] * J[p.nx + j];
      }
    }
    add_transposed_product(p.end[b], p.nx, e.Jf[b], v + p.block[terminal_inequality + b], gx + p.N * p.nx);
  }
}

// Weights of one linear-quadratic model, packed.
struct Weights {
  double *Q, *R, *M, *Qf, *Q0;
};

// The weights of Newton's step without shift: the curvature of the expansion times a number and J'(weight)J.
inline void quadratic_weights(const Layout& p, const Expansion& e, double curvature, const double* weight, const Weights& w) {
  const int nx = p.nx, nu = p.nu, nz = p.nz;
  auto add_diagonal = [&](int b, int64_t t, int n, double* to) {
    if (p.block[b] < 0) return;
    const double* from = weight + p.block[b] + t * n;
    for (int i = 0; i < n; ++i) to[i * n + i] += from[i];
  };
  for (int64_t t = 0; t < p.N; ++t) {
    double *Q = w.Q + t * nx * nx, *R = w.R + t * nu * nu, *M = w.M + t * nx * nu;
    if (curvature != 0) {
      const double* W = e.W + t * nz * nz;
      for (int i = 0; i < nx; ++i) {
        for (int j = 0; j < nx; ++j) Q[i * nx + j] = curvature * W[i * nz + j];
        for (int j = 0; j < nu; ++j) M[i * nu + j] = curvature * W[i * nz + nx + j];
      }
      for (int i = 0; i < nu; ++i)
        for (int j = 0; j < nu; ++j) R[i * nu + j] = curvature * W[(nx + i) * nz + nx + j];
    } else {
      std::fill(Q, Q + nx * nx, 0.0);
      std::fill(R, R + nu * nu, 0.0);
      std::fill(M, M + nx * nu, 0.0);
    }
    for (int b : {x_min, x_max})
      if (t) add_diagonal(b, t - 1, nx, Q);
    for (int b : {u_min, u_max}) add_diagonal(b, t, nu, R);
    for (int b = 0; b < 2; ++b) {
      const int m = p.path[b];
      const double *J = e.J[b] + t * m * nz, *of = weight + p.block[path_inequality + b] + t * m;
      for (int k = 0; k < m; ++k, J += nz) {
        if (of[k] == 0) continue;
        for (int i = 0; i < nx; ++i) {
          const double s = of[k] * J[i];
          if (s == 0) continue;
          for (int j = 0; j < nx; ++j) Q[i * nx + j] += s * J[j];
          for (int j = 0; j < nu; ++j) M[i * nu + j] += s * J[nx + j];
        }
        for (int i = 0; i < nu; ++i)
          for (int j = 0; j < nu; ++j) R[i * nu + j] += of[k] * J[nx + i] * J[nx + j];
      }
    }
  }
  for (int i = 0; i < nx * nx; ++i) {
    w.Qf[i] = curvature * e.Wf[i];
    w.Q0[i] = curvature * e.W0[i];
  }
  for (int b : {x_min, x_max}) add_diagonal(b, p.N - 1, nx, w.Qf);
  for (int b : {x0_min, x0_max}) add_diagonal(b, 0, nx, w.Q0);
  for (int b = 0; b < 2; ++b)
    for (int k = 0; k < p.end[b]; ++k) {
      const double *J = e.Jf[b] + k * nx, of = weight[p.block[terminal_inequality + b] + k];
      for (int i = 0; i < nx; ++i)
        for (int j = 0; j < nx; ++j) w.Qf[i * nx + j] += of * J[i] * J[j];
    }
}

// Add to the diagonals of all weights.
inline void add_shift(const Layout& p, double shift, const Weights& w) {
  if (shift == 0) return;
  for (int64_t t = 0; t < p.N; ++t) {
    for (int i = 0; i < p.nx; ++i) w.Q[(t * p.nx + i) * p.nx + i] += shift;
    for (int i = 0; i < p.nu; ++i) w.R[(t * p.nu + i) * p.nu + i] += shift;
  }
  for (int i = 0; i < p.nx; ++i) w.Qf[i * p.nx + i] += shift, w.Q0[i * p.nx + i] += shift;
}

// c + s of an inequality (less e of a soft one), c of an equality, 0 of a row that is off.
inline double missed(const Layout& p, const Unknowns& z, int64_t i, double c) {
  if (p.kind[i] & inequality) return c + z.s[i] - (p.kind[i] & soft ? z.e[i] : 0);
  return p.kind[i] & equality ? c : 0;
}

inline double infeasibility(const Layout& p, const Values& at, const Unknowns& z) {
  double sum = 0;
  for (int64_t i = 0; i < p.N * p.nx; ++i) sum += std::fabs(at.gaps[i]);
  for (int64_t i = 0; i < p.rows; ++i) sum += std::fabs(missed(p, z, i, at.c[i]));
  return sum;
}

// Half the sum of squares of gaps and misses.
inline double half_violation(const Layout& p, const Values& at, const Unknowns& z) {
  double sum = 0;
  for (int64_t i = 0; i < p.N * p.nx; ++i) sum += at.gaps[i] * at.gaps[i];
  for (int64_t i = 0; i < p.rows; ++i) {
    const double miss = missed(p, z, i, at.c[i]);
    sum += miss * miss;
  }
  return sum / 2;
}

// Sum of log s over the inequalities; four at a time, since a logarithm costs as much as twenty products.
inline double sum_of_logarithms(const Layout& p, const double* s) {
  double sum = 0, product = 1;
  int held = 0;
  for (int64_t i = 0; i < p.rows; ++i) {
    if (!(p.kind[i] & inequality)) continue;
    if (!(s[i] > 1e-70 && s[i] < 1e70)) {
      sum += std::log(s[i]);
      continue;
    }
    product *= s[i];
    if (++held == 4) sum += std::log(product), product = 1, held = 0;
  }
  return sum + std::log(product);
}

inline double price_of_misses(const Layout& p, const Unknowns& z) {
  double sum = 0;
  for (int64_t i = 0; i < p.rows && p.has_soft; ++i)
    if (p.kind[i] & soft) sum += p.l1[i] * z.e[i] + 0.5 * p.l2[i] * z.e[i] * z.e[i];
  return sum;
}

// J - mu sum log s, with the price of what soft rows miss.
inline double barrier_cost(const Layout& p, double cost, const Unknowns& z, double mu) {
  double value = cost - mu * sum_of_logarithms(p, z.s) + price_of_misses(p, z);
  for (int64_t i = 0; i < p.rows && p.has_soft; ++i)
    if (p.kind[i] & soft) value -= mu * std::log(z.e[i]);
  return value;
}

// The derivative of the barrier cost along d.
inline double barrier_slope(const Layout& p, const Expansion& e, const Unknowns& z, const Unknowns& d, double mu) {
  double value = 0;
  for (int64_t i = 0; i < (p.N + 1) * p.nx; ++i) value += e.qs[i] * d.xs[i];
  for (int64_t i = 0; i < p.N * p.nu; ++i) value += e.rs[i] * d.us[i];
  for (int i = 0; i < p.nx; ++i) value += e.q0[i] * d.xs[i];
  for (int64_t i = 0; i < p.rows; ++i) {
    if (p.kind[i] & inequality) value -= mu * d.s[i] / z.s[i];
    if (p.kind[i] & soft) value += (p.l1[i] + p.l2[i] * z.e[i] - mu / z.e[i]) * d.e[i];
  }
  return value;
}

// True of a state that keeps its value whatever one does: x+ = x.
inline bool stands_still(const Layout& p, const Expansion& e, int i) {
  for (int64_t t = 0; t < p.N; ++t) {
    const double *A = e.A + (t * p.nx + i) * p.nx, *B = e.B + (t * p.nx + i) * p.nu;
    for (int j = 0; j < p.nx; ++j)
      if (A[j] != (i == j)) return false;
    for (int j = 0; j < p.nu; ++j)
      if (B[j] != 0) return false;
  }
  return true;
}

constexpr double proximal = 1e-8;  // weight of equalities

// r/d and 1/d of each row, J dz - d dy = -r; zeros where it is off. The products s y are to become mu, e v nu. Where s, y
// or e is zero, as a polished solution has them, it is the limit: an equality, a row that is off, a hard row.
inline void newton_rows(const Layout& p, const double* c, const Unknowns& z, const double* mu, const double* nu,
                        double* push, double* weight) {
  for (int64_t i = 0; i < p.rows; ++i) {
    push[i] = weight[i] = 0;
    if (p.kind[i] & inequality) {
      if (z.y[i] == 0 && z.s[i] > 0) continue;
      const double y = z.y[i] > 0 ? z.y[i] : 1, ratio = z.s[i] / y, r = c[i] + mu[i] / y;
      if (p.kind[i] & soft && z.e[i] > 0) {
        const double e = z.e[i], w = p.l2[i] + z.v[i] / e, share = 1 / (1 + w * ratio);
        weight[i] = w * share;
        push[i] = weight[i] * (r - e) - (z.y[i] + nu[i] / e - p.l1[i] - p.l2[i] * e) * share;
      } else {
        weight[i] = 1 / (z.s[i] == 0 ? proximal : ratio);
        push[i] = weight[i] * r;
      }
    } else if (p.kind[i] & equality) {
      weight[i] = 1 / proximal;
      push[i] = c[i] / proximal;
    }
  }
}

// The longest alpha <= 1 that leaves value + alpha step >= (1 - share) value in rows of a kind.
inline double longest(const Layout& p, const double* value, const double* step, double share, int kind) {
  double alpha = 1;
  for (int64_t i = 0; i < p.rows; ++i)
    if (p.kind[i] & kind && step[i] < 0) alpha = std::min(alpha, -share * value[i] / step[i]);
  return alpha;
}

inline double longest_primal(const Layout& p, const Unknowns& z, const Unknowns& d, double share) {
  const double alpha = longest(p, z.s, d.s, share, inequality);
  return p.has_soft ? std::min(alpha, longest(p, z.e, d.e, share, soft)) : alpha;
}

inline double longest_dual(const Layout& p, const Unknowns& z, const Unknowns& d, double share) {
  const double alpha = longest(p, z.y, d.y, share, inequality);
  return p.has_soft ? std::min(alpha, longest(p, z.v, d.v, share, soft)) : alpha;
}

// Clip y so that s y is within a factor of mu.
inline double near(double y, double s, double mu, double factor) {
  return std::min(std::max(y, mu / (factor * s)), factor * mu / s);
}

}  // namespace optctl::OPTCTL_ISA
