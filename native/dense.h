// Dense linear algebra on small and medium blocks.
//
// Matrices are row-major. Those of the workspace are padded: rows start a whole number of vectors apart (`ld`) and the
// lanes beyond the last column are finite numbers that no result depends on. Every product has one form,
//     C[i, :] = D[i, :] + s * sum_l a(i, l) B[l, :],
// scalars of the left factor times rows of the right one, so the left factor may be transposed for free. Called with
// constant sizes the loops unroll; called with run-time sizes they are blocked for the registers.
#pragma once

#include <cmath>
#include <limits>

#include "simd.h"

namespace optctl::OPTCTL_ISA {

// The left factor of a product: a(i, l) = p[i * row + l * column].
template <class T>
struct Left {
  const T* p;
  int row, column;
};

template <class T>
OPTCTL_INLINE Left<T> plain(const T* p, int ld) { return {p, ld, 1}; }

template <class T>
OPTCTL_INLINE Left<T> transposed(const T* p, int ld) { return {p, 1, ld}; }

template <int Sign, class V, int Rows, int Vectors, class T>
OPTCTL_INLINE void block(int k, Left<T> a, const T* B, int ldb, const T* D, int ldd, T* C, int ldc) {
  V sum[Rows][Vectors];
  OPTCTL_UNROLL
  for (int i = 0; i < Rows; ++i) {
    OPTCTL_UNROLL
    for (int j = 0; j < Vectors; ++j) sum[i][j] = D ? V::load(D + i * ldd + j * V::lanes) : V::zero();
  }
  for (int l = 0; l < k; ++l) {
    V b[Vectors];
    OPTCTL_UNROLL
    for (int j = 0; j < Vectors; ++j) b[j] = V::load(B + l * ldb + j * V::lanes);
    OPTCTL_UNROLL
    for (int i = 0; i < Rows; ++i) {
      const T s = a.p[i * a.row + l * a.column];
      OPTCTL_UNROLL
      for (int j = 0; j < Vectors; ++j) {
        if constexpr (Sign > 0) sum[i][j].v += s * b[j].v;
        else sum[i][j].v -= s * b[j].v;
      }
    }
  }
  OPTCTL_UNROLL
  for (int i = 0; i < Rows; ++i) {
    OPTCTL_UNROLL
    for (int j = 0; j < Vectors; ++j) sum[i][j].store(C + i * ldc + j * V::lanes);
  }
}

// Rows i, i+1, ... of a strip of columns: blocks of Rows rows while they fit, then of half as many. M > 0 is the number
// of rows at compile time; the blocks that it does not need are then never generated.
template <int Sign, class V, int Rows, int Vectors, int M, class T>
OPTCTL_INLINE void strip(int m, int k, Left<T> a, const T* B, int ldb, const T* D, int ldd, T* C, int ldc) {
  int i = 0;
  if constexpr (M == 0 || M >= Rows) {
    for (; i + Rows <= m; i += Rows)
      block<Sign, V, Rows, Vectors>(k, Left<T>{a.p + i * a.row, a.row, a.column}, B, ldb, D ? D + i * ldd : D, ldd,
                                    C + i * ldc, ldc);
  }
  if constexpr (Rows > 1 && (M == 0 || M % Rows != 0)) {
    if (i < m)
      strip<Sign, V, Rows / 2, Vectors, M % Rows>(m - i, k, Left<T>{a.p + i * a.row, a.row, a.column}, B, ldb,
                                                  D ? D + i * ldd : D, ldd, C + i * ldc, ldc);
  }
}

constexpr int most_rows = vector_bytes == 64 ? 8 : 4;  // times 3 sums, and 3 operands: they fill the registers

// C (m, n) = D + Sign * a B, with k the inner size; D may be null (zero) or C itself. n counts padded columns.
template <int Sign, class V, class T>
__attribute__((noinline)) void multiply_any(int m, int n, int k, Left<T> a, const T* B, int ldb, const T* D, int ldd,
                                            T* C, int ldc) {
  constexpr int W = V::lanes;
  int j = 0;
  for (; j + 3 * W <= n; j += 3 * W) strip<Sign, V, most_rows, 3, 0>(m, k, a, B + j, ldb, D ? D + j : D, ldd, C + j, ldc);
  for (; j < n; j += W) strip<Sign, V, most_rows, 1, 0>(m, k, a, B + j, ldb, D ? D + j : D, ldd, C + j, ldc);
}

// The same with sizes at compile time, where they are not 0.
template <int Sign, class V, int M, int K, int Columns, class T>
OPTCTL_INLINE void multiply(int m, int n, int k, Left<T> a, const T* B, int ldb, const T* D, int ldd, T* C, int ldc) {
  if constexpr (M == 0 || K == 0 || Columns == 0) {
    multiply_any<Sign, V>(m, n, k, a, B, ldb, D, ldd, C, ldc);
  } else {
    constexpr int vectors = (Columns + V::lanes - 1) / V::lanes;
    constexpr int triples = vectors / 3, rest = vectors % 3;
    for (int j = 0; j < 3 * triples * V::lanes; j += 3 * V::lanes)
      strip<Sign, V, most_rows, 3, M>(M, K, a, B + j, ldb, D ? D + j : D, ldd, C + j, ldc);
    constexpr int j = 3 * triples * V::lanes;
    if constexpr (rest > 0) strip<Sign, V, most_rows, rest, M>(M, K, a, B + j, ldb, D ? D + j : D, ldd, C + j, ldc);
  }
}

template <class T>
OPTCTL_INLINE void mirror_upper(int n, T* C, int ld) {
  for (int i = 1; i < n; ++i)
    for (int j = 0; j < i; ++j) C[i * ld + j] = C[j * ld + i];
}

// The upper triangle of C gains that of the symmetric part of a packed matrix (n, n).
template <class T>
OPTCTL_INLINE void add_symmetric_part(int n, const T* from, T* C, int ld) {
  for (int i = 0; i < n; ++i)
    for (int j = i; j < n; ++j) C[i * ld + j] += (from[i * n + j] + from[j * n + i]) / 2;
}

// Replace C by its symmetric part.
template <class T>
OPTCTL_INLINE void symmetrize(int n, T* C, int ld) {
  for (int i = 1; i < n; ++i)
    for (int j = 0; j < i; ++j) C[i * ld + j] = C[j * ld + i] = (C[i * ld + j] + C[j * ld + i]) / 2;
}

// The same for a symmetric result (n, n), of which only the upper triangle is to be relied upon: large ones compute the
// strips that reach the diagonal or lie right of it.
template <int Sign, class V, int M, int K, class T>
OPTCTL_INLINE void multiply_upper(int n, int padded, int k, Left<T> a, const T* B, int ldb, const T* D, int ldd, T* C,
                                  int ldc) {
  if constexpr (M != 0 && K != 0) {
    multiply<Sign, V, M, K, M>(n, padded, k, a, B, ldb, D, ldd, C, ldc);
  } else {
    constexpr int width = 3 * V::lanes;
    for (int j = 0; j < padded; j += width) {  // columns j..j+width need rows 0..j+width
      const int rows = j + width < n ? j + width : n;
      const int columns = padded - j < width ? padded - j : width;
      multiply_any<Sign, V>(rows, columns, k, a, B + j, ldb, D ? D + j : D, ldd, C + j, ldc);
    }
  }
}

// The same with the lower triangle mirrored from the upper one.
template <int Sign, class V, int M, int K, class T>
OPTCTL_INLINE void multiply_symmetric(int n, int padded, int k, Left<T> a, const T* B, int ldb, const T* D, int ldd, T* C,
                                      int ldc) {
  multiply_upper<Sign, V, M, K>(n, padded, k, a, B, ldb, D, ldd, C, ldc);
  mirror_upper(n, C, ldc);
}

// Copy (rows, columns) between a packed matrix and a padded one.
template <class V, class T>
OPTCTL_INLINE void copy_in(int rows, int columns, const T* from, int from_ld, T* to, int ld) {
  for (int i = 0; i < rows; ++i)
    for (int j = 0; j < columns; j += V::lanes)
      V::load(from + i * from_ld + j, columns - j).store(to + i * ld + j);
}

template <class V, class T>
OPTCTL_INLINE void copy_out(int rows, int columns, const T* from, int ld, T* to, int to_ld) {
  for (int i = 0; i < rows; ++i)
    for (int j = 0; j < columns; j += V::lanes)
      V::load(from + i * ld + j).store(to + i * to_ld + j, columns - j);
}

template <class V, class T>
OPTCTL_INLINE void copy_negative(int n, const T* from, T* to) {
  for (int j = 0; j < n; j += V::lanes) (V::zero() - V::load(from + j, n - j)).store(to + j);
}

// The transpose of a packed matrix (rows, columns). Whole vectors are stored, since a vector read of what single numbers
// have just been written to has to wait for all of them.
template <class V, class T>
OPTCTL_INLINE void copy_transposed(int rows, int columns, const T* from, int from_ld, T* to, int ld) {
  for (int j = 0; j < columns; ++j)
    for (int i = 0; i < rows; i += V::lanes)
      V::load_strided(from + i * from_ld + j, from_ld, rows - i).store(to + j * ld + i);
}

// y += s * row, over n padded lanes.
template <class V, class T>
OPTCTL_INLINE void add_row(int n, T s, const T* row, T* y) {
  for (int j = 0; j < n; j += V::lanes) (V::load(y + j) + s * V::load(row + j)).store(y + j);
}

// Least pivot over its diagonal entry: below, rounding has taken it, and the matrix counts as singular.
template <class T>
constexpr T pivot_floor = 8 * std::numeric_limits<T>::epsilon();

// Eliminate the symmetric S (m, m) from [S | H]: S = U'DU with U unit upper triangular (L D L' with L = U').
// On return U and the pivots lie in S's upper triangle, H holds U'^{-1} H and Y = D^{-1} U'^{-1} H, so that
// H' S^{-1} H = H_new' Y. Returns false where a pivot is not finite or lost in rounding beside S's own diagonal there;
// `diagonal` is room for m numbers.
template <class VH, class T>
OPTCTL_INLINE bool eliminate(int m, T* S, int lds, int n, T* H, int ldh, T* Y, T* diagonal) {
  bool good = true;
  for (int i = 0; i < m; ++i) diagonal[i] = S[i * lds + i];
  for (int i = 0; i < m; ++i) {
    const T pivot = S[i * lds + i];
    good = good && pivot > 0 && pivot > pivot_floor<T> * diagonal[i] && pivot < static_cast<T>(INFINITY);
    const T inverse = 1 / pivot;
    for (int j = 0; j < n; j += VH::lanes) (inverse * VH::load(H + i * ldh + j)).store(Y + i * ldh + j);
    for (int r = i + 1; r < m; ++r) {
      const T f = S[i * lds + r] * inverse;
      for (int c = r; c < m; ++c) S[r * lds + c] -= f * S[i * lds + c];
      add_row<VH>(n, -f, H + i * ldh, H + r * ldh);
    }
    for (int r = i + 1; r < m; ++r) {
      S[i * lds + r] *= inverse;
      S[r * lds + i] = 0;
    }
  }
  return good;
}

// X <- U'^{-1} X for X (m, n), U unit upper triangular.
template <class V, class T>
OPTCTL_INLINE void forward_substitute(int m, const T* U, int ldu, int n, T* X, int ldx) {
  for (int i = 0; i < m; ++i)
    for (int r = i + 1; r < m; ++r) add_row<V>(n, -U[i * ldu + r], X + i * ldx, X + r * ldx);
}

// X <- U^{-1} X.
template <class V, class T>
OPTCTL_INLINE void back_substitute(int m, const T* U, int ldu, int n, T* X, int ldx) {
  for (int i = m - 1; i >= 0; --i)
    for (int r = i + 1; r < m; ++r) add_row<V>(n, -U[i * ldu + r], X + r * ldx, X + i * ldx);
}

// sum_j a_j b_j over n padded lanes.
template <class V, class T>
OPTCTL_INLINE T dot(int n, const T* a, const T* b) {
  V sum = V::zero();
  for (int j = 0; j < n; j += V::lanes) sum = sum + V::load(a + j) * V::load(b + j);
  return sum.sum();
}

// Solve U X = -Y in place for X (m, n), U unit upper triangular.
template <class V, class T>
OPTCTL_INLINE void back_substitute_negative(int m, const T* U, int ldu, int n, const T* Y, int ldy, T* X, int ldx) {
  for (int i = m - 1; i >= 0; --i)
    for (int j = 0; j < n; j += V::lanes) {
      V x = V::zero() - V::load(Y + i * ldy + j);
      for (int r = i + 1; r < m; ++r) x = x - U[i * ldu + r] * V::load(X + r * ldx + j);
      x.store(X + i * ldx + j);
    }
}

// y (n) += sum_i x_i A[i, :] for a packed A (m, n): A' x. y is padded.
template <class V, class T>
OPTCTL_INLINE void add_transposed_times(int m, int n, const T* A, const T* x, T* y) {
  for (int j = 0; j < n; j += V::lanes) {
    V sum = V::load(y + j);
    for (int i = 0; i < m; ++i) sum = sum + x[i] * V::load(A + i * n + j, n - j);
    sum.store(y + j);
  }
}

// y (m) += A x for a packed A (m, n); x is padded with zeros.
template <class V, class T>
OPTCTL_INLINE void add_times(int m, int n, const T* A, const T* x, T* y) {
  for (int i = 0; i < m; ++i) {
    V sum = V::zero();
    for (int j = 0; j < n; j += V::lanes) sum = sum + V::load(A + i * n + j, n - j) * V::load(x + j);
    y[i] += sum.sum();
  }
}

// Factor a symmetric packed matrix (n, n) in place, U and pivots in its upper triangle; solve with it. False where a
// pivot is not finite or lost in rounding beside S's own diagonal there.
template <class T>
inline bool factor_packed(int n, T* S) {
  for (int i = 0; i < n; ++i) {
    T given = S[i * n + i];  // what was there before the elimination
    for (int k = 0; k < i; ++k) given += S[k * n + i] * S[k * n + i] * S[k * n + k];
    const T pivot = S[i * n + i];
    if (!(pivot > 0) || !(pivot > pivot_floor<T> * given) || !(pivot < static_cast<T>(INFINITY))) return false;
    for (int r = i + 1; r < n; ++r) {
      const T f = S[i * n + r] / pivot;
      for (int c = r; c < n; ++c) S[r * n + c] -= f * S[i * n + c];
    }
    for (int r = i + 1; r < n; ++r) {
      S[i * n + r] /= pivot;
      S[r * n + i] = 0;
    }
  }
  return true;
}

template <class T>
OPTCTL_INLINE void solve_packed(int n, const T* U, T* x) {
  for (int i = 0; i < n; ++i)
    for (int r = i + 1; r < n; ++r) x[r] -= U[i * n + r] * x[i];
  for (int i = 0; i < n; ++i) x[i] /= U[i * n + i];
  for (int i = n - 1; i >= 0; --i)
    for (int r = i + 1; r < n; ++r) x[i] -= U[i * n + r] * x[r];
}

template <class T>
void fill_nan(T* p, int64_t count) {
  for (int64_t i = 0; i < count; ++i) p[i] = std::numeric_limits<T>::quiet_NaN();
}

// Aligned memory from one allocation, handed out in pieces.
template <class T>
class Workspace {
 public:
  explicit Workspace(size_t count) : memory_(new T[count + 64 / sizeof(T)]()) {
    const auto address = reinterpret_cast<std::uintptr_t>(memory_);
    next_ = memory_ + ((64 - address % 64) % 64) / sizeof(T);
  }
  ~Workspace() { delete[] memory_; }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  // Room for `count` numbers, zero, on a cache line of its own. `padded(count)` is what it takes.
  T* take(size_t count) {
    T* piece = next_;
    next_ += padded(count);
    return piece;
  }
  static constexpr size_t padded(size_t count) { return (count * sizeof(T) + 63) / 64 * 64 / sizeof(T); }

 private:
  T* memory_;
  T* next_;
};

// y (n) += A' x.
inline void add_transposed_product(int m, int n, const double* A, const double* x, double* y) {
  int j = 0;
  auto strip = [&](auto one) {
    using V = decltype(one);
    for (; j + V::lanes <= n; j += V::lanes) {
      V sum = V::load(y + j);
      for (int i = 0; i < m; ++i) sum = sum + x[i] * V::load(A + i * n + j);
      sum.store(y + j);
    }
  };
  strip(Vec<double, machine_lanes<double>>{});
  if constexpr (machine_lanes<double> > 4) strip(Vec<double, 4>{});
  if constexpr (machine_lanes<double> > 2) strip(Vec<double, 2>{});
  for (; j < n; ++j)
    for (int i = 0; i < m; ++i) y[j] += x[i] * A[i * n + j];
}

}  // namespace optctl::OPTCTL_ISA
