// Scales of a problem: the iterations see states, inputs, rows and cost of size one, whatever units the user has.
//
// optctl/shooting/scaling.py is the definition: x = S_x x~, u = S_u u~, c~ = D c, J~ = J / sigma.
#pragma once

#include <algorithm>

#include "trajectory.h"

namespace optctl::OPTCTL_ISA {

class Scaling {
 public:
  Scaling(const Layout& p, const double* x, const double* u, const double* rows, double cost)
      : p_(p), z_(x, x + p.nx), rows_(rows), cost_(cost) {
    z_.insert(z_.end(), u, u + p.nu);
    for (double s : z_) inverse_.push_back(1 / s);
    trivial_ = cost == 1 && std::all_of(z_.begin(), z_.end(), [](double s) { return s == 1; }) &&
               std::all_of(rows, rows + p.rows, [](double s) { return s == 1; });
  }

  bool trivial() const { return trivial_; }
  double cost() const { return cost_; }

  // To the units of the iterations, or back to the user's; from one point to another, or in place.
  void inward(const Unknowns& from, const Unknowns& to) const { move(from, to, inverse_.data(), z_.data(), false); }
  void outward(const Unknowns& from, const Unknowns& to) const { move(from, to, z_.data(), inverse_.data(), true); }

  void inward(const Values& from, const Values& to) const {
    for (int64_t t = 0; t < p_.N; ++t)
      for (int i = 0; i < p_.nx; ++i) to.gaps[t * p_.nx + i] = from.gaps[t * p_.nx + i] * inverse_[i];
    for (int64_t k = 0; k < p_.rows; ++k) to.c[k] = from.c[k] * rows_[k];
  }

  void inward(const Expansion& from, const Expansion& to) const {
    const int nx = p_.nx, nu = p_.nu, nz = p_.nz;
    const double *z = z_.data(), *over = inverse_.data(), per_cost = 1 / cost_;
    inward(from.at, to.at);
    scale(from.q0, to.q0, 1, nx, &per_cost, z), scale(from.qs, to.qs, 1, nx, &per_cost, z);
    scale(from.W0, to.W0, nx, nx, z, z, per_cost), scale(from.Wf, to.Wf, nx, nx, z, z, per_cost);
    for (int64_t t = 0; t < p_.N; ++t) {
      scale(from.qs + (t + 1) * nx, to.qs + (t + 1) * nx, 1, nx, &per_cost, z);
      scale(from.rs + t * nu, to.rs + t * nu, 1, nu, &per_cost, z + nx);
      scale(from.A + t * nx * nx, to.A + t * nx * nx, nx, nx, over, z);
      scale(from.B + t * nx * nu, to.B + t * nx * nu, nx, nu, over, z + nx);
      scale(from.W + t * nz * nz, to.W + t * nz * nz, nz, nz, z, z, per_cost);
      for (int b = 0; b < 2; ++b) {
        const int m = p_.path[b];
        scale(from.J[b] + t * m * nz, to.J[b] + t * m * nz, m, nz, rows_ + p_.block[path_inequality + b] + t * m, z);
      }
    }
    for (int b = 0; b < 2; ++b)
      scale(from.Jf[b], to.Jf[b], p_.end[b], nx, rows_ + p_.block[terminal_inequality + b], z);
  }

  // Feedback gains, to the user's units.
  void outward_gains(double* K) const {
    for (int64_t t = 0; t < p_.N; ++t)
      for (int i = 0; i < p_.nu; ++i)
        for (int j = 0; j < p_.nx; ++j, ++K) *K *= z_[p_.nx + i] * inverse_[j];
  }

 private:
  // Row k is multiplied by its scale, or divided by it.
  double row(int64_t k, bool back) const { return back ? 1 / rows_[k] : rows_[k]; }

