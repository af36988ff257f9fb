// The first state of a solve: scales, the guess inside its bounds, slacks and multipliers.
//
// optctl/shooting/{scaling,interior_point}.py are the definition; the names are theirs.
#pragma once

#include "interior_point.h"

namespace optctl::OPTCTL_ISA {

constexpr double scale_small = 1e-2, scale_large = 1e2, scale_relative = 1e-3;
constexpr double first_barrier = 0.1, active_share = 1e-9;

// Scales of states, inputs, rows and cost; those that a user gave.
struct Scales {
  std::vector<double> x, u, rows;
  double cost = 1;
};

// The power of two next to a size, 1 where it is usual or unknown.
inline double rounded(double size) {
  if ((size >= scale_small && size <= scale_large) || !std::isfinite(size) || size <= 0) return 1;
  return std::exp2(std::nearbyint(std::log2(size)));
}

class Start {
 public:
  // `given` are the user's scales, x or u empty where there are none; `linear` tells which states have linear dynamics.
  Start(const Layout& layout, const Unknowns& z, const Expansion& e, const Scales& given, const double* linear)
      : p_(layout), z_(z), e_(e), given_(given), linear_(linear) {}

  // Scales at the guess, where it says something; `step` makes Newton's step in given scales, or returns null.
  template <class Step>
  Scales scales(const Step& step) const {
    const Scales first = choose(given_, 0, 1);
    const double said = largest(largest_over(z_.xs, p_.N + 1, p_.nx, first.x), largest_over(z_.us, p_.N, p_.nu, first.u));
    if (!(said < scale_small) && !(steepness(first.x, first.u) < scale_small)) return first;
    if (!finite()) return first;
    // With states as large as the inputs make them: else the equalities would hardly be felt.
    const Scales felt = choose(given_, 0, 0);
    Scales sizes{first.x, first.u, {}, 1};
    double later = 0;
    if (const Unknowns* d = step(felt)) {
      if (given_.x.empty() && given_.u.empty()) within_reach(felt, *d, sizes);
      later = slope_behind(felt, sizes, *d);
    }
    return choose(sizes, later, 1);
  }

  // Constant states and clocks, x+ = x + c, as their dynamics have them from x_0 on.
  void close() const {
    for (int i = 0; i < p_.nx; ++i) {
      if (linear_[i] == 0 || !stands_still(p_, e_, i)) continue;
      double sum = 0;
      for (int64_t t = 0; t < p_.N; ++t) {
        const double gap = e_.at.gaps[t * p_.nx + i];
        sum += gap;
        if (std::isfinite(gap)) z_.xs[(t + 1) * p_.nx + i] += sum;
      }
    }
  }

  // Move the guess into its bounds, a little away from them; onto bounds that are equal.
  void push_inside(const Scales& by) const {
    for (int i = 0; i < p_.nx; ++i)
      if (p_.x0_free[i] != 0) z_.xs[i] = inside(z_.xs[i], p_.bound(x0_min, i), p_.bound(x0_max, i), by.x[i]);
    for (int64_t k = 0; k < p_.N * p_.nx; ++k)
      z_.xs[p_.nx + k] = inside(z_.xs[p_.nx + k], p_.bound(x_min, k), p_.bound(x_max, k), by.x[k % p_.nx]);
    for (int64_t k = 0; k < p_.N * p_.nu; ++k)
      z_.us[k] = inside(z_.us[k], p_.bound(u_min, k), p_.bound(u_max, k), by.u[k % p_.nu]);
  }

  // Slacks, multipliers and misses in the units of the iterations, z and the expansion being in the user's; returns mu.
  double barrier(const Scales& by, double cost, double wanted) const {
    int64_t inequalities = 0;
    for (int64_t i = 0; i < p_.rows; ++i) inequalities += p_.kind[i] & inequality ? 1 : 0;
    const double per_row = std::fabs(cost / by.cost) / std::max<int64_t>(1, inequalities);
    const double mu = std::isnan(wanted) ? first_barrier * std::max(1.0, std::isfinite(per_row) ? per_row : 0.0) : wanted;
    for (int64_t i = 0; i < p_.rows; ++i) {
      const bool on = p_.kind[i] & inequality;
      const double c = e_.at.c[i] * by.rows[i];
      double s = on ? std::max(-c, start_margin) : 1;
      if (on && c != c) s = c;
      double y = on ? mu / s : 0;
      if (p_.has_soft) {
        const bool priced = p_.kind[i] & soft;
        z_.e[i] = priced ? std::max(c, 0.0) + start_margin : 1;
        if (priced) s = z_.e[i] - c, y = mu / s;
        z_.v[i] = priced ? mu / z_.e[i] : 1;
      }
      z_.s[i] = s, z_.y[i] = y;
    }
    return mu;
  }

