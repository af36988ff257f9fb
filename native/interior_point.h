// The iterations of the interior point method, with the functions on tapes and the linear algebra of lq.h.
//
// optctl/shooting/{barrier,feasibility,interior_point}.py are the definition and explain it; the names are theirs.
#pragma once

#include <chrono>
#include <memory>

#include "kernels.h"
#include "lq.h"
#include "operands.h"
#include "rows.h"
#include "shelf.h"

namespace optctl::OPTCTL_ISA {

// A linear-quadratic model with its factors and one right-hand side. Its B and weights may be wider than the problem's.
class LinearQuadratic {
 public:
  LinearQuadratic(const Layout& p, int nu) : nu(nu), sizes_{p.N, p.nx, nu, 0}, space_(room(p, nu)) {
    const int nx = p.nx;
    const int64_t N = p.N;
    weights = {space_.take(N * nx * nx), space_.take(N * nu * nu), space_.take(N * nx * nu), space_.take(nx * nx),
               space_.take(nx * nx)};
    K = space_.take(N * nu * nx), P = space_.take((N + 1) * nx * nx), S = space_.take(N * nu * nu);
    S0 = space_.take(nx * nx);
    start_row = space_.take(nx), xs_row = space_.take((N + 1) * nx), us_row = space_.take(N * nu);
    costates_row = space_.take((N + 1) * nx);
    start = space_.take(nx), xs = space_.take((N + 1) * nx), us = space_.take(N * nu);
    costates = space_.take((N + 1) * nx), k = space_.take(N * nu), slope = space_.take((N + 1) * nx);
    factor_ = find_kernel<double>(Name::lq_factor, sizes_);
    sweep_ = find_kernel<double>(Name::lq_sweep, sizes_);
  }

  // False where the model is not convex.
  bool factor(const Layout& p, const double* A, const double* B) {
    const ptrdiff_t nx = p.nx;
    const Stages<double> in[] = {{A, nx * nx}, {B, nx * nu}, {weights.Q, nx * nx}, {weights.R, nu * nu},
                                 {weights.M, nx * nu}, {weights.Qf, 0}, {weights.Q0, 0}, {p.x0_free, 0}};
    double* const out[] = {K, P, S, S0};
    return factor_(sizes_, in, out) < 0;
  }

  // Solve for the rows at hand.
  void solve(const Layout& p, const double* A, const double* B) {
    const ptrdiff_t nx = p.nx;
    const Stages<double> in[] = {{A, nx * nx}, {B, nx * nu}, {costates_row, nx}, {xs_row, nx}, {us_row, nu},
                                 {start_row, 0}, {p.x0_free, 0}, {K, nu * nx}, {P, nx * nx}, {S, nu * nu}, {S0, 0}};
    double* const out[] = {start, xs, us, costates, k, slope};
    sweep_(sizes_, in, out);
  }

  const int nu;
  Weights weights;
  double *start_row, *xs_row, *us_row, *costates_row, *xs, *us, *costates, *K;

 private:
  static size_t room(const Layout& p, size_t nu) {
    const size_t N = p.N, nx = p.nx;
    return N * (2 * nx * nx + 2 * nu * nu + 2 * nx * nu + 3 * nu) + (N + 1) * 5 * nx + 4 * nx * nx + 2 * nx + 20 * 8;
  }

  Sizes sizes_;
  Room space_;
  Kernel<double> factor_, sweep_;
  double *P, *S, *S0, *start, *k, *slope;
};

enum Status { solved = 0, iteration_limit = 1, stalled = 2, non_finite = 3, unbounded = 5, infeasible = 6 };

enum Phase { optimizing = 0, restoring = 1, predicting = 2 };

// What the loop carries besides the unknowns, and how to run, as they lie in memory.
#define OPTCTL_FIELD(name) double name;
struct Numbers {
  OPTCTL_NUMBERS(OPTCTL_FIELD)
};
struct Settings {
  OPTCTL_SETTINGS(OPTCTL_FIELD)
};
#undef OPTCTL_FIELD

constexpr int filter_size = 32;
constexpr double kappa_eps = 10, kappa_mu = 0.2, theta_mu = 1.5, s_theta = 1.1, s_phi = 2.3, eta = 1e-4;
constexpr double gamma_theta = 1e-5, gamma_phi = 1e-8, first_shift = 1e-4, largest_shift = 1e12;
constexpr double shortest_step = 1e-10, short_step = 0.05, enough = 0.9, least_damping = 1e-11, still_price = 1e8;
constexpr double violation_price = 1e6, largest_multiplier = 1e3, wide_barrier = 2e3, nudge_size = 1e-2, bottomless = 1e15;
constexpr double polish_slack = 1e-2, cost_floor = 1e-5, start_margin = 1e-2;
constexpr int halvings = 40, patience = 6, predictions = 60, polish_rounds = 4, warm_rounds = 6, nudges = 2;

// The size of the cost that tolerances refer to.
inline double cost_size(double cost, double first, double least) {
  if (!std::isfinite(first)) first = cost;
  if (cost == 0 && first == 0 && least == 0) return 1;
  const double changed = std::min(std::fabs(cost), std::fabs(first - cost));
  const double size = std::max(std::max(changed, 1e-3 * std::fabs(cost)), least);
  return std::max(size, std::sqrt(std::numeric_limits<double>::min()));
}

// A value in its bounds, a little away from them; on bounds that are equal.
inline double inside(double z, double lower, double upper, double size) {
  if (lower == upper) return lower;
  const double width = upper - lower;
  const double low = std::isfinite(lower) ? lower + start_margin * std::min(std::max(size, std::fabs(lower)), width) : lower;
  const double high = std::isfinite(upper) ? upper - start_margin * std::min(std::max(size, std::fabs(upper)), width) : upper;
  return z == z ? std::min(std::max(z, low), high) : z;
}

class InteriorPoint {
 public:
  // z, numbers, filter (2, filter_size) and history (6, columns) are worked on in place, in the units of the iterations
  // but for the costs in the history; so is e, which is filled.
  InteriorPoint(const Layout& layout, const int32_t* program, const double* memory, const Unknowns& z, Numbers& numbers,
                double* filter, double* history, const Expansion& e, const Scaling& scaling)
      : p_(layout), z_(z), n_(numbers), filter_(filter), history_(history), by_(scaling),
        functions_(layout, program, memory, e, scaling), e_(functions_.expansion()), model_(layout, layout.nu), space_(room(layout)) {
    for (Unknowns* u : {&d_, &corrected_, &trial_}) *u = unknowns();
    trial_values_ = {space_.take(p_.N * p_.nx), space_.take(p_.rows)};
    r_ = space_.take(p_.rows), push_ = space_.take(p_.rows), weight_ = space_.take(p_.rows), v_ = space_.take(p_.rows);
    mu_ = space_.take(p_.rows), nu_ = space_.take(p_.rows), c_ = space_.take(p_.rows), gaps_ = space_.take(p_.N * p_.nx);
    g0_ = space_.take(p_.nx), gx_ = space_.take((p_.N + 1) * p_.nx), gu_ = space_.take(p_.N * p_.nu);
    for (int64_t i = 0; i < p_.rows; ++i) {
      inequalities_ += p_.kind[i] & inequality ? 1 : 0;
      softs_ += p_.kind[i] & soft ? 1 : 0;
    }
  }

