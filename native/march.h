// Steps through time on tapes: solutions of an ODE, their events, and the costate recursion back through the steps.
//
// optctl/continuous/march.py, crossing.py and replay.py are the definition; letters are theirs.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "tape.h"

namespace optctl::OPTCTL_ISA {

enum End : int32_t { inside_step = 0, at_anchor = 1, at_event = 2 };  // and at_event + k the event k
enum Ended : int64_t {  // optctl/result.py
  all_done = 0, met_nan = 3, met_event = 9, step_too_short = 10, mesh_full = 11, too_many_events = 12, bad_times = 13
};

constexpr double rounding = std::numeric_limits<double>::epsilon(), infinite = std::numeric_limits<double>::infinity();

using Numbers = std::vector<double>;

inline double sign_of(double x) { return x > 0 ? 1.0 : x < 0 ? -1.0 : x; }

// A Runge-Kutta scheme: Y_i = y + h sum_j A_ij K_j, end = y + h sum_i b_i K_i with `inner` stages. An embedded pair has
// one more, the slope at the end, and the error h sum_i e_i K_i.
struct Scheme {
  int inner, order;  // order 0: fixed steps
  const double *A, *b, *c, *e;

  bool adaptive() const { return order > 0; }
  int stages() const { return inner + (adaptive() ? 1 : 0); }
};

// to = y + h sum_j weights_j K_j
inline void combine(int n, const double* y, double h, const double* weights, int many, const double* K, double* to) {
  std::fill_n(to, n, 0.0);
  for (int j = 0; j < many; ++j) {
    if (weights[j] == 0) continue;
    for (int i = 0; i < n; ++i) to[i] += weights[j] * K[j * n + i];
  }
  for (int i = 0; i < n; ++i) to[i] = (y ? y[i] : 0.0) + h * to[i];
}

// One step of n numbers, from `slope` at its start if it is known; `rate(y, s, to)`.
struct Step {
  Numbers Y, K, end, error;

  void room(const Scheme& scheme, int n) {
    Y.resize(scheme.inner * n), K.resize(scheme.stages() * n), end.resize(n), error.resize(n);
  }

  template <class Rate>
  void take(const Scheme& scheme, int n, Rate&& rate, const double* y, double s, double h, const double* slope, bool judged) {
    for (int i = 0; i < scheme.inner; ++i) {
      double *Yi = &Y[i * n], *Ki = &K[i * n];
      if (i) combine(n, y, h, scheme.A + i * scheme.inner, i, K.data(), Yi);
      else std::copy_n(y, n, Yi);
      if (i || !slope) rate(Yi, s + scheme.c[i] * h, Ki);
      else std::copy_n(slope, n, Ki);
    }
    combine(n, y, h, scheme.b, scheme.inner, K.data(), end.data());
    if (!judged || !scheme.adaptive()) return;
    rate(end.data(), s + scheme.c[scheme.inner] * h, &K[scheme.inner * n]);
    combine(n, nullptr, h, scheme.e, scheme.inner + 1, K.data(), error.data());
  }
};

// An event as tapes of (y, t): its surface g with its slopes g_y, g_t (and g_p on the way back), the state after it.
struct Event {
  StageTape surface, reset, reset_along, reset_back;
  bool ends;
  int direction;
  int64_t most;
};

// What a flow is: sizes and numbers, as optctl/continuous/native.py hands them over.
struct FlowSizes {
  int64_t m, moved, nu, degree, np, anchors, inner, order, sensitive, strict, tangent, back, rows, events;
};
constexpr int flow_sizes = 14, event_sizes = 4;  // of an event: ends, direction, most, whether it has a reset

// The right side of an ODE in s = sign t, its input signal and its events. With `sensitive` the state is (y, dy), dy its
// derivative along one direction. Where the state is a batch of `rows`, each of which moves by itself, tapes are of a row.
class Flow {
 public:
  static constexpr bool has_events = true;

  // in: A, b, c, e; anchors; starts of the signal's pieces, their coefficients (pieces, degree + 1, nu), and directions of
  // both. Numbers: sign, rtol, atol.
  Flow(const int32_t* program, const double* memory, const int64_t* sizes, const double* numbers, const double* const* in,
       const int32_t* pieces)
      : n{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6], sizes[7], sizes[8], sizes[9], sizes[10],
          sizes[11], sizes[12], sizes[13]},
        scheme{static_cast<int>(n.inner), static_cast<int>(n.order), in[0], in[1], in[2], in[3]},
        m(static_cast<int>(n.m)), width(static_cast<int>(n.sensitive ? 2 * n.m : n.m)), sign(numbers[0]),
        rtol(numbers[1]), atol(numbers[2]), anchors(in[4]), starts_(in[5]), coefficients_(in[6]), dstarts_(in[7]),
        dcoefficients_(in[8]), pieces_(pieces) {
    const auto read = [&](StageTape& tape) {
      program = tape.read(program, memory, n.rows);
      if (n.rows == 1) tape.begin();
    };
    read(rate_);
    if (n.tangent) read(tangent_);
    if (n.back) read(back_);
    events.resize(n.events);
    const int64_t* of = sizes + flow_sizes;
    for (Event& event : events) {
      event.ends = of[0] != 0, event.direction = static_cast<int>(of[1]), event.most = of[2];
      read(event.surface);
      if (!event.ends) {
        read(event.reset);
        if (n.sensitive) read(event.reset_along);
        if (n.back) read(event.reset_back);
      }
      of += event_sizes;
    }
    in_.resize(2 * (m + n.nu + 1) + 1);
    out_.resize(2 * m + n.nu + 1 + n.np);
    if (n.back && n.rows > 1) lanes_.resize(n.np * row_lanes);
  }

