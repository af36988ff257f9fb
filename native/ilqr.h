// Iterative LQR on tapes: quadratic models, the policy that is best within bounds, rollouts under feedback.
//
// optctl/solvers/ilqr.py and boxed.py are the definition; names are theirs.
#pragma once

#include <cmath>
#include <limits>
#include <vector>

#include "gradient.h"
#include "kernels.h"

namespace optctl::OPTCTL_ISA {

using Numbers = std::vector<double>;

struct IlqrSettings {
  int64_t N;
  int nx, nu;
  bool exact, bounded;
  int64_t max_iterations, patience, rounds;
  double tolerance, sufficient, short_step, shortest_step, first_shift, shift_factor, largest_shift, floor, bottomless;
};

// The greater of two; NaN if one is.
inline double greater(double a, double b) { return a > b || a != a ? a : b; }

inline double largest(const double* p, int64_t count) {
  double most = 0;
  for (int64_t i = 0; i < count; ++i) most = greater(most, std::fabs(p[i]));
  return most;
}

inline bool all_finite(const Numbers& v) {
  double zero = 0;
  for (double x : v) zero += x - x;
  return zero == 0;
}

// Weights of a quadratic model of the cost in steps (dx, du).
struct Weights {
  Numbers Q, R, M, Qf;
};

struct Policy {
  Numbers K, dxs, dus, costates;
  double fall = 0, shift = 0;
};

class Ilqr {
 public:
  // The programs and memories are those of `gradient`, curved or exact, and of `follow`.
  Ilqr(const IlqrSettings& s, const int32_t* program, const double* memory, const int32_t* values, const double* values_memory,
       const double* x0, const double* us, const double* lower, const double* upper, const double* signs)
      : s_(s), n_(s.N), nx_(s.nx), nu_(s.nu), nz_(s.nx + s.nu), program_(program), memory_(memory), values_(values),
        values_memory_(values_memory), lower_(lower), upper_(upper), signs_(signs), us_(us, us + n_ * nu_) {
    for (int64_t t = 0; t <= n_; ++t) xs_.insert(xs_.end(), x0, x0 + nx_);
    slope_.resize(n_ * nu_);
    policy_ = {Numbers(n_ * nu_ * nx_), Numbers((n_ + 1) * nx_), Numbers(n_ * nu_), Numbers((n_ + 1) * nx_)};
    for (int64_t i = 0; i < n_ * nu_; ++i) held_ = held_ && std::isfinite(lower[i]) && std::isfinite(upper[i]);
    for (auto [room, size] : {std::pair<Numbers*, int64_t>{&reached_, n_ * nx_}, {&A_, n_ * nx_ * nx_}, {&B_, n_ * nx_ * nu_},
                              {&qs_, (n_ + 1) * nx_}, {&rs_, n_ * nu_}, {&q0_, nx_}, {&adjoints_, (n_ + 1) * nx_}, {&gx0_, nx_},
                              {&W_, n_ * nz_ * nz_}, {&Wf_, nx_ * nx_}, {&W0_, nx_ * nx_}, {&V_, s.exact ? n_ * nz_ * nz_ : 0}})
      room->resize(size);
  }

  // A `Status`; ITERATION_LIMIT while running.
  enum { solved, iteration_limit, stalled, non_finite, not_convex, unbounded };

  // The first iteration, -1, is the rollout of the guess. `history` has four rows of max_iterations + 1.
  void run(double* history) {
    while (status_ == iteration_limit && iterations_ < s_.max_iterations) iterate(history);
  }

  const Numbers& xs() const { return xs_; }
  const Numbers& us() const { return us_; }
  const Numbers& slope() const { return slope_; }
  const Policy& policy() const { return policy_; }
  double cost() const { return cost_; }
  int64_t iterations() const { return iterations_; }
  int status() const { return status_; }

 private:
  struct Trial {
    bool found = false, finite = true;
    double alpha, cost;
    Numbers xs, us;
  };