  // Iterate until the tolerance, a failure, `stop` iterations, or where another one would probably end after the
  // `seconds`; one is made in any case.
  void iterate(const Settings& settings) {
    const double tolerance = settings.tolerance;
    using Clock = std::chrono::steady_clock;
    const auto began = Clock::now();
    const double first = n_.iterations;
    double longest_one = 0, before = 0;
    while (true) {
      const double elapsed = std::chrono::duration<double>(Clock::now() - began).count();
      n_.seconds = elapsed;
      longest_one = std::max(longest_one, elapsed - before), before = elapsed;
      expand();
      remember();
      const bool done = stationarity_ <= tolerance && infeasibility_ <= tolerance &&
                        sum_of_products_ <= tolerance * size_ && n_.phase != restoring;
      const bool falls = cost_ < -bottomless * (1 + std::fabs(n_.first_cost)) && infeasibility_ <= 1e-2;
      if (falls && can_be_unbounded()) n_.status = unbounded;
      if (done) n_.status = solved;
      if (!std::isfinite(theta_) || !std::isfinite(cost_) || !std::isfinite(stationarity_)) n_.status = non_finite;
      if (done) polish(tolerance);
      if (n_.status != iteration_limit || !(n_.iterations < settings.stop)) return;
      if (n_.iterations > first && elapsed + longest_one > settings.seconds) return;
      n_.iterations += 1;
      const double least = 0.1 * tolerance * std::min(size_, 1.0) / std::max<int64_t>(10, inequalities_ + softs_);
      if (n_.phase == optimizing) optimize(least);
      else if (n_.phase == restoring) restore(tolerance);
      else predict(least);
    }
  }

  // Take the rows that the point holds, s = 0, for the active ones of the solution: optctl/shooting/polish.py.
  void settle_warm(const Settings& settings) {
    using Clock = std::chrono::steady_clock;
    const auto began = Clock::now();
    const double last = std::min(n_.iterations + warm_rounds, settings.stop), wrong_c = wrong_side(settings.tolerance);
    n_.mu = 0;
    n_.status = stalled;
    aim(0);
    held_.resize(p_.rows), kept_.resize(p_.rows);
    for (int64_t i = 0; i < p_.rows; ++i) {
      held_[i] = p_.kind[i] & inequality && z_.s[i] == 0;
      kept_[i] = p_.kind[i] & soft && z_.e[i] == 0;
    }
    functions_.expand(z_);
    cost_ = functions_.cost();
    pin();
    measure();
    remember();
    const double wrong_y = polish_slack * settings.tolerance * size_;
    for (Round made = Round::unfinished; made == Round::unfinished && n_.iterations < last;) {
      n_.iterations += 1;
      n_.step = 1;
      made = settle(wrong_y, wrong_c, settings.tolerance);
      remember();
      if (made == Round::good) n_.status = solved;
      n_.seconds = std::chrono::duration<double>(Clock::now() - began).count();
      if (n_.seconds > settings.seconds) break;
    }
  }

  // The feedback gains of Newton's step at the point; NaN where its model is not convex.
  void gains(double* K) {
    aim(n_.mu);
    newton_rows(p_, e_.at.c, z_, mu_, nu_, push_, weight_);
    quadratic_weights(p_, e_, 1, weight_, model_.weights);
    if (model_.factor(p_, e_.A, e_.B)) std::copy_n(model_.K, p_.N * p_.nu * p_.nx, K);
    else std::fill_n(K, p_.N * p_.nu * p_.nx, std::numeric_limits<double>::quiet_NaN());
  }

  double cost() const { return cost_; }

  // The expansion at the point, and what it says.
  void expand() {
    functions_.expand(z_);
    cost_ = functions_.cost();
    measure();
  }

  // Newton's step on the cost and the equalities alone, at a point that is expanded already; null where it has none.
  const Unknowns* newton_step() {
    aim(0);
    if (!direction_to_zero()) return nullptr;
    auto finite = [](const double* v, int64_t count) {
      return std::all_of(v, v + count, [](double x) { return std::isfinite(x); });
    };
    return finite(d_.xs, (p_.N + 1) * p_.nx) && finite(d_.us, p_.N * p_.nu) ? &d_ : nullptr;
  }

 private:
  static size_t room(const Layout& p) {
    const size_t N = p.N, nx = p.nx, nu = p.nu, m = p.rows;
    const size_t point = (N + 1) * 2 * nx + N * nu + 4 * m + 7 * 8;
    return 3 * point + N * nx * 2 + 9 * m + nx + (N + 1) * nx + N * nu + 14 * 8;
  }

  Unknowns unknowns() {
    const int64_t N = p_.N, misses = p_.has_soft ? p_.rows : 0;
    return {space_.take((N + 1) * p_.nx), space_.take(N * p_.nu), space_.take((N + 1) * p_.nx), space_.take(p_.rows),
            space_.take(p_.rows), space_.take(misses), space_.take(misses)};
  }

  void copy(const Unknowns& from, const Unknowns& to) {
    const int64_t N = p_.N, misses = p_.has_soft ? p_.rows : 0;
    std::copy_n(from.xs, (N + 1) * p_.nx, to.xs);
    std::copy_n(from.us, N * p_.nu, to.us);
    std::copy_n(from.costates, (N + 1) * p_.nx, to.costates);
    std::copy_n(from.s, p_.rows, to.s);
    std::copy_n(from.y, p_.rows, to.y);
    std::copy_n(from.e, misses, to.e);
    std::copy_n(from.v, misses, to.v);
  }

  void clear_slopes() {
    std::fill_n(g0_, p_.nx, 0.0);
    std::fill_n(gx_, (p_.N + 1) * p_.nx, 0.0);
    std::fill_n(gu_, p_.N * p_.nu, 0.0);
  }