  // dy/ds in interval j.
  void rate(const double* y, double s, int64_t j, double* to) {
    if (!n.sensitive) return rate_of_state(y, s, j, to);
    arguments(y, time(s, j), j);
    for (int i = 0; i < n.nu; ++i) in_[second() + m + i] = input_along(i);
    in_[second() + m + n.nu] = 0.0, in_.back() = 1.0;
    along(y, y + m, to);
  }

  // dy/ds of the state alone.
  void rate_of_state(const double* y, double s, int64_t j, double* to) {
    arguments(y, time(s, j), j);
    if (n.rows == 1) {
      rate_.again(in_.data(), to);
    } else {
      given(y, nullptr), taken(to, nullptr);
      rate_.rows(fields_, results_);
    }
    directed(to, m);
  }

  // Its derivative along (dy, ds), behind it: to (2, m).
  void rate_along(const double* y, double s, int64_t j, const double* dy, double ds, double* to) {
    arguments(y, time(s, j), j);
    for (int i = 0; i < n.nu; ++i) in_[second() + m + i] = input_slope(i) * sign * ds;
    in_[second() + m + n.nu] = sign * ds, in_.back() = 0.0;
    along(y, dy, to);
  }

  // w' times the derivatives of dy/ds, which is written to `slope`: that in y is written to gy, those in the data are
  // added to the sums; that in s is returned.
  double pull(const double* y, double s, int64_t j, const double* w, double* slope, double* gy, double* gp, double* gstarts,
              double* gcoefficients) {
    arguments(y, time(s, j), j);
    for (int i = 0; i < m; ++i) in_[second() + i] = sign * w[i];
    if (n.rows == 1) {
      back_.again(in_.data(), out_.data());
    } else {
      given(y, &in_[second()], 0), taken(out_.data(), &out_[m]);
      back_.rows(fields_, results_, static_cast<int>(n.nu) + 1, &out_[2 * m], lanes_.data());
    }
    const double *gu = &out_[2 * m], gt = gu[n.nu];
    std::copy_n(out_.begin(), m, slope), directed(slope, m);
    std::copy_n(&out_[m], m, gy);
    if (n.rows == 1)
      for (int64_t i = 0; i < n.np; ++i) gp[i] += gu[n.nu + 1 + i];
    double gs = gt;
    if (n.nu) {
      double power = 1;
      for (int64_t d = 0; d <= n.degree; ++d, power *= since_)
        for (int i = 0; i < n.nu; ++i) gcoefficients[(piece_ * (n.degree + 1) + d) * n.nu + i] += gu[i] * power;
      for (int i = 0; i < n.nu; ++i) {
        const double by_time = gu[i] * input_slope(i);
        gs += by_time, gstarts[piece_] -= by_time;
      }
    }
    return sign * gs;
  }

  // Add what rows have left: the slopes in the parameters, lane by lane.
  void collect(double* gp) const {
    for (size_t k = 0; k < lanes_.size(); ++k) gp[k / row_lanes] += lanes_[k];
  }

  // The root mean square of the error over its tolerance, and that of the sensitivity's.
  double norm(const double* y, const double* y_next, const double* error) const {
    const int64_t moved = n.moved;
    double sum = 0, size = 0, of_tangent = 0;
    for (int64_t i = 0; i < moved; ++i) {
      const double e = error[i] / (atol + rtol * greater(std::fabs(y[i]), std::fabs(y_next[i])));
      sum += e * e;
    }
    const double of_state = std::sqrt(sum / moved);
    if (!n.sensitive) return of_state;
    for (int64_t i = m; i < m + moved; ++i) size = greater(size, greater(std::fabs(y[i]), std::fabs(y_next[i])));
    for (int64_t i = m; i < m + moved; ++i) {
      const double e = error[i] / (rtol * size + std::numeric_limits<double>::min());
      of_tangent += e * e;
    }
    return greater(of_state, std::sqrt(of_tangent / moved));
  }

  // g at (y, s), and its slopes in both where these are asked for.
  double surface(Event& event, const double* y, double s, double* gy = nullptr, double* gs = nullptr) {
    std::copy_n(y, m, in_.begin()), in_[m] = sign * s;
    at_surface_.resize(event.surface.outputs());
    event.surface.again(in_.data(), at_surface_.data());
    if (gy) std::copy_n(&at_surface_[1], m, gy);
    if (gs) *gs = sign * at_surface_[1 + m];
    return at_surface_[0];
  }
  // The slopes in the parameters where `surface` was called last.
  const double* surface_in_params() const { return at_surface_.data() + 2 + m; }

