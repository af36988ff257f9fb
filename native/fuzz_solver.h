// Random problems for the interior point kernel, with rows of every kind. What it claims to have solved must satisfy the
// optimality conditions, written out here from the problem's own coefficients.
#pragma once

#include <functional>
#include <map>

#include "fuzz_tape.h"
#include "operands.h"

namespace optctl::fuzz {

// c + g'z + 1/2 sum h_i z_i^2 + s sin(z_k)
struct Function {
  double c = 0, s = 0;
  std::vector<double> g, h;
  int k = 0;

  double value(const double* z) const {
    double sum = c + (s != 0 ? s * std::sin(z[k]) : 0);
    for (size_t i = 0; i < g.size(); ++i) sum += g[i] * z[i] + h[i] * z[i] * z[i] / 2;
    return sum;
  }
  double slope(const double* z, int i) const { return g[i] + h[i] * z[i] + (s != 0 && i == k ? s * std::cos(z[k]) : 0); }
};

inline Function random_function(int n, double size, double curvature) {
  Function f;
  f.c = size * random_matrix(1, 1, 1)(0, 0);
  f.g = random_matrix(n, 1, size).v, f.h = std::vector<double>(n, 0.0);
  for (double& h : f.h) h = curvature * std::uniform_real_distribution<double>(0.1, 1)(source);
  return f;
}

// Writes values and derivatives of functions as a tape whose constant results are made by the prologue.
class TapeWriter {
 public:
  explicit TapeWriter(int inputs) {
    for (int k = 0; k < inputs; ++k) program.input();
  }

  void value(const Function& f) {
    later_.push_back([this, f] { return value_of(f); });
    constant_.push_back(false);
  }
  void slope(const Function& f, int i) {
    later_.push_back([this, f, i] { return slope_of(f, i); });
    constant_.push_back(f.h[i] == 0 && !(f.s != 0 && f.k == i));
  }
  // The second derivative of f + sum y_r rows_r, y in the inputs from `first`.
  void curvature(const Function& f, const std::vector<Function>& rows, int first, int i, int j) {
    bool constant = true;
    auto bent = [&](const Function& r) { return i == j && (r.h[i] != 0 || (r.s != 0 && r.k == i)); };
    for (const Function& r : rows) constant = constant && !bent(r);
    constant = constant && !(i == j && f.s != 0 && f.k == i);
    later_.push_back([=] {
      int sum = i == j ? curvature_of(f, i) : load(0);
      for (size_t r = 0; r < rows.size(); ++r)
        if (i == j && (rows[r].h[i] != 0 || rows[r].s != 0))
          sum = program.add(op_muladd, curvature_of(rows[r], i), program.inputs[first + r], sum);
      return sum;
    });
    constant_.push_back(constant);
  }

  Program finish() {
    std::vector<int> slots(later_.size());
    for (size_t i = 0; i < later_.size(); ++i)
      if (constant_[i]) slots[i] = later_[i]();
    program.end_prologue();
    for (size_t i = 0; i < later_.size(); ++i)
      if (!constant_[i]) slots[i] = later_[i]();
    for (size_t i = 0; i < later_.size(); ++i) program.output(slots[i], constant_[i]);
    if (!program.slots) program.slot();
    program.staged = chance(50);  // the prologue reads no inputs
    return program;
  }

  Program program;

 private:
  int load(double x) { return program.add(op_load, program.address(x)); }
  int times(double c, int slot, int sum) { return program.add(op_muladd_m, program.address(c), slot, sum); }
  int value_of(const Function& f) {
    int sum = load(f.c);
    for (size_t i = 0; i < f.g.size(); ++i) {
      sum = times(f.g[i], program.inputs[i], sum);
      if (f.h[i] != 0) sum = times(f.h[i] / 2, program.add(op_mul, program.inputs[i], program.inputs[i]), sum);
    }
    return f.s != 0 ? times(f.s, program.add(op_sin, program.inputs[f.k]), sum) : sum;
  }
  int slope_of(const Function& f, int i) {
    int sum = load(f.g[i]);
    if (f.h[i] != 0) sum = times(f.h[i], program.inputs[i], sum);
    return f.s != 0 && f.k == i ? times(f.s, program.add(op_cos, program.inputs[i]), sum) : sum;
  }
  int curvature_of(const Function& f, int i) {
    const int sum = load(f.h[i]);
    return f.s != 0 && f.k == i ? times(-f.s, program.add(op_sin, program.inputs[i]), sum) : sum;
  }