  void move(const Unknowns& from, const Unknowns& to, const double* by, const double* other, bool back) const {
    const double cost = back ? cost_ : 1 / cost_;
    for (int64_t t = 0; t <= p_.N; ++t)
      for (int i = 0; i < p_.nx; ++i) {
        const int64_t k = t * p_.nx + i;
        to.xs[k] = from.xs[k] * by[i];
        to.costates[k] = from.costates[k] * other[i] * cost;
      }
    for (int64_t t = 0; t < p_.N; ++t)
      for (int i = 0; i < p_.nu; ++i) to.us[t * p_.nu + i] = from.us[t * p_.nu + i] * by[p_.nx + i];
    for (int64_t k = 0; k < p_.rows; ++k) {
      const double D = row(k, back), price = cost / D;
      to.s[k] = from.s[k] * D, to.y[k] = from.y[k] * price;
      if (p_.has_soft) to.e[k] = from.e[k] * D, to.v[k] = from.v[k] * price;
    }
  }

  // A matrix, its rows times `left`, its columns times `right`, and a number.
  static void scale(const double* from, double* to, int rows, int columns, const double* left, const double* right,
                    double factor = 1) {
    for (int i = 0; i < rows; ++i)
      for (int j = 0; j < columns; ++j, ++from, ++to) *to = *from * left[i] * right[j] * factor;
  }

  const Layout p_;
  std::vector<double> z_, inverse_;
  const double* rows_;
  const double cost_;
  bool trivial_;
};

// The functions of a problem in the units of the iterations. `e` is the expansion in the user's units, which is filled.
class ScaledFunctions {
 public:
  ScaledFunctions(const Layout& p, const int32_t* program, const double* memory, const Expansion& e, const Scaling& by)
      : inner_(p, program, memory, e), user_e_(e), by_(by), space_(by.trivial() ? 0 : room(p)) {
    e_ = e;
    if (by.trivial()) return;
    const size_t N = p.N, nx = p.nx, nu = p.nu, nz = p.nz, misses = p.has_soft ? p.rows : 0;
    auto take = [&](size_t count) { return space_.take(count); };
    user_ = {take((N + 1) * nx), take(N * nu), take((N + 1) * nx), take(p.rows), take(p.rows), take(misses), take(misses)};
    user_values_ = {take(N * nx), take(p.rows)};
    e_ = {{take(N * nx), take(p.rows)}, take(nx), take((N + 1) * nx), take(N * nu), take(N * nx * nx), take(N * nx * nu),
          {take(N * p.path[0] * nz), take(N * p.path[1] * nz)}, {take(p.end[0] * nx), take(p.end[1] * nx)},
          take(nx * nx), take(N * nz * nz), take(nx * nx)};
  }

  void evaluate(const Unknowns& z, Values& v) {
    if (by_.trivial()) return inner_.evaluate(z, v);
    by_.outward(z, user_);
    inner_.evaluate(user_, user_values_);
    by_.inward(user_values_, v);
  }

  void expand(const Unknowns& z) {
    if (by_.trivial()) return inner_.expand(z);
    by_.outward(z, user_);
    inner_.expand(user_);
    by_.inward(user_e_, e_);
  }

  const Expansion& expansion() const { return e_; }
  double cost() const { return inner_.cost() / by_.cost(); }

 private:
  static size_t room(const Layout& p) {
    const size_t N = p.N, nx = p.nx, nu = p.nu, nz = p.nz, m = p.path[0] + p.path[1], end = p.end[0] + p.end[1];
    const size_t point = (N + 1) * 2 * nx + N * nu + 4 * p.rows + 7 * 8, values = N * nx + p.rows + 2 * 8;
    return point + 2 * values + nx + (N + 1) * nx + N * (nu + nx * nx + nx * nu + m * nz + nz * nz) + end * nx + 2 * nx * nx +
           12 * 8;
  }

  ProblemFunctions inner_;
  const Expansion user_e_;
  const Scaling& by_;
  Workspace<double> space_;
  Unknowns user_;
  Values user_values_;
  Expansion e_;
};

}  // namespace optctl::OPTCTL_ISA