  // The state after an event; nothing changes where it ends there.
  void reset(Event& event, double* y, double s) {
    if (event.ends) return;
    std::copy_n(y, m, in_.begin()), in_[m] = sign * s;
    if (!n.sensitive) return event.reset.again(in_.data(), y);
    std::copy_n(y + m, m, &in_[m + 1]);  // along dy; neither time nor data move
    in_[2 * m + 1] = in_[2 * m + 2] = 0.0;
    event.reset_along.again(in_.data(), y);
  }

  // w' times the derivatives of the state after an event: gy is written, gp added to; that in s is returned.
  double pull_reset(Event& event, const double* y, double s, const double* w, double* gy, double* gp) {
    std::copy_n(y, m, in_.begin()), in_[m] = sign * s;
    std::copy_n(w, m, &in_[m + 1]);
    event.reset_back.again(in_.data(), out_.data());
    std::copy_n(&out_[m], m, gy);
    for (int64_t i = 0; i < n.np; ++i) gp[i] += out_[2 * m + 1 + i];
    return sign * out_[2 * m];
  }

  bool arrive(double*, int64_t) { return false; }  // at an anchor, whatever comes next

  static double greater(double a, double b) { return a > b || a != a ? a : b; }  // NaN if one is

  const FlowSizes n;
  const Scheme scheme;
  const int m, width;
  const double sign, rtol, atol;
  const double* const anchors;
  std::vector<Event> events;

 private:
  int64_t second() const { return m + n.nu + 1; }

  // In seconds; an end of interval j is moved into it by one rounding where f may jump there.
  double time(double s, int64_t j) const {
    if (n.strict) {
      const double begin = anchors[j], end = anchors[std::min(j + 1, n.anchors - 1)];
      s = std::min(std::max(s, std::nextafter(begin, infinite)), std::nextafter(end, -infinite));
    }
    return sign * s;
  }

  // Rate and derivative along dy and what stands behind its place.
  void along(const double* y, const double* dy, double* to) {
    if (n.rows == 1) {
      std::copy_n(dy, m, &in_[second()]);
      tangent_.again(in_.data(), to);
    } else {
      given(y, dy, n.nu + 2), taken(to, to + m);
      tangent_.rows(fields_, results_);
    }
    directed(to, 2 * m);
  }

  // Inputs of the tape of a row: y, u, t, and where given v and `more` numbers; and its results.
  void given(const double* y, const double* v, int64_t more = 0) {
    const ptrdiff_t q = m / n.rows;
    fields_.clear();
    const auto vary = [&](const double* p) {
      for (ptrdiff_t k = 0; k < q; ++k) fields_.push_back({const_cast<double*>(p) + k, q});
    };
    const auto same = [&](int64_t from, int64_t count) {
      for (int64_t k = from; k < from + count; ++k) fields_.push_back({&in_[k], 0});
    };
    vary(y), same(m, n.nu + 1);
    if (v) vary(v), same(second() + m, more);
  }
  void taken(double* first, double* second) {
    const ptrdiff_t q = m / n.rows;
    results_.clear();
    for (double* p : {first, second})
      for (ptrdiff_t k = 0; p && k < q; ++k) results_.push_back({p + k, q});
  }

  void arguments(const double* y, double t, int64_t j) {
    if (n.rows == 1) std::copy_n(y, m, in_.begin());
    if (n.nu) {
      piece_ = pieces_[j], since_ = t - starts_[piece_];
      for (int i = 0; i < n.nu; ++i) in_[m + i] = polynomial(coefficients_, i);
    }
    in_[m + n.nu] = t;
  }

  // Of the piece at hand: input i of these coefficients, its slope in time, and its derivative along the direction.
  double polynomial(const double* coefficients, int i) const {
    const double* c = coefficients + piece_ * (n.degree + 1) * n.nu + i;
    double value = c[n.degree * n.nu];
    for (int64_t d = n.degree; d-- > 0;) value = value * since_ + c[d * n.nu];
    return value;
  }
  double input_slope(int i) const {
    const double* c = coefficients_ + piece_ * (n.degree + 1) * n.nu + i;
    double value = 0;
    for (int64_t d = n.degree; d > 0; --d) value = value * since_ + d * c[d * n.nu];
    return value;
  }
  double input_along(int i) const { return polynomial(dcoefficients_, i) - input_slope(i) * dstarts_[piece_]; }

  void directed(double* to, int count) const {
    if (sign == 1) return;
    for (int i = 0; i < count; ++i) to[i] *= sign;
  }

  const double *starts_, *coefficients_, *dstarts_, *dcoefficients_;
  const int32_t* pieces_;
  StageTape rate_, tangent_, back_;
  std::vector<Field> fields_, results_;
  Numbers in_, out_, at_surface_, lanes_;
  int64_t piece_ = 0;
  double since_ = 0;
};

// What a march is along.
struct Course {
  const double* anchors;
  int64_t count, last, most_steps;
  double longest;  // step, infinite for any; a fixed scheme cuts each interval into equal ones
  bool jumps, valid;
  int64_t kept;  // leading components of y that are kept
};