  // From the last barrier problem to the solution itself: optctl/shooting/polish.py.
  void polish(double tolerance) {
    const double target = std::max(worst_residual(), polish_slack * tolerance);
    aim(0);
    if (!direction_to_zero()) return;
    held_.resize(p_.rows), kept_.resize(p_.rows);
    for (int64_t i = 0; i < p_.rows; ++i) {
      held_[i] = p_.kind[i] & inequality && d_.s[i] * z_.y[i] < d_.y[i] * z_.s[i];
      kept_[i] = p_.kind[i] & soft && (!held_[i] || d_.e[i] * z_.v[i] < d_.v[i] * z_.e[i]);
    }
    copy(z_, trial_);
    const double wrong_y = polish_slack * tolerance * size_, wrong_c = wrong_side(tolerance);
    for (int round = 0; round < polish_rounds; ++round) {
      const Round made = settle(wrong_y, wrong_c, target);
      if (made == Round::good) n_.mu = 0;
      if (made == Round::good) return;
      if (made == Round::failed) break;
    }
    copy(trial_, z_);
    expand();
  }

  static double wrong_side(double tolerance) {
    return std::max(polish_slack * tolerance, 100 * std::numeric_limits<double>::epsilon());
  }

  enum class Round { good, unfinished, failed };

  // One step with the active rows at hand; those on the wrong side are changed for the next.
  Round settle(double wrong_y, double wrong_c, double target) {
    pin();
    if (!direction_to_zero()) return Round::failed;
    add(1, d_, z_);
    functions_.expand(z_);
    const bool fits = !change_held(wrong_y, wrong_c);
    cost_ = functions_.cost();
    measure();
    if (fits && worst_residual() <= target) return Round::good;
    return worst_residual() < INFINITY ? Round::unfinished : Round::failed;
  }

  // Newton's direction to products s y = 0, in `d_`; false where its model is not convex.
  bool direction_to_zero() {
    newton_rows(p_, e_.at.c, z_, mu_, nu_, push_, weight_);
    quadratic_weights(p_, e_, 1, weight_, model_.weights);
    if (!model_.factor(p_, e_.A, e_.B)) return false;
    direction(e_.at.gaps, e_.at.c, d_);
    return true;
  }

  // Infinity where any is not finite.
  double worst_residual() const {
    const double worst = largest(largest(stationarity_, infeasibility_), most_product_ / size_);
    return std::isfinite(worst) ? worst : INFINITY;
  }

  // Slacks, misses and multipliers where the active rows want them: s = 0 of `held_` rows, e = 0 of `kept_` soft ones.
  void pin() {
    constexpr double tiny = std::numeric_limits<double>::min();
    for (int64_t i = 0; i < p_.rows; ++i) {
      if (!(p_.kind[i] & inequality)) continue;
      const double c = e_.at.c[i];
      double& y = z_.y[i];
      z_.s[i] = held_[i] ? 0 : std::max(-c, tiny);
      y = held_[i] ? std::max(y, 0.0) : 0;
      if (!(p_.kind[i] & soft)) continue;
      const bool missed = held_[i] && !kept_[i];
      z_.e[i] = missed ? std::max(c, tiny) : 0;
      y = missed ? p_.l1[i] + p_.l2[i] * z_.e[i] : std::min(y, p_.l1[i]);
      z_.v[i] = missed ? 0 : p_.l1[i] - y;
    }
  }

  // Change the rows that are on the wrong side, then pin the point with those that were; true if there are any.
  bool change_held(double wrong_y, double wrong_c) {
    bool changed = false;
    next_held_ = held_, next_kept_ = kept_;
    for (int64_t i = 0; i < p_.rows; ++i) {
      if (!(p_.kind[i] & inequality)) continue;
      const double c = e_.at.c[i], y = z_.y[i];
      const bool missed = p_.kind[i] & soft && held_[i] && !kept_[i];
      if (missed ? c < -wrong_c : kept_[i] && y > p_.l1[i] + wrong_y) {
        next_kept_[i] = !kept_[i];
        changed = true;
      } else if (!missed && (held_[i] ? y < -wrong_y : c > wrong_c)) {
        next_held_[i] = !held_[i];
        changed = true;
      }
    }
    pin();
    held_.swap(next_held_), kept_.swap(next_kept_);
    return changed;
  }

  // How far the point is from optimality.
  void measure() {
    const int nx = p_.nx, nu = p_.nu;
    clear_slopes();
    add_transposed_rows(p_, e_, z_.y, g0_, gx_, gu_);
    double worst = 0;
    for (int64_t t = 0; t <= p_.N; ++t) {
      double* g = gx_ + t * nx;
      for (int i = 0; i < nx; ++i) g[i] += e_.qs[t * nx + i] - z_.costates[t * nx + i];
      if (t < p_.N) {
        const double* later = z_.costates + (t + 1) * nx;
        add_transposed_product(nx, nx, e_.A + t * nx * nx, later, g);
        double* h = gu_ + t * nu;
        for (int i = 0; i < nu; ++i) h[i] += e_.rs[t * nu + i];
        add_transposed_product(nx, nu, e_.B + t * nx * nu, later, h);
        for (int i = 0; i < nu; ++i) worst = largest(worst, std::fabs(h[i]) * std::max(1.0, std::fabs(z_.us[t * nu + i])));
      }
      for (int i = 0; i < nx; ++i) worst = largest(worst, std::fabs(g[i]) * std::max(1.0, std::fabs(z_.xs[t * nx + i])));
    }
    for (int i = 0; i < nx; ++i)
      if (p_.x0_free[i] != 0)
        worst = largest(worst, std::fabs(e_.q0[i] + g0_[i] + z_.costates[i]) * std::max(1.0, std::fabs(z_.xs[i])));
    theta_ = infeasibility_ = 0;
    for (int64_t i = 0; i < p_.N * nx; ++i) {
      const double gap = std::fabs(e_.at.gaps[i]);
      theta_ += gap;
      infeasibility_ = largest(infeasibility_, gap / std::max(1.0, std::fabs(z_.xs[nx + i])));
    }
    least_product_ = INFINITY, most_product_ = sum_of_products_ = 0;
    auto product = [&](double value) {
      sum_of_products_ += value;
      least_product_ = -largest(-least_product_, -value), most_product_ = largest(most_product_, value);
    };
    for (int64_t i = 0; i < p_.rows; ++i) {
      const double miss = std::fabs(missed(p_, z_, i, e_.at.c[i]));
      theta_ += miss;
      infeasibility_ = largest(infeasibility_, miss);
      if (p_.kind[i] & inequality) product(z_.s[i] * z_.y[i]);
      if (p_.kind[i] & soft) {
        product(z_.e[i] * z_.v[i]);
        worst = largest(worst, std::fabs(p_.l1[i] + p_.l2[i] * z_.e[i] - z_.y[i] - z_.v[i]));
      }
    }
    size_ = cost_size(cost_ + price_of_misses(p_, z_), n_.first_cost, std::max(least_size(), n_.floor));
    stationarity_ = worst / size_;
  }

