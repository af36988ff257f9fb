// The linear-Gaussian kernels on square roots: filter (forward) and smoother (backward).
//
// R is a root of P if P = R'R; reflections of an array's rows keep its product with itself. Forward, with U, R roots of
// the covariance of x_t before and after the measurement, V_R and W_R those of the noises, v = z - C m:
//     [ V_R    0 ]      [ S   K ]                                      [ W_R    0 ]      [ U   Y ]
//     [ U C'   U ]  ->  [ 0   R ],    e = S^{-T} v,   m <- m + K'e,    [ R A'   R ]  ->  [ 0   E ],    G' = U^{-1} Y.
// Backward, R_s a root of the smoothed covariance P_s, d the smoothed minus the predicted mean, r minus the costate:
//     [ R_s G' ]      [ R_s ]         d = K'e + G d_next,               lag one P_s_next G',
//     [ E      ]  ->  [  0  ],        r = rho + C'S^{-1}(e - K rho),    rho = A'r_next.
// No covariance is inverted, so that each may be singular: a column that hangs on earlier ones has no pivot.
// optctl/estimation/square_root.py states the same recursions in JAX and is their definition.
#pragma once

#include <cmath>
#include <limits>
#include <utility>

#include "gaussian.h"

namespace optctl::OPTCTL_ISA {

namespace root_forward_io {
enum In { A, C, W, V, mean0, cov0, b, z };
enum Out { log_likelihood, means, covs, predicted_means, predicted_covs };
enum OfRegressions { S = 2, K, e, gains, rests };  // after log_likelihood and means
}  // namespace root_forward_io

namespace root_smooth_io {
enum In { A, C, means, S, K, e, gains, rests };
enum Out { smoothed_means, smoothed_covs, lag_one_covs, r };
}  // namespace root_smooth_io

// How small the part of a column that does not hang on earlier ones must be to be taken as rounding.
template <class T>
constexpr T tolerance = 8 * std::numeric_limits<T>::epsilon();

// An array of top + below rows whose first `columns` columns, at most `top`, are to be brought into echelon form.
// `triangular` says that those of the upper rows are triangular already.
struct Shape {
  int columns, top, below, width;
  bool triangular;
};

// Room for a column, and for which columns have pivots.
template <class T>
struct Room {
  T* column;
  int* pivots;
};

// Exchange row p for the one with the largest entry in column k, and return that entry: small rows then keep their
// relative precision, whatever is large in others. `upper` and `lower` hold the column.
template <class V, class T>
__attribute__((noinline)) T exchange(const Shape& shape, int p, int middle, int k, T* M, int ld, T* upper, T* lower) {
  T* const first = M + p * ld;
  T* row = first;
  T alpha = row[k];
  T* largest = &alpha;
  for (int i = p + 1; i < middle; ++i)
    if (std::abs(upper[i]) > std::abs(*largest)) largest = upper + i, row = M + i * ld;
  for (int i = 0; i < shape.below; ++i)
    if (std::abs(lower[i]) > std::abs(*largest)) largest = lower + i, row = M + (shape.top + i) * ld;
  for (int j = k / V::lanes * V::lanes; j < shape.width; j += V::lanes) {
    const V kept = V::load(first + j);
    V::load(row + j).store(first + j);
    kept.store(row + j);
  }
  std::swap(alpha, *largest);
  return first[k];
}

// Householder reflections of the rows. Returns the number of pivots, their columns in room.pivots; what lies left of a
// row's pivot is rounding, and not read. Below > 0 is shape.below at compile time. Each reflection waits for the one
// before, so sums run in two halves and the column's length is not read from a vector.
template <class V, int Below, class T>
__attribute__((noinline)) int echelon(const Shape& shape, T* M, int ld, Room<T> room) {
  const int top = shape.top, below = Below ? Below : shape.below;
  T* const bottom = M + top * ld;
  T* const upper = room.column;  // in the rows p + 1..middle, the others are zero there
  T* const lower = room.column + top;
  int p = 0;
  for (int k = 0; k < shape.columns; ++k) {
    const int middle = shape.triangular ? k + 1 : top;
    T alpha = M[p * ld + k];
    T square = alpha * alpha, odd = 0, before = 0;
    for (int i = p + 1; i < middle; ++i) {
      upper[i] = M[i * ld + k];
      square += upper[i] * upper[i];
    }
    OPTCTL_UNROLL
    for (int i = 0; i < below; ++i) {
      lower[i] = bottom[i * ld + k];
      (i % 2 ? square : odd) += lower[i] * lower[i];
    }
    square += odd;
    for (int i = 0; i < p; ++i) before += M[i * ld + k] * M[i * ld + k];
    const T whole = before + square;  // infinite: not lost, but NaN from here on
    if (square <= tolerance<T> * tolerance<T> * whole && whole < static_cast<T>(INFINITY)) continue;
    if (alpha * alpha < square / 256) alpha = exchange<V>(shape, p, middle, k, M, ld, upper, lower);
    const T pivot = -std::copysign(std::sqrt(square), alpha);
    const T v = alpha - pivot, scale = 1 / (square - alpha * pivot);
    for (int j = k / V::lanes * V::lanes; j < shape.width; j += V::lanes) {
      const V first = V::load(M + p * ld + j);
      V sum[2] = {v * first, V::zero()};
      for (int i = p + 1; i < middle; ++i) sum[0] = sum[0] + upper[i] * V::load(M + i * ld + j);
      OPTCTL_UNROLL
      for (int i = 0; i < below; ++i) sum[(i + 1) % 2] = sum[(i + 1) % 2] + lower[i] * V::load(bottom + i * ld + j);
      const V w = scale * (sum[0] + sum[1]);
      (first - v * w).store(M + p * ld + j);
      for (int i = p + 1; i < middle; ++i) (V::load(M + i * ld + j) - upper[i] * w).store(M + i * ld + j);
      OPTCTL_UNROLL
      for (int i = 0; i < below; ++i) (V::load(bottom + i * ld + j) - lower[i] * w).store(bottom + i * ld + j);
    }
    room.pivots[p++] = k;
  }
  return p;
}

// C (rows of `width`) = a B for n by n a, NX > 0 its size at compile time.
template <class V, int NX, class T>
OPTCTL_INLINE void product(int n, int width, Left<T> a, const T* B, int ldb, T* C, int ldc) {
  if constexpr (NX == 0) multiply_any<1, V>(n, width, n, a, B, ldb, static_cast<T*>(nullptr), 0, C, ldc);
  else
    for (int j = 0; j < width; j += V::lanes)
      strip<1, V, most_rows, 1, NX>(NX, NX, a, B + j, ldb, static_cast<T*>(nullptr), 0, C + j, ldc);
}

// Zero what lies left of the pivots, and rows without one.
template <class T>
OPTCTL_INLINE void clear_left(int n, int found, const int* pivots, T* M, int ld) {
  for (int i = 0; i < n; ++i)
    for (int j = 0; j < (i < found ? pivots[i] : n); ++j) M[i * ld + j] = 0;
}

// R (n, n) upper triangular with R'R = M, by Cholesky's method; where a pivot is lost in rounding, a zero row. M is
// packed and R starts with rows `ld` apart; `rest` is room for n * n numbers.
template <class T>
__attribute__((noinline)) void semidefinite_root(int n, const T* M, T* R, int ld, T* rest) {
  for (int i = 0; i < n; ++i)
    for (int j = i; j < n; ++j) rest[i * n + j] = (M[i * n + j] + M[j * n + i]) / 2;
  for (int k = 0; k < n; ++k) {
    const T pivot = rest[k * n + k];
    const T given = M[k * n + k];
    const T floor = n * std::numeric_limits<T>::epsilon() * std::fabs(given);
    const bool lost = pivot <= floor && pivot >= -1000 * floor && std::isfinite(floor);
    const T root = std::sqrt(pivot);  // NaN where M is no covariance
    for (int j = 0; j < n; ++j) R[k * ld + j] = lost || j < k ? T(0) : rest[k * n + j] / root;
    for (int i = k + 1; i < n; ++i)
      for (int j = i; j < n; ++j) rest[i * n + j] -= R[k * ld + i] * R[k * ld + j];
  }
}

// The same with a unit column in place of each missing component.
template <class T>
void root_of_seen(int n, const T* M, const T* z, T* R, int ld, T* seen, T* rest) {
  for (int i = 0; i < n; ++i)
    for (int j = 0; j < n; ++j)
      seen[i * n + j] = std::isnan(z[i]) || std::isnan(z[j]) ? static_cast<T>(i == j) : M[i * n + j];
  semidefinite_root(n, seen, R, ld, rest);
}

// P = R'R.
template <class V, int NX, class T>
OPTCTL_INLINE void square_of(int n, int padded, const T* R, int ld, T* P, int ldp) {
  product<V, NX>(n, padded, transposed(R, ld), R, ld, P, ldp);
  mirror_upper(n, P, ldp);
}

enum class KeepRoots { nothing, moments, regressions };

// The forward recursion on two arrays: M for measurements, and J for steps in time, whose upper left is U.
template <class T, int NX>
struct RootForward {
  using V = Vec<T, lanes_for<T>(NX ? 2 * NX : 1 << 20)>;
  using Space = Workspace<T>;
  const int nx, ny, width, lx, ly, lm, lj;
  Space space;
  Workspace<int> pivots;
  T *M, *CI, *CI_seen, *VR, *J, *AI, *WR, *P, *G, *E, *rest, *seen, *m, *m_next, *e;
  Room<T> room;
  LogProduct determinant;
  double square = 0;
  int64_t count = 0;

