// Filter, smoother, likelihood and its gradient as the doors call them: by covariances and, where these lose digits, by
// square roots. The policy of optctl/estimation/filtering.py, which is its definition.
//
// Smoothed means by square roots are checked against m + P A'r, and the gradient goes back through the reflections:
// optctl/estimation/square_root.py states both recursions in JAX. What happens here is rare; loops are plain.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "kernels.h"

namespace optctl {
namespace {

namespace data {
enum In { A, C, W, V, mean0, cov0, b, z };
}

bool is_lost(int32_t code) { return code >= 0 && code % 4 == 2; }

int32_t lost_at(int64_t t) { return static_cast<int32_t>(4 * t + 2); }

template <class T>
struct Scratch {
  std::vector<std::unique_ptr<T[]>> held;
  T* room(int64_t n) {
    held.emplace_back(new T[n > 0 ? n : 1]);
    return held.back().get();
  }
};

template <class T>
Stages<T> all(const T* data, int64_t step) {
  return {data, static_cast<ptrdiff_t>(step)};
}

template <class T>
int32_t root_smoother(const Sizes& s, const Stages<T>* in, T* const* out) {
  const int64_t N = s.N, n = N + 1, nx = s.nx, ny = s.ny;
  Scratch<T> scratch;
  T *m = scratch.room(n * nx), *S = scratch.room(n * ny * ny), *K = scratch.room(n * ny * nx), *e = scratch.room(n * ny),
    *G = scratch.room(N * nx * nx), *E = scratch.room(n * nx * nx);
  T* const forward[] = {out[0], m, S, K, e, G, E};
  const int32_t failed = find_kernel<T>(Name::square_root_forward, s)(s, in, forward);
  const Stages<T> back[] = {in[data::A], in[data::C], all(m, nx), all(S, ny * ny), all(K, ny * nx), all(e, ny),
                            all(G, nx * nx), all(E, nx * nx)};
  find_kernel<T>(Name::square_root_smoother, s)(s, back, out + 1);
  if (failed >= 0) return failed;
  // Going back through a model that contracts and has no noise multiplies rounding at every stage; m + P A'r does not,
  // but it carries the rounding of a vague P. Where the two differ by more than that and the rounding of the means
  // themselves, the first is the wrong one.
  T *P = scratch.room(n * nx * nx), *predicted = scratch.room(n * nx), *predicted_covs = scratch.room(n * nx * nx),
    *filtered = scratch.room(n * nx), likelihood;
  T* const moments[] = {&likelihood, filtered, P, predicted, predicted_covs};
  find_kernel<T>(Name::square_root_filter, s)(s, in, moments);
  T *means = out[1], *covs = out[2], *lags = out[3], *r = out[4];
  std::vector<T> size(nx, 0), rho(nx), reach(nx);
  for (int64_t t = 0; t < n; ++t)
    for (int64_t i = 0; i < nx; ++i) size[i] = std::max(size[i], std::abs(r[t * nx + i]));
  const T eps = std::numeric_limits<T>::epsilon();
  int32_t code = -1;
  for (int64_t t = N - 1; t >= 0; --t) {
    const T* A = in[data::A][t];
    for (int64_t i = 0; i < nx; ++i) {
      rho[i] = reach[i] = 0;
      for (int64_t j = 0; j < nx; ++j) {
        rho[i] += A[j * nx + i] * r[(t + 1) * nx + j];
        reach[i] += std::abs(A[j * nx + i]) * size[j];
      }
    }
    bool lost = false;
    std::vector<T> other(m + t * nx, m + (t + 1) * nx);
    for (int64_t i = 0; i < nx; ++i) {
      T rounding = 0;
      for (int64_t j = 0; j < nx; ++j) {
        other[i] += P[(t * nx + i) * nx + j] * rho[j];
        rounding += std::abs(P[(t * nx + i) * nx + j]) * reach[j];
      }
      const T spread = std::sqrt(std::abs(covs[(t * nx + i) * nx + i]));
      const T most = 50 * eps * (rounding + std::abs(other[i])) + std::pow(eps, T(0.25)) * spread;
      lost |= std::abs(means[t * nx + i] - other[i]) > most;
    }
    if (!lost) continue;
    code = lost_at(t);
    for (int64_t i = 0; i < nx; ++i) means[t * nx + i] = other[i];
    const T nan = std::numeric_limits<T>::quiet_NaN();
    std::fill(covs + t * nx * nx, covs + (t + 1) * nx * nx, nan);
    std::fill(lags + t * nx * nx, lags + (t + 1) * nx * nx, nan);
  }
  return code;
}

// The pass forward by covariances, and what a pass back needs of it.
template <class T>
struct Forward {
  Scratch<T> scratch;
  int64_t n, nx, ny;
  T *m, *P, *S, *Y, *e;
  int32_t failed;

