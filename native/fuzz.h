// What the fuzz test stands on: plain matrices in double, arrays in memory of exactly their size, and comparisons.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels.h"

namespace optctl::fuzz {

inline std::mt19937_64 source;
inline int between(int low, int high) { return std::uniform_int_distribution<int>(low, high)(source); }
inline bool chance(int percent) { return between(1, 100) <= percent; }

struct Matrix {
  int rows, columns;
  std::vector<double> v;
  Matrix(int rows, int columns, double value = 0) : rows(rows), columns(columns), v(size_t(rows) * columns, value) {}
  double& operator()(int i, int j) { return v[i * columns + j]; }
  double operator()(int i, int j) const { return v[i * columns + j]; }
};

using Rows = std::vector<Matrix>;  // one matrix for each stage

inline Matrix plus(Matrix a, double s, const Matrix& b) {
  for (size_t i = 0; i < a.v.size(); ++i) a.v[i] += s * b.v[i];
  return a;
}

inline Matrix operator+(const Matrix& a, const Matrix& b) { return plus(a, 1, b); }
inline Matrix operator-(const Matrix& a, const Matrix& b) { return plus(a, -1, b); }

inline Matrix operator*(const Matrix& a, const Matrix& b) {
  Matrix c(a.rows, b.columns);
  for (int i = 0; i < a.rows; ++i)
    for (int k = 0; k < a.columns; ++k)
      for (int j = 0; j < b.columns; ++j) c(i, j) += a(i, k) * b(k, j);
  return c;
}

inline Matrix transposed(const Matrix& a) {
  Matrix t(a.columns, a.rows);
  for (int i = 0; i < a.rows; ++i)
    for (int j = 0; j < a.columns; ++j) t(j, i) = a(i, j);
  return t;
}

inline Matrix diagonal(const Matrix& d) {
  Matrix D(d.rows, d.rows);
  for (int i = 0; i < d.rows; ++i) D(i, i) = d(i, 0);
  return D;
}

inline Matrix eye(int n) { return diagonal(Matrix(n, 1, 1)); }

inline Matrix chosen_rows(const Matrix& m, const std::vector<int>& chosen) {
  Matrix some(static_cast<int>(chosen.size()), m.columns);
  for (int i = 0; i < some.rows; ++i)
    for (int j = 0; j < m.columns; ++j) some(i, j) = m(chosen[i], j);
  return some;
}

inline bool is_finite(const Matrix& a) {
  for (double x : a.v)
    if (!std::isfinite(x)) return false;
  return true;
}

inline Matrix random_matrix(int rows, int columns, double scale) {
  Matrix m(rows, columns);
  for (double& x : m.v) x = scale * std::normal_distribution<double>()(source);
  return m;
}

inline Matrix random_weight(int n) {
  const Matrix G = random_matrix(n, n, 1 / std::sqrt(n + 1.0));
  return plus(G * transposed(G), 0.5, eye(n));
}

struct Solution {
  Matrix x;
  bool definite = true;  // all pivots clearly above zero
  double log_det = 0;
};

// S^{-1} H by Gauss elimination; S is meant to be positive definite, so no rows are exchanged.
inline Solution solve(Matrix S, const Matrix& H) {
  const Matrix given = S;
  Solution found{H};
  Matrix& X = found.x;
  for (int i = 0; i < S.rows; ++i) {
    found.definite = found.definite && S(i, i) > 1e-9 * given(i, i) && std::isfinite(S(i, i));
    found.log_det += std::log(S(i, i));
    for (int r = i + 1; r < S.rows; ++r) {
      const double f = S(r, i) / S(i, i);
      for (int c = i; c < S.rows; ++c) S(r, c) -= f * S(i, c);
      for (int c = 0; c < X.columns; ++c) X(r, c) -= f * X(i, c);
    }
  }
  for (int i = S.rows - 1; i >= 0; --i)
    for (int c = 0; c < X.columns; ++c) {
      for (int r = i + 1; r < S.rows; ++r) X(i, c) -= S(i, r) * X(r, c);
      X(i, c) /= S(i, i);
    }
  return found;
}

// Room for exactly `count` numbers: from the heap, between the sanitizer's red zones, or up against a forbidden page,
// which also stops the masked vector instructions that the sanitizer does not see.
template <class T>
std::shared_ptr<T> room(size_t count) {
  if (chance(50)) return {new T[count], std::default_delete<T[]>()};
  const size_t page = sysconf(_SC_PAGESIZE), used = (count * sizeof(T) + page - 1) / page * page;
  void* start = mmap(nullptr, used + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  char* end = static_cast<char*>(start) + used;
  if (start == MAP_FAILED || mprotect(end, page, PROT_NONE)) std::abort();
  return {reinterpret_cast<T*>(end) - count, [=](T*) { munmap(start, used + page); }};
}

// An operand or a result, NaN at first; copies share its memory. As ffi.cpp has it, a single stage serves all.
template <class T>
struct Operand {
  int64_t stages;
  int rows, columns;
  std::shared_ptr<T> data;

  Operand(int64_t stages, int rows, int columns)
      : stages(stages), rows(rows), columns(columns), data(room<T>(stages * rows * columns)) {
    for (int64_t i = 0; i < stages * rows * columns; ++i) data.get()[i] = NAN;
  }
  ptrdiff_t step() const { return stages == 1 ? 0 : rows * columns; }
  T* at(int64_t t) const { return data.get() + t * step(); }
  Matrix operator[](int64_t t) const {
    Matrix m(rows, columns);
    for (int i = 0; i < rows * columns; ++i) m.v[i] = at(t)[i];
    return m;
  }
  void set(int64_t t, const Matrix& m) const {
    for (int i = 0; i < rows * columns; ++i) at(t)[i] = static_cast<T>(m.v[i]);
  }
};

template <class T>
using Operands = std::vector<Operand<T>>;

// A random operand, per stage or invariant.
template <class T>
Operand<T> draw(int64_t stages, int rows, int columns, double scale = 1) {
  const Operand<T> made(chance(50) ? 1 : stages, rows, columns);
  for (int64_t t = 0; t < made.stages; ++t) made.set(t, random_matrix(rows, columns, scale));
  return made;
}

template <class T>
Operand<T> draw_weight(int64_t stages, int n) {
  const Operand<T> made(chance(50) ? 1 : stages, n, n);
  for (int64_t t = 0; t < made.stages; ++t) made.set(t, random_weight(n));
  return made;
}

// A number in a random place (of both triangles, where symmetric) becomes infinite.
template <class T>
void spoil(const Operand<T>& operand, bool symmetric) {
  if (operand.stages * operand.rows * operand.columns == 0) return;
  T* const m = operand.at(between(0, operand.stages - 1));
  const int i = between(0, operand.rows - 1), j = between(0, operand.columns - 1);
  m[i * operand.columns + j] = INFINITY;
  if (symmetric) m[j * operand.columns + i] = INFINITY;
}

template <class T>
int32_t run(const Finders& finders, Name name, const Sizes& sizes, const Operands<T>& in, const Operands<T>& out) {
  std::vector<Stages<T>> views;
  std::vector<T*> results;
  for (const auto& operand : in) views.push_back({operand.at(0), operand.step()});
  for (const auto& operand : out) results.push_back(operand.at(0));
  if constexpr (sizeof(T) == 4) return finders.in_float(name, sizes)(sizes, views.data(), results.data());
  else return finders.in_double(name, sizes)(sizes, views.data(), results.data());
}

inline std::string where;  // the case and the version at hand
inline int failures = 0;

inline bool expect(bool good, const std::string& what, double got, double want) {
  if (good || ++failures > 100) return good;
  std::fprintf(stderr, "%s: %s is %.9g, not %.9g\n", where.c_str(), what.c_str(), got, want);
  return false;
}

inline void expect_status(const std::string& what, int32_t got, int32_t want) {
  expect(got == want, what + "'s status", got, want);
}

template <class T>
constexpr double tolerance = sizeof(T) == 4 ? 2e-3 : 1e-8;

// Equal up to rounding, relative to the largest number or to `scale`; what is not finite must not be so in either.
template <class T>
void expect_near(const std::string& what, const Matrix& got, const Matrix& want, double scale = 1) {
  for (double x : want.v)
    if (std::isfinite(x)) scale = std::max(scale, std::abs(x));
  for (size_t i = 0; i < want.v.size(); ++i) {
    const bool near = std::abs(got.v[i] - want.v[i]) <= tolerance<T> * scale;
    const bool good = std::isfinite(want.v[i]) ? near : !std::isfinite(got.v[i]);
    if (!expect(good, what, got.v[i], want.v[i])) return;
  }
}

template <class T>
void expect_near(const std::string& what, const Operand<T>& got, const Rows& want) {
  for (int64_t t = 0; t < got.stages; ++t) expect_near<T>(what + " of stage " + std::to_string(t), got[t], want[t]);
}

}  // namespace optctl::fuzz