  // A part of what the cost would be, by its slope and its curvature here, if a variable changed by as much as it is.
  double least_size() const {
    const int nx = p_.nx, nu = p_.nu, nz = p_.nz;
    double most = 0;
    for (int i = 0; i < nz; ++i) {
      const bool is_state = i < nx;
      const double* z = is_state ? z_.xs + i : z_.us + i - nx;
      const double* g = is_state ? e_.qs + i : e_.rs + i - nx;
      const int stride = is_state ? nx : nu;
      double size = 1, slope = 0, bend = 0;
      for (int64_t t = 0; t < p_.N + is_state; ++t) {
        size = largest(size, std::fabs(z[t * stride]));
        slope = largest(slope, std::fabs(g[t * stride]));
        if (t < p_.N) bend = largest(bend, std::fabs(e_.W[(t * nz + i) * nz + i]));
      }
      if (is_state) {
        slope = largest(slope, std::fabs(e_.q0[i]));
        bend = largest(largest(bend, std::fabs(e_.W0[i * nx + i])), std::fabs(e_.Wf[i * nx + i]));
      }
      most = largest(largest(most, slope * size), bend * size * size);
    }
    return cost_floor * most;
  }

  void remember() {
    const double cost = (cost_ + price_of_misses(p_, z_)) * by_.cost();
    const double row[] = {cost, stationarity_, n_.step, infeasibility_, n_.mu, n_.shift};
    for (int i = 0; i < 6; ++i) history_[i * p_.history + static_cast<int64_t>(n_.iterations)] = row[i];
  }

  double next_barrier(double least) const {
    double mu = n_.mu;
    while (mu > least) {
      const double below = least_product_ < INFINITY ? mu - least_product_ : 0;
      const double spread = std::max(most_product_ - mu, below);
      const double off = std::max(std::max(stationarity_ * size_, infeasibility_), spread);
      if (!(off <= kappa_eps * mu)) break;
      mu = std::max(least, std::min(kappa_mu * mu, std::pow(mu, theta_mu)));
    }
    return mu;
  }

  bool filter_accepts(double theta, double phi) const {
    for (int i = 0; i < filter_size; ++i) {
      const double entry = filter_[i], cost = filter_[filter_size + i];
      if (entry != INFINITY && !(theta < (1 - gamma_theta) * entry) && !(phi < cost - gamma_phi * entry)) return false;
    }
    return true;
  }

  // Let all products s y and e v become mu.
  void aim(double mu) {
    std::fill_n(mu_, p_.rows, mu);
    std::fill_n(nu_, p_.rows, mu);
  }

  // Ask the model for a step against the slopes of the cost and of the rows times `v_`.
  void ask_against_slopes() {
    const int nx = p_.nx;
    clear_slopes();
    add_transposed_rows(p_, e_, v_, g0_, gx_, gu_);
    LinearQuadratic& m = model_;
    for (int i = 0; i < nx; ++i) m.start_row[i] = p_.x0_free[i] != 0 ? -(e_.q0[i] + g0_[i]) : 0, m.costates_row[i] = 0;
    for (int64_t i = 0; i < (p_.N + 1) * nx; ++i) m.xs_row[i] = -(e_.qs[i] + gx_[i]);
    for (int64_t i = 0; i < p_.N * p_.nu; ++i) m.us_row[i] = -(e_.rs[i] + gu_[i]);
  }

  // Newton's direction for these gaps and rows and the products aimed at, with the factors at hand.
  void direction(const double* gaps, const double* c, const Unknowns& d) {
    const int nx = p_.nx;
    newton_rows(p_, c, z_, mu_, nu_, push_, weight_);  // the weights stay those of the factors
    for (int64_t i = 0; i < p_.rows; ++i) v_[i] = z_.y[i] + push_[i];
    ask_against_slopes();
    LinearQuadratic& m = model_;
    for (int64_t i = 0; i < p_.N * nx; ++i) m.costates_row[nx + i] = -gaps[i];
    m.solve(p_, e_.A, e_.B);
    std::copy_n(m.xs, (p_.N + 1) * nx, d.xs);
    std::copy_n(m.us, p_.N * p_.nu, d.us);
    for (int64_t i = 0; i < (p_.N + 1) * nx; ++i) d.costates[i] = m.costates[i] - z_.costates[i];
    along(p_, e_, d, d.y);
    for (int64_t i = 0; i < p_.rows; ++i) {
      const double moved = d.y[i];
      d.y[i] = weight_[i] * moved + push_[i];
      d.s[i] = p_.kind[i] & inequality ? mu_[i] / z_.y[i] - z_.s[i] - z_.s[i] / z_.y[i] * d.y[i] : 0;
      if (!p_.has_soft) continue;
      d.e[i] = d.v[i] = 0;
      if (p_.kind[i] & soft) {
        const double e = z_.e[i], v = z_.v[i], w = p_.l2[i] + v / e;
        // Of two formulas for the miss, one divides rounding by w, the other loses what is small beside c.
        if (w < 1 && e > 0) d.e[i] = c[i] + moved + z_.s[i] + d.s[i] - e;
        else d.e[i] = (d.y[i] + z_.y[i] + nu_[i] / e - p_.l1[i] - p_.l2[i] * e) / w;
        d.v[i] = nu_[i] / e - v - v / e * d.e[i];
      }
    }
  }

  // z + alpha d; multipliers of inequalities go their own longest way, and stay near mu / s.
  void move(const Unknowns& d, double alpha, double share, const Unknowns& to) const {
    const double alpha_y = longest_dual(p_, z_, d, share);
    for (int64_t i = 0; i < (p_.N + 1) * p_.nx; ++i) {
      to.xs[i] = z_.xs[i] + alpha * d.xs[i];
      to.costates[i] = z_.costates[i] + alpha * d.costates[i];
    }
    for (int64_t i = 0; i < p_.N * p_.nu; ++i) to.us[i] = z_.us[i] + alpha * d.us[i];
    for (int64_t i = 0; i < p_.rows; ++i) {
      to.s[i] = z_.s[i] + alpha * d.s[i];
      if (p_.kind[i] & inequality) to.y[i] = near(z_.y[i] + alpha_y * d.y[i], to.s[i], n_.mu, 1e10);
      else to.y[i] = z_.y[i] + alpha * d.y[i];
      if (!p_.has_soft) continue;
      to.e[i] = z_.e[i] + alpha * d.e[i];
      to.v[i] = p_.kind[i] & soft ? near(z_.v[i] + alpha_y * d.v[i], to.e[i], n_.mu, 1e10) : 1;
    }
  }