// What it leaves: arrays for the accepted steps (or null), and where it ended.
struct Mesh {
  double *ts, *ys, *at, *stages;  // of each step where its slopes are taken, or null
  int32_t *anchor, *end;
  std::vector<int32_t*> event_steps;
  int64_t count = 0, rejected = 0, status = 0, last = 0;
  double t = 0;
  Numbers y;
  std::vector<int64_t> happened;
  int64_t suspect_count = 0, suspect_j = 0;
  double suspect_t = 0, suspect_h = 0;
  Numbers suspect_y;
};

// Where a step crosses an event's surface (crossing.py).
class Crossing {
 public:
  explicit Crossing(Flow& flow) : flow_(flow), gy_(flow.m), z_(flow.m), dz_(flow.m) {
    along_.room(flow.scheme, flow.m);
    dK_.resize(flow.scheme.stages() * flow.m), both_.resize(2 * flow.m);
  }

  struct Look {
    double g, rate, noise;
  };

  Look look(Event& event, const double* y, double s, const double* slope, const double* scale) {
    double gs, noise = 0, rate = 0;
    double g = flow_.surface(event, y, s, gy_.data(), &gs);
    for (int i = 0; i < flow_.m; ++i) noise += std::fabs(gy_[i]) * scale[i], rate += gy_[i] * slope[i];
    noise = 64 * rounding * (noise + std::fabs(gs * s));
    if (!std::isfinite(noise)) noise = 0;
    if (std::fabs(g) <= noise) g = 0;
    return {g, rate + gs, noise};
  }

  double departure(Event& event, const double* y, double s, const double* slope, const double* scale) {
    const Look at = look(event, y, s, slope, scale);
    return sign_of(at.g == 0 ? at.rate : at.g);
  }

  struct Found {
    bool hit;
    double within, beyond;
  };

  // `after(h)` is g after a step of length h.
  template <class After>
  Found search(Event& event, After&& after, double s, const double* y, const double* slope, double s_end,
               const double* y_end, const double* slope_end, double side) {
    constexpr int looks = 4, shares = 2 * looks;
    const int m = flow_.m;
    const double h = s_end - s;
    Numbers scale(m);
    for (int i = 0; i < m; ++i)
      scale[i] = Flow::greater(std::fabs(y[i]), std::fabs(y_end[i])) + std::fabs(h * slope[i]);
    const Look end = look(event, y_end, s_end, slope_end, scale.data());
    const auto at = [&](double share, double* rate) {
      for (int i = 0; i < m; ++i) {
        const double across = y_end[i] - y[i], q = share * (share - 1);
        const double p = (1 - 2 * share) * across + (share - 1) * h * slope[i] + share * h * slope_end[i];
        z_[i] = (1 - share) * y[i] + share * y_end[i] + q * p;
        dz_[i] = across + (2 * share - 1) * p + q * (-2 * across + h * slope[i] + h * slope_end[i]);
      }
      double gs;
      const double g = flow_.surface(event, z_.data(), s + share * h, gy_.data(), &gs);
      if (rate) {
        *rate = gs * h;
        for (int i = 0; i < m; ++i) *rate += gy_[i] * dz_[i];
      }
      return g;
    };
    double values[looks + 1], slopes[looks + 1], share[shares], seen[shares];
    for (int k = 0; k <= looks; ++k) values[k] = at(k / double(looks), &slopes[k]);
    for (int k = 0; k < looks; ++k) {
      const bool turns = side * slopes[k] < 0 && side * slopes[k + 1] > 0;
      const double next = (k + 1) / double(looks);
      share[2 * k] = turns ? k / double(looks) + slopes[k] / (slopes[k] - slopes[k + 1]) / looks : next;
      seen[2 * k] = at(share[2 * k], nullptr);
      share[2 * k + 1] = next, seen[2 * k + 1] = values[k + 1];
    }
    share[shares - 1] = 1.0;
    bool crossed[shares];
    int first = shares;
    for (int k = shares; k-- > 0;) {
      crossed[k] = k < shares - 1 ? -side * seen[k] > end.noise : side * (end.g == 0 ? end.rate : end.g) < 0;
      crossed[k] = crossed[k] && side != 0;
      if (crossed[k]) first = k;
    }
    const bool counts = first < shares && (event.direction == 0 || side == -event.direction);
    const double length = counts ? share[first] * h : 0;
    const bool inside = counts && share[first] < 1 && -side * after(length) > end.noise;
    return {counts && (inside || crossed[shares - 1]), inside ? length : h, end.g};
  }

  // The zero of g in (0, h], by Newton's method in a bracket.
  double locate(Event& event, const double* y, double s, int64_t j, const double* slope, double h, double side) {
    double low = 0, high = h, x = h / 2, moved = h;
    for (int k = 0; moved > 4 * rounding * x && k < 100; ++k) {
      double rate;
      const double value = after(event, y, s, j, slope, x, rate);
      if (sign_of(value) == side) low = x;
      else high = x;
      const double newton = x - value / rate;
      const double next = newton > low && newton < high ? newton : (low + high) / 2;
      moved = std::fabs(next - x), x = next;
    }
    return x;
  }

