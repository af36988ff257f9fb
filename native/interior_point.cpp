// The interior point kernel of one instruction set.
#include "interior_point.h"

namespace optctl::OPTCTL_ISA {

// Operands and results in the order of optctl/shooting/native.py.
namespace {
enum In { memory, bounds, l1, l2, x0_free, options, numbers, filter, history, xs, us, costates, s, y, e, v };
enum Out {
  numbers_out, filter_out, history_out, xs_out, us_out, costates_out, s_out, y_out, e_out, v_out,
  cost, gaps, c, q0, qs, rs, A, B, J0, J1, Jf0, Jf1, W0, W, Wf, K
};
}  // namespace

extern const SolverKernel interior_point = [](const int32_t* info, const int32_t* kind, const double* const* in,
                                              double* const* out) {
  Layout p;
  p.N = info[0], p.nx = info[1], p.nu = info[2], p.nz = p.nx + p.nu;
  for (int b = 0; b < 2; ++b) p.path[b] = info[3 + b], p.end[b] = info[5 + b];
  p.rows = info[7], p.has_soft = info[8], p.history = info[9];
  const bool wants_gains = info[10];
  for (int b = 0; b < block_count; ++b) p.block[b] = info[11 + b];
  p.kind = kind, p.bounds = in[bounds], p.l1 = in[l1], p.l2 = in[l2], p.x0_free = in[x0_free];
  const int32_t* program = info + 11 + block_count;

  const int64_t N = p.N, misses = p.has_soft ? p.rows : 0;
  std::copy_n(in[numbers], sizeof(Numbers) / sizeof(double), out[numbers_out]);
  std::copy_n(in[filter], 2 * filter_size, out[filter_out]);
  std::copy_n(in[history], 6 * p.history, out[history_out]);
  std::copy_n(in[xs], (N + 1) * p.nx, out[xs_out]);
  std::copy_n(in[us], N * p.nu, out[us_out]);
  std::copy_n(in[costates], (N + 1) * p.nx, out[costates_out]);
  std::copy_n(in[s], p.rows, out[s_out]);
  std::copy_n(in[y], p.rows, out[y_out]);
  std::copy_n(in[e], misses, out[e_out]);
  std::copy_n(in[v], misses, out[v_out]);
  const Unknowns z{out[xs_out], out[us_out], out[costates_out], out[s_out], out[y_out], out[e_out], out[v_out]};
  const Expansion expansion{{out[gaps], out[c]}, out[q0], out[qs], out[rs], out[A], out[B], {out[J0], out[J1]},
                            {out[Jf0], out[Jf1]}, out[W0], out[W], out[Wf]};
  Numbers current;
  std::memcpy(&current, out[numbers_out], sizeof current);
  InteriorPoint method(p, program, in[memory], z, current, out[filter_out], out[history_out], expansion);
  method.iterate(in[options][0], in[options][1], in[options][2]);
  if (wants_gains) method.gains(out[K]);
  else std::fill_n(out[K], N * p.nu * p.nx, 0.0);
  std::memcpy(out[numbers_out], &current, sizeof current);
  *out[cost] = method.cost();
};

}  // namespace optctl::OPTCTL_ISA
