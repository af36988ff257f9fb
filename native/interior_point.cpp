// The interior point kernel of one instruction set: operands by name, in the order of operands.h.
#include "interior_point.h"

namespace optctl::OPTCTL_ISA {

namespace {
#define OPTCTL_FIELD(name) int32_t name;
struct Header {
  OPTCTL_SIZES(OPTCTL_FIELD)
};
#undef OPTCTL_FIELD

#define OPTCTL_NAME(name, kind) name,
struct In {
  enum Index { OPTCTL_OPERANDS(OPTCTL_NAME) };
};
struct Out {
  enum Index { OPTCTL_RESULTS(OPTCTL_NAME) };
};
#undef OPTCTL_NAME

Layout read(const Header& h, const void* const* in) {
  Layout p;
  p.N = h.N, p.nx = h.nx, p.nu = h.nu, p.nz = h.nx + h.nu;
  p.path[0] = h.path_inequalities, p.path[1] = h.path_equalities;
  p.end[0] = h.terminal_inequalities, p.end[1] = h.terminal_equalities;
  p.rows = h.rows, p.has_soft = h.has_soft, p.history = h.history;
  const int32_t* begins = &h.x0_min;
  for (int b = 0; b < block_count; ++b) p.block[b] = begins[b];
  p.kind = static_cast<const int32_t*>(in[In::kind]);
  auto numbers = [&](In::Index k) { return static_cast<const double*>(in[k]); };
  p.bounds = numbers(In::bounds), p.l1 = numbers(In::l1), p.l2 = numbers(In::l2), p.x0_free = numbers(In::x0_free);
  return p;
}
}  // namespace

extern const SolverKernel interior_point = [](const void* const* in, double* const* out) {
  Header header;
  std::memcpy(&header, in[In::info], sizeof header);
  const Layout p = read(header, in);
  const int64_t N = p.N, misses = p.has_soft ? p.rows : 0;
  auto numbers = [&](In::Index k) { return static_cast<const double*>(in[k]); };
  auto copy = [&](In::Index from, Out::Index to, int64_t count) { std::copy_n(numbers(from), count, out[to]); };
  copy(In::numbers, Out::numbers, sizeof(Numbers) / sizeof(double));
  copy(In::filter, Out::filter, 2 * filter_size);
  copy(In::history, Out::history, 6 * p.history);
  copy(In::xs, Out::xs, (N + 1) * p.nx);
  copy(In::us, Out::us, N * p.nu);
  copy(In::costates, Out::costates, (N + 1) * p.nx);
  copy(In::s, Out::s, p.rows);
  copy(In::y, Out::y, p.rows);
  copy(In::e, Out::e, misses);
  copy(In::v, Out::v, misses);
  const Unknowns z{out[Out::xs], out[Out::us], out[Out::costates], out[Out::s], out[Out::y], out[Out::e], out[Out::v]};
  const Expansion expansion{{out[Out::gaps], out[Out::c]}, out[Out::q0], out[Out::qs], out[Out::rs], out[Out::A],
                            out[Out::B], {out[Out::path_inequality], out[Out::path_equality]},
                            {out[Out::terminal_inequality], out[Out::terminal_equality]}, out[Out::W0], out[Out::W],
                            out[Out::Wf]};
  const Scaling scaling(p, numbers(In::x_scale), numbers(In::u_scale), numbers(In::row_scale), *numbers(In::cost_scale));
  if (!scaling.trivial()) scaling.inward(z, z);
  Numbers current;
  Settings settings;
  std::memcpy(&current, out[Out::numbers], sizeof current);
  std::memcpy(&settings, in[In::settings], sizeof settings);
  const int32_t* tapes = static_cast<const int32_t*>(in[In::info]) + sizeof(Header) / sizeof(int32_t);
  InteriorPoint method(p, tapes, numbers(In::memory), z, current, out[Out::filter], out[Out::history], expansion,
                       scaling);
  if (header.warm) method.settle_warm(settings);
  else method.iterate(settings);
  if (header.gains) method.gains(out[Out::K]);
  else std::fill_n(out[Out::K], N * p.nu * p.nx, 0.0);
  std::memcpy(out[Out::numbers], &current, sizeof current);
  *out[Out::cost] = method.cost() * scaling.cost();
  if (scaling.trivial()) return;
  scaling.outward(z, z);
  scaling.outward(expansion);
  if (header.gains) scaling.outward_gains(out[Out::K]);
};

}  // namespace optctl::OPTCTL_ISA