  // g after a step of length h, and its derivative in h.
  double after(Event& event, const double* y, double s, int64_t j, const double* slope, double h, double& rate) {
    const Scheme& scheme = flow_.scheme;
    const int m = flow_.m;
    double *K = along_.K.data(), *Y = along_.Y.data(), *end = along_.end.data();
    for (int i = 0; i < scheme.inner; ++i) {
      if (!i) {
        if (slope) std::copy_n(slope, m, K);
        else flow_.rate_of_state(y, s, j, K);
        std::fill_n(dK_.begin(), m, 0.0);
        continue;
      }
      combine(m, y, h, scheme.A + i * scheme.inner, i, K, Y);
      moves(scheme.A + i * scheme.inner, i, h);
      flow_.rate_along(Y, s + scheme.c[i] * h, j, dz_.data(), scheme.c[i], both_.data());
      std::copy_n(both_.begin(), m, K + i * m), std::copy_n(both_.begin() + m, m, dK_.begin() + i * m);
    }
    combine(m, y, h, scheme.b, scheme.inner, K, end);
    moves(scheme.b, scheme.inner, h);
    const double g = flow_.surface(event, end, s + h, gy_.data(), &rate);
    by_time_ = rate;
    for (int i = 0; i < m; ++i) rate += gy_[i] * dz_[i];
    return g;
  }

  // Where `after` was called last: the state, how it moves with h, and the slopes of g.
  const double* end() const { return along_.end.data(); }
  const double* end_along() const { return dz_.data(); }
  const double* slope_in_state() const { return gy_.data(); }
  double slope_in_time() const { return by_time_; }

 private:
  // dz = sum_j weights_j (K_j + h dK_j): how what is combined moves with h.
  void moves(const double* weights, int many, double h) {
    const int m = flow_.m;
    std::fill(dz_.begin(), dz_.end(), 0.0);
    for (int l = 0; l < many; ++l)
      for (int i = 0; i < m; ++i) dz_[i] += weights[l] * (along_.K[l * m + i] + h * dK_[l * m + i]);
  }

  Flow& flow_;
  Numbers gy_, z_, dz_, dK_, both_;
  double by_time_ = 0;
  Step along_;
};

// The lengths of steps.
template <class System>
double first_length(System& system, const Scheme& scheme, const double* y, const double* slope, double s, double span) {
  const int n = system.width;
  Numbers moved(n), next(n);
  const double size = system.norm(y, y, y), rate = system.norm(y, y, slope);
  double trial = size > 1e-5 && rate > 1e-5 ? 0.01 * size / Flow::greater(rate, 1e-30) : 1e-6;
  trial = std::min(trial, span);
  for (int i = 0; i < n; ++i) moved[i] = y[i] + trial * slope[i];
  system.rate(moved.data(), s + trial, 0, next.data());
  for (int i = 0; i < n; ++i) next[i] -= slope[i];
  const double bend = system.norm(y, y, next.data()) / trial, largest = Flow::greater(rate, bend);
  double h = largest > 1e-15 ? std::pow(0.01 / std::max(largest, 1e-30), 1.0 / scheme.order) : std::max(1e-6, 1e-3 * trial);
  h = std::min(std::min(100 * trial, h), span);
  return std::isfinite(h) && h > 0 ? h : span * 1e-3;
}

inline double next_length(double h, double asked, double size, bool accepted, int order) {
  double factor = 0.2;
  if (std::isfinite(size)) {
    factor = 0.9 * std::pow(std::max(size, 1e-10), -1.0 / order);
    factor = std::min(std::max(factor, 0.2), accepted ? 10.0 : 1.0);
  }
  return accepted && h < 0.999 * asked ? std::max(h * factor, asked) : h * factor;
}

