// The kernels under sanitizers: random sizes, strides and data, compared with the textbook recursions.
//
//     fuzz [cases] [seed]        case i of seed s is case 0 of seed s + i
//
// Every case is run in both types by every compiled version of the kernels for which this processor has instructions.
#include "fuzz.h"
#include "fuzz_gradient.h"
#include "fuzz_solver.h"
#include "fuzz_tape.h"

#include <functional>
#include <thread>

#include "batch.h"

#define OPTCTL_DECLARE(isa)                                               \
  namespace optctl::isa {                                                 \
  extern const Finders lq_finders, gaussian_finders, square_root_finders; \
  extern const TapeRunner tape_runner;                                    \
  extern const HostKernels host_kernels;                                  \
  extern const SolverKernel interior_point;                               \
  }
OPTCTL_DECLARE(portable)
#ifdef OPTCTL_X86
OPTCTL_DECLARE(sized)  // portable with fixed sizes, as other processors have it
OPTCTL_DECLARE(avx2)
namespace optctl::avx512 {
extern const TapeRunner tape_runner;
extern const HostKernels host_kernels;
extern const SolverKernel interior_point;
}
#endif

namespace optctl::fuzz {

struct Version {
  const char* name;
  const Finders &lq, &gaussian, &square_root;
  TapeRunner run_tape;
  const HostKernels& host;
  SolverKernel solve;
};

std::vector<Version> versions() {
#define OPTCTL_ADD(isa, loops)                                                                                 \
  found.push_back({#loops, isa::lq_finders, isa::gaussian_finders, isa::square_root_finders, loops::tape_runner, \
                   loops::host_kernels, loops::interior_point})
  std::vector<Version> found;
  OPTCTL_ADD(portable, portable);
#ifdef OPTCTL_X86
  OPTCTL_ADD(sized, sized);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) OPTCTL_ADD(avx2, avx2);
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw"))
    OPTCTL_ADD(avx2, avx512);  // as dispatch.cpp picks them
#endif
  return found;
}

// ---- Linear-quadratic: Riccati's recursion, and the residual of the optimality system.

namespace lq {
enum { A, B, Q, R, M, Qf, Q0, free0 };
}

template <class T>
Operands<T> random_lq(const Sizes& s) {
  const int64_t N = s.N;
  const int nx = s.nx, nu = s.nu, percent_free = 50 * between(0, 2), spoiled = between(0, 40);
  const double scale = 1 / std::sqrt(nx);
  const Operands<T> made{draw<T>(N, nx, nx, scale),  draw<T>(N, nx, nu, scale),       draw_weight<T>(N, nx),
                         draw_weight<T>(N, nu),      draw<T>(N, nx, nu, 0.1 * scale), draw_weight<T>(1, nx),
                         draw_weight<T>(1, nx),      {1, nx, 1}};
  const auto &R = made[lq::R], &Q0 = made[lq::Q0], &free0 = made[lq::free0];
  for (int i = 0; i < nx; ++i) free0.at(0)[i] = chance(percent_free);
  if (chance(10) && nu && N) R.at(between(0, R.stages - 1))[0] = -1e4;
  if (chance(10)) Q0.at(0)[0] = -1e4;
  if (spoiled <= lq::Qf && N) spoil(made[spoiled], spoiled == lq::Q || spoiled == lq::R || spoiled == lq::Qf);
  return made;
}

struct Riccati {
  Rows K, P;  // NaN from where it fails
  int32_t status;
};