  // Factor the model of Newton's step with the smallest shift tried that makes it convex.
  bool factor(double* used) {
    const double last = n_.shift;
    double shift = 0;
    while (true) {
      *used = shift;
      quadratic_weights(p_, e_, 1, weight_, model_.weights);
      add_shift(p_, shift, model_.weights);
      if (model_.factor(p_, e_.A, e_.B)) return true;
      shift = shift == 0 ? (last == 0 ? first_shift : std::max(1e-20, last / 3)) : shift * (last == 0 ? 100 : 8);
      if (!(shift <= largest_shift)) return false;
    }
  }

  // One Newton step on the barrier problem.
  void optimize(double least) {
    const double mu = next_barrier(least);
    if (mu < n_.mu) {
      std::fill_n(filter_, 2 * filter_size, INFINITY);
      n_.entries = 0;
    }
    n_.mu = mu;
    aim(mu);
    newton_rows(p_, e_.at.c, z_, mu_, nu_, push_, weight_);
    double shift, alpha = 0;
    bool falls = false;
    bool found = factor(&shift);
    const double phi = barrier_cost(p_, cost_, z_, mu);
    if (found) {
      direction(e_.at.gaps, e_.at.c, d_);
      found = search(phi, &falls, &alpha);
    }
    if (!(falls && found)) {  // a step along which the barrier cost must fall makes no entry; any other one does
      const int at = static_cast<int64_t>(n_.entries) % filter_size;
      filter_[at] = theta_, filter_[filter_size + at] = phi;
      n_.entries += 1;
    }
    n_.short_steps = found && alpha < short_step ? n_.short_steps + 1 : 0;
    const bool leave = !found || (n_.short_steps >= patience && infeasibility_ > 1e-3);
    if (leave) {
      n_.mark = theta_;
      n_.mu_restore = half_violation(p_, e_.at, z_) / std::max<int64_t>(1, inequalities_);
      n_.short_steps = 0;
    }
    if (found) copy(trial_, z_);
    if (leave) {
      for (int64_t i = 0; i < p_.rows; ++i)
        if (p_.kind[i] & inequality) {
          if (p_.kind[i] & elastic) z_.s[i] = central_slack(i, (found ? trial_values_ : e_.at).c[i]);
          z_.y[i] = p_.kind[i] & elastic ? n_.mu_restore / z_.s[i] : near(z_.y[i], z_.s[i], n_.mu_restore, 100);
        }
      multipliers_of_violation(found ? trial_values_ : e_.at);
    }
    n_.shift = leave ? 0 : shift;
    n_.step = found ? alpha : 0;
    n_.phase = leave ? restoring : optimizing;
  }

  // The slack that is best for a row by itself in the feasibility phase: (c + s) s = mu.
  double central_slack(int64_t i, double c) const {
    if (p_.kind[i] & soft) c -= z_.e[i];
    const double root = std::sqrt(c * c + 4 * n_.mu_restore);
    return c > 0 ? 2 * n_.mu_restore / (root + c) : (root - c) / 2;
  }

  // One predictor-corrector step on a convex quadratic program; where it fails, the other steps take over.
  void predict(double least) {
    aim(0);
    newton_rows(p_, e_.at.c, z_, mu_, nu_, push_, weight_);
    quadratic_weights(p_, e_, 1, weight_, model_.weights);
    bool found = model_.factor(p_, e_.A, e_.B) && n_.iterations <= predictions;
    const double count = std::max<int64_t>(1, inequalities_ + softs_);
    auto mean_product = [&](double alpha, double alpha_y) {
      double total = 0;
      for (int64_t i = 0; i < p_.rows; ++i) {
        if (p_.kind[i] & inequality) total += (z_.s[i] + alpha * d_.s[i]) * (z_.y[i] + alpha_y * d_.y[i]);
        if (p_.kind[i] & soft) total += (z_.e[i] + alpha * d_.e[i]) * (z_.v[i] + alpha_y * d_.v[i]);
      }
      return total / count;
    };
    std::fill_n(d_.s, p_.rows, 0.0), std::fill_n(d_.y, p_.rows, 0.0);
    const double mean = mean_product(0, 0);
    double mu = mean, alpha = 0;
    if (found) {
      direction(e_.at.gaps, e_.at.c, d_);
      const double after = mean_product(longest_primal(p_, z_, d_, 1), longest_dual(p_, z_, d_, 1));
      mu = std::max(least, mean * std::pow(after / (mean > 0 ? mean : 1), 3));
      for (int64_t i = 0; i < p_.rows; ++i) {
        mu_[i] = p_.kind[i] & inequality ? mu - d_.s[i] * d_.y[i] : mu;
        if (p_.has_soft) nu_[i] = mu - d_.e[i] * d_.v[i];
      }
      direction(e_.at.gaps, e_.at.c, d_);
      const double share = std::max(0.99, 1 - mu);
      alpha = std::min(longest_primal(p_, z_, d_, share), longest_dual(p_, z_, d_, share));
      found = alpha > short_step && std::isfinite(mu) && std::isfinite(largest_of(p_.N * p_.nu, d_.us));
    }
    n_.mu = found ? mu : std::max(n_.mu, std::isfinite(mean) ? mean : 0);
    if (found) add(alpha, d_, z_);
    else centralize();
    n_.phase = found ? predicting : optimizing;
    n_.step = found ? alpha : 0;
  }

  // Let all products be mu.
  void centralize() {
    for (int64_t i = 0; i < p_.rows; ++i) {
      if (p_.kind[i] & inequality) z_.y[i] = n_.mu / z_.s[i];
      if (p_.kind[i] & soft) z_.v[i] = n_.mu / z_.e[i];
    }
  }

  // z += alpha d.
  void add(double alpha, const Unknowns& d, const Unknowns& z) const {
    auto plus = [&](int64_t count, const double* step, double* value) {
      for (int64_t i = 0; i < count; ++i) value[i] += alpha * step[i];
    };
    plus((p_.N + 1) * p_.nx, d.xs, z.xs), plus(p_.N * p_.nu, d.us, z.us);
    plus((p_.N + 1) * p_.nx, d.costates, z.costates), plus(p_.rows, d.s, z.s), plus(p_.rows, d.y, z.y);
    if (p_.has_soft) plus(p_.rows, d.e, z.e), plus(p_.rows, d.v, z.v);
  }