  std::vector<std::function<int()>> later_;
  std::vector<bool> constant_;
};

inline double uniform(double low, double high) { return std::uniform_real_distribution<double>(low, high)(source); }

struct Trajectory {
  enum { x0_min, x0_max, x_min, x_max, u_min, u_max, blocks };
  int N, nx, nu, nz, rows = 0, bound_rows, solved = 0;
  Function stage_cost, end_cost, start_cost;
  std::vector<Function> f, path[2], end[2];
  int begin[10];
  bool has_soft = false, quadratic;
  std::vector<int32_t> kind;
  std::vector<double> bounds, l1, l2, x0_free, xs, us, s, y, e, v;

  int stages_of(int b) const { return b <= x0_max ? 1 : N; }
  int width_of(int b) const { return b <= x_max ? nx : nu; }
  // What a bound bounds.
  double& bounded(std::vector<double>& xs, std::vector<double>& us, int b, int i) const {
    return b <= x0_max ? xs[i] : b <= x_max ? xs[nx + i] : us[i];
  }
  std::vector<double> z(const std::vector<double>& xs, const std::vector<double>& us, int t) const {
    std::vector<double> made(xs.begin() + t * nx, xs.begin() + (t + 1) * nx);
    if (t < N) made.insert(made.end(), us.begin() + t * nu, us.begin() + (t + 1) * nu);
    return made;
  }

  Trajectory() {
    N = between(1, chance(20) ? 20 : 6), nx = between(1, 5), nu = between(0, 3), nz = nx + nu;
    quadratic = chance(50);
    const double bend = quadratic ? 0 : 0.3;
    stage_cost = random_function(nz, 1, 1), end_cost = random_function(nx, 1, 1), start_cost = random_function(nx, 1, 1);
    for (int i = 0; i < nx; ++i) {
      f.push_back(random_function(nz, 0.5, 0));
      if (!quadratic && chance(50)) f.back().s = uniform(-0.3, 0.3), f.back().k = between(0, nz - 1);
    }
    for (int b = 0; b < 2; ++b) {
      for (int k = between(0, b ? std::min(nu, 1) : 3); k > 0; --k) path[b].push_back(random_function(nz, 1, b ? 0 : bend));
      for (int k = nu ? between(0, b ? 1 : 2) : 0; k > 0; --k) end[b].push_back(random_function(nx, 1, b ? 0 : bend));
    }
    xs = random_matrix((N + 1) * nx, 1, 1).v, us = random_matrix(N * nu, 1, 1).v;
    for (int i = 0; i < nx; ++i) x0_free.push_back(chance(30));
    if (chance(80)) make_feasible();
    make_bounds();
    make_rows();
    for (double& x : xs) x += uniform(-0.1, 0.1);
  }

  // Let the states follow the inputs, the inequalities hold there, and the equalities at the start and the end.
  void make_feasible() {
    for (int t = 0; t < N; ++t)
      for (int i = 0; i < nx; ++i) xs[(t + 1) * nx + i] = f[i].value(z(xs, us, t).data());
    for (Function& g : path[0]) {
      double worst = -INFINITY;
      for (int t = 0; t < N; ++t) worst = std::max(worst, g.value(z(xs, us, t).data()));
      g.c -= worst + uniform(0, 1);
    }
    for (Function& h : path[1]) h.c -= h.value(z(xs, us, 0).data());
    for (int b = 0; b < 2; ++b)
      for (Function& r : end[b]) r.c -= r.value(z(xs, us, N).data()) + (b ? 0 : uniform(0, 1));
  }