template <class T>
Riccati riccati(const Sizes& s, const Operands<T>& in) {
  Riccati found{Rows(s.N, Matrix(s.nu, s.nx, NAN)), Rows(s.N + 1, Matrix(s.nx, s.nx, NAN)), -1};
  Matrix P = found.P[s.N] = in[lq::Qf][0];
  for (int64_t t = s.N - 1; t >= 0; --t) {
    const Matrix A = in[lq::A][t], B = in[lq::B][t], BP = transposed(B) * P, H = transposed(in[lq::M][t]) + BP * A;
    const Solution solved = solve(in[lq::R][t] + BP * B, H);
    P = in[lq::Q][t] + transposed(A) * P * A - transposed(H) * solved.x;
    found.status = static_cast<int32_t>(t);
    if (!solved.definite || !is_finite(P)) return found;
    found.K[t] = Matrix(s.nu, s.nx) - solved.x;
    found.P[t] = P;
  }
  const Matrix E = diagonal(in[lq::free0][0]);
  found.status = solve(eye(s.nx) - E + E * (in[lq::Q0][0] + P) * E, E).definite ? -1 : 0;
  return found;
}

// The rows are those of optctl/lq/kkt.py.
template <class T>
void check_optimality(const Sizes& s, const Operands<T>& in, const Operands<T>& rows, const Operands<T>& point) {
  const auto &gaps = rows[0], &of_xs = rows[1], &of_us = rows[2], &start = rows[3];
  const auto &y = point[0], &xs = point[1], &us = point[2], &costates = point[3];
  double scale = 1;
  for (const auto& part : point)
    for (int64_t t = 0; t < part.stages; ++t)
      for (double x : part[t].v) scale = std::max(scale, std::abs(x));
  const Matrix E = diagonal(in[lq::free0][0]), Ey = E * y[0];
  expect_near<T>("row of y", E * (in[lq::Q0][0] * Ey + costates[0]) + y[0] - Ey, start[0], scale);
  expect_near<T>("first gap", Ey - xs[0], gaps[0], scale);
  for (int64_t t = 0; t < s.N; ++t) {
    const Matrix A = in[lq::A][t], B = in[lq::B][t], M = in[lq::M][t], x = xs[t], u = us[t], next = costates[t + 1];
    expect_near<T>("row of x", in[lq::Q][t] * x + M * u + transposed(A) * next - costates[t], of_xs[t], scale);
    expect_near<T>("row of u", transposed(M) * x + in[lq::R][t] * u + transposed(B) * next, of_us[t], scale);
    expect_near<T>("gap", A * x + B * u - xs[t + 1], gaps[t + 1], scale);
  }
  expect_near<T>("last row of x", in[lq::Qf][0] * xs[s.N] - costates[s.N], of_xs[s.N], scale);
}

template <class T>
void lq_case(const Sizes& s, const Finders& finders, const Operands<T>& in, const Riccati& want) {
  const int64_t N = s.N;
  const int nx = s.nx, nu = s.nu;
  const Operand<T> K(N, nu, nx), P(N + 1, nx, nx), S(N, nu, nu), S0(1, nx, nx), k(N, nu, 1), p(N + 1, nx, 1);
  expect_status("lq_factor", run(finders, Name::lq_factor, s, in, {K, P, S, S0}), want.status);
  expect_near("K", K, want.K);
  expect_near("P", P, want.P);
  if (want.status >= 0) expect_near("S0", S0, {Matrix(nx, nx, NAN)});
  const Operands<T> rows{draw<T>(N + 1, nx, 1), draw<T>(N + 1, nx, 1), draw<T>(N, nu, 1), draw<T>(1, nx, 1)};
  const Operands<T> point{{1, nx, 1}, {N + 1, nx, 1}, {N, nu, 1}, {N + 1, nx, 1}};
  const Operands<T> data{in[lq::A], in[lq::B], rows[0], rows[1], rows[2], rows[3], in[lq::free0], K, P, S, S0};
  expect_status("lq_sweep", run(finders, Name::lq_sweep, s, data, {point[0], point[1], point[2], point[3], k, p}), -1);
  if (want.status >= 0) return;
  check_optimality(s, in, rows, point);
  for (int64_t t = 0; t < N; ++t) expect_near<T>("k", k[t] + K[t] * point[1][t], point[2][t]);
  for (int64_t t = 0; t <= N; ++t) expect_near<T>("p", p[t] + P[t] * point[1][t], point[3][t]);
}

// ---- Linear-Gaussian: Kalman's filter with explicit inverses, the Rauch-Tung-Striebel smoother, differences.