  RootForward(KeepRoots keep, const Sizes& sizes)
      : nx(NX ? NX : sizes.nx), ny(sizes.ny), width(keep == KeepRoots::regressions ? 2 * nx : nx),
        lx(round_up(nx, V::lanes)), ly(round_up(ny, V::lanes)), lm(round_up(ny + nx, V::lanes)),
        lj(round_up(width, V::lanes)),
        space(Space::padded((nx + ny) * lm + V::lanes) + 2 * Space::padded(nx * lm) + Space::padded(ny * lm) +
              Space::padded(2 * nx * lj + V::lanes) + 2 * Space::padded(nx * lj) + 2 * Space::padded(nx * lx) +
              Space::padded(2 * nx * lx) + 2 * Space::padded(nx * nx + ny * ny) + 2 * Space::padded(lx) +
              Space::padded(ly) + Space::padded(2 * nx + ny)),
        pivots(Workspace<int>::padded(nx + ny)) {
    M = space.take((nx + ny) * lm + V::lanes);  // rows of whole vectors that start at K and R reach beyond
    VR = space.take(ny * lm);
    CI = space.take(nx * lm);
    CI_seen = space.take(nx * lm);
    J = space.take(2 * nx * lj + V::lanes);
    AI = space.take(nx * lj);
    WR = space.take(nx * lj);
    P = space.take(nx * lx);
    G = space.take(nx * lx);
    E = space.take(2 * nx * lx);
    rest = space.take(nx * nx + ny * ny);
    seen = space.take(nx * nx + ny * ny);
    m = space.take(lx);
    m_next = space.take(lx);
    e = space.take(ly);
    room = {space.take(2 * nx + ny), pivots.take(nx + ny)};
    for (int i = 0; i < nx; ++i) CI[i * lm + ny + i] = CI_seen[i * lm + ny + i] = 1;
    if (width > nx)
      for (int i = 0; i < nx; ++i) AI[i * lj + nx + i] = 1;
  }