  Forward(Name kernel, const Sizes& s, const Stages<T>* in, T* likelihood) : n(s.N + 1), nx(s.nx), ny(s.ny) {
    m = scratch.room(n * nx), P = scratch.room(n * nx * nx), S = scratch.room(n * ny * ny);
    Y = scratch.room(n * ny * nx), e = scratch.room(n * ny);
    T* const made[] = {likelihood, m, P, S, Y, e};
    failed = find_kernel<T>(kernel, s)(s, in, made);
  }

  template <size_t fields>
  std::array<Stages<T>, fields + 5> back(const Stages<T>* in, const data::In (&of)[fields]) const {
    std::array<Stages<T>, fields + 5> made;
    for (size_t i = 0; i < fields; ++i) made[i] = in[of[i]];
    const Stages<T> own[] = {all(m, nx), all(P, nx * nx), all(S, ny * ny), all(Y, ny * nx), all(e, ny)};
    std::copy(own, own + 5, made.begin() + fields);
    return made;
  }
};

template <class T>
int32_t smoother(const Sizes& s, const Stages<T>* in, T* const* out) {
  const Forward<T> forward(Name::kalman_forward, s, in, out[0]);
  if (is_lost(forward.failed)) return forward.failed;
  const auto back = forward.back(in, {data::A, data::C, data::W, data::z});
  const int32_t lost = find_kernel<T>(Name::kalman_smoother, s)(s, back.data(), out + 1);
  return forward.failed >= 0 ? forward.failed : lost;
}

// A matrix of plain rows.
template <class T>
struct Array {
  int64_t rows, columns;
  std::vector<T> v;
  Array(int64_t rows, int64_t columns) : rows(rows), columns(columns), v(rows * columns, 0) {}
  T* operator[](int64_t i) { return v.data() + i * columns; }
  const T* operator[](int64_t i) const { return v.data() + i * columns; }
};

// C = a B.
template <class T>
Array<T> times(const Array<T>& a, const Array<T>& b) {
  Array<T> c(a.rows, b.columns);
  for (int64_t i = 0; i < a.rows; ++i)
    for (int64_t l = 0; l < a.columns; ++l)
      for (int64_t j = 0; j < b.columns; ++j) c[i][j] += a[i][l] * b[l][j];
  return c;
}

template <class T>
Array<T> transpose(const Array<T>& a) {
  Array<T> c(a.columns, a.rows);
  for (int64_t i = 0; i < a.rows; ++i)
    for (int64_t j = 0; j < a.columns; ++j) c[j][i] = a[i][j];
  return c;
}

template <class T>
Array<T> packed(const T* from, int64_t rows, int64_t columns) {
  Array<T> a(rows, columns);
  std::copy(from, from + rows * columns, a.v.begin());
  return a;
}

template <class T>
Array<T> part(const Array<T>& a, int64_t row, int64_t rows, int64_t column, int64_t columns) {
  Array<T> c(rows, columns);
  for (int64_t i = 0; i < rows; ++i) std::copy(a[row + i] + column, a[row + i] + column + columns, c[i]);
  return c;
}

template <class T>
void put(Array<T>& to, int64_t row, int64_t column, const Array<T>& from) {
  for (int64_t i = 0; i < from.rows; ++i) std::copy(from[i], from[i] + from.columns, to[row + i] + column);
}

// Reflect the rows so that columns first..first+columns become triangular from row `row` on; returns the rows with
// pivots. The largest entry of a column is its pivot; a column that hangs on earlier ones has none.
template <class T>
int64_t triangular(Array<T>& M, int64_t row, int64_t first, int64_t columns) {
  const T floor = 8 * std::numeric_limits<T>::epsilon();
  int64_t p = row;
  for (int64_t k = first; k < first + columns && p < M.rows; ++k) {
    T all = 0, square = 0;
    int64_t best = p;
    for (int64_t i = 0; i < M.rows; ++i) all += M[i][k] * M[i][k];
    for (int64_t i = p; i < M.rows; ++i) {
      square += M[i][k] * M[i][k];
      if (std::abs(M[i][k]) > std::abs(M[best][k])) best = i;
    }
    if (!(square > floor * floor * all)) {
      for (int64_t i = p; i < M.rows; ++i) M[i][k] = 0;
      continue;
    }
    std::swap_ranges(M[p], M[p] + M.columns, M[best]);
    const T pivot = -std::copysign(std::sqrt(square), M[p][k]);
    std::vector<T> x(M.rows - p);
    for (int64_t i = p; i < M.rows; ++i) x[i - p] = M[i][k];
    x[0] -= pivot;
    const T scale = square - M[p][k] * pivot;
    std::vector<T> sums(M.columns, 0);
    for (int64_t i = p; i < M.rows; ++i)
      for (int64_t j = 0; j < M.columns; ++j) sums[j] += x[i - p] * M[i][j];
    for (int64_t i = p; i < M.rows; ++i)
      for (int64_t j = 0; j < M.columns; ++j) M[i][j] -= x[i - p] * sums[j] / scale;
    M[p][k] = pivot;
    for (int64_t i = p + 1; i < M.rows; ++i) M[i][k] = 0;
    ++p;
  }
  return p;
}

// R with R'R = M, by Cholesky's method; a zero row where a pivot is lost in rounding, NaN where M is no covariance.
template <class T>
Array<T> root(Array<T> M) {
  const int64_t n = M.rows;
  Array<T> R(n, n);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = i; j < n; ++j) M[i][j] = M[j][i] = (M[i][j] + M[j][i]) / 2;
  std::vector<T> given(n);
  for (int64_t i = 0; i < n; ++i) given[i] = M[i][i];
  for (int64_t k = 0; k < n; ++k) {
    const T floor = n * std::numeric_limits<T>::epsilon() * std::abs(given[k]);
    if (M[k][k] <= floor && M[k][k] >= -1000 * floor && std::isfinite(floor)) continue;
    const T pivot = std::sqrt(M[k][k]);
    for (int64_t j = k; j < n; ++j) R[k][j] = M[k][j] / pivot;
    for (int64_t i = k + 1; i < n; ++i)
      for (int64_t j = k + 1; j < n; ++j) M[i][j] -= R[k][i] * R[k][j];
  }
  return R;
}

// What the way back needs of a stage: blocks of the orthogonal factors, and what they made.
template <class T>
struct Stage {
  Array<T> mean, S, K, R, Q21, Q22, Qp;  // Qp: R A' = Qp U
  std::vector<T> e;
};

template <class T>
int32_t root_score(const Sizes& s, const Stages<T>* in, T* const* out) {
  const int64_t N = s.N, nx = s.nx, ny = s.ny;
  const int32_t failed = find_kernel<T>(Name::square_root_likelihood, s)(s, in, out);
  T* const* gradient = out + 1;
  const int64_t sizes[] = {nx * nx, ny * nx, nx * nx, ny * ny, nx, nx * nx, nx, ny};
  const int64_t counts[] = {N, N + 1, N, N + 1, 1, 1, N, N + 1};
  auto varies = [&](int field) { return in[field].step != 0; };
  for (int field = 0; field < 8; ++field) {
    const int64_t many = varies(field) ? counts[field] : 1;
    const T value = failed >= 0 ? std::numeric_limits<T>::quiet_NaN() : T(0);
    std::fill(gradient[field], gradient[field] + many * sizes[field], value);
  }
  if (failed >= 0) return failed;
  auto add = [&](int field, int64_t t, const Array<T>& g) {
    T* to = gradient[field] + (varies(field) ? t * sizes[field] : 0);
    for (size_t i = 0; i < g.v.size(); ++i) to[i] += g.v[i];
  };
  std::vector<Stage<T>> stages;
  Array<T> U = root(packed(in[data::cov0][0], nx, nx)), mean = packed(in[data::mean0][0], nx, 1);
  std::vector<Array<T>> Cs;
  for (int64_t t = 0; t <= N; ++t) {
    const T* z = in[data::z][t];
    Array<T> C = packed(in[data::C][t], ny, nx), V = packed(in[data::V][t], ny, ny);
    for (int64_t i = 0; i < ny; ++i) {
      if (!std::isnan(z[i])) continue;
      for (int64_t j = 0; j < nx; ++j) C[i][j] = 0;
      for (int64_t j = 0; j < ny; ++j) V[i][j] = V[j][i] = i == j;
    }
    Array<T> M(ny + nx, ny + nx + ny + nx);
    put(M, 0, 0, root(V));
    put(M, ny, 0, times(U, transpose(C)));
    put(M, ny, ny, U);
    for (int64_t i = 0; i < ny + nx; ++i) M[i][ny + nx + i] = 1;
    triangular(M, 0, 0, ny);
    Stage<T> now{mean, part(M, 0, ny, 0, ny), part(M, 0, ny, ny, nx), part(M, ny, nx, ny, nx),
                 transpose(part(M, 0, ny, ny + nx + ny, nx)), transpose(part(M, ny, nx, ny + nx + ny, nx)),
                 Array<T>(nx, nx), std::vector<T>(ny)};
    const Array<T> expected = times(C, mean);
    for (int64_t i = 0; i < ny; ++i) {
      T rest = std::isnan(z[i]) ? T(0) : z[i] - expected[i][0];
      for (int64_t j = 0; j < i; ++j) rest -= now.S[j][i] * now.e[j];
      now.e[i] = rest / now.S[i][i];
      for (int64_t j = 0; j < nx; ++j) now.mean[j][0] += now.K[i][j] * now.e[i];
    }
    if (t < N) {
      const Array<T> A = packed(in[data::A][t], nx, nx);
      Array<T> J(2 * nx, 3 * nx);
      put(J, 0, 0, root(packed(in[data::W][t], nx, nx)));
      put(J, nx, 0, times(now.R, transpose(A)));
      for (int64_t i = 0; i < 2 * nx; ++i)
        if (i >= nx) J[i][nx + i - nx] = 1;
      // Only the columns of Q' that meet R A' are kept: Q' = reflections of [0; I] there.
      triangular(J, 0, 0, nx);
      U = part(J, 0, nx, 0, nx);
      now.Qp = transpose(part(J, 0, nx, nx, nx));
      mean = times(A, now.mean);
      for (int64_t i = 0; i < nx; ++i) mean[i][0] += in[data::b][t][i];
    }
    stages.push_back(now);
    Cs.push_back(C);
  }
  Array<T> B(2 * nx + ny, 2 * nx), r(nx, 1), white(nx, 1);  // B: rows [Y N], n = N'N, U n U' = Y'Y; white = U r
  for (int64_t t = N; t >= 0; --t) {
    const Stage<T>& now = stages[t];
    const Array<T>& C = Cs[t];
    Array<T> N_(2 * nx, nx), Y_(2 * nx, nx), rho(nx, 1), rho_white(nx, 1);
    Array<T> smoothed = now.mean;
    if (t < N) {
      const Array<T> A = packed(in[data::A][t], nx, nx), Nn = part(B, 0, 2 * nx, nx, nx);
      rho = times(transpose(A), r);
      rho_white = times(now.Qp, white);
      N_ = times(Nn, A);
      Y_ = times(part(B, 0, 2 * nx, 0, nx), transpose(now.Qp));
      const Array<T> back = times(transpose(now.R), rho_white);
      for (int64_t i = 0; i < nx; ++i) smoothed[i][0] += back[i][0];
      add(data::b, t, r);
      Array<T> gW = times(r, transpose(r)), gA = times(r, transpose(smoothed));
      const Array<T> n = times(transpose(Nn), Nn), nAP = times(transpose(Nn), times(Y_, now.R));
      for (size_t i = 0; i < gW.v.size(); ++i) gW.v[i] = (gW.v[i] - n.v[i]) / 2, gA.v[i] -= nAP.v[i];
      add(data::W, t, gW);
      add(data::A, t, gA);
    }
    const T* z = in[data::z][t];
    // S u = e - K rho, and S^{-1} K = L', S^{-1}.
    Array<T> solved(ny, 1 + nx + ny);
    const Array<T> Krho = times(now.K, rho);
    for (int64_t i = 0; i < ny; ++i) {
      solved[i][0] = now.e[i] - Krho[i][0];
      std::copy(now.K[i], now.K[i] + nx, solved[i] + 1);
      solved[i][1 + nx + i] = 1;
    }
    for (int64_t i = ny; i-- > 0;) {
      for (int64_t j = i + 1; j < ny; ++j)
        for (int64_t k = 0; k < solved.columns; ++k) solved[i][k] -= now.S[i][j] * solved[j][k];
      for (int64_t k = 0; k < solved.columns; ++k) solved[i][k] /= now.S[i][i];
    }
    const Array<T> u = part(solved, 0, ny, 0, 1), Lt = part(solved, 0, ny, 1, nx), Si = part(solved, 0, ny, 1 + nx, ny);
    const Array<T> NL = times(N_, transpose(Lt)), Sii = times(Si, transpose(Si)), LNL = times(transpose(NL), NL);
    Array<T> gV = times(u, transpose(u)), gC = times(u, transpose(smoothed)), gz(ny, 1);
    const Array<T> LLP = times(transpose(NL), times(Y_, now.R));
    for (int64_t i = 0; i < ny; ++i) {
      const bool gone = std::isnan(z[i]);
      gz[i][0] = gone ? T(0) : -u[i][0];
      for (int64_t j = 0; j < ny; ++j)
        gV[i][j] = gone || std::isnan(z[j]) ? T(0) : (gV[i][j] - Sii[i][j] - LNL[i][j]) / 2;
      for (int64_t j = 0; j < nx; ++j) gC[i][j] = gone ? T(0) : gC[i][j] - Lt[i][j] + LLP[i][j];
    }
    add(data::V, t, gV);
    add(data::C, t, gC);
    add(data::z, t, gz);
    // Before the measurement.
    r = times(transpose(C), u);
    for (int64_t i = 0; i < nx; ++i) r[i][0] += rho[i][0];
    white = times(now.Q22, rho_white);
    for (int64_t i = 0; i < nx; ++i)
      for (int64_t j = 0; j < ny; ++j) white[i][0] += now.Q21[i][j] * now.e[j];
    Array<T> next(2 * nx + ny, 2 * nx);
    put(next, 0, 0, times(Y_, transpose(now.Q22)));
    const Array<T> NLC = times(NL, C);
    for (size_t i = 0; i < N_.v.size(); ++i) N_.v[i] -= NLC.v[i];
    put(next, 0, nx, N_);
    put(next, 2 * nx, 0, transpose(now.Q21));
    put(next, 2 * nx, nx, times(transpose(Si), C));
    for (int64_t i = 0; i < ny; ++i)
      if (std::isnan(z[i])) std::fill(next[2 * nx + i], next[2 * nx + i] + 2 * nx, T(0));
    // What Y reaches first; of the rest, which U does not reach, N alone.
    const int64_t reached = triangular(next, 0, 0, nx);
    triangular(next, reached, nx, nx);
    B = next;
  }
  add(data::mean0, 0, r);
  const Array<T> first = part(B, 0, 2 * nx, nx, nx), n = times(transpose(first), first);
  Array<T> gcov0 = times(r, transpose(r));
  for (size_t i = 0; i < gcov0.v.size(); ++i) gcov0.v[i] = (gcov0.v[i] - n.v[i]) / 2;
  add(data::cov0, 0, gcov0);
  return -1;
}

template <class T>
int32_t score(const Sizes& s, const Stages<T>* in, T* const* out) {
  const Forward<T> forward(Name::kalman_factors, s, in, out[0]);
  if (is_lost(forward.failed)) return forward.failed;
  const auto back = forward.back(in, {data::A, data::C, data::W, data::V, data::b, data::z});
  find_kernel<T>(Name::kalman_score, s)(s, back.data(), out + 1);
  return forward.failed;
}

}  // namespace