namespace gauss {
enum { A, C, W, V, mean0, cov0, b, z, fields };
bool is_symmetric(int field) { return field == W || field == V || field == cov0; }
}  // namespace gauss

template <class T>
Operands<T> random_series(const Sizes& s) {
  const int64_t N = s.N;
  const int nx = s.nx, ny = s.ny, percent_missing = std::max(0, 20 * between(-3, 5));
  const double scale = 1 / std::sqrt(nx);
  const Operands<T> made{draw<T>(N, nx, nx, scale),  draw<T>(N + 1, ny, nx, scale),  draw_weight<T>(N, nx),
                         draw_weight<T>(N + 1, ny),  draw<T>(1, nx, 1),              draw_weight<T>(1, nx),
                         draw<T>(N, nx, 1),          {N + 1, ny, 1}};
  for (int64_t t = 0; t <= N; ++t) {
    made[gauss::z].set(t, random_matrix(ny, 1, 2));
    for (int i = 0; i < ny; ++i)
      if (chance(percent_missing)) made[gauss::z].at(t)[i] = NAN;
  }
  return made;
}

// The last two measurements exact, and the same at one stage or at all: their covariance is singular.
template <class T>
void duplicate(const Sizes& s, const Operand<T>& C, const Operand<T>& V) {
  const int i = s.ny - 1;
  T* const c = C.at(between(0, C.stages - 1));
  for (int j = 0; j < s.nx; ++j) c[i * s.nx + j] = c[(i - 1) * s.nx + j];
  for (int64_t t = 0; t < V.stages; ++t) {
    Matrix v = V[t];
    for (int j = 0; j < s.ny; ++j) v(i, j) = v(j, i) = v(i - 1, j) = v(j, i - 1) = 0;
    V.set(t, v);
  }
}

struct Moments {
  Rows predicted_means, predicted_covs, means, covs;  // NaN from where it fails
  Matrix log_likelihood;
  int32_t status;
};

template <class T>
Moments filter(const Sizes& s, const Operands<T>& in) {
  using namespace gauss;
  const Rows no_means(s.N + 1, Matrix(s.nx, 1, NAN)), no_covs(s.N + 1, Matrix(s.nx, s.nx, NAN));
  Moments found{no_means, no_covs, no_means, no_covs, Matrix(1, 1, NAN), -1};
  Matrix m = in[mean0][0], P = in[cov0][0], deviance(1, 1);
  for (int64_t t = 0; t <= s.N; ++t) {
    found.predicted_means[t] = m;
    found.predicted_covs[t] = P;
    std::vector<int> seen;
    for (int i = 0; i < s.ny; ++i)
      if (!std::isnan(in[z].at(t)[i])) seen.push_back(i);
    const int n = static_cast<int>(seen.size());
    const Matrix H = chosen_rows(in[C][t], seen), noise = chosen_rows(transposed(chosen_rows(in[V][t], seen)), seen);
    const Matrix v = chosen_rows(in[z][t], seen) - H * m;
    const Solution inverse = solve(H * P * transposed(H) + noise, eye(n));
    const Matrix L = P * transposed(H) * inverse.x, F = eye(s.nx) - L * H;
    m = m + L * v;
    P = F * P * transposed(F) + L * noise * transposed(L);
    found.status = static_cast<int32_t>(t);
    if (!inverse.definite || !is_finite(P)) return found;
    found.means[t] = m;
    found.covs[t] = P;
    deviance = deviance + transposed(v) * inverse.x * v + Matrix(1, 1, inverse.log_det + n * std::log(2 * M_PI));
    if (t == s.N) break;
    m = in[A][t] * m + in[b][t];
    P = in[A][t] * P * transposed(in[A][t]) + in[W][t];
  }
  found.log_likelihood = plus(Matrix(1, 1), -0.5, deviance);
  found.status = -1;
  return found;
}

struct Smoothed {
  Rows means, covs, lag_one_covs, r;
};