  // The largest curvature of the cost along a single variable, times the square of its size.
  double curvature(const std::vector<double>& x, const std::vector<double>& u) const {
    const int nx = p_.nx, nz = p_.nz;
    double most = 0;
    auto along = [&](const double* W, int n) {
      for (int i = 0; i < n; ++i) {
        const double s = i < nx ? x[i] : u[i - nx];
        most = largest(most, std::fabs(W[i * n + i]) * (s * s));
      }
    };
    along(e_.W0, nx), along(e_.Wf, nx);
    for (int64_t t = 0; t < p_.N; ++t) along(e_.W + t * nz * nz, nz);
    return most;
  }

  // The least size of the cost that tolerances refer to, by what the point says.
  double least_size(const Scales& by) const {
    const Scales size = sizes_at(by);
    return cost_floor * largest(steepness(size.x, size.u), curvature(size.x, size.u));
  }

  // How large states and inputs are: their scales, or the point where it is larger.
  Scales sizes_at(const Scales& by) const {
    Scales made{by.x, by.u, {}, 1};
    for (int64_t k = 0; k < (p_.N + 1) * p_.nx; ++k) made.x[k % p_.nx] = largest(made.x[k % p_.nx], std::fabs(z_.xs[k]));
    for (int64_t k = 0; k < p_.N * p_.nu; ++k) made.u[k % p_.nu] = largest(made.u[k % p_.nu], std::fabs(z_.us[k]));
    return made;
  }

  // Scales from the point, the bounds and the first derivatives. `later` is how steep the cost gets, for guesses where
  // it is flat; `least` the size of states of which nothing is known.
  Scales choose(const Scales& given, double later, double least) const {
    const int nx = p_.nx, nu = p_.nu;
    Scales made;
    made.u = given.u;
    if (given.u.empty())
      for (double size : guess_sizes(u_min, z_.us, p_.N, nu)) made.u.push_back(rounded(size));
    made.x = given.x;
    if (given.x.empty()) {
      std::vector<double> others(nx * nx, 0.0), by_u(nx, 0.0), moves(nu);
      for (int i = 0; i < nx; ++i) {
        std::fill(moves.begin(), moves.end(), 0.0);
        for (int64_t t = 0; t < p_.N; ++t) {
          const double *A = e_.A + (t * nx + i) * nx, *B = e_.B + (t * nx + i) * nu;
          for (int j = 0; j < nx; ++j) others[i * nx + j] = largest(others[i * nx + j], std::fabs(A[j]));
          for (int j = 0; j < nu; ++j) moves[j] = largest(moves[j], std::fabs(B[j]));
        }
        others[i * nx + i] *= 0;
        for (int j = 0; j < nu; ++j) by_u[i] = largest(by_u[i], moves[j] * made.u[j]);
      }
      const std::vector<double> known = guess_sizes(x_min, z_.xs, p_.N + 1, nx);
      std::vector<double> size = known, next(nx);
      for (int k = 0; k < 2; ++k) {
        for (int i = 0; i < nx; ++i) {
          double moved = by_u[i];
          for (int j = 0; j < nx; ++j) moved = largest(moved, others[i * nx + j] * size[j]);
          next[i] = known[i] > 0 ? largest(known[i], scale_relative * moved) : largest(least, std::sqrt(double(p_.N)) * moved);
        }
        size = next;
      }
      for (double s : size) made.x.push_back(rounded(s));
    }
    double slope = steepness(made.x, made.u);
    if (slope < scale_small) slope = largest(slope, later);
    made.cost = slope > scale_large ? rounded(slope) / scale_large : std::min(rounded(largest(slope, curvature(made.x, made.u))), 1.0);
    scale_rows(made);
    return made;
  }

  // What rows are to be multiplied by, for scales of states and inputs.
  void scale_rows(Scales& made) const {
    const int nx = p_.nx;
    made.rows.assign(p_.rows, 1.0);
    for (int b = x0_min; b <= u_max; ++b) {
      if (p_.block[b] < 0) continue;
      const std::vector<double>& size = b <= x_max ? made.x : made.u;
      for (int64_t k = 0; k < p_.bound_size(b); ++k) made.rows[p_.block[b] + k] = 1 / size[k % size.size()];
    }
    auto functions = [&](int b, int m, int n, int64_t stages, const double* J) {
      for (int i = 0; i < m; ++i) {
        double slope = 0, value = 0;
        for (int64_t t = 0; t < stages; ++t) {
          const double* of = J + (t * m + i) * n;
          for (int j = 0; j < n; ++j) slope = largest(slope, std::fabs(of[j]) * (j < nx ? made.x[j] : made.u[j - nx]));
          value = largest(value, std::fabs(e_.at.c[p_.block[b] + t * m + i]));
        }
        const double size = 1 / rounded(slope < scale_small ? largest(slope, value) : slope);
        for (int64_t t = 0; t < stages; ++t) made.rows[p_.block[b] + t * m + i] = size;
      }
    };
    for (int b = 0; b < 2; ++b) {
      functions(path_inequality + b, p_.path[b], p_.nz, p_.N, e_.J[b]);
      functions(terminal_inequality + b, p_.end[b], nx, 1, e_.Jf[b]);
    }
  }

 private:
  static double largest_over(const double* z, int64_t stages, int n, const std::vector<double>& size) {
    double most = 0;
    for (int64_t k = 0; k < stages * n; ++k) most = largest(most, std::fabs(z[k] / size[k % n]));
    return most;
  }

