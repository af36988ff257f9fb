// A trajectory problem as the interior point method sees it: its sizes, its rows, and points of it.
//
// optctl/shooting/{rows,expansion}.py are the definition; the order of the rows is theirs.
#pragma once

#include <cmath>
#include <cstdint>

namespace optctl::OPTCTL_ISA {

enum BlockName {
  x0_min, x0_max, x_min, x_max, u_min, u_max, path_inequality, path_equality, terminal_inequality, terminal_equality,
  block_count
};

// A row that is `off` is none of the others for this solve, and has to hold in the end.
enum RowKind { inequality = 1, equality = 2, elastic = 4, soft = 8, off = 16 };

// What does not change during a solve.
struct Layout {
  int64_t N, rows, history;
  int nx, nu, nz;
  int path[2], end[2];         // rows of a stage and of the end: inequalities, equalities
  int64_t block[block_count];  // where each block of rows begins, -1 if there is none
  bool has_soft;
  const int32_t* kind;         // of each row
  const double *bounds, *l1, *l2, *x0_free;

  // What the block of bounds b bounds: x_0, x_1..x_N or the inputs; and how many numbers that is.
  double* of_bound(const struct Unknowns& z, int b) const;
  int64_t bound_size(int b) const { return b <= x0_max ? nx : b <= x_max ? N * nx : N * nu; }

  // Number k of the block of bounds b, in the user's units; infinite where there is none.
  double bound(int b, int64_t k) const {
    return block[b] >= 0 ? bounds[block[b] + k] : b % 2 ? INFINITY : -INFINITY;
  }
};

// A point in all unknowns, or a direction.
struct Unknowns {
  double *xs, *us, *costates, *s, *y, *e, *v;
};

inline double* Layout::of_bound(const Unknowns& z, int b) const {
  return b <= x0_max ? z.xs : b <= x_max ? z.xs + nx : z.us;
}

struct Values {
  double *gaps, *c;
};

struct Expansion {
  Values at;
  double *q0, *qs, *rs, *A, *B;
  double *J[2], *Jf[2];  // Jacobians of the path's and of the end's rows: inequalities, equalities
  double *W0, *W, *Wf;
};

}  // namespace optctl::OPTCTL_ISA