template <class T>
Smoothed smooth(const Sizes& s, const Operands<T>& in, const Moments& f) {
  Smoothed found{f.means, f.covs, Rows(s.N, Matrix(s.nx, s.nx)), f.means};
  for (int64_t t = s.N; t >= 0; --t) {
    if (t < s.N) {
      const Matrix G = transposed(solve(f.predicted_covs[t + 1], in[gauss::A][t] * f.covs[t]).x);
      found.means[t] = f.means[t] + G * (found.means[t + 1] - f.predicted_means[t + 1]);
      found.covs[t] = f.covs[t] + G * (found.covs[t + 1] - f.predicted_covs[t + 1]) * transposed(G);
      found.lag_one_covs[t] = found.covs[t + 1] * transposed(G);
    }
    found.r[t] = solve(f.predicted_covs[t], found.means[t] - f.predicted_means[t]).x;
  }
  return found;
}

// A random direction of all fields, and how fast the log-likelihood changes in it.
struct Slope {
  Operands<double> direction;
  double value;
};

template <class T>
Slope slope_of(const Sizes& s, const Operands<T>& in) {
  constexpr double h = 1e-5;
  Operands<double> direction, up, down;
  for (int field = 0; field < gauss::fields; ++field) {
    const Operand<T>& o = in[field];
    for (auto* made : {&direction, &up, &down}) made->emplace_back(o.stages, o.rows, o.columns);
    for (int64_t t = 0; t < o.stages; ++t) {
      const Matrix d = random_matrix(o.rows, o.columns, 1);
      direction[field].set(t, gauss::is_symmetric(field) ? d + transposed(d) : d);
      up[field].set(t, plus(o[t], h, direction[field][t]));
      down[field].set(t, plus(o[t], -h, direction[field][t]));
    }
  }
  return {direction, (filter(s, up).log_likelihood(0, 0) - filter(s, down).log_likelihood(0, 0)) / (2 * h)};
}

template <class T>
void check_score(const Operands<T>& score, const Slope& want) {
  if (!std::isfinite(want.value)) return;  // so near to a singular covariance that a difference meets one
  double slope = 0, scale = 1;
  for (int field = 0; field < gauss::fields; ++field)
    for (int64_t t = 0; t < score[field].stages; ++t) {
      const Matrix g = score[field][t], d = want.direction[field][t];
      for (size_t i = 0; i < d.v.size(); ++i) slope += g.v[i] * d.v[i], scale += std::abs(g.v[i] * d.v[i]);
    }
  const double rounding = std::max(tolerance<T>, 1e-6);  // of the difference
  expect(std::abs(slope - want.value) <= rounding * scale, "slope", slope, want.value);
}

struct Reference {
  bool comparable;  // nothing is infinite
  Moments filtered;
  Smoothed smoothed;
  Slope slope;
};

bool is_lost(int32_t code) { return code >= 0 && code % 4 == 2; }

// Results that are not known need only be NaN from where the filter fails.
template <class T>
void forward_pass(const char* what, Name name, const Finders& finders, const Sizes& s, const Operands<T>& in,
                  const Reference& want, const Operands<T>& out, const std::vector<const Rows*>& known = {}) {
  const int32_t failed = want.filtered.status, code = run(finders, name, s, in, out);
  if (is_lost(code)) return;  // the caller goes on by square roots
  expect_status(what, code < 0 ? code : code / 4, failed);
  if (!want.comparable) return;
  expect_near(what, out[0], {want.filtered.log_likelihood});
  for (size_t i = 0; i < known.size(); ++i) {
    const Operand<T>& result = out[i + 1];
    if (known[i]) expect_near(what, result, *known[i]);
    for (int64_t t = failed; t >= 0 && t < result.stages && !known[i]; ++t)
      expect_near<T>(what, result[t], Matrix(result.rows, result.columns, NAN));
  }
}