  void make_bounds() {
    for (int stem = 0; stem < 3; ++stem) {
      const bool low = chance(50), high = chance(50);
      const int size = stages_of(2 * stem) * width_of(2 * stem);
      std::vector<double> lower(size, -INFINITY), upper(size, INFINITY);
      for (int i = 0; i < size; ++i) {
        const double at = bounded(xs, us, 2 * stem, i);
        if (chance(70)) lower[i] = at - uniform(0.05, 2);
        if (chance(70)) upper[i] = at + uniform(0.05, 2);
        if (low && high && stem != 1 && chance(10)) lower[i] = upper[i] = at;
      }
      for (int side = 0; side < 2; ++side) {
        begin[2 * stem + side] = (side ? high : low) ? rows : -1;
        if (!(side ? high : low)) continue;
        for (int i = 0; i < size; ++i) {
          const double bound = side ? upper[i] : lower[i];
          const bool there = std::isfinite(bound) && (stem || x0_free[i] != 0);
          const bool equal = there && low && high && lower[i] == upper[i];
          kind.push_back(equal ? (side ? 0 : 2) : there ? 1 : 0);
          bounds.push_back(bound);
        }
        rows += size;
      }
    }
    bound_rows = rows;
  }

  void make_rows() {
    const bool some_soft = chance(40);
    std::vector<double> c(rows);
    for (int b = 0; b < blocks; ++b)
      for (int i = 0; begin[b] >= 0 && i < stages_of(b) * width_of(b); ++i)
        c[begin[b] + i] = (b % 2 ? 1 : -1) * (bounded(xs, us, b, i) - bounds[begin[b] + i]);
    l1.assign(rows, 0), l2.assign(rows, 0);
    for (int where = 0; where < 4; ++where) {
      const auto& functions = where < 2 ? path[where] : end[where - 2];
      begin[blocks + where] = rows;
      for (int t = where < 2 ? 0 : N; t < (where < 2 ? N : N + 1); ++t)
        for (size_t k = 0; k < functions.size(); ++k) {
          const bool soft = where % 2 == 0 && some_soft && k == 0, on = !chance(5);
          kind.push_back(4 | (on ? (where % 2 ? 2 : 1) : 0) | (soft && on ? 8 : 0));
          has_soft = has_soft || soft;
          l1.push_back(soft ? uniform(0.1, 3) : 0), l2.push_back(soft && chance(50) ? 1 : 0);
          c.push_back(functions[k].value(z(xs, us, t).data()));
          ++rows;
        }
    }
    for (int i = 0; i < rows; ++i) {
      const bool soft = kind[i] & 8;
      e.push_back(soft ? std::max(c[i], 0.0) + 0.01 : 1);
      s.push_back(soft ? e[i] - c[i] : kind[i] & 1 ? std::max(-c[i], 0.01) : 1);
      y.push_back(kind[i] & 1 ? 0.1 / s[i] : 0), v.push_back(soft ? 0.1 / e[i] : 1);
    }
    if (!has_soft) l1.clear(), l2.clear(), e.clear(), v.clear();
  }