// y' = rate(y, s, j) through increasing anchors from y on. A system has `width` numbers and, where a step arrives at
// anchor i, `arrive(y, i)` says what goes on from there (true if that is something else).
template <class System>
void march(System& system, const Scheme& scheme, const Course& course, const double* y0, Mesh& mesh) {
  const int n = system.width;
  const bool adaptive = scheme.adaptive();
  const double* anchors = course.anchors;
  const int64_t A = course.count;
  const int events = [&] {
    if constexpr (System::has_events) return static_cast<int>(system.events.size());
    return 0;
  }();
  Numbers y(y0, y0 + n), slope(n), ends(n), scale(n), side(events), withins(events), beyonds(events);
  std::vector<char> hits(events);
  Step step, other;
  step.room(scheme, n), other.room(scheme, n);
  const auto start_of_interval = [&](int64_t j) {
    const double length = anchors[std::min(j + 1, A - 1)] - anchors[std::min(j, A - 1)];
    return length / std::max(std::ceil(length / course.longest * (1 - 1e-9)), 1.0);
  };
  double t = anchors[0], h_next;
  int64_t j = 0;
  mesh.status = course.valid ? all_done : bad_times;
  mesh.happened.assign(events, 0);
  if (mesh.ts) mesh.ts[0] = t;
  if (mesh.ys) std::copy_n(y0, course.kept, mesh.ys);
  std::copy_n(y0, course.kept, mesh.at);
  mesh.suspect_y.assign(y0, y0 + course.kept);
  system.rate(y0, t, 0, slope.data());
  if constexpr (System::has_events) {
    Crossing crossing(system);
    for (int i = 0; i < n; ++i) scale[i] = std::fabs(y0[i]);
    for (int k = 0; k < events; ++k) side[k] = crossing.departure(system.events[k], y0, t, slope.data(), scale.data());
  }
  h_next = adaptive ? first_length(system, scheme, y0, slope.data(), t, anchors[course.last] - t) : start_of_interval(0);
  int64_t again = 0;  // steps tried again at one place
  double again_from = t, again_length = 0;

  while (j < course.last && mesh.status == all_done && mesh.count < course.most_steps) {
    const double t_end = anchors[j + 1], left = t_end - t;
    double t_next;
    bool reaches;
    if (adaptive) {
      const double h = std::min(h_next, course.longest);
      reaches = h >= left * (1 - 1e-6);
      t_next = reaches ? t_end : t + (2 * h > left ? left / 2 : h);
    } else {
      const double whole = h_next > 0 ? h_next : 1.0;
      const double k = std::nearbyint((t - anchors[j]) / whole - (0.5 - 1e-6)) + 1;
      t_next = anchors[j] + k * h_next;
      reaches = t_next >= t_end - 1e-6 * h_next;
      if (reaches) t_next = t_end;
    }
    const double h = t_next - t;
    const auto rate = [&](const double* at, double s, double* to) { system.rate(at, s, j, to); };
    const double* known = adaptive ? slope.data() : nullptr;
    step.take(scheme, n, rate, y.data(), t, h, known, true);
    double size = adaptive ? system.norm(y.data(), step.end.data(), step.error.data()) : 0.0;
    bool finite = std::all_of(step.end.begin(), step.end.end(), [](double v) { return std::isfinite(v); });
    double* slope_next = adaptive ? &step.K[scheme.inner * n] : nullptr;
    bool hit = false;
    int first = 0;
    if constexpr (System::has_events) {
      if (events) {
        Crossing crossing(system);
        if (!adaptive) rate(y.data(), t, slope.data()), rate(step.end.data(), t_next, ends.data());
        else std::copy_n(slope_next, n, ends.begin());
        for (int k = 0; k < events; ++k) {
          Event& event = system.events[k];
          const auto after = [&](double length) {
            other.take(scheme, n, rate, y.data(), t, length, known, false);
            return system.surface(event, other.end.data(), t + length);
          };
          const auto found = crossing.search(event, after, t, y.data(), slope.data(), t_next, step.end.data(), ends.data(), side[k]);
          hits[k] = found.hit, withins[k] = found.within, beyonds[k] = found.beyond;
          finite = finite && std::isfinite(found.beyond), hit = hit || found.hit;
        }
      }
    }
    if (!finite) size = infinite;
    const bool accepted = adaptive ? size <= 1 : std::isfinite(size);
    hit = hit && accepted;
    double reached = t_next;
    std::copy(step.end.begin(), step.end.end(), ends.begin());
    if constexpr (System::has_events) {
      if (hit) {
        Crossing crossing(system);
        double length = infinite;
        for (int k = 0; k < events; ++k) {
          if (!hits[k]) continue;
          const double to = crossing.locate(system.events[k], y.data(), t, j, known, withins[k], side[k]);
          if (to < length) length = to, first = k;
        }
        other.take(scheme, n, rate, y.data(), t, length, known, false);
        std::copy(other.end.begin(), other.end.end(), ends.begin());
        for (int i = 0; i < n; ++i) scale[i] = Flow::greater(std::fabs(y[i]), std::fabs(ends[i])) + std::fabs(h * slope[i]);
        reached = length == h ? t_next : t + length;
        system.reset(system.events[first], ends.data(), t + length);
        Numbers leaving(n);
        rate(ends.data(), reached, leaving.data());
        for (int k = 0; k < events; ++k) {
          Event& event = system.events[k];
          const double leaves = crossing.departure(event, ends.data(), reached, leaving.data(), scale.data());
          const bool waits = events > 1 && hits[k] && k != first &&
                             crossing.look(event, ends.data(), reached, leaving.data(), scale.data()).g == 0;
          if (!waits) side[k] = leaves;
        }
        mesh.event_steps[first][std::min(mesh.happened[first], system.events[first].most)] = static_cast<int32_t>(mesh.count);
        ++mesh.happened[first];
      } else if (accepted) {
        for (int k = 0; k < events; ++k)
          if (beyonds[k] != 0) side[k] = sign_of(beyonds[k]);
      }
    }
    const bool arrives = accepted && reaches && !hit;
    bool other_state = false;
    if (arrives) other_state = system.arrive(ends.data(), j + 1);
    if (accepted) {
      if (mesh.ts) {
        mesh.ts[mesh.count + 1] = reached;
        if (mesh.ys) std::copy_n(ends.begin(), course.kept, mesh.ys + (mesh.count + 1) * course.kept);
        mesh.anchor[mesh.count] = static_cast<int32_t>(j);
        if (mesh.stages) {
          const Step& taken = hit ? other : step;
          double* to = mesh.stages + mesh.count * scheme.inner * course.kept;
          for (int i = 0; i < scheme.inner; ++i, to += course.kept) std::copy_n(&taken.Y[i * n], course.kept, to);
        }
        mesh.end[mesh.count] = hit ? at_event + first : arrives ? at_anchor : inside_step;
      }
      if (arrives) std::copy_n(ends.begin(), course.kept, mesh.at + (j + 1) * course.kept);
    }
    if (adaptive && !accepted) {
      const bool same = t - again_from <= again_length;
      again = (same ? again : 0) + 1;
      if (!same) again_from = t, again_length = h;
      if (again >= mesh.suspect_count) {
        mesh.suspect_count = again, mesh.suspect_t = t, mesh.suspect_h = h, mesh.suspect_j = j;
        std::copy_n(y.begin(), course.kept, mesh.suspect_y.begin());
      }
    }
    mesh.count += accepted, mesh.rejected += !accepted;
    const double begun = t;
    if (accepted) {
      y.swap(ends), t = reached;
    }
    j += arrives;
    if (adaptive) {
      if (accepted) {
        if (other_state || ((course.jumps || events) && (arrives || hit))) system.rate(y.data(), t, std::min(j, A - 2), slope.data());
        else std::copy_n(slope_next, n, slope.begin());
      }
      h_next = next_length(h, h_next, size, accepted, scheme.order);
    } else if (arrives) {
      h_next = start_of_interval(j);
    }
    const bool short_of = !accepted && std::fabs(h) <= 16 * rounding * std::max(std::fabs(begun), left);
    if (short_of) mesh.status = step_too_short;
    if (!accepted && (short_of || !adaptive) && !finite) mesh.status = met_nan;
    if (mesh.count >= course.most_steps && j < course.last) mesh.status = mesh_full;
    if constexpr (System::has_events) {
      for (int k = 0; k < events; ++k) {
        const Event& event = system.events[k];
        const bool just = hit && k == first;
        if (!event.ends && (mesh.happened[k] > event.most || (just && side[k] == 0))) mesh.status = too_many_events;
      }
      if (hit && system.events[first].ends) mesh.status = met_event;
    }
  }
  mesh.last = j, mesh.t = t, mesh.y = y;
}