template <class T>
void backward_pass(const char* what, Name name, const Finders& finders, const Sizes& s, const Operands<T>& in,
                   const Reference& want) {
  const int nx = s.nx;
  const Operands<T> out{{s.N + 1, nx, 1}, {s.N + 1, nx, nx}, {s.N, nx, nx}, {s.N + 1, nx, 1}};
  const int32_t code = run(finders, name, s, in, out);
  if (is_lost(code)) return;
  expect_status(what, code, -1);
  if (!want.comparable || want.filtered.status >= 0) return;
  expect_near("smoothed mean", out[0], want.smoothed.means);
  expect_near("smoothed cov", out[1], want.smoothed.covs);
  expect_near("lag-one cov", out[2], want.smoothed.lag_one_covs);
  expect_near("r", out[3], want.smoothed.r);
}

template <class T>
void kalman_case(const Sizes& s, const Finders& finders, const Operands<T>& in, const Reference& want) {
  using namespace gauss;
  const int64_t n = s.N + 1;
  const int nx = s.nx, ny = s.ny;
  const Moments& f = want.filtered;
  const Operand<T> loglik(1, 1, 1), m(n, nx, 1), P(n, nx, nx), S(n, ny, ny), Y(n, ny, nx), e(n, ny, 1);
  forward_pass("kalman_likelihood", Name::kalman_likelihood, finders, s, in, want, {{1, 1, 1}});
  forward_pass("kalman_filter", Name::kalman_filter, finders, s, in, want,
               {{1, 1, 1}, {n, nx, 1}, {n, nx, nx}, {n, nx, 1}, {n, nx, nx}},
               {&f.means, &f.covs, &f.predicted_means, &f.predicted_covs});
  forward_pass("kalman_forward", Name::kalman_forward, finders, s, in, want, {loglik, m, P, S, Y, e},
               {&f.means, &f.covs, nullptr, nullptr, nullptr});
  if (is_lost(run(finders, Name::kalman_forward, s, in, {loglik, m, P, S, Y, e}))) return;
  const Operands<T> smoothing{in[A], in[C], in[W], in[z], m, P, S, Y, e};
  backward_pass("kalman_smoother", Name::kalman_smoother, finders, s, smoothing, want);
  Operands<T> score;
  for (const Operand<T>& field : in) score.emplace_back(field.stages, field.rows, field.columns);
  const Operands<T> data{in[A], in[C], in[W], in[V], in[b], in[z], m, P, S, Y, e};
  expect_status("kalman_score", run(finders, Name::kalman_score, s, data, score), -1);
  if (want.comparable && f.status < 0) check_score(score, want.slope);
}

template <class T>
void square_root_case(const Sizes& s, const Finders& finders, const Operands<T>& in, const Reference& want) {
  using namespace gauss;
  const int64_t n = s.N + 1;
  const int nx = s.nx, ny = s.ny;
  const Moments& f = want.filtered;
  const Operand<T> loglik(1, 1, 1), m(n, nx, 1), S(n, ny, ny), K(n, ny, nx), e(n, ny, 1), G(s.N, nx, nx), E(n, nx, nx);
  forward_pass("square_root_likelihood", Name::square_root_likelihood, finders, s, in, want, {{1, 1, 1}});
  forward_pass("square_root_filter", Name::square_root_filter, finders, s, in, want,
               {{1, 1, 1}, {n, nx, 1}, {n, nx, nx}, {n, nx, 1}, {n, nx, nx}},
               {&f.means, &f.covs, &f.predicted_means, &f.predicted_covs});
  forward_pass("square_root_forward", Name::square_root_forward, finders, s, in, want, {loglik, m, S, K, e, G, E},
               {&f.means, nullptr, nullptr, nullptr, nullptr, nullptr});
  const Operands<T> smoothing{in[A], in[C], m, S, K, e, G, E};
  backward_pass("square_root_smoother", Name::square_root_smoother, finders, s, smoothing, want);
}