  // Follow the policy as far as the cost falls, and make the next policy there.
  void iterate(double* history) {
    const bool first = iterations_ < 0;
    const double noise = 10 * std::numeric_limits<double>::epsilon() * std::fabs(cost_);
    Trial trial = search(noise);
    const bool lost = !first && std::fabs(policy_.fall) <= noise;
    const bool is_short = !(first || lost) && (!trial.found || trial.alpha < s_.short_step);
    const double growth = is_short ? s_.shift_factor : trial.alpha == 1 ? 1 / s_.shift_factor : 1;
    const double alpha = trial.alpha, old_cost = cost_;
    if (trial.found) std::swap(xs_, trial.xs), std::swap(us_, trial.us), cost_ = trial.cost;
    const double first_cost = std::isinf(first_cost_) ? cost_ : first_cost_;
    Numbers slope;
    Policy policy;
    bool hopeless;
    double mark = expand(first_cost, growth, lost, slope, policy, hopeless);
    // A point without a slope or a policy is not taken: the old policy is followed less far.
    const bool fine = std::isfinite(mark) && all_finite(policy.K) && all_finite(policy.dus);
    const double shift = fine ? policy.shift : policy_.shift;
    if (fine) {
      std::swap(slope_, slope), std::swap(policy_, policy);
    } else {
      if (trial.found) std::swap(xs_, trial.xs), std::swap(us_, trial.us), cost_ = old_cost;
      mark = best_;
    }
    idle_ = lost && mark >= best_ ? idle_ + 1 : 0;
    const bool broken = (!trial.found && !trial.finite) || !fine;
    const bool stuck = idle_ >= s_.patience || (!trial.found && (hopeless || !fine)) || (first && broken);
    status_ = stuck ? broken ? non_finite : stalled : iteration_limit;
    if (cost_ < -s_.bottomless * (1 + std::fabs(first_cost)) && !held_) status_ = unbounded;
    if (fine && mark <= s_.tolerance) status_ = solved;
    const double row[] = {cost_, mark, trial.found && fine && !first ? alpha : 0, shift};
    ++iterations_;
    for (int k = 0; k < 4; ++k) history[k * (s_.max_iterations + 1) + iterations_] = row[k];
    alpha_ = fine ? 1 : alpha / 2;
    if (fine) first_cost_ = first_cost;
    best_ = mark < best_ ? mark : best_;
  }

  // Halve alpha until the cost falls enough.
  Trial search(double noise) {
    Trial trial;
    trial.alpha = 2 * alpha_, trial.cost = cost_;
    trial.xs = xs_, trial.us = us_;
    Numbers x_aim(n_ * nx_), u_aim(n_ * nu_);
    while (!trial.found && trial.alpha / 2 >= s_.shortest_step) {
      const double alpha = trial.alpha /= 2;
      for (int64_t i = 0; i < n_ * nx_; ++i) x_aim[i] = xs_[i] + alpha * policy_.dxs[i];
      for (int64_t i = 0; i < n_ * nu_; ++i) u_aim[i] = us_[i] + alpha * policy_.dus[i];
      follow(values_, values_memory_, n_, nx_, nu_, x_aim.data(), u_aim.data(), policy_.K.data(), lower_, upper_,
             trial.xs.data(), trial.us.data(), &trial.cost);
      double promised = alpha * policy_.fall;
      if (s_.bounded) {  // clipped inputs bring less: to first order the cost falls by slope'(ubar - u)
        double less = 0;
        for (int64_t i = 0; i < n_ * nu_; ++i) less += slope_[i] * (us_[i] - trial.us[i]);
        promised = -greater(-promised, -less);
      }
      const bool finite = std::isfinite(trial.cost) && all_finite(trial.xs);
      const bool enough = promised > 0 && trial.cost <= cost_ - s_.sufficient * promised + noise;
      trial.found = finite && (enough || std::isinf(cost_));
      trial.finite = finite && trial.finite;
    }
    return trial;
  }