template <class T>
int32_t estimate_likelihood(bool roots, const Sizes& s, const Stages<T>* in, T* const* out) {
  const int32_t code = roots ? lost_at(0) : find_kernel<T>(Name::kalman_likelihood, s)(s, in, out);
  return is_lost(code) ? find_kernel<T>(Name::square_root_likelihood, s)(s, in, out) : code;
}

template <class T>
int32_t estimate_filter(bool roots, const Sizes& s, const Stages<T>* in, T* const* out) {
  const int32_t code = roots ? lost_at(0) : find_kernel<T>(Name::kalman_filter, s)(s, in, out);
  return is_lost(code) ? find_kernel<T>(Name::square_root_filter, s)(s, in, out) : code;
}

template <class T>
int32_t estimate_smoother(bool roots, const Sizes& s, const Stages<T>* in, T* const* out) {
  const int32_t code = roots ? lost_at(0) : smoother(s, in, out);
  return is_lost(code) ? root_smoother(s, in, out) : code;
}

template <class T>
int32_t estimate_score(bool roots, const Sizes& s, const Stages<T>* in, T* const* out) {
  const int32_t code = roots ? lost_at(0) : score(s, in, out);
  return is_lost(code) ? root_score(s, in, out) : code;
}

#define OPTCTL_ESTIMATE(T)                                                                    \
  template int32_t estimate_likelihood<T>(bool, const Sizes&, const Stages<T>*, T* const*); \
  template int32_t estimate_filter<T>(bool, const Sizes&, const Stages<T>*, T* const*);     \
  template int32_t estimate_smoother<T>(bool, const Sizes&, const Stages<T>*, T* const*);   \
  template int32_t estimate_score<T>(bool, const Sizes&, const Stages<T>*, T* const*);
OPTCTL_ESTIMATE(float)
OPTCTL_ESTIMATE(double)

}  // namespace optctl