// What the doors call, of both forms: whichever loses digits, the answer is right.
template <class T>
void estimate_case(const Sizes& s, const Operands<T>& in, const Reference& want) {
  const int64_t n = s.N + 1;
  const int nx = s.nx;
  const Moments& f = want.filtered;
  Stages<T> views[gauss::fields];
  for (int field = 0; field < gauss::fields; ++field) views[field] = {in[field].at(0), in[field].step()};
  for (const bool roots : {false, true}) {
    auto call = [&](auto estimate, const Operands<T>& out) {
      T* results[16];
      for (size_t i = 0; i < out.size(); ++i) results[i] = out[i].at(0);
      return estimate(roots, s, views, results);
    };
    const Operands<T> likelihood{{1, 1, 1}}, filtered{{1, 1, 1}, {n, nx, 1}, {n, nx, nx}, {n, nx, 1}, {n, nx, nx}},
        smoothed{{1, 1, 1}, {n, nx, 1}, {n, nx, nx}, {s.N, nx, nx}, {n, nx, 1}};
    Operands<T> score{{1, 1, 1}};
    for (const Operand<T>& field : in) score.emplace_back(field.stages, field.rows, field.columns);
    const int32_t codes[] = {call(estimate_likelihood<T>, likelihood), call(estimate_filter<T>, filtered),
                             call(estimate_score<T>, score)};
    for (const int32_t code : codes) expect_status("estimate", code < 0 ? code : code / 4, f.status);
    const int32_t code = call(estimate_smoother<T>, smoothed);
    if (!want.comparable || f.status >= 0 || is_lost(code)) continue;
    expect_near("estimated likelihood", likelihood[0], {f.log_likelihood});
    expect_near("estimated mean", filtered[1], f.means);
    expect_near("estimated cov", filtered[2], f.covs);
    expect_near("estimated smoothed cov", smoothed[2], want.smoothed.covs);
    check_score(Operands<T>(score.begin() + 1, score.end()), want.slope);
  }
}

// ---- Batches on threads.

// Each task on a thread of its own, but for every other one: it begins when the batch is over, as in a busy pool.
class Pool {
 public:
  int64_t num_threads() const { return 4; }
  void Schedule(std::function<void()> task) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (late_.size() < threads_.size()) late_.push_back(std::move(task));
    else threads_.emplace_back(std::move(task));
  }
  ~Pool() {
    for (const auto& task : late_) task();
    for (auto& thread : threads_) thread.join();
  }

 private:
  std::mutex mutex_;
  std::vector<std::function<void()>> late_;
  std::vector<std::thread> threads_;
};

// Two batches within a batch, of series that share all but the measurements.
void batch_case(const Sizes& s) {
  const int64_t n = s.N + 1, count = between(0, 40);
  const Operands<double> in = random_series<double>(s);
  const Operand<double> zs(count * n, s.ny, 1), results(2 * count, 1, 1), alone(1, 1, 1);
  const auto statuses = room<int32_t>(2 * count);
  for (int64_t i = 0; i < count * n; ++i) zs.set(i, random_matrix(s.ny, 1, 1));
  const Kernel<double> kernel = find_kernel<double>(Name::kalman_likelihood, s);
  auto solve = [&](int64_t i, double* log_likelihood) {
    Stages<double> views[gauss::fields];
    for (int field = 0; field < gauss::fields; ++field) views[field] = {in[field].at(0), in[field].step()};
    views[gauss::z] = {zs.at(i * n), s.ny};
    return kernel(s, views, &log_likelihood);
  };
  {
    Pool pool;
    run_batch(pool, 2, [&](int64_t half) {
      run_batch(pool, count, [&](int64_t i) {
        statuses.get()[half * count + i] = solve(i, results.at(half * count + i));
      });
    });
  }
  for (int64_t i = 0; i < 2 * count; ++i) {
    expect_status("batch", statuses.get()[i], solve(i % count, alone.at(0)));
    expect(*results.at(i) == *alone.at(0), "batch", *results.at(i), *alone.at(0));
  }
}