  // The slope and the next policy at the point; returns its stationarity.
  double expand(double first_cost, double growth, bool lost, Numbers& slope, Policy& policy, bool& hopeless) {
    double cost, sizes[2];
    slope.resize(n_ * nu_);
    gradient(program_, memory_, n_, nx_, nu_, 0, false, s_.exact ? 2 : 1, us_.data(), signs_,
             {&cost, xs_.data(), reached_.data(), A_.data(), B_.data(), qs_.data(), rs_.data(), q0_.data(), adjoints_.data(),
              slope.data(), gx0_.data(), nullptr, sizes, W_.data(), Wf_.data(), W0_.data(), V_.data()});
    double least_cost = 0;
    for (double size : sizes)
      if (std::isfinite(size)) least_cost = std::max(least_cost, std::fabs(size));
    const double scale = cost_size(first_cost, s_.floor * least_cost / (n_ + 1));
    double mark = stationarity(slope, scale);
    const Weights plain = weights(W_);
    const double size = unit(plain);
    double least = growth * policy_.shift;
    if (growth > 1) least = greater(least, s_.first_shift * size);
    if (least < s_.first_shift * size || mark <= s_.tolerance) least = 0;  // at the solution the problem's own policy
    best_policy(plain, least, slope, policy);
    hopeless = policy.shift > s_.largest_shift * size;
    if (lost) mark = -greater(-mark, -by_stages(policy.costates, scale));
    return mark;
  }

  double cost_size(double first_cost, double least) const {
    const double first = std::isfinite(first_cost) ? first_cost : cost_;
    if (cost_ == 0 && first == 0 && least == 0) return 1;
    const double changed = -greater(-std::fabs(cost_), -std::fabs(first - cost_));
    const double size = greater(greater(changed, 1e-3 * std::fabs(cost_)), least);
    return greater(size, std::sqrt(std::numeric_limits<double>::min()));
  }

  // max |z - clip(z - slope)| max(1, |z|) of the inputs, scaled.
  double stationarity(const Numbers& slope, double scale) const {
    double most = 0;
    for (int64_t i = 0; i < n_ * nu_; ++i) {
      const double u = us_[i], to = -greater(-greater(u - slope[i], lower_[i]), -upper_[i]);
      most = greater(most, std::fabs(u - to) * greater(1, std::fabs(u)));
    }
    return most / scale;
  }

  // What is left of the slopes of the Lagrangian in states 1..N and inputs, with the model's own costates.
  double by_stages(const Numbers& costates, double scale) const {
    double most = 0;
    Numbers in_us = rs_, in_x(nx_);
    for (int64_t t = 0; t <= n_; ++t) {
      const double* later = costates.data() + (t + 1) * nx_;
      for (int i = 0; i < nx_; ++i) in_x[i] = qs_[t * nx_ + i] - costates[t * nx_ + i];
      if (t < n_) add_transposed_product(nx_, nx_, A_.data() + t * nx_ * nx_, later, in_x.data());
      if (t < n_) add_transposed_product(nx_, nu_, B_.data() + t * nx_ * nu_, later, in_us.data() + t * nu_);
      for (int i = 0; t && i < nx_; ++i)
        most = greater(most, std::fabs(in_x[i]) * greater(1, std::fabs(xs_[t * nx_ + i])));
    }
    return greater(most / scale, stationarity(in_us, scale));
  }

  Weights weights(const Numbers& W) const {
    Weights made{Numbers(n_ * nx_ * nx_), Numbers(n_ * nu_ * nu_), Numbers(n_ * nx_ * nu_), Wf_};
    double *Q = made.Q.data(), *R = made.R.data(), *M = made.M.data();
    for (int64_t t = 0; t < n_; ++t)
      for (int i = 0; i < nz_; ++i) {
        const double* row = W.data() + (t * nz_ + i) * nz_;
        if (i < nx_) Q = std::copy_n(row, nx_, Q), M = std::copy_n(row + nx_, nu_, M);
        else R = std::copy_n(row + nx_, nu_, R);
      }
    return made;
  }

  static double others(const Weights& w) {
    return greater(largest(w.Q.data(), w.Q.size()), largest(w.Qf.data(), w.Qf.size()));
  }

  // The size of the weights on the inputs, by which shifts are measured (or a trace of the others', or 1).
  static double unit(const Weights& w) {
    const double size = greater(largest(w.R.data(), w.R.size()), 1e-8 * others(w));
    return size > 0 ? size : 1;
  }

  // A multiple of the identity on R, and on Q as well, but there in its own unit.
  void add_shift(Weights& w, double shift) const {
    if (shift == 0) return;
    const double ratio = others(w) / unit(w), of_x = shift * -greater(-1, -ratio);
    for (int64_t t = 0; t < n_; ++t) {
      for (int i = 0; i < nx_; ++i) w.Q[(t * nx_ + i) * nx_ + i] += of_x;
      for (int i = 0; i < nu_; ++i) w.R[(t * nu_ + i) * nu_ + i] += shift;
    }
    for (int i = 0; i < nx_; ++i) w.Qf[i * nx_ + i] += of_x;
  }