  T* K() { return M + ny; }
  T* R() { return M + ny * lm + ny; }

  void start(const T* mean0, const T* cov0) {
    copy_in<V>(1, nx, mean0, nx, m, lx);
    semidefinite_root(nx, cov0, J, lj, rest);
  }

  // Returns false where the innovation covariance is singular.
  bool measure(int64_t t, const Stages<T>& C, const Stages<T>& noise, const T* z) {
    if (t == 0 || C.step) copy_transposed<Vec<T, 1>>(ny, nx, C[t], nx, CI, lm);
    if (t == 0 || noise.step) semidefinite_root(ny, noise[t], VR, lm, rest);
    const T* c = CI;
    copy_in<V>(ny, lm, VR, lm, M, lm);
    copy_in<V>(1, ny, z, ny, e, ly);
    const int missing = missing_count(ny, z);
    count += ny - missing;
    if (missing) c = without_missing(noise[t], z);
    product<V, NX>(nx, lm, plain(J, lj), c, lm, M + ny * lm, lm);
    for (int k = 0; k < nx; ++k) add_row<V>(ly, -m[k], c + k * lm, e);
    if (echelon<V, NX>({ny, ny, nx, ny + nx, true}, M, lm, room) < ny) return false;
    for (int i = 0; i < ny; ++i) {
      e[i] /= M[i * lm + i];
      for (int j = i + 1; j < ny; ++j) e[j] -= M[i * lm + j] * e[i];
      add_row<V>(lx, e[i], K() + i * lm, m);
      square += e[i] * e[i];
      determinant.times(std::abs(M[i * lm + i]));
    }
    return is_finite();
  }

