// Scales of a problem: the iterations see states, inputs, rows and cost of size one, whatever units the user has.
//
// optctl/shooting/scaling.py is the definition: x = S_x x~, u = S_u u~, c~ = D c, J~ = J / sigma. Numbers change their
// units on their way into a tape and out of it (trajectory.h); what is here is for what goes in and out of the kernel.
#pragma once

#include <algorithm>
#include <vector>

#include "layout.h"

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

  // States and inputs alone, to the units of the iterations.
  void inward_point(const Unknowns& z) const {
    for (int64_t k = 0; k < (p_.N + 1) * p_.nx; ++k) z.xs[k] *= inverse_[k % p_.nx];
    for (int64_t k = 0; k < p_.N * p_.nu; ++k) z.us[k] *= inverse_[p_.nx + k % p_.nu];
  }

  // To the units of the iterations, or back to the user's; from one point to another, or in place.
  void inward(const Unknowns& from, const Unknowns& to) const { move(from, to, inverse_.data(), z_.data(), false); }
  void outward(const Unknowns& from, const Unknowns& to) const { move(from, to, z_.data(), inverse_.data(), true); }

  // The size of state or input i, and of its inverse; of row i of block b, which is the same at all stages.
  double z(int i) const { return z_[i]; }
  double over(int i) const { return inverse_[i]; }
  double row(int b, int i) const { return rows_[p_.block[b] + i]; }

  // To the user's units, in place.
  void outward(const Expansion& e) const {
    const int nx = p_.nx, nu = p_.nu, nz = p_.nz;
    const double *z = z_.data(), *over = inverse_.data();
    std::vector<double> off(p_.rows);
    for (int64_t k = 0; k < p_.rows; ++k) e.at.c[k] *= off[k] = 1 / rows_[k];
    scale(e.q0, 1, nx, &cost_, over), scale(e.qs, 1, nx, &cost_, over);
    scale(e.W0, nx, nx, over, over, cost_), scale(e.Wf, nx, nx, over, over, cost_);
    for (int64_t t = 0; t < p_.N; ++t) {
      for (int i = 0; i < nx; ++i) e.at.gaps[t * nx + i] *= z[i];
      scale(e.qs + (t + 1) * nx, 1, nx, &cost_, over);
      scale(e.rs + t * nu, 1, nu, &cost_, over + nx);
      scale(e.A + t * nx * nx, nx, nx, z, over);
      scale(e.B + t * nx * nu, nx, nu, z, over + nx);
      scale(e.W + t * nz * nz, nz, nz, over, over, cost_);
      for (int b = 0; b < 2; ++b) {
        const int m = p_.path[b];
        scale(e.J[b] + t * m * nz, m, nz, off.data() + p_.block[path_inequality + b] + t * m, over);
      }
    }
    for (int b = 0; b < 2; ++b) scale(e.Jf[b], p_.end[b], nx, off.data() + p_.block[terminal_inequality + b], over);
  }

  // Feedback gains, to the user's units.
  void outward_gains(double* K) const {
    for (int64_t t = 0; t < p_.N; ++t)
      for (int i = 0; i < p_.nu; ++i)
        for (int j = 0; j < p_.nx; ++j, ++K) *K *= z_[p_.nx + i] * inverse_[j];
  }

 private:
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
      const double D = back ? 1 / rows_[k] : rows_[k], price = cost / D;
      to.s[k] = from.s[k] * D, to.y[k] = from.y[k] * price;
      if (p_.has_soft) to.e[k] = from.e[k] * D, to.v[k] = from.v[k] * price;
    }
  }

  // A matrix, its rows times `left`, its columns times `right`, and a number.
  static void scale(double* a, int rows, int columns, const double* left, const double* right, double factor = 1) {
    for (int i = 0; i < rows; ++i)
      for (int j = 0; j < columns; ++j, ++a) *a = *a * left[i] * right[j] * factor;
  }

  const Layout p_;
  std::vector<double> z_, inverse_;
  const double* rows_;
  const double cost_;
  bool trivial_;
};

}  // namespace optctl::OPTCTL_ISA