  // What the sweeps read: held inputs, if any, have no effect and cost 1/2 du^2.
  struct System {
    Numbers B;
    Weights weights;
  };

  void without(System& system, const std::vector<char>& held) const {
    Weights& w = system.weights;
    for (int64_t t = 0; t < n_; ++t)
      for (int j = 0; j < nu_; ++j) {
        if (!held[t * nu_ + j]) continue;
        for (int i = 0; i < nx_; ++i) system.B[(t * nx_ + i) * nu_ + j] = w.M[(t * nx_ + i) * nu_ + j] = 0;
        for (int i = 0; i < nu_; ++i) w.R[(t * nu_ + i) * nu_ + j] = w.R[(t * nu_ + j) * nu_ + i] = i == j;
      }
  }

  // A model that is convex in the inputs not held, and its factors; returns its shift.
  double convexified(const Weights& plain, const std::vector<char>& held, double shift, Weights& model, System& system) {
    const double size = unit(plain);
    K_.resize(n_ * nu_ * nx_), P_.resize((n_ + 1) * nx_ * nx_), S_.resize(n_ * nu_ * nu_), S0_.resize(nx_ * nx_);
    const Numbers zeros(nx_ * nx_);
    const Sizes sizes{n_, nx_, nu_, 0};
    const Kernel<double> factor = find_kernel<double>(Name::lq_factor, sizes);
    for (int i = 0;; ++i) {
      model = s_.exact && i == 0 ? weights(V_) : plain;
      add_shift(model, shift);
      system.weights = model;
      system.B = B_;
      if (!held.empty()) without(system, held);
      const Weights& w = system.weights;
      const Stages<double> in[] = {stages(A_, nx_ * nx_),  stages(system.B, nx_ * nu_), stages(w.Q, nx_ * nx_),
                                   stages(w.R, nu_ * nu_), stages(w.M, nx_ * nu_),      stages(w.Qf, 0),
                                   stages(zeros, 0),       stages(zeros, 0)};
      double* const out[] = {K_.data(), P_.data(), S_.data(), S0_.data()};
      const double grown = greater(s_.first_shift * size, s_.shift_factor * shift);
      const double next = i == 0 && s_.exact ? shift : grown;
      if (factor(sizes, in, out) < 0 || !(next <= s_.largest_shift * size && std::isfinite(next))) return shift;
      shift = next;
    }
  }

  // The minimizer of the model in which held inputs have these values.
  void solve(const Weights& model, const System& system, const std::vector<char>& held, const Numbers& values, Policy& p) {
    Numbers xs_row((n_ + 1) * nx_), us_row(n_ * nu_), costates_row((n_ + 1) * nx_), zeros(nx_), y(nx_), k(n_ * nu_),
        slopes((n_ + 1) * nx_);
    for (int64_t i = 0; i < (n_ + 1) * nx_; ++i) xs_row[i] = -qs_[i];
    for (int64_t i = 0; i < n_ * nu_; ++i) us_row[i] = -rs_[i];
    for (int64_t t = 0; t < n_ && !held.empty(); ++t) {
      const double* v = values.data() + t * nu_;
      for (int i = 0; i < nx_; ++i)
        for (int j = 0; j < nu_; ++j) {
          xs_row[t * nx_ + i] -= model.M[(t * nx_ + i) * nu_ + j] * v[j];
          costates_row[(t + 1) * nx_ + i] -= B_[(t * nx_ + i) * nu_ + j] * v[j];
        }
      for (int i = 0; i < nu_; ++i) {
        for (int j = 0; j < nu_; ++j) us_row[t * nu_ + i] -= model.R[(t * nu_ + i) * nu_ + j] * v[j];
        if (held[t * nu_ + i]) us_row[t * nu_ + i] = 0;
      }
    }
    p.dxs.resize((n_ + 1) * nx_), p.dus.resize(n_ * nu_), p.costates.resize((n_ + 1) * nx_);
    const Sizes sizes{n_, nx_, nu_, 0};
    const Stages<double> in[] = {stages(A_, nx_ * nx_), stages(system.B, nx_ * nu_), stages(costates_row, nx_),
                                 stages(xs_row, nx_),   stages(us_row, nu_),         stages(zeros, 0),
                                 stages(zeros, 0),      stages(K_, nu_ * nx_),       stages(P_, nx_ * nx_),
                                 stages(S_, nu_ * nu_), stages(S0_, 0)};
    double* const out[] = {y.data(), p.dxs.data(), p.dus.data(), p.costates.data(), k.data(), slopes.data()};
    find_kernel<double>(Name::lq_sweep, sizes)(sizes, in, out);
    for (int64_t i = 0; i < n_ * nu_ && !held.empty(); ++i) p.dus[i] += values[i];
    p.K = K_;
    double fall = 0;
    for (int64_t i = 0; i < (n_ + 1) * nx_; ++i) fall -= qs_[i] * p.dxs[i];
    for (int64_t i = 0; i < n_ * nu_; ++i) fall -= rs_[i] * p.dus[i];
    p.fall = fall;
  }

