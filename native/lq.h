// The linear-quadratic kernels: the matrix sweep (factor) and the vector sweeps (sweep).
//
// Backward, with P of stage t+1 at hand,
//     S = R + B'PB,  H = M' + B'PA,  K = -S^{-1} H,  P <- Q + A'PA - H'S^{-1}H,
// (of Q, R, Qf and Q0 the symmetric parts), and for each right-hand side
//     g = P c + p,   h = r + B'g,    k = -S^{-1} h,  p <- q + A'g + K'h,
// then forward x+ = A x + B u + c, u = K x + k, costate P x + p.
// optctl/lq/riccati.py states the same recursions in JAX and is their definition.
#pragma once

#include "dense.h"
#include "stages.h"

namespace optctl::OPTCTL_ISA {

namespace factor_io {
enum In { A, B, Q, R, M, Qf, Q0, free0 };
enum Out { K, P, S, S0 };
}  // namespace factor_io

namespace sweep_io {
enum In { A, B, costates_row, xs_row, us_row, start_row, free0, K, P, S, S0 };
enum Out { y, xs, us, costates, k, p };
}  // namespace sweep_io

// S0 = E (Q0 + P_0) E + (I - E), E = diag(free0), factored: the system of the free components of x_0.
template <class T>
bool factor_start(int nx, const T* Q0, const T* P0, const T* free0, T* S0) {
  for (int i = 0; i < nx; ++i)
    for (int j = 0; j < nx; ++j) {
      const bool both = free0[i] != 0 && free0[j] != 0;
      S0[i * nx + j] = both ? (Q0[i * nx + j] + Q0[j * nx + i]) / 2 + P0[i * nx + j] : static_cast<T>(i == j);
    }
  return factor_packed(nx, S0);
}

// NX and NU are the sizes the loops are compiled for, at least the problem's own; 0 stands for run-time sizes.
template <class T, int NX, int NU>
int32_t lq_factor(const Sizes& sizes, const Stages<T>* in, T* const* out) {
  using namespace factor_io;
  using VX = Vec<T, lanes_for<T>(NX ? NX : 1 << 20)>;
  using VU = Vec<T, lanes_for<T>(NU ? NU : 1 << 20)>;
  const int nx = sizes.nx, nu = sizes.nu;                          // of the arrays
  const int mx = NX ? NX : nx, mu = NU ? NU : nu;                  // of the loops
  const int lx = round_up(mx, VX::lanes), lu = round_up(mu, VU::lanes);  // of the rows
  using Space = Workspace<T>;
  Space space(3 * Space::padded(mx * lx) + 2 * Space::padded(mx * lu) + 3 * Space::padded(mu * lx) +
              Space::padded(mu * lu) + Space::padded(lu));
  T* a = space.take(mx * lx);
  T* b = space.take(mx * lu);
  T* value = space.take(mx * lx);  // P
  T* PA = space.take(mx * lx);
  T* PB = space.take(mx * lu);
  T* h = space.take(mu * lx);
  T* Y = space.take(mu * lx);
  T* gain = space.take(mu * lx);
  T* s = space.take(mu * lu);
  T* diagonal = space.take(lu);
  const int64_t N = sizes.N;
  T* Ps = out[P];
  copy_in<VX>(nx, nx, in[Qf][0], nx, value, lx);
  symmetrize(nx, value, lx);
  copy_out<VX>(nx, nx, value, lx, Ps + N * nx * nx, nx);
  for (int64_t t = N - 1; t >= 0; --t) {
    if (t == N - 1 || in[A].step) copy_in<VX>(nx, nx, in[A][t], nx, a, lx);
    if (t == N - 1 || in[B].step) copy_in<VU>(nx, nu, in[B][t], nu, b, lu);
    copy_transposed<VX>(nx, nu, in[M][t], nu, h, lx);
    multiply<1, VU, NX, NX, NU>(mx, lu, mx, plain(value, lx), b, lu, static_cast<T*>(nullptr), 0, PB, lu);
    multiply<1, VX, NX, NX, NX>(mx, lx, mx, plain(value, lx), a, lx, static_cast<T*>(nullptr), 0, PA, lx);
    multiply<1, VU, NU, NX, NU>(mu, lu, mx, transposed(b, lu), PB, lu, static_cast<T*>(nullptr), 0, s, lu);
    add_symmetric_part(nu, in[R][t], s, lu);
    for (int i = nu; i < mu; ++i) s[i * lu + i] = 1;
    multiply<1, VX, NU, NX, NX>(mu, lx, mx, transposed(b, lu), PA, lx, h, lx, h, lx);
    copy_in<VX>(nx, nx, in[Q][t], nx, value, lx);
    if constexpr (!NX) symmetrize(nx, value, lx);  // where only the upper triangle is computed
    multiply_upper<1, VX, NX, NX>(mx, lx, mx, transposed(a, lx), PA, lx, value, lx, value, lx);
    const bool good = eliminate<VX>(mu, s, lu, lx, h, lx, Y, diagonal);
    multiply_upper<-1, VX, NX, NU>(mx, lx, mu, transposed(h, lx), Y, lx, value, lx, value, lx);
    if constexpr (NX) symmetrize(mx, value, lx);
    else mirror_upper(mx, value, lx);
    back_substitute_negative<VX>(mu, s, lu, lx, Y, lx, gain, lx);
    VX total = VX::zero();  // of all numbers: Q may be infinite off the diagonal
    for (int i = 0; i < mx; ++i)
      for (int j = 0; j < lx; j += VX::lanes) total = total + VX::load(value + i * lx + j);
    if (!good || !std::isfinite(total.sum())) {
      fill_nan(out[K], (t + 1) * nu * nx);
      fill_nan(Ps, (t + 1) * nx * nx);
      fill_nan(out[S], (t + 1) * nu * nu);
      fill_nan(out[S0], nx * nx);
      return static_cast<int32_t>(t);
    }
    copy_out<VX>(nu, nx, gain, lx, out[K] + t * nu * nx, nx);
    copy_out<VX>(nx, nx, value, lx, Ps + t * nx * nx, nx);
    copy_out<VU>(nu, nu, s, lu, out[S] + t * nu * nu, nu);
  }
  if (!factor_start(nx, in[Q0][0], Ps, in[free0][0], out[S0])) {
    fill_nan(out[S0], nx * nx);
    return 0;
  }
  return -1;
}

// The right-hand side's rows are those of the optimality system (optctl/lq/kkt.py): -c, -q, -r and that of y.
template <class T>
int32_t lq_sweep(const Sizes& sizes, const Stages<T>* in, T* const* out) {
  using namespace sweep_io;
  using VX = Vec<T, machine_lanes<T>>;
  using VU = VX;
  const int nx = sizes.nx, nu = sizes.nu;
  const int lx = round_up(nx, VX::lanes), lu = round_up(nu, VU::lanes);
  using Space = Workspace<T>;
  Space space(5 * Space::padded(lx) + 2 * Space::padded(lu));
  T* slope = space.take(lx);  // p
  T* g = space.take(lx);
  T* c = space.take(lx);
  T* x = space.take(lx);
  T* x_next = space.take(lx);
  T* h = space.take(lu);
  T* u = space.take(lu);
  const int64_t N = sizes.N;
  copy_negative<VX>(nx, in[xs_row][N], slope);
  copy_out<VX>(1, nx, slope, lx, out[p] + N * nx, nx);
  for (int64_t t = N - 1; t >= 0; --t) {
    copy_negative<VX>(nx, in[costates_row][t + 1], c);
    for (int j = 0; j < lx; j += VX::lanes) VX::load(slope + j).store(g + j);
    add_transposed_times<VX>(nx, nx, in[P][t + 1], c, g);  // P is symmetric
    copy_negative<VU>(nu, in[us_row][t], h);
    add_transposed_times<VU>(nx, nu, in[B][t], g, h);
    T* kt = out[k] + t * nu;
    for (int i = 0; i < nu; ++i) kt[i] = -h[i];
    solve_packed(nu, in[S][t], kt);
    copy_negative<VX>(nx, in[xs_row][t], slope);
    add_transposed_times<VX>(nx, nx, in[A][t], g, slope);
    add_transposed_times<VX>(nu, nx, in[K][t], h, slope);
    copy_out<VX>(1, nx, slope, lx, out[p] + t * nx, nx);
  }
  // x_0 = E y + e, where S0 y = w - E (P_0 e + p_0).
  copy_negative<VX>(nx, in[costates_row][0], c);
  const T* is_free = in[free0][0];
  T* y_out = out[y];
  add_transposed_times<VX>(nx, nx, in[P][0], c, slope);
  for (int i = 0; i < nx; ++i) y_out[i] = in[start_row][0][i] - (is_free[i] != 0 ? slope[i] : T(0));
  solve_packed(nx, in[S0][0], y_out);
  for (int i = 0; i < nx; ++i) x[i] = c[i] + (is_free[i] != 0 ? y_out[i] : T(0));
  for (int64_t t = 0;; ++t) {
    copy_out<VX>(1, nx, x, lx, out[xs] + t * nx, nx);
    copy_in<VX>(1, nx, out[p] + t * nx, nx, g, lx);
    add_transposed_times<VX>(nx, nx, in[P][t], x, g);
    copy_out<VX>(1, nx, g, lx, out[costates] + t * nx, nx);
    if (t == N) return -1;
    for (int i = 0; i < nu; ++i) u[i] = out[k][t * nu + i];
    add_times<VX>(nu, nx, in[K][t], x, u);
    for (int i = 0; i < nu; ++i) out[us][t * nu + i] = u[i];
    copy_negative<VX>(nx, in[costates_row][t + 1], x_next);
    add_times<VX>(nx, nx, in[A][t], x, x_next);
    add_times<VU>(nx, nu, in[B][t], u, x_next);
    T* swap = x;
    x = x_next;
    x_next = swap;
  }
}

}  // namespace optctl::OPTCTL_ISA