  // How large the n states or inputs are, 0 where it is not known; `first` is the block of their lower bounds.
  std::vector<double> guess_sizes(int first, const double* z, int64_t stages, int n) const {
    std::vector<double> said(n, 0.0), limit(n, 0.0);
    for (int64_t k = 0; k < stages * n; ++k) said[k % n] = largest(said[k % n], std::fabs(z[k]));
    for (int b = first == x_min ? x0_min : first; b <= first + 1; ++b) {
      if (p_.block[b] < 0) continue;
      const double* bounds = p_.bounds + p_.block[b];
      for (int64_t k = 0; k < p_.bound_size(b); ++k)
        if (std::isfinite(bounds[k])) limit[k % n] = std::max(limit[k % n], std::fabs(bounds[k]));
    }
    for (int i = 0; i < n; ++i)
      if (!(said[i] >= 1)) said[i] = limit[i] < 1 && limit[i] > said[i] ? limit[i] : 0;
    return said;
  }

  // The largest slope of the cost along a single variable, times its size.
  double steepness(const std::vector<double>& x, const std::vector<double>& u) const {
    const int nx = p_.nx, nu = p_.nu;
    double most = 0;
    for (int i = 0; i < nx; ++i) most = largest(most, std::fabs(e_.q0[i]) * x[i]);
    for (int64_t k = 0; k < (p_.N + 1) * nx; ++k) most = largest(most, std::fabs(e_.qs[k]) * x[k % nx]);
    for (int64_t k = 0; k < p_.N * nu; ++k) most = largest(most, std::fabs(e_.rs[k]) * u[k % nu]);
    return most;
  }

  bool finite() const {
    const int64_t N = p_.N, nx = p_.nx, nu = p_.nu, nz = p_.nz;
    auto all = [](const double* v, int64_t count) {
      double sum = 0;
      for (int64_t k = 0; k < count; ++k) sum += v[k] - v[k];
      return sum == 0;
    };
    bool fine = all(e_.at.gaps, N * nx) && all(e_.at.c, p_.rows) && all(e_.q0, nx) && all(e_.qs, (N + 1) * nx);
    fine = fine && all(e_.rs, N * nu) && all(e_.A, N * nx * nx) && all(e_.B, N * nx * nu) && all(e_.W0, nx * nx);
    fine = fine && all(e_.W, N * nz * nz) && all(e_.Wf, nx * nx);
    for (int b = 0; b < 2; ++b) fine = fine && all(e_.J[b], N * p_.path[b] * nz) && all(e_.Jf[b], p_.end[b] * nx);
    return fine;
  }

  // Scales of states and inputs where the point and a step (in units of `by`) say that all is small.
  void within_reach(const Scales& by, const Unknowns& d, Scales& sizes) const {
    std::vector<double> x(p_.nx, 0.0), u(p_.nu, 0.0);
    auto reach = [](const double* z, const double* d, int64_t count, const std::vector<double>& by, std::vector<double>& to) {
      for (int64_t k = 0; k < count; ++k) {
        const size_t i = k % by.size();
        to[i] = largest(to[i], largest(std::fabs(z[k]), std::fabs(z[k] + d[k] * by[i])));
      }
    };
    reach(z_.xs, d.xs, (p_.N + 1) * p_.nx, by.x, x);
    if (p_.nu) reach(z_.us, d.us, p_.N * p_.nu, by.u, u);
    const double most = largest(largest_of(p_.nx, x.data()), largest_of(p_.nu, u.data()));
    if (!(most > 0 && most < scale_small)) return;
    const double least = scale_relative * scale_relative * most;  // the rest is rounding
    for (int i = 0; i < p_.nx; ++i) sizes.x[i] = rounded(std::max(x[i], least));
    for (int i = 0; i < p_.nu; ++i) sizes.u[i] = rounded(std::max(u[i], least));
  }

  // How steep the cost is behind a step d (in units of `by`, like the slopes), along variables as large as `sizes`.
  double slope_behind(const Scales& by, const Scales& sizes, const Unknowns& d) const {
    const int nx = p_.nx, nu = p_.nu, nz = p_.nz;
    double most = 0;
    for (int64_t t = 0; t < p_.N; ++t)
      for (int i = 0; i < nz; ++i) {
        const double* W = e_.W + (t * nz + i) * nz;
        double slope = i < nx ? e_.qs[t * nx + i] : e_.rs[t * nu + i - nx];
        for (int j = 0; j < nx; ++j) slope += W[j] * d.xs[t * nx + j] * by.x[j];
        for (int j = 0; j < nu; ++j) slope += W[nx + j] * d.us[t * nu + j] * by.u[j];
        most = largest(most, std::fabs(slope) * (i < nx ? sizes.x[i] : sizes.u[i - nx]));
      }
    return most;
  }

  const Layout p_;
  const Unknowns z_;
  const Expansion& e_;
  const Scales& given_;
  const double* linear_;
};

}  // namespace optctl::OPTCTL_ISA