  // Backtrack until the filter accepts; the point is then in `trial_`.
  bool search(double phi, bool* phi_falls, double* step) {
    const double mu = n_.mu, share = std::max(0.99, 1 - mu);
    const double theta_least = 1e-4 * std::max(1.0, n_.theta_first), theta_most = 1e4 * std::max(1.0, n_.theta_first);
    const double slope = barrier_slope(p_, e_, z_, d_, mu);
    const double rounding = 10 * std::numeric_limits<double>::epsilon() * (std::fabs(phi) + mu);
    const double shortest = shortest_length(slope, theta_least);
    const double alpha_first = longest_primal(p_, z_, d_, share);
    double alpha = alpha_first;
    const Unknowns* d = &d_;
    for (int k = 0; k < halvings && (k == 0 || d == &corrected_ || alpha >= shortest); ++k) {
      move(*d, alpha, share, trial_);
      functions_.evaluate(trial_, trial_values_);
      const double theta = infeasibility(p_, trial_values_, trial_);
      const double phi_new = barrier_cost(p_, functions_.cost(), trial_, mu) - rounding;
      const bool must_fall = slope < 0 && alpha * std::pow(-slope, s_phi) > std::pow(theta_, s_theta) && theta_ <= theta_least;
      const bool falls = phi_new - phi <= eta * alpha * slope;
      const bool better = theta <= (1 - gamma_theta) * theta_ || phi_new <= phi - gamma_phi * theta_;
      *phi_falls = must_fall && falls;
      *step = alpha;
      if ((must_fall ? falls : better) && theta <= theta_most && std::isfinite(theta) && std::isfinite(phi_new) &&
          filter_accepts(theta, phi_new))
        return true;
      if (k == 0 && theta >= theta_) {  // a second-order correction
        for (int64_t i = 0; i < p_.rows; ++i)
          c_[i] = e_.at.c[i] + missed(p_, trial_, i, trial_values_.c[i]) - (1 - alpha) * missed(p_, z_, i, e_.at.c[i]);
        for (int64_t i = 0; i < p_.N * p_.nx; ++i) gaps_[i] = alpha * e_.at.gaps[i] + trial_values_.gaps[i];
        direction(gaps_, c_, corrected_);
        alpha = longest_primal(p_, z_, corrected_, share);
        d = &corrected_;
      } else {
        alpha = (d == &corrected_ ? alpha_first : alpha) / 2;
        d = &d_;
      }
    }
    return false;
  }

  // The step length below which the filter cannot be satisfied.
  double shortest_length(double slope, double theta_least) const {
    const double fall = slope < 0 ? -slope : 1;
    const double bound = std::min(gamma_theta, slope < 0 ? gamma_phi * theta_ / fall : INFINITY);
    const double change = slope < 0 && theta_ <= theta_least ? std::pow(theta_, s_theta) / std::pow(fall, s_phi) : INFINITY;
    return std::max(0.05 * std::min(bound, change), shortest_step);
  }

  // One damped Gauss-Newton step on the violation.
  void restore(double tolerance) {
    const int nx = p_.nx, nu = p_.nu;
    const double mu = n_.mu_restore, *gaps = e_.at.gaps;
    double worst = largest_of(p_.N * nx, gaps);
    const double half = half_violation(p_, e_.at, z_);
    double product = 0;
    double* y = c_;  // multipliers of the violation
    for (int64_t i = 0; i < p_.rows; ++i) {
      const double miss = missed(p_, z_, i, e_.at.c[i]);
      worst = largest(worst, std::fabs(miss));
      y[i] = p_.kind[i] & inequality ? near(z_.y[i] / violation_price, z_.s[i], mu, 100) : 0;
      if (p_.kind[i] & inequality) product = largest(product, z_.s[i] * y[i]);
      v_[i] = p_.kind[i] & elastic ? miss : y[i];
    }
    clear_slopes();
    add_transposed_rows(p_, e_, v_, g0_, gx_, gu_);
    double slope = 0;
    for (int64_t t = 0; t <= p_.N; ++t) {
      double* g = gx_ + t * nx;
      if (t < p_.N) {
        add_transposed_product(nx, nx, e_.A + t * nx * nx, gaps + t * nx, g);
        add_transposed_product(nx, nu, e_.B + t * nx * nu, gaps + t * nx, gu_ + t * nu);
      }
      for (int i = 0; i < nx; ++i) {
        if (t) g[i] -= gaps[(t - 1) * nx + i];
        else g[i] = p_.x0_free[i] != 0 ? g[i] + g0_[i] : 0;
      }
    }
    slope = largest(largest_of((p_.N + 1) * nx, gx_), largest_of(p_.N * nu, gu_));
    const bool light = n_.shift <= least_damping;
    const double damping = violation_step(y, mu);
    const bool curved = damping > first_shift;  // downwards; the cost's small share takes less
    double fall = 0;
    for (int64_t t = 0; t < p_.N; ++t) {
      std::fill_n(gx_, nx, 0.0);
      add_product(nx, nx, e_.A + t * nx * nx, d_.xs + t * nx, gx_);
      add_product(nx, nu, e_.B + t * nx * nu, d_.us + t * nu, gx_);
      for (int i = 0; i < nx; ++i) fall += gaps[t * nx + i] * (gx_[i] - d_.xs[(t + 1) * nx + i]);
    }
    along(p_, e_, d_, v_);
    for (int64_t i = 0; i < p_.rows; ++i) {
      fall += missed(p_, z_, i, e_.at.c[i]) * (v_[i] + d_.s[i]);
      if (p_.kind[i] & inequality) fall -= mu * d_.s[i] / z_.s[i];
    }
    // Where the step promises nothing, damped or not, the violation is at its least for this mu.
    const bool still_falls = -fall * std::max(1.0, damping) > 1e-10 * half;
    const bool least = slope <= 1e-6 * worst || !still_falls;
    const bool sure = !still_falls && light;
    const bool stationary = sure && product <= 1e-5 * half && worst > tolerance;
    const bool saddle = !still_falls && curved && worst > tolerance;
    const bool nudged = saddle && n_.nudges < nudges;
    if (nudged) nudge();
    const double now = half - mu * sum_of_logarithms(p_, z_.s);
    double alpha = longest(p_, z_.s, d_.s, 0.99, inequality);
    copy(z_, trial_);
    bool fine = false;
    int trials = 0;
    while (!fine && trials < halvings) {
      for (int64_t i = 0; i < (p_.N + 1) * nx; ++i) trial_.xs[i] = z_.xs[i] + alpha * d_.xs[i];
      for (int64_t i = 0; i < p_.N * nu; ++i) trial_.us[i] = z_.us[i] + alpha * d_.us[i];
      for (int64_t i = 0; i < p_.rows; ++i) trial_.s[i] = z_.s[i] + alpha * d_.s[i];
      functions_.evaluate(trial_, trial_values_);
      const double value = half_violation(p_, trial_values_, trial_) - mu * sum_of_logarithms(p_, trial_.s);
      fine = std::isfinite(value) && (nudged || value <= now + 1e-4 * alpha * fall);
      if (!fine) alpha /= 2;
      ++trials;
    }
    const double theta = infeasibility(p_, trial_values_, trial_);
    const double phi = barrier_cost(p_, functions_.cost(), trial_, n_.mu);
    const bool back = fine && theta <= enough * n_.mark && filter_accepts(theta, phi);
    const double alpha_y = longest(p_, y, d_.y, 0.99, inequality);
    const bool stuck = !nudged && (stationary || saddle || !(fine || least));
    const bool again = stationary && !saddle && n_.retried == 0 && straighten(half);
    if (again) {
      n_.retried = 1;
    } else if (stuck) {
      n_.status = stationary && !saddle && can_be_infeasible() ? infeasible : stalled;
    } else if (fine) {
      for (int64_t i = 0; i < p_.rows; ++i)
        trial_.y[i] = !(p_.kind[i] & inequality) ? 0 : back ? first_multiplier(trial_.s[i]) : y[i] + alpha_y * d_.y[i];
      std::fill_n(trial_.costates, (p_.N + 1) * nx, 0.0);
      copy(trial_, z_);
      if (back) estimate_multipliers();
      else multipliers_of_violation(trial_values_);
    }
    n_.phase = back && !again ? optimizing : restoring;
    n_.shift = again || back || least ? 0 : trials == 1 ? damping / 4 : damping * (trials == 2 ? 2 : 8);
    if (!again && !nudged && (slope <= 10 * mu || least)) n_.mu_restore = 0.2 * mu;
    n_.nudges += nudged;
    n_.step = alpha;
  }