// A time at which f seems to jump inside steps, NaN if there is none (replay.py).
inline double jump_inside_steps(Flow& flow, const Mesh& mesh) {
  if (mesh.suspect_count < 8) return std::numeric_limits<double>::quiet_NaN();
  const int m = flow.m;
  const double t = mesh.suspect_t, h = mesh.suspect_h;
  Numbers now(m), there(m), z(m);
  const auto largest = [&](const Numbers& v) {
    double most = 0;
    for (const double x : v) most = Flow::greater(most, std::fabs(x));
    return most;
  };
  const auto change = [&](double along, double by) {
    for (int i = 0; i < m; ++i) z[i] = mesh.suspect_y[i] + along * now[i];
    flow.rate_of_state(z.data(), t + by, mesh.suspect_j, there.data());
    for (int i = 0; i < m; ++i) there[i] -= now[i];
    return largest(there);
  };
  flow.rate_of_state(mesh.suspect_y.data(), t, mesh.suspect_j, now.data());
  const double floor = 1e3 * rounding * largest(now);
  for (const double along : {0.0, 1.0})
    if (change(along * h, h) > 100 * change(-along * h, -h) + 1e4 * flow.rtol * floor + floor) return flow.sign * (t + h / 2);
  return std::numeric_limits<double>::quiet_NaN();
}

// States at times s, each by one step from the beginning of its step n; count of them.
inline void dense(Flow& flow, const double* ts, const double* ys, const int32_t* anchor, const int32_t* steps,
                  const double* s, int64_t count, double* to) {
  Step step;
  step.room(flow.scheme, flow.m);
  for (int64_t k = 0; k < count; ++k, to += flow.m) {
    const int64_t n = steps[k];
    const auto rate = [&](const double* y, double at, double* slope) { flow.rate_of_state(y, at, anchor[n], slope); };
    step.take(flow.scheme, flow.m, rate, ys + n * flow.m, ts[n], s[k] - ts[n], nullptr, false);
    std::copy(step.end.begin(), step.end.end(), to);
  }
}

// Slopes in: at the anchors gat (A, m), in the last state, in the mesh's times and, or null, its states.
// Slopes out: in y_0, the anchors, the parameters, the signal's pieces; and the costates at the anchors (A, m).
struct BackOperands {
  const double *ts, *ys, *gat, *gy_end, *gts, *gys, *stages;
  const int32_t *anchor, *end;
  int64_t count;
  double *gy0, *ganchors, *gp, *gstarts, *gcoefficients, *costates;
};

// The discrete costate recursion: lambda_n = Phi_y' lambda_{n+1}, likewise for times and data (replay.py).
class Backward {
 public:
  explicit Backward(Flow& flow) : flow_(flow), crossing_(flow), m_(flow.m), gY_(flow.scheme.inner * flow.m), gk_(2 * flow.m) {
    step_.room(flow.scheme, flow.m);
  }