  // The six tapes, one behind the other, and their memory.
  void write(std::vector<int32_t>& info, std::vector<double>& memory) const {
    for (int place = 0; place < 3; ++place)  // a stage, the end, the start
      for (bool derivatives : {false, true}) {
        const Function& cost = place == 0 ? stage_cost : place == 1 ? end_cost : start_cost;
        const int n = place ? nx : nz;
        std::vector<Function> g, h, steps;
        if (place < 2) g = place ? end[0] : path[0], h = place ? end[1] : path[1];
        if (!place) steps = f;
        const int first = n + (place ? 0 : 1);  // behind t
        const size_t multipliers = derivatives ? steps.size() + g.size() + h.size() : 0;
        TapeWriter writer(first + static_cast<int>(multipliers));
        writer.value(cost);
        for (const auto* functions : {&g, &h, &steps})
          for (const Function& r : *functions) writer.value(r);
        if (derivatives) {
          for (int i = 0; i < n; ++i) writer.slope(cost, i);
          for (auto [from, to] : {std::pair<int, int>{0, nx}, {nx, n}})
            for (const Function& r : steps)
              for (int j = from; j < to; ++j) writer.slope(r, j);
          std::vector<Function> bent = steps;
          for (const auto* functions : {&g, &h})
            for (const Function& r : *functions) {
              bent.push_back(r);
              for (int j = 0; j < n; ++j) writer.slope(r, j);
            }
          for (int i = 0; i < n; ++i)
            for (int j = place ? 0 : i; j < n; ++j) writer.curvature(cost, bent, first, i, j);
        }
        const Program program = writer.finish();
        program.pack(info, static_cast<int>(memory.size()));
        memory.insert(memory.end(), program.memory.begin(), program.memory.end());
      }
  }
};

// All operands and results of one solve, each in memory of exactly its size.
class Solve {
  struct Start {
    std::vector<double> xs, us, costates, s, y, e;
  };

 public:
  explicit Solve(const Trajectory& p, int stop = 100)
      : Solve(p, stop, {p.xs, p.us, std::vector<double>((p.N + 1) * p.nx), p.s, p.y, p.e}, false) {}

  // A warm start from a solution; some rows are taken for active or inactive by mistake.
  static Solve again(const Solve& last, int percent_wrong) {
    const Trajectory& p = last.p_;
    Start at{last.result("xs"), last.result("us"), last.result("costates"), last.result("s"), last.result("y"),
             last.result("e")};
    for (int i = 0; i < p.rows; ++i) {
      const bool held = (at.y[i] > 1e-6) != chance(percent_wrong), priced = p.kind[i] & 8;
      if (!(p.kind[i] & 1)) continue;
      if (!held) at.y[i] = 0;
      at.s[i] = held ? 0 : 1;
      if (p.has_soft) at.e[i] = priced && !(held && at.y[i] >= p.l1[i]) ? 0 : 1;
    }
    return Solve(p, 100, at, true);
  }

