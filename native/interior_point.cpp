// The interior point kernel of one instruction set: operands by name, in the order of operands.h.
#include "certificate.h"

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

// What a solve works on: operands and results by name, and memory that lasts as long as the call.
struct Work {
  const Layout& p;
  const Header& header;
  const int32_t* tapes;
  const double* memory;
  Unknowns z;
  Expansion e;
  double *filter, *history;
};

Scaling scaling_of(const Layout& p, const Scales& by) { return {p, by.x.data(), by.u.data(), by.rows.data(), by.cost}; }

Scales inverse_of(const Scales& by) {
  Scales made;
  for (double s : by.x) made.x.push_back(1 / s);
  for (double s : by.u) made.u.push_back(1 / s);
  for (double s : by.rows) made.rows.push_back(1 / s);
  made.cost = 1 / by.cost;
  return made;
}

// The first state, from the guess in z, with slacks and multipliers in the units of the iterations, the rest of z in the
// user's. Returns the scales.
Scales begin(const Work& w, const Scales& given, const double* linear, const Settings& settings, Numbers& n) {
  const Layout& p = w.p;
  const Unknowns& z = w.z;
  const int64_t misses = p.has_soft ? p.rows : 0;
  const Scales one{std::vector<double>(p.nx, 1.0), std::vector<double>(p.nu, 1.0), std::vector<double>(p.rows, 1.0), 1};
  std::fill_n(z.costates, (p.N + 1) * p.nx, 0.0);
  std::fill_n(z.s, p.rows, 1.0), std::fill_n(z.y, p.rows, 0.0);
  std::fill_n(z.e, misses, 1.0), std::fill_n(z.v, misses, 1.0);
  const Scaling plain = scaling_of(p, one);
  ProblemFunctions functions(p, w.tapes, w.memory, w.e, plain);
  functions.expand(z);
  const std::vector<double> xs(z.xs, z.xs + (p.N + 1) * p.nx), us(z.us, z.us + p.N * p.nu);
  const Start start(p, z, w.e, given, linear);
  std::unique_ptr<InteriorPoint> probe;
  const Scales by = start.scales([&](const Scales& felt) {
    const Scales undo = inverse_of(felt);
    const Scaling there = scaling_of(p, felt), back = scaling_of(p, undo);
    there.inward(z, z);
    back.outward(w.e);
    probe = std::make_unique<InteriorPoint>(p, w.tapes, w.memory, z, n, w.filter, w.history, w.e, there);
    const Unknowns* const step = probe->newton_step();
    std::copy(xs.begin(), xs.end(), z.xs), std::copy(us.begin(), us.end(), z.us);
    there.outward(w.e);
    return step;
  });
  start.close();
  start.push_inside(by);
  auto same = [](const std::vector<double>& a, const double* b) { return std::equal(a.begin(), a.end(), b); };
  if (!same(xs, z.xs) || !same(us, z.us)) {
    std::fill_n(z.y, p.rows, 0.0);
    functions.expand(z);
  }
  n.mu = start.barrier(by, functions.cost(), settings.barrier);
  n.first_cost = functions.cost() / by.cost;
  n.floor = settings.least;
  double theta = 0;
  for (int64_t k = 0; k < p.N * p.nx; ++k) theta += std::fabs(w.e.at.gaps[k] / by.x[k % p.nx]);
  for (int64_t i = 0; i < p.rows; ++i) theta += std::fabs(missed(p, z, i, w.e.at.c[i] * by.rows[i]));
  n.theta_first = n.mark = theta;
  n.mu_restore = n.mu;
  n.phase = w.header.quadratic ? predicting : optimizing;
  return by;
}

// Rows that are active, s = 0, where the multipliers of a similar solution (in the user's units) say so.
void hold(const Layout& p, const Scales& by, const double* y, const Unknowns& z) {
  double most = 0;
  for (int64_t i = 0; i < p.rows; ++i)
    if (p.kind[i] & inequality) most = largest(most, std::fabs(y[i] / by.rows[i]));
  for (int64_t i = 0; i < p.rows; ++i) {
    const bool held = p.kind[i] & inequality && y[i] / by.rows[i] > active_share * most;
    z.y[i] = p.kind[i] & equality || held ? y[i] : 0;
    z.s[i] = held ? 0 : 1;
    if (p.has_soft) z.e[i] = p.kind[i] & soft && !(held && z.y[i] >= (1 - active_share) * p.l1[i]) ? 0 : 1;
  }
}
}  // namespace