  void run(const BackOperands& o) {
    o_ = o;
    const int m = m_;
    const int64_t A = flow_.n.anchors;
    const bool adaptive = flow_.scheme.adaptive();
    std::fill_n(o.ganchors, A, 0.0), std::fill_n(o.costates, A * m, 0.0), std::fill_n(o.gp, flow_.n.np, 0.0);
    Numbers costate(o.gy_end, o.gy_end + m), gy(m);
    double gt = 0;
    for (int64_t n = o.count; n-- > 0;) {
      const int64_t j = o.anchor[n];
      const double t = o.ts[n], t_next = o.ts[n + 1];
      if (o.end[n] == at_anchor) {
        for (int i = 0; i < m; ++i) costate[i] += o.gat[(j + 1) * m + i];
        std::copy(costate.begin(), costate.end(), o.costates + (j + 1) * m);
      }
      gt += o.gts[n + 1];
      if (o.gys)
        for (int i = 0; i < m; ++i) costate[i] += o.gys[(n + 1) * m + i];
      std::fill(gy.begin(), gy.end(), 0.0);
      if (o.end[n] >= at_event) {
        gt = undo_event(flow_.events[o.end[n] - at_event], n, costate, gt, gy.data());
      } else {
        double gs, gh;
        pull_step(n, t, t_next - t, costate.data(), gy.data(), gs, gh);
        const double later = gt + gh;
        if (o.end[n] == at_anchor) {
          o.ganchors[j + 1] += later;
        } else if (!adaptive) {  // the mesh moves with its anchors
          const double begin = flow_.anchors[j], length = flow_.anchors[j + 1] - begin;
          const double share = (t_next - begin) / (length > 0 ? length : 1.0);
          o.ganchors[j] += (1 - share) * later, o.ganchors[j + 1] += share * later;
        }
        gt = gs - gh;
      }
      costate.swap(gy);
    }
    for (int i = 0; i < m; ++i) o.gy0[i] = o.costates[i] = costate[i] + o.gat[i] + (o.gys ? o.gys[i] : 0.0);
    o.ganchors[0] += gt + o.gts[0];
    flow_.collect(o.gp);
  }

 private:
  // Pull w on the end of step n back: that in y is added to gy, that in s (h held) and in h are returned.
  void pull_step(int64_t n, double s, double h, const double* w, double* gy, double& gs, double& gh) {
    const Scheme& scheme = flow_.scheme;
    const int m = m_, inner = scheme.inner;
    const int64_t j = o_.anchor[n];
    const double* Y = o_.stages ? o_.stages + n * inner * m : step_.Y.data();
    if (!o_.stages) {
      const auto rate = [&](const double* at, double time, double* to) { flow_.rate_of_state(at, time, j, to); };
      step_.take(scheme, m, rate, o_.ys + n * m, s, h, nullptr, false);
    }
    gs = gh = 0;
    double* const K = step_.K.data();
    for (int i = inner; i-- > 0;) {
      for (int c = 0; c < m; ++c) gk_[c] = scheme.b[i] * w[c];
      for (int l = i + 1; l < inner; ++l) {
        const double a = scheme.A[l * inner + i];
        if (a == 0) continue;
        for (int c = 0; c < m; ++c) gk_[c] += a * gY_[l * m + c];
      }
      for (int c = 0; c < m; ++c) gk_[m + c] = h * gk_[c];
      const double by_time =
          flow_.pull(Y + i * m, s + scheme.c[i] * h, j, &gk_[m], K, &gY_[i * m], o_.gp, o_.gstarts, o_.gcoefficients);
      gs += by_time, gh += scheme.c[i] * by_time;
      for (int c = 0; c < m; ++c) gh += gk_[c] * K[c], gy[c] += gY_[i * m + c];
    }
    for (int c = 0; c < m; ++c) gy[c] += w[c];
  }

  // The step up to an event, and the reset. Its length h is the root of g(end(h), t + h) = 0; what h counts is made zero
  // by a multiple mu of g, which is the implicit function theorem. Returns the slope in the time before.
  double undo_event(Event& event, int64_t n, const Numbers& costate, double gt, double* gy) {
    const int m = m_;
    const double t = o_.ts[n], h = o_.ts[n + 1] - t;
    double closing;
    crossing_.after(event, o_.ys + n * m, t, o_.anchor[n], nullptr, h, closing);
    Numbers before(costate);
    double by_time = gt;
    const Numbers end(crossing_.end(), crossing_.end() + m), gp(flow_.surface_in_params(), flow_.surface_in_params() + flow_.n.np);
    if (!event.ends) by_time += flow_.pull_reset(event, end.data(), t + h, costate.data(), before.data(), o_.gp);
    double of_length = by_time;
    for (int i = 0; i < m; ++i) of_length += before[i] * crossing_.end_along()[i];
    const double mu = -of_length / closing;
    for (int i = 0; i < m; ++i) before[i] += mu * crossing_.slope_in_state()[i];
    for (int64_t i = 0; i < flow_.n.np; ++i) o_.gp[i] += mu * gp[i];
    double gs, gh;
    pull_step(n, t, h, before.data(), gy, gs, gh);
    return gs + by_time + mu * crossing_.slope_in_time();
  }

  Flow& flow_;
  Crossing crossing_;
  const int m_;
  Step step_;
  Numbers gY_, gk_;
  BackOperands o_{};
};

}  // namespace optctl::OPTCTL_ISA