  // Begin the phase anew, from the straight line between the ends of the states and from no inputs, inside the bounds.
  // False where the functions are not finite there; then nothing has changed.
  bool straighten(double half_before) {
    const int nx = p_.nx, nu = p_.nu;
    copy(z_, d_);
    for (int64_t k = 0; k < p_.N * nx; ++k) {
      const int i = k % nx;
      const double first = d_.xs[i], line = first + (d_.xs[p_.N * nx + i] - first) * (k / nx + 1) / p_.N;
      z_.xs[nx + k] = inside(line * by_.z(i), p_.bound(x_min, k), p_.bound(x_max, k), by_.z(i)) * by_.over(i);
    }
    for (int64_t k = 0; k < p_.N * nu; ++k) {
      const int i = nx + k % nu;
      z_.us[k] = inside(0, p_.bound(u_min, k), p_.bound(u_max, k), by_.z(i)) * by_.over(i);
    }
    expand();
    if (!std::isfinite(theta_) || !std::isfinite(cost_) || !std::isfinite(stationarity_)) {
      copy(d_, z_);
      return false;
    }
    for (int64_t i = 0; i < p_.rows; ++i)
      if (p_.kind[i] & inequality) z_.s[i] = std::max((p_.kind[i] & soft ? z_.e[i] : 0) - e_.at.c[i], 0.0);
    const double half = std::max(half_before, half_violation(p_, e_.at, z_));
    n_.mu_restore = wide_barrier * half / std::max<int64_t>(1, inequalities_);
    for (int64_t i = 0; i < p_.rows; ++i)
      if (p_.kind[i] & inequality) {
        if (p_.kind[i] & elastic) z_.s[i] = central_slack(i, e_.at.c[i]);
        z_.y[i] = n_.mu_restore / z_.s[i];
      }
    multipliers_of_violation(e_.at);
    return true;
  }

  // A small direction, in `d_`, that no symmetry of a problem is likely to share; bounds keep up with it.
  void nudge() {
    auto off = [](int64_t count, int width, const double* z, double* d) {
      for (int64_t i = 0; i < count; ++i) d[i] = nudge_size * std::cos(1.0 + i % width) * std::max(1.0, std::fabs(z[i]));
    };
    off((p_.N + 1) * p_.nx, p_.nx, z_.xs, d_.xs), off(p_.N * p_.nu, p_.nu, z_.us, d_.us);
    for (int i = 0; i < p_.nx; ++i)
      if (p_.x0_free[i] == 0) d_.xs[i] = 0;
    along(p_, e_, d_, v_);
    for (int64_t i = 0; i < p_.rows; ++i) {
      d_.s[i] = p_.kind[i] & inequality && !(p_.kind[i] & elastic) ? -v_[i] : 0;
      d_.y[i] = 0;
    }
  }

  // Multipliers with which the curvature of the Lagrangian is violation_price times that of half the squared violation;
  // those of inequalities are the phase's own.
  void multipliers_of_violation(const Values& at) {
    for (int64_t i = 0; i < p_.rows; ++i)
      z_.y[i] = violation_price * (p_.kind[i] & inequality ? z_.y[i] : p_.kind[i] & equality ? at.c[i] : 0);
    for (int64_t i = 0; i < p_.N * p_.nx; ++i) z_.costates[p_.nx + i] = violation_price * at.gaps[i];
  }

  // The multiplier of an inequality behind the feasibility phase.
  double first_multiplier(double s) const { return n_.mu / s > largest_multiplier ? 1 : n_.mu / s; }

  // Costates and multipliers of equalities for which the slopes of the Lagrangian are least.
  void estimate_multipliers() {
    const int nx = p_.nx, nu = p_.nu;
    functions_.expand(z_);
    for (int64_t i = 0; i < p_.rows; ++i) {
      weight_[i] = p_.kind[i] & equality ? 1 / proximal : 0;
      v_[i] = p_.kind[i] & inequality ? z_.y[i] : 0;
    }
    quadratic_weights(p_, e_, 0, weight_, model_.weights);
    add_shift(p_, 1, model_.weights);
    ask_against_slopes();
    LinearQuadratic& m = model_;
    std::fill_n(m.costates_row + nx, p_.N * nx, 0.0);
    if (!m.factor(p_, e_.A, e_.B)) return;
    m.solve(p_, e_.A, e_.B);
    std::copy_n(m.xs, (p_.N + 1) * nx, d_.xs);
    std::copy_n(m.us, p_.N * nu, d_.us);
    along(p_, e_, d_, v_);
    double most = largest_of((p_.N + 1) * nx, m.costates);
    for (int64_t i = 0; i < p_.rows; ++i) most = largest(most, std::fabs(weight_[i] * v_[i]));
    if (!(most <= largest_multiplier)) return;
    std::copy_n(m.costates, (p_.N + 1) * nx, z_.costates);
    for (int64_t i = 0; i < p_.rows; ++i)
      if (p_.kind[i] & equality) z_.y[i] = weight_[i] * v_[i];
  }