// One problem solved on several threads at once.
void solver_batch() {
  const Trajectory problem;
  const Solve alone(problem, 15);
  alone.run(find_interior_point());
  std::vector<Solve> batch;
  for (int i = between(1, 6); i > 0; --i) batch.emplace_back(problem, 15);
  {
    Pool pool;
    run_batch(pool, static_cast<int64_t>(batch.size()), [&](int64_t i) { batch[i].run(find_interior_point()); });
  }
  for (const Solve& solve : batch) expect(solve.same_as(alone), "a solve on another thread", NAN, NAN);
}

// ---- All of it.

Sizes random_sizes() {
  const bool large = chance(4);
  return {between(0, large ? 3 : 12), large ? between(21, 70) : between(1, chance(50) ? 6 : 20),
          between(0, chance(50) ? 4 : 18), between(1, chance(50) ? 4 : 10)};
}

void set_where(uint64_t seed, const char* type, const char* version, const Sizes& s) {
  char text[200];
  std::snprintf(text, sizeof text, "seed %llu, %s, %s, N = %d, nx = %d, nu = %d, ny = %d",
                static_cast<unsigned long long>(seed), type, version, static_cast<int>(s.N), s.nx, s.nu, s.ny);
  where = text;
}

template <class T>
void all_versions(uint64_t seed, const char* type, const Sizes& s) {
  const Operands<T> quadratic = random_lq<T>(s), series = random_series<T>(s);
  if (chance(10) && s.ny > 1) duplicate(s, series[gauss::C], series[gauss::V]);
  const int spoiled = between(0, 80);
  if (spoiled < gauss::fields) spoil(series[spoiled], gauss::is_symmetric(spoiled));
  const Riccati recursion = riccati(s, quadratic);
  const Moments filtered = filter(s, series);
  const Reference want{spoiled >= gauss::fields, filtered, smooth(s, series, filtered), slope_of(s, series)};
  set_where(seed, type, "estimate", s);
  estimate_case(s, series, want);
  for (const Version& version : versions()) {
    set_where(seed, type, version.name, s);
    lq_case(s, version.lq, quadratic, recursion);
    kalman_case(s, version.gaussian, series, want);
    square_root_case(s, version.square_root, series, want);
  }
}

int solved = 0, tried = 0;  // trajectories: many of the random ones have no feasible point

void solver_case(uint64_t seed) {
  const Trajectory problem;
  for (const Version& version : versions()) {
    set_where(seed, "interior point", version.name, {problem.N, problem.nx, problem.nu, 0});
    const Solve solve(problem);
    solve.run(version.solve);
    ++tried;
    if (!solve.solved()) continue;
    ++solved, solve.check();
    for (const int percent_wrong : {0, 20}) {
      const Solve warm = Solve::again(solve, percent_wrong);
      warm.run(version.solve);
      expect(percent_wrong || warm.solved(), "a warm start from the solution", warm.number("status"), 0);
      if (warm.solved()) warm.check();
    }
  }
}

void tape_cases(uint64_t seed) {
  for (const Version& version : versions()) {
    set_where(seed, "double", version.name, {});
    check_operations(version.run_tape);
    check_programs(version.run_tape);
    check_horizon(version.host);
    check_ilqr(version.host);
  }
}

void one_case(uint64_t seed) {
  source.seed(seed);
  const Sizes s = random_sizes();
  all_versions<float>(seed, "float", s);
  all_versions<double>(seed, "double", s);
  tape_cases(seed);
  solver_case(seed);
  set_where(seed, "double", "batch", s);
  batch_case(s);
  solver_batch();
}

}  // namespace optctl::fuzz

int main(int argc, char** argv) {
  const uint64_t cases = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 1000;
  const uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
  for (uint64_t i = 0; i < cases; ++i) optctl::fuzz::one_case(seed + i);
  for (const auto& version : optctl::fuzz::versions()) std::printf("%s ", version.name);
  std::printf("kernels, %llu cases, %d of %d trajectories solved: %d mismatches\n",
              static_cast<unsigned long long>(cases), optctl::fuzz::solved, optctl::fuzz::tried, optctl::fuzz::failures);
  return optctl::fuzz::failures != 0;
}