  // Columns of the missing components zero but for a unit pivot, and their innovations zero.
  const T* without_missing(const T* noise, const T* z) {
    root_of_seen(ny, noise, z, M, lm, seen, rest);
    for (int i = 0; i < ny; ++i) {
      const bool gone = std::isnan(z[i]);
      if (gone) e[i] = 0;
      for (int k = 0; k < nx; ++k) CI_seen[k * lm + i] = gone ? T(0) : CI[k * lm + i];
    }
    return CI_seen;
  }

  // Of the predicted root and of that of V.
  bool prior_is_finite() const {
    T sum = 0;
    for (int i = 0; i < nx; ++i)
      for (int j = 0; j < nx; ++j) sum += J[i * lj + j] * J[i * lj + j];
    for (int i = 0; i < ny; ++i)
      for (int j = 0; j < ny; ++j) sum += VR[i * lm + j] * VR[i * lm + j];
    return std::isfinite(sum);
  }

  bool is_finite() {
    V sum = V::zero();
    for (int i = 0; i < nx; ++i)
      for (int j = 0; j < nx; j += V::lanes) {
        const V row = V::load(R() + i * lm + j, nx - j);
        sum = sum + row * row;
      }
    return std::isfinite(sum.sum());
  }

  // Returns the number of U's pivots.
  int step(int64_t t, const Stages<T>& A, const Stages<T>& noise, const T* b) {
    if (t == 0 || A.step) copy_transposed<Vec<T, 1>>(nx, nx, A[t], nx, AI, lj);
    if (t == 0 || noise.step) semidefinite_root(nx, noise[t], WR, lj, rest);
    copy_in<V>(1, nx, b, nx, m_next, lx);
    for (int k = 0; k < nx; ++k) add_row<V>(lx, m[k], AI + k * lj, m_next);
    std::swap(m, m_next);
    copy_in<V>(nx, lj, WR, lj, J, lj);
    product<V, NX>(nx, lj, plain(R(), lm), AI, lj, J + nx * lj, lj);
    const int found = echelon<V, NX>({nx, nx, nx, width, true}, J, lj, room);
    clear_left(nx, found, room.pivots, J, lj);
    return found;
  }

  // G' = U^{-1} Y, with zero rows where U has no pivot.
  void regress(int found) {
    for (int j = 0; j < nx * lx; j += V::lanes) V::zero().store(G + j);
    for (int i = found - 1; i >= 0; --i) {
      const T* row = J + i * lj;
      const T inverse = 1 / row[room.pivots[i]];
      for (int j = 0; j < lx; j += V::lanes) {
        V g = V::load(row + nx + j);
        for (int l = i + 1; l < found; ++l) g = g - row[room.pivots[l]] * V::load(G + room.pivots[l] * lx + j);
        (inverse * g).store(G + room.pivots[i] * lx + j);
      }
    }
  }

  // E: the rows below Y, brought to nx of them where U has fewer pivots.
  const T* rests(int found) {
    const int rows = 2 * nx - found;
    copy_in<V>(rows, nx, J + found * lj + nx, lj, E, lx);
    if (rows == nx) return E;
    found = echelon<V, 0>({nx, nx, rows - nx, nx, false}, E, lx, room);
    clear_left(nx, found, room.pivots, E, lx);
    return E;
  }