  // False where a rollout meets every hard row: there are but bounds of inputs and of x_0.
  bool can_be_infeasible() const {
    auto hard = [&](int64_t from, int64_t count) {
      int64_t found = 0;
      for (int64_t i = from; i < from + count; ++i) found += p_.kind[i] & (inequality | equality) && !(p_.kind[i] & soft);
      return found;
    };
    int64_t rows = hard(0, p_.rows);
    for (int b : {x0_min, x0_max, u_min, u_max})
      if (p_.block[b] >= 0) rows -= hard(p_.block[b], b < x_min ? p_.nx : p_.N * p_.nu);
    return rows > 0;
  }

  // False where bounds hold all that is free, inputs and x_0: then they hold a rollout and its cost.
  bool can_be_unbounded() const {
    auto kind = [&](int b, int64_t i) { return p_.block[b] >= 0 ? p_.kind[p_.block[b] + i] : 0; };
    auto held = [&](int low, int high, int64_t i) {
      return (kind(low, i) & kind(high, i) & inequality) || (kind(low, i) | kind(high, i)) & equality;
    };
    for (int64_t i = 0; i < p_.N * p_.nu; ++i)
      if (!held(u_min, u_max, i)) return true;
    for (int i = 0; i < p_.nx; ++i)
      if (p_.x0_free[i] != 0 && !held(x0_min, x0_max, i)) return true;
    return false;
  }

  // Factor the model of half the squared violation, damped; false where it is not convex.
  bool factor_violation(double damping) {
    const int nx = p_.nx, nu = p_.nu, wide = nu + nx;
    LinearQuadratic &m = *missing_, &narrow = model_;
    quadratic_weights(p_, e_, 1 / violation_price, weight_, narrow.weights);
    add_shift(p_, damping, narrow.weights);
    std::copy_n(narrow.weights.Q, p_.N * nx * nx, m.weights.Q);
    std::copy_n(narrow.weights.Qf, nx * nx, m.weights.Qf);
    std::copy_n(narrow.weights.Q0, nx * nx, m.weights.Q0);
    std::fill_n(m.weights.R, p_.N * wide * wide, 0.0);
    std::fill_n(m.weights.M, p_.N * nx * wide, 0.0);
    std::vector<double> price(nx);
    for (int i = 0; i < nx; ++i) price[i] = stands_still(p_, e_, i) ? still_price : 1;
    for (int64_t t = 0; t < p_.N; ++t) {
      double *R = m.weights.R + t * wide * wide, *M = m.weights.M + t * nx * wide, *B = wide_B_.data() + t * nx * wide;
      for (int i = 0; i < nu; ++i) std::copy_n(narrow.weights.R + (t * nu + i) * nu, nu, R + i * wide);
      for (int i = 0; i < nx; ++i) R[(nu + i) * wide + nu + i] = price[i];
      for (int i = 0; i < nx; ++i) {
        std::copy_n(narrow.weights.M + (t * nx + i) * nu, nu, M + i * wide);
        std::copy_n(e_.B + (t * nx + i) * nu, nu, B + i * wide);
        B[i * wide + nu + i] = 1;
      }
    }
    return m.factor(p_, e_.A, wide_B_.data());
  }

  // The step of the feasibility phase, in `d_`: each stage's dynamics may be missed by inputs of their own. Returns the
  // damping that made its model convex.
  double violation_step(const double* y, double mu) {
    const int nx = p_.nx, nu = p_.nu, wide = nu + nx;
    if (!missing_) {
      missing_ = std::make_unique<LinearQuadratic>(p_, wide);
      wide_B_.assign(p_.N * nx * wide, 0.0);
    }
    LinearQuadratic& m = *missing_;
    for (int64_t i = 0; i < p_.rows; ++i) {
      const int kind = p_.kind[i];
      const double c = e_.at.c[i] - (kind & soft ? z_.e[i] : 0);
      double d = kind & elastic ? 0 : proximal;
      r_[i] = kind & (inequality | equality) ? c : 0;
      if (kind & inequality) {
        r_[i] = c + mu / y[i] - (kind & elastic ? y[i] : 0);
        d = z_.s[i] / y[i];
      }
      if (kind & elastic) d += 1;
      weight_[i] = kind & (inequality | equality) ? 1 / d : 0;
      v_[i] = y[i] + r_[i] * weight_[i];
    }
    double damping = std::max(n_.shift, least_damping);
    while (!factor_violation(damping) && damping <= largest_shift) damping = std::max(8 * damping, first_shift);
    clear_slopes();
    add_transposed_rows(p_, e_, v_, g0_, gx_, gu_);
    for (int i = 0; i < nx; ++i) m.start_row[i] = p_.x0_free[i] != 0 ? -g0_[i] : 0, m.costates_row[i] = 0;
    for (int64_t i = 0; i < (p_.N + 1) * nx; ++i) m.xs_row[i] = -gx_[i];
    std::fill_n(m.us_row, p_.N * wide, 0.0);
    for (int64_t t = 0; t < p_.N; ++t)
      for (int i = 0; i < nu; ++i) m.us_row[t * wide + i] = -gu_[t * nu + i];
    for (int64_t i = 0; i < p_.N * nx; ++i) m.costates_row[nx + i] = -e_.at.gaps[i];
    m.solve(p_, e_.A, wide_B_.data());
    std::copy_n(m.xs, (p_.N + 1) * nx, d_.xs);
    for (int64_t t = 0; t < p_.N; ++t) std::copy_n(m.us + t * wide, nu, d_.us + t * nu);
    along(p_, e_, d_, v_);
    for (int64_t i = 0; i < p_.rows; ++i) {
      const int kind = p_.kind[i];
      const double c = e_.at.c[i] - (kind & soft ? z_.e[i] : 0);
      d_.y[i] = weight_[i] * (v_[i] + r_[i]);
      d_.s[i] = 0;
      if (kind & inequality)
        d_.s[i] = kind & elastic ? mu / y[i] - z_.s[i] - z_.s[i] / y[i] * d_.y[i] : -(c + z_.s[i]) - v_[i];
    }
    return damping;
  }

  const Layout p_;
  const Unknowns z_;
  Numbers& n_;
  double *filter_, *history_;
  const Scaling& by_;
  ProblemFunctions functions_;
  const Expansion& e_;
  LinearQuadratic model_;
  std::unique_ptr<LinearQuadratic> missing_;
  std::vector<double> wide_B_;
  Room space_;
  Unknowns d_, corrected_, trial_;
  Values trial_values_;
  double *r_, *push_, *weight_, *v_, *mu_, *nu_, *c_, *gaps_, *g0_, *gx_, *gu_;
  std::vector<char> held_, kept_, next_held_, next_kept_;
  int64_t inequalities_ = 0, softs_ = 0;
  double cost_ = 0, size_ = 1, stationarity_ = 0, infeasibility_ = 0, theta_ = 0, least_product_ = 0, most_product_ = 0, sum_of_products_ = 0;
};

}  // namespace optctl::OPTCTL_ISA
