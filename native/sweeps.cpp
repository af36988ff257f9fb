// The linear recursions along a trajectory, given its Jacobians: no tapes, and small enough for any instruction set.
//
// optctl/dynamics/base.py has the definitions (`tangent`, `adjoint`).
#include <algorithm>

#include "kernels.h"

namespace optctl {

// dxs (N+1, nx): dx+ = A dx + B du + c, from dx0. Sizes N, nx, nu; A, B, c (N, nx), dx0, dus.
void tangent(const int64_t* sizes, void* const* arrays) {
  const int64_t N = sizes[0], nx = sizes[1], nu = sizes[2];
  const auto in = reinterpret_cast<const double* const*>(arrays);
  const double *A = in[0], *B = in[1], *c = in[2], *du = in[4];
  double* dx = static_cast<double*>(arrays[5]);
  std::copy_n(in[3], nx, dx);
  for (int64_t t = 0; t < N; ++t, dx += nx, du += nu, c += nx)
    for (int64_t i = 0; i < nx; ++i, A += nx, B += nu) {
      double sum = c[i];
      for (int64_t j = 0; j < nx; ++j) sum += A[j] * dx[j];
      for (int64_t j = 0; j < nu; ++j) sum += B[j] * du[j];
      dx[nx + i] = sum;
    }
}

// The transpose: costates (N+1, nx), lambda = gx + A' lambda+, the last one gx, and gus (N, nu), gu + B' lambda+. Sizes
// N, nx, nu; A, B, gxs (N+1, nx), gu (N, nu).
void costates(const int64_t* sizes, void* const* arrays) {
  const int64_t N = sizes[0], nx = sizes[1], nu = sizes[2];
  const auto in = reinterpret_cast<const double* const*>(arrays);
  double *costates = static_cast<double*>(arrays[4]), *gus = static_cast<double*>(arrays[5]);
  std::copy_n(in[2], (N + 1) * nx, costates);
  std::copy_n(in[3], N * nu, gus);
  for (int64_t t = N - 1; t >= 0; --t) {
    const double *A = in[0] + t * nx * nx, *B = in[1] + t * nx * nu, *later = costates + (t + 1) * nx;
    for (int64_t i = 0; i < nx; ++i) {
      for (int64_t j = 0; j < nx; ++j) costates[t * nx + j] += A[i * nx + j] * later[i];
      for (int64_t j = 0; j < nu; ++j) gus[t * nu + j] += B[i * nu + j] * later[i];
    }
  }
}

}  // namespace optctl