extern const SolverKernel interior_point = [](const void* const* in, double* const* out) {
  Header header;
  std::memcpy(&header, in[In::info], sizeof header);
  Layout p = read(header, in);
  const int64_t N = p.N, misses = p.has_soft ? p.rows : 0;
  auto numbers = [&](In::Index k) { return static_cast<const double*>(in[k]); };
  auto copy = [&](In::Index from, Out::Index to, int64_t count) { std::copy_n(numbers(from), count, out[to]); };
  copy(In::numbers, Out::numbers, sizeof(Numbers) / sizeof(double));
  copy(In::xs, Out::xs, (N + 1) * p.nx);
  copy(In::us, Out::us, N * p.nu);
  if (header.begin) {
    std::fill_n(out[Out::filter], 2 * filter_size, INFINITY);
    std::fill_n(out[Out::history], 6 * p.history, std::numeric_limits<double>::quiet_NaN());
  } else {
    copy(In::filter, Out::filter, 2 * filter_size);
    copy(In::history, Out::history, 6 * p.history);
    copy(In::costates, Out::costates, (N + 1) * p.nx);
    copy(In::s, Out::s, p.rows);
    copy(In::y, Out::y, p.rows);
    copy(In::e, Out::e, misses);
    copy(In::v, Out::v, misses);
  }
  Numbers current;
  Settings settings;
  std::memcpy(&current, out[Out::numbers], sizeof current);
  std::memcpy(&settings, in[In::settings], sizeof settings);
  const int32_t* tapes = static_cast<const int32_t*>(in[In::info]) + sizeof(Header) / sizeof(int32_t);
  const Unknowns z{out[Out::xs], out[Out::us], out[Out::costates], out[Out::s], out[Out::y], out[Out::e], out[Out::v]};
  const Expansion expansion{{out[Out::gaps], out[Out::c]}, out[Out::q0], out[Out::qs], out[Out::rs], out[Out::A],
                            out[Out::B], {out[Out::path_inequality], out[Out::path_equality]},
                            {out[Out::terminal_inequality], out[Out::terminal_equality]}, out[Out::W0], out[Out::W],
                            out[Out::Wf]};
  Scales by;
  if (!header.begin || header.x_given) by.x.assign(numbers(In::x_scale), numbers(In::x_scale) + p.nx);
  if (!header.begin || header.u_given) by.u.assign(numbers(In::u_scale), numbers(In::u_scale) + p.nu);
  if (header.begin) {
    by = begin({p, header, tapes, numbers(In::memory), z, expansion, out[Out::filter], out[Out::history]}, by,
               numbers(In::x_linear), settings, current);
  } else {
    by.rows.assign(numbers(In::row_scale), numbers(In::row_scale) + p.rows);
    by.cost = *numbers(In::cost_scale);
  }
  std::copy(by.x.begin(), by.x.end(), out[Out::x_scale]);
  std::copy(by.u.begin(), by.u.end(), out[Out::u_scale]);
  std::copy(by.rows.begin(), by.rows.end(), out[Out::row_scale]);
  *out[Out::cost_scale] = by.cost;
  const Scaling scaling = scaling_of(p, by);
  if (!scaling.trivial()) {
    if (header.begin) scaling.inward_point(z);
    else scaling.inward(z, z);
  }
  std::vector<double> l1(p.l1, p.l1 + misses), l2(p.l2, p.l2 + misses);  // prices in the units of the iterations
  for (int64_t i = 0; i < misses; ++i) {
    l1[i] /= by.rows[i] * by.cost;
    l2[i] /= by.rows[i] * by.rows[i] * by.cost;
  }
  const Layout given = p;
  p.l1 = l1.data(), p.l2 = l2.data();
  InteriorPoint method(p, tapes, numbers(In::memory), z, current, out[Out::filter], out[Out::history], expansion,
                       scaling);
  if (header.measure) {
    method.expand();
  } else if (header.warm) {
    std::vector<double> cold[7];
    const Numbers before = current;
    double* const parts[] = {z.xs, z.us, z.costates, z.s, z.y, z.e, z.v};
    const int64_t counts[] = {(N + 1) * p.nx, N * p.nu, (N + 1) * p.nx, p.rows, p.rows, misses, misses};
    for (int k = 0; k < 7; ++k) cold[k].assign(parts[k], parts[k] + counts[k]);
    if (header.begin) {
      copy(In::xs, Out::xs, counts[0]);
      copy(In::us, Out::us, counts[1]);
      copy(In::costates, Out::costates, counts[2]);
      hold(given, by, numbers(In::y), z);
      scaling.inward(z, z);
      std::copy(cold[6].begin(), cold[6].end(), z.v);  // had these units already
    }
    Settings first = settings;
    if (header.begin) first.stop = static_cast<double>((p.history - 1) / 2);
    method.settle_warm(first);
    if (header.begin && current.status != solved) {
      for (int k = 0; k < 7; ++k) std::copy(cold[k].begin(), cold[k].end(), parts[k]);
      const double iterations = current.iterations;
      current = before;
      current.iterations = iterations;
      if (settings.stop >= 0) method.iterate(settings);
    }
  } else if (settings.stop >= 0) {
    method.iterate(settings);
  }
  if (header.gains && settings.stop >= 0) method.gains(out[Out::K]);
  else std::fill_n(out[Out::K], N * p.nu * p.nx, 0.0);
  std::memcpy(out[Out::numbers], &current, sizeof current);
  *out[Out::cost] = method.cost() * scaling.cost();
  if (!scaling.trivial()) {
    scaling.outward(z, z);
    scaling.outward(expansion);
    if (header.gains) scaling.outward_gains(out[Out::K]);
  }
  const Scales of_user{header.x_given ? by.x : std::vector<double>(), header.u_given ? by.u : std::vector<double>(), {}, 1};
  const Figures figures = certify(given, z, expansion, by, of_user, *out[Out::cost], current.first_cost * by.cost, current.floor * by.cost);
  std::memcpy(out[Out::figures], &figures, sizeof figures);
};

}  // namespace optctl::OPTCTL_ISA