  T log_likelihood() const {
    return static_cast<T>(-0.5 * (square + 2 * determinant.log() + count * 1.83787706640934548356));
  }
};

// NaN from stage t on, where the innovation covariance is singular or the filtered one is not finite.
template <class T>
void fail_from(KeepRoots keep, int64_t t, const Sizes& sizes, T* const* out) {
  using namespace root_forward_io;
  const int64_t nx = sizes.nx, ny = sizes.ny, left = sizes.N + 1 - t;
  out[log_likelihood][0] = std::numeric_limits<T>::quiet_NaN();
  if (keep == KeepRoots::nothing) return;
  fill_nan(out[means] + t * nx, left * nx);
  if (keep == KeepRoots::moments) {
    fill_nan(out[covs] + t * nx * nx, left * nx * nx);
    fill_nan(out[predicted_means] + (t + 1) * nx, (left - 1) * nx);
    fill_nan(out[predicted_covs] + (t + 1) * nx * nx, (left - 1) * nx * nx);
  } else {
    fill_nan(out[S] + t * ny * ny, left * ny * ny);
    fill_nan(out[K] + t * ny * nx, left * ny * nx);
    fill_nan(out[e] + t * ny, left * ny);
    fill_nan(out[gains] + t * nx * nx, (left - 1) * nx * nx);
    fill_nan(out[rests] + t * nx * nx, left * nx * nx);
  }
}

template <class T, int NX>
int32_t root_forward(KeepRoots keep, const Sizes& sizes, const Stages<T>* in, T* const* out) {
  using namespace root_forward_io;
  using Root = RootForward<T, NX>;
  using Lanes = typename Root::V;
  Root f(keep, sizes);
  const int nx = f.nx, ny = f.ny;
  f.start(in[mean0][0], in[cov0][0]);
  auto keep_moments = [&](int64_t t, const T* root, int ld, Out to_mean, Out to_cov) {
    copy_out<Lanes>(1, nx, f.m, f.lx, out[to_mean] + t * nx, nx);
    square_of<Lanes, NX>(nx, f.lx, root, ld, f.P, f.lx);
    copy_out<Lanes>(nx, nx, f.P, f.lx, out[to_cov] + t * nx * nx, nx);
  };
  for (int64_t t = 0;; ++t) {
    if (keep == KeepRoots::moments) keep_moments(t, f.J, f.lj, predicted_means, predicted_covs);
    if (!f.measure(t, in[C], in[V], in[z][t])) {
      fail_from(keep, t, sizes, out);
      return failure(t, f.prior_is_finite() ? singular : not_finite);
    }
    if (keep == KeepRoots::moments) keep_moments(t, f.R(), f.lm, means, covs);
    if (keep == KeepRoots::regressions) {
      copy_out<Lanes>(1, nx, f.m, f.lx, out[means] + t * nx, nx);
      copy_out<Lanes>(ny, ny, f.M, f.lm, out[S] + t * ny * ny, ny);
      copy_out<Lanes>(ny, nx, f.K(), f.lm, out[K] + t * ny * nx, nx);
      copy_out<Lanes>(1, ny, f.e, f.ly, out[e] + t * ny, ny);
    }
    if (t == sizes.N) break;
    const int found = f.step(t, in[A], in[W], in[b][t]);
    if (keep == KeepRoots::regressions) {
      f.regress(found);
      copy_out<Lanes>(nx, nx, f.G, f.lx, out[gains] + t * nx * nx, nx);
      copy_out<Lanes>(nx, nx, f.rests(found), f.lx, out[rests] + t * nx * nx, nx);
    }
  }
  if (keep == KeepRoots::regressions) copy_out<Lanes>(nx, nx, f.R(), f.lm, out[rests] + sizes.N * nx * nx, nx);
  out[log_likelihood][0] = f.log_likelihood();
  return -1;
}

// The backward recursion.
template <class T, int NX>
struct RootBackward {
  using V = Vec<T, lanes_for<T>(NX ? NX : 1 << 20)>;
  using Space = Workspace<T>;
  const int nx, ny, lx, ly;
  Space space;
  Workspace<int> pivots;
  T *R, *R_next, *P, *G, *a, *c, *k, *lag, *mean, *d, *correction, *rho, *r, *u;
  Room<T> room;