  void best_policy(const Weights& plain, double least, const Numbers& slope, Policy& p) {
    Weights model;
    System system;
    if (!s_.bounded) {
      p.shift = convexified(plain, {}, least, model, system);
      return solve(model, system, {}, {}, p);
    }
    const int64_t count = n_ * nu_;
    std::vector<char> at_low(count), at_high(count), held(count);
    Numbers low(count), high(count), values(count), price(count);
    for (int64_t i = 0; i < count; ++i) {
      low[i] = lower_[i] - us_[i], high[i] = upper_[i] - us_[i];
      at_low[i] = low[i] >= 0 && (slope[i] > 0 || high[i] <= 0);
      at_high[i] = !at_low[i] && high[i] <= 0 && slope[i] < 0;
    }
    for (int64_t round = 0; round < s_.rounds; ++round) {
      for (int64_t i = 0; i < count; ++i) {
        held[i] = at_low[i] || at_high[i];
        values[i] = at_low[i] ? low[i] : at_high[i] ? high[i] : 0;
      }
      p.shift = convexified(plain, held, least, model, system);
      solve(model, system, held, values, p);
      price = rs_;
      for (int64_t t = 0; t < n_; ++t) {
        double* of = price.data() + t * nu_;
        add_transposed_product(nx_, nu_, model.M.data() + t * nx_ * nu_, p.dxs.data() + t * nx_, of);
        add_transposed_product(nx_, nu_, B_.data() + t * nx_ * nu_, p.costates.data() + (t + 1) * nx_, of);
        add_transposed_product(nu_, nu_, model.R.data() + t * nu_ * nu_, p.dus.data() + t * nu_, of);
      }
      bool done = true;
      for (int64_t i = 0; i < count; ++i) {
        const bool lows = at_low[i] ? price[i] >= 0 || low[i] >= high[i] : !at_high[i] && p.dus[i] < low[i];
        const bool highs = at_high[i] ? price[i] <= 0 : !at_low[i] && p.dus[i] > high[i];
        done = done && lows == static_cast<bool>(at_low[i]) && highs == static_cast<bool>(at_high[i]);
        at_low[i] = lows, at_high[i] = highs;
      }
      if (done) return;
    }
  }

  static Stages<double> stages(const Numbers& of, ptrdiff_t step) { return {of.data(), step}; }

  IlqrSettings s_;
  int64_t n_;
  int nx_, nu_, nz_;
  const int32_t* program_;
  const double* memory_;
  const int32_t* values_;
  const double *values_memory_, *lower_, *upper_, *signs_;
  Numbers xs_, us_, slope_;
  Policy policy_;
  double cost_ = INFINITY, alpha_ = 1, first_cost_ = INFINITY, best_ = INFINITY;
  int64_t idle_ = 0, iterations_ = -1;
  int status_ = iteration_limit;
  bool held_ = true;  // by finite bounds
  Numbers reached_, A_, B_, qs_, rs_, q0_, adjoints_, gx0_, W_, Wf_, W0_, V_;
  Numbers K_, P_, S_, S0_;
};

}  // namespace optctl::OPTCTL_ISA