 private:
  Solve(const Trajectory& p, int stop, const Start& at, bool warm) : p_(p) {
    std::map<std::string, double> sizes{
        {"N", p.N}, {"nx", p.nx}, {"nu", p.nu}, {"path_inequalities", p.path[0].size()},
        {"path_equalities", p.path[1].size()}, {"terminal_inequalities", p.end[0].size()},
        {"terminal_equalities", p.end[1].size()}, {"rows", p.rows}, {"has_soft", p.has_soft}, {"history", stop + 1},
        {"gains", p.rows % 2}, {"warm", warm}, {"measure", 0}, {"quadratic", p.quadratic},
        {"begin", p.rows / 2 % 2}, {"x_given", p.rows % 3 == 0}, {"u_given", p.rows % 5 == 0}};
    const char* const names[] = {"x0_min", "x0_max", "x_min", "x_max", "u_min", "u_max", "path_inequality",
                                 "path_equality", "terminal_inequality", "terminal_equality"};
    for (int b = 0; b < 10; ++b) sizes[names[b]] = p.begin[b];
    std::vector<int32_t> info;
    std::vector<double> memory;
#define OPTCTL_SIZE(name) info.push_back(static_cast<int32_t>(sizes.at(#name)));
    OPTCTL_SIZES(OPTCTL_SIZE)
#undef OPTCTL_SIZE
    p.write(info, memory);
    std::map<std::string, double> given{{"tolerance", 1e-8}, {"stop", stop}, {"seconds", INFINITY}, {"mu", 0.1},
                                        {"barrier", p.N % 2 ? NAN : 0.1}, {"least", 1e-6},
                                        {"scale", 1}, {"floor", 1e-6}, {"theta_first", 10}, {"first_cost", 10},
                                        {"mark", 10}, {"mu_restore", 0.1}, {"status", 1}, {"phase", p.quadratic ? 2 : 0}};
    std::vector<double> settings, numbers;
#define OPTCTL_GIVEN(name) settings.push_back(given[#name]);
    OPTCTL_SETTINGS(OPTCTL_GIVEN)
#undef OPTCTL_GIVEN
    given["seconds"] = 0;
#define OPTCTL_GIVEN(name) numbers.push_back(given[#name]);
    OPTCTL_NUMBERS(OPTCTL_GIVEN)
#undef OPTCTL_GIVEN
    std::map<std::string, std::vector<double>> operands{
        {"memory", memory}, {"bounds", p.bounds}, {"l1", p.l1}, {"l2", p.l2}, {"x0_free", p.x0_free},
        {"settings", settings}, {"numbers", numbers}, {"filter", std::vector<double>(64, INFINITY)},
        {"history", std::vector<double>(6 * (stop + 1), NAN)}, {"xs", at.xs}, {"us", at.us}, {"costates", at.costates},
        {"s", at.s}, {"y", at.y}, {"e", at.e}, {"v", p.v},
        {"x_linear", std::vector<double>(p.nx, p.quadratic)}, {"x_scale", std::vector<double>(p.nx, 1)}, {"u_scale", std::vector<double>(p.nu, 1)},
        {"row_scale", std::vector<double>(p.rows, 1)}, {"cost_scale", {1}}};
    whole_ = {in_room(info), in_room(p.kind)};
#define OPTCTL_OPERAND(name, rank)                                                  \
  if (std::string(#name) == "info") in_.push_back(whole_[0].get());                 \
  else if (std::string(#name) == "kind") in_.push_back(whole_[1].get());            \
  else given_.push_back(in_room(operands.at(#name))), in_.push_back(given_.back().get());
    OPTCTL_OPERANDS(OPTCTL_OPERAND)
#undef OPTCTL_OPERAND
    const size_t N = p.N, nx = p.nx, nu = p.nu, nz = p.nz, rows = p.rows;
    std::map<std::string, size_t> room_of{
        {"cost", 1}, {"gaps", N * nx}, {"c", rows}, {"q0", nx}, {"qs", (N + 1) * nx}, {"rs", N * nu}, {"A", N * nx * nx},
        {"B", N * nx * nu}, {"path_inequality", N * p.path[0].size() * nz}, {"path_equality", N * p.path[1].size() * nz},
        {"terminal_inequality", p.end[0].size() * nx}, {"terminal_equality", p.end[1].size() * nx}, {"W0", nx * nx},
        {"W", N * nz * nz}, {"Wf", nx * nx}, {"K", N * nu * nx}, {"figures", 0}};
#define OPTCTL_FIGURE(name) ++room_of["figures"];
    OPTCTL_FIGURES(OPTCTL_FIGURE)
#undef OPTCTL_FIGURE
    for (const auto& [name, numbers] : operands) room_of[name] = numbers.size();
#define OPTCTL_RESULT(name, rank) results_[#name] = room<double>(sizes_[#name] = room_of.at(#name)), out_.push_back(results_[#name].get());
    OPTCTL_RESULTS(OPTCTL_RESULT)
#undef OPTCTL_RESULT
  }

 public:
  void run(SolverKernel kernel) const { kernel(in_.data(), out_.data()); }

  std::vector<double> result(const std::string& name) const {
    const double* p = results_.at(name).get();
    return {p, p + sizes_.at(name)};
  }

  double number(const std::string& name) const {
    double value = NAN;
    int k = 0;
#define OPTCTL_FIND(field)                                    \
  if (name == #field) value = results_.at("numbers").get()[k]; \
  ++k;
    OPTCTL_NUMBERS(OPTCTL_FIND)
#undef OPTCTL_FIND
    return value;
  }

  bool solved() const { return number("status") == 0; }

  // The optimality conditions, from the problem's own coefficients.
  void check() const {
    const auto x = result("xs"), u = result("us"), costates = result("costates"), y = result("y");
    const int N = p_.N, nx = p_.nx, nu = p_.nu;
    double size = 1 + std::fabs(*results_.at("cost"));
    for (const auto* numbers : {&x, &u, &costates, &y})
      for (double value : *numbers) size = std::max(size, std::fabs(value));
    const double near = 2e-5 * size;
    auto zero = [&](const char* what, double value) { expect(std::fabs(value) <= near, what, value, 0); };
    std::vector<double> gx(x.size(), 0.0), gu(u.size(), 0.0), g0(nx, 0.0);
    auto row = [&](int i, double c) {
      const int kind = p_.kind[i];
      if (kind & 2) zero("an equality", c);
      if (!(kind & 1)) return kind & 2 ? y[i] : 0.0;
      if (!(kind & 8)) expect(c <= near, "an inequality", c, 0);
      expect(y[i] >= -near, "a multiplier", y[i], 0);
      if (!(kind & 8)) expect(y[i] <= near || c >= -1e-3 * size || -c * y[i] <= near, "a product", c * y[i], 0);
      return y[i];
    };
    for (int b = 0; b < Trajectory::blocks; ++b)
      for (int i = 0; p_.begin[b] >= 0 && i < p_.stages_of(b) * p_.width_of(b); ++i) {
        const int at = p_.begin[b] + i;
        const double sign = b % 2 ? 1 : -1, value = b <= 1 ? x[i] : b <= 3 ? x[nx + i] : u[i];
        if (!p_.kind[at]) continue;
        (b <= 1 ? g0[i] : b <= 3 ? gx[nx + i] : gu[i]) += sign * row(at, sign * (value - p_.bounds[at]));
      }
    for (int t = 0; t <= N; ++t) {
      const auto z = p_.z(x, u, t);
      const int n = static_cast<int>(z.size());
      auto slope = [&](int j) -> double& { return j < nx ? gx[t * nx + j] : gu[t * nu + j - nx]; };
      for (int j = 0; j < n; ++j) slope(j) += (t < N ? p_.stage_cost : p_.end_cost).slope(z.data(), j);
      for (int b = 0; b < 2; ++b) {
        const auto& functions = t < N ? p_.path[b] : p_.end[b];
        for (size_t k = 0; k < functions.size(); ++k) {
          const int i = p_.begin[Trajectory::blocks + b + (t < N ? 0 : 2)] + (t < N ? t * static_cast<int>(functions.size()) : 0) + static_cast<int>(k);
          const double weight = row(i, functions[k].value(z.data()));
          for (int j = 0; j < n; ++j) slope(j) += weight * functions[k].slope(z.data(), j);
        }
      }
      for (int i = 0; i < nx && t < N; ++i) {
        zero("a gap", p_.f[i].value(z.data()) - x[(t + 1) * nx + i]);
        for (int j = 0; j < n; ++j) slope(j) += costates[(t + 1) * nx + i] * p_.f[i].slope(z.data(), j);
      }
      for (int j = 0; j < nu && t < N; ++j) zero("a slope in u", gu[t * nu + j]);
      for (int j = 0; j < nx; ++j) {
        if (t) zero("a slope in x", gx[t * nx + j] - costates[t * nx + j]);
        else if (p_.x0_free[j] != 0) zero("a slope in x_0", gx[j] + g0[j] + p_.start_cost.slope(z.data(), j));
      }
    }
  }

  // Whether two solves gave the same numbers, but for the time they took.
  bool same_as(const Solve& other) const {
    for (const char* name : {"xs", "us", "costates", "s", "y", "A", "W", "K"})
      for (size_t i = 0; i < sizes_.at(name); ++i)
        if (!same(results_.at(name).get()[i], other.results_.at(name).get()[i])) return false;
    return true;
  }

 private:
  const Trajectory& p_;
  std::vector<std::shared_ptr<int32_t>> whole_;
  std::vector<std::shared_ptr<double>> given_;
  std::map<std::string, std::shared_ptr<double>> results_;
  std::map<std::string, size_t> sizes_;
  std::vector<const void*> in_;
  std::vector<double*> out_;
};

}  // namespace optctl::fuzz