  explicit RootBackward(const Sizes& sizes)
      : nx(NX ? NX : sizes.nx), ny(sizes.ny), lx(round_up(nx, V::lanes)), ly(round_up(ny, V::lanes)),
        space(2 * Space::padded(2 * nx * lx) + 4 * Space::padded(nx * lx) + 2 * Space::padded(ny * lx) +
              6 * Space::padded(lx) + Space::padded(ly) + Space::padded(2 * nx)),
        pivots(Workspace<int>::padded(nx)) {
    R = space.take(2 * nx * lx);
    R_next = space.take(2 * nx * lx);
    P = space.take(nx * lx);
    G = space.take(nx * lx);
    a = space.take(nx * lx);
    lag = space.take(nx * lx);
    c = space.take(ny * lx);
    k = space.take(ny * lx);
    mean = space.take(lx);
    d = space.take(lx);
    correction = space.take(lx);
    rho = space.take(lx);
    r = space.take(lx);
    u = space.take(ly);
    room = {space.take(2 * nx), pivots.take(nx)};
  }

  // From P, the smoothed covariance of x_{t+1}, and its root R to those of x_t, and the covariance of both.
  void regress(const T* gains, const T* rests) {
    copy_in<V>(nx, nx, gains, nx, G, lx);
    product<V, NX>(nx, lx, plain(P, lx), G, lx, lag, lx);
    product<V, NX>(nx, lx, plain(R, lx), G, lx, R_next, lx);
    std::swap(R, R_next);
    copy_in<V>(nx, nx, rests, nx, R + nx * lx, lx);
    const int found = echelon<V, NX>({nx, nx, nx, nx, false}, R, lx, room);
    clear_left(nx, found, room.pivots, R, lx);
    clear(correction);
    for (int i = 0; i < nx; ++i) add_row<V>(lx, d[i], G + i * lx, correction);
  }

  // rho = A'r of the stage after.
  void step_back(const T* A, bool new_A) {
    if (new_A) copy_in<V>(nx, nx, A, nx, a, lx);
    clear(rho);
    for (int i = 0; i < nx; ++i) add_row<V>(lx, r[i], a + i * lx, rho);
  }

  // d = correction + K'e,   r = rho + C' S^{-1} (e - K rho).
  void measure(const T* C, bool new_C, const T* S, const T* K, const T* e) {
    if (new_C) copy_in<V>(ny, nx, C, nx, c, lx);
    copy_in<V>(ny, nx, K, nx, k, lx);
    copy_in<V>(1, lx, correction, lx, d, lx);
    copy_in<V>(1, lx, rho, lx, r, lx);
    for (int i = ny - 1; i >= 0; --i) {
      add_row<V>(lx, e[i], k + i * lx, d);
      u[i] = e[i] - dot<V>(lx, k + i * lx, rho);
      for (int j = i + 1; j < ny; ++j) u[i] -= S[i * ny + j] * u[j];
      u[i] /= S[i * ny + i];
      add_row<V>(lx, u[i], c + i * lx, r);
    }
  }

  void clear(T* vector) {
    for (int j = 0; j < lx; j += V::lanes) V::zero().store(vector + j);
  }
};

template <class T, int NX>
int32_t root_smoother(const Sizes& sizes, const Stages<T>* in, T* const* out) {
  using namespace root_smooth_io;
  using Root = RootBackward<T, NX>;
  using V = typename Root::V;
  Root back(sizes);
  const int nx = back.nx, lx = back.lx;
  const int64_t N = sizes.N;
  copy_in<V>(nx, nx, in[rests][N], nx, back.R, lx);
  for (int64_t t = N; t >= 0; --t) {
    if (t < N) {
      back.step_back(in[A][t], t == N - 1 || in[A].step);
      back.regress(in[gains][t], in[rests][t]);
      copy_out<V>(nx, nx, back.lag, lx, out[lag_one_covs] + t * nx * nx, nx);
    }
    square_of<V, NX>(nx, lx, back.R, lx, back.P, lx);
    copy_in<V>(1, nx, in[means][t], nx, back.mean, lx);
    add_row<V>(lx, T(1), back.correction, back.mean);
    copy_out<V>(1, nx, back.mean, lx, out[smoothed_means] + t * nx, nx);
    copy_out<V>(nx, nx, back.P, lx, out[smoothed_covs] + t * nx * nx, nx);
    back.measure(in[C][t], t == N || in[C].step, in[S][t], in[K][t], in[e][t]);
    copy_out<V>(1, nx, back.r, lx, out[r] + t * nx, nx);
  }
  return -1;
}

}  // namespace optctl::OPTCTL_ISA
