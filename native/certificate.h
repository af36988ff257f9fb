// The certificate of a point with multipliers: the first-order conditions in the user's units.
//
// optctl/shooting/certificate.py is the definition; the names are its.
#pragma once

#include "start.h"

namespace optctl::OPTCTL_ISA {

#define OPTCTL_FIELD(name) double name = 0;
struct Figures {
  OPTCTL_FIGURES(OPTCTL_FIELD)
};
#undef OPTCTL_FIELD

// The point, its expansion and the prices are in the user's units, like cost, first cost and floor; `by` are the scales
// of the solve, `given` those of the user. A scale that a large guess gave counts as far as the point says the same.
inline Figures certify(const Layout& p, const Unknowns& z, const Expansion& e, const Scales& by, const Scales& given,
                       double cost, double first, double floor) {
  const int nx = p.nx, nu = p.nu;
  const int64_t N = p.N;
  Figures made;
  const Start point(p, z, e, given, nullptr);
  Scales here = point.choose(given, 0, 1);
  for (int i = 0; i < nx; ++i) here.x[i] = std::min(here.x[i], by.x[i]);
  for (int i = 0; i < nu; ++i) here.u[i] = std::min(here.u[i], by.u[i]);
  const double size = cost_size(cost + price_of_misses(p, z), first, largest(point.least_size(here), floor));
  // Slopes that were steep at the guess and are not here are no excuse.
  point.scale_rows(here);
  std::vector<double> y(p.rows, 0.0), g0(nx, 0.0), gx((N + 1) * nx, 0.0), gu(N * nu, 0.0);
  double over_scaled = 0, sum_of_products = 0;
  made.strict_complementarity = INFINITY;
  auto strict = [&](double distance, double price) {
    made.strict_complementarity = std::min(made.strict_complementarity, std::max(distance, price / cost_size(cost, first, floor)));
  };
  for (int64_t i = 0; i < p.rows; ++i) {
    const int kind = p.kind[i];
    const double c = e.at.c[i];
    if (kind & (inequality | equality)) y[i] = z.y[i];
    const bool either_sign = kind & equality || (kind & off && i >= p.block[path_equality] && i < p.block[path_equality] + N * p.path[1]);
    double over = kind & (inequality | equality | off) ? (either_sign ? std::fabs(c) : c != c ? c : std::max(c, 0.0)) : 0;
    if (kind & inequality) {
      const double miss = kind & soft ? over : 0, price = kind & soft ? p.l1[i] + p.l2[i] * miss : INFINITY;
      if (kind & soft) over = 0;
      const double wrong = std::max(-y[i], std::max(y[i] - price, 0.0));
      double product = std::fabs(y[i] * (miss - c));
      if (kind & soft) product = largest(product, miss * std::fabs(price - y[i]));
      made.dual_feasibility = largest(made.dual_feasibility, wrong);
      made.dual_feasibility_scaled = largest(made.dual_feasibility_scaled, wrong / by.rows[i] / size);
      made.complementarity = largest(made.complementarity, product);
      sum_of_products += product;
      strict(z.s[i], y[i]);
      if (kind & soft) strict(z.e[i], z.v[i]);
    }
    const bool on = kind & (inequality | equality);
    made.primal_feasibility = largest(made.primal_feasibility, over);
    over_scaled = largest(over_scaled, over * (on ? std::max(by.rows[i], std::min(1.0, here.rows[i])) : 1));
  }
  made.complementarity_scaled = sum_of_products / size;
  add_transposed_rows(p, e, y.data(), g0.data(), gx.data(), gu.data());
  auto slope = [&](double g, double scale, double value) {
    made.stationarity = largest(made.stationarity, std::fabs(g));
    made.stationarity_scaled = largest(made.stationarity_scaled, std::fabs(g) * std::max(scale, std::fabs(value)) / size);
  };
  for (int64_t t = 0; t <= N; ++t) {
    double* g = gx.data() + t * nx;
    for (int i = 0; i < nx; ++i) g[i] += e.qs[t * nx + i] - z.costates[t * nx + i];
    if (t < N) {
      const double* later = z.costates + (t + 1) * nx;
      double* h = gu.data() + t * nu;
      for (int i = 0; i < nu; ++i) h[i] += e.rs[t * nu + i];
      add_transposed_product(nx, nx, e.A + t * nx * nx, later, g);
      add_transposed_product(nx, nu, e.B + t * nx * nu, later, h);
      for (int i = 0; i < nu; ++i) slope(h[i], here.u[i], z.us[t * nu + i]);
      for (int i = 0; i < nx; ++i) {
        const double gap = std::fabs(e.at.gaps[t * nx + i]);
        made.primal_feasibility = largest(made.primal_feasibility, gap);
        over_scaled = largest(over_scaled, gap / std::max(here.x[i], std::fabs(z.xs[(t + 1) * nx + i])));
      }
    }
    for (int i = 0; i < nx; ++i) slope(g[i], here.x[i], z.xs[t * nx + i]);
  }
  for (int i = 0; i < nx; ++i)
    if (p.x0_free[i] != 0) slope(e.q0[i] + g0[i] + z.costates[i], here.x[i], z.xs[i]);
  made.primal_feasibility_scaled = over_scaled;
  return made;
}

}  // namespace optctl::OPTCTL_ISA
