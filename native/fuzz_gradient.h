// Random problems for the gradient engine and for iterative LQR, against the recursions written out in plain loops.
#pragma once

#include "fuzz_solver.h"

namespace optctl::fuzz {

struct Horizon {
  int N = between(0, chance(20) ? 50 : 20), nx = between(1, 5), nu = between(0, 3), nz = nx + nu, np = between(0, 2);
  Function stage = random_function(nz, 1, 1), end = random_function(nx, 1, 1), start = random_function(nx, 1, 1);
  std::vector<Function> f, rows, end_rows, priced, end_priced;
  std::vector<double> x0 = random_matrix(nx, 1, 1).v, us = random_matrix(N * nu, 1, 1).v, signs;

  Horizon() {
    for (int i = 0; i < nx; ++i) {
      f.push_back(random_function(nz, 0.4, 0));
      if (chance(70)) f.back().s = uniform(-0.3, 0.3), f.back().k = between(0, nz - 1);
      for (double& g : f.back().g) g *= chance(70);  // what is zero at all stages is left out
    }
    if (chance(50)) stage.s = uniform(-0.3, 0.3), stage.k = between(0, nz - 1);
    for (int k = between(0, 2); k > 0; --k) rows.push_back(random_function(nz, 1, 0.3));
    for (int k = between(0, 2); k > 0; --k) end_rows.push_back(random_function(nx, 1, 0.3));
    for (int k = 0; k < np; ++k) priced.push_back(random_function(nz + 1 + nx, 0.1, 0.1));
    for (int k = 0; k < np; ++k) end_priced.push_back(random_function(nx, 1, 1));
    for (int k = (N + 1) * nx + N * nu; k > 0; --k) signs.push_back(chance(50) ? 1 : -1);
  }

  std::vector<double> z(const std::vector<double>& xs, const std::vector<double>& us, int t) const {
    std::vector<double> made(xs.begin() + t * nx, xs.begin() + (t + 1) * nx);
    if (t < N) made.insert(made.end(), us.begin() + t * nu, us.begin() + (t + 1) * nu);
    return made;
  }
  double bend(const Function& f, const std::vector<double>& z, int i, int j) const {
    return i != j ? 0 : f.h[i] - (f.s != 0 && f.k == i ? f.s * std::sin(z[i]) : 0);
  }

  // The program of `gradient` where it bends so, or of `follow` with -1.
  void write(int bends, std::vector<int32_t>& program, std::vector<double>& memory) const {
    const auto add = [&](const Program& p) {
      p.pack(program, memory.size());
      memory.insert(memory.end(), p.memory.begin(), p.memory.end());
    };
    const auto values = [&](TapeWriter& w, const Function& cost, const std::vector<Function>& rows, const std::vector<Function>& f) {
      w.value(cost);
      for (const auto* several : {&rows, &f})
        for (const Function& r : *several) w.value(r);
    };
    const auto place = [&](const Function& cost, const std::vector<Function>& rows, const std::vector<Function>& f, int n) {
      std::vector<Function> bent = f;
      bent.insert(bent.end(), rows.begin(), rows.end());
      TapeWriter w(n + !f.empty() + bent.size());
      values(w, cost, rows, f);
      for (int i = 0; i < n; ++i) w.slope(cost, i);
      for (const Function& r : f)
        for (int i = 0; i < nx; ++i) w.slope(r, i);
      for (const Function& r : f)
        for (int i = nx; i < n; ++i) w.slope(r, i);
      for (const Function& r : rows)
        for (int i = 0; i < n; ++i) w.slope(r, i);
      for (int i = 0; i < n && bends > 0; ++i)
        for (int j = f.empty() ? 0 : i; j < n; ++j)
          w.curvature(cost, bends == 2 ? bent : std::vector<Function>{}, n + !f.empty(), i, j);
      return w.finish();
    };
    TapeWriter of_stage(nz + 1), of_end(nx), of_start(nx);
    values(of_stage, stage, rows, f);
    add(of_stage.finish());
    if (bends < 0) {
      values(of_end, end, end_rows, {}), values(of_start, start, {}, {});
      return add(of_end.finish()), add(of_start.finish());
    }
    add(place(stage, rows, f, nz)), add(place(end, end_rows, {}, nx)), add(place(start, {}, {}, nx));
    if (!np) return;
    TapeWriter along(nz + 1 + nx), last(nx), first(nx);
    for (const Function& p : priced) along.value(p);
    for (const Function& p : end_priced) last.value(p), first.value(p);
    add(along.finish()), add(last.finish()), add(first.finish());
  }
};

// Every result of `gradient`, in its order, in rooms of their own.
struct Found {
  std::vector<std::shared_ptr<double>> rooms;
  std::vector<int64_t> sizes;
  Found(const Horizon& h, int bends, bool all) {
    const int64_t N = h.N, nx = h.nx, nu = h.nu, nz = h.nz;
    sizes = {1, (N + 1) * nx, N * nx, N * nx * nx, N * nx * nu, (N + 1) * nx, N * nu, nx, (N + 1) * nx, N * nu, nx, h.np, 2,
             bends > 0 ? N * nz * nz : 0, bends > 0 ? nx * nx : 0, bends > 0 ? nx * nx : 0, bends == 2 ? N * nz * nz : 0};
    for (size_t k = 0; k < sizes.size(); ++k)
      rooms.push_back(sizes[k] && (all || k < 2 || k > 7) ? room<double>(sizes[k]) : nullptr);
  }
  double at(int k, int64_t i) const { return rooms[k].get()[i]; }
};

inline bool near(double got, double want, double size) { return std::fabs(got - want) <= 1e-9 * (1 + size); }

inline void check_horizon(const HostKernels& kernels) {
  const Horizon h;
  const int N = h.N, nx = h.nx, nu = h.nu, nz = h.nz, bends = between(0, 2);
  std::vector<int32_t> packed;
  std::vector<double> numbers;
  h.write(bends, packed, numbers);
  const auto program = in_room(packed);
  const auto memory = in_room(numbers), us = in_room(h.us), signs = in_room(h.signs);
  const bool all = bends || chance(50);
  const Found found(h, bends, all);
  std::copy_n(h.x0.begin(), nx, found.rooms[1].get());
  std::vector<void*> arrays = {program.get(), memory.get(), us.get(), bends ? signs.get() : nullptr};
  for (const auto& one : found.rooms) arrays.push_back(one.get());
  const int64_t sizes[] = {N, nx, nu, h.np, 1, bends};
  kernels.gradient(sizes, arrays.data());

  // The definition, one stage after another.
  std::vector<double> xs = h.x0, costates((N + 1) * nx), params(h.np);
  double cost = h.start.value(xs.data()), steep = 0, curved = 0;
  xs.resize((N + 1) * nx);
  for (int t = 0; t < N; ++t) {
    const auto z = h.z(xs, h.us, t);
    cost += h.stage.value(z.data());
    for (int i = 0; i < nx; ++i) xs[(t + 1) * nx + i] = h.f[i].value(z.data());
  }
  const auto last = h.z(xs, h.us, N);
  cost += h.end.value(last.data());
  expect(near(found.at(0, 0), cost, std::fabs(cost)), "cost", found.at(0, 0), cost);
  const auto same = [&](const char* what, int k, int64_t i, double want) {
    if (found.rooms[k]) expect(near(found.at(k, i), want, std::fabs(want)), what, found.at(k, i), want);
  };
  for (int i = 0; i < nx; ++i) costates[N * nx + i] = h.end.slope(last.data(), i);
  for (int t = N - 1; t >= 0; --t) {
    auto z = h.z(xs, h.us, t);
    const double* later = costates.data() + (t + 1) * nx;
    for (int j = 0; j < nz; ++j) {
      const double slope = h.stage.slope(z.data(), j);
      double sum = slope;
      for (int i = 0; i < nx; ++i) {
        const double J = h.f[i].slope(z.data(), j);
        sum += J * later[i];
        j < nx ? same("A", 3, (t * nx + i) * nx + j, J) : same("B", 4, (t * nx + i) * nu + j - nx, J);
      }
      j < nx ? same("qs", 5, t * nx + j, slope) : same("rs", 6, t * nu + j - nx, slope);
      if (j < nx) costates[t * nx + j] = sum;
      else same("gus", 9, t * nu + j - nx, sum);
    }
    for (int i = 0; i < nx; ++i) same("reached", 2, t * nx + i, xs[(t + 1) * nx + i]);
    for (int i = 0; i < nz && bends; ++i)
      for (int j = 0; j < nz; ++j) {
        const double W = h.bend(h.stage, z, i, j);
        double V = W;
        for (int k = 0; k < nx; ++k) V += later[k] * h.bend(h.f[k], z, i, j);
        same("W", 13, (t * nz + i) * nz + j, W);
        if (bends == 2) same("V", 16, (t * nz + i) * nz + j, V);
      }
    z.push_back(t), z.insert(z.end(), later, later + nx);
    for (int k = 0; k < h.np; ++k) params[k] += h.priced[k].value(z.data());
  }
  for (int k = 0; k < h.np; ++k) {
    same("params", 11, k, params[k] + h.end_priced[k].value(last.data()) + h.end_priced[k].value(h.x0.data()));
  }
  for (int i = 0; i < (N + 1) * nx; ++i) same("xs", 1, i, xs[i]), same("costates", 8, i, costates[i]);
  for (int i = 0; i < nx; ++i) same("gx0", 10, i, costates[i] + h.start.slope(h.x0.data(), i));
  if (!bends) return;
  for (int t = 0; t <= N; ++t) {
    const auto z = h.z(xs, h.us, t);
    for (size_t i = 0; i < z.size(); ++i) {
      const double d = (i < size_t(nx) ? h.signs[t * nx + i] : h.signs[(N + 1) * nx + t * nu + i - nx]) * std::max(1.0, std::fabs(z[i]));
      const Function& l = t < N ? h.stage : h.end;
      double slope = l.slope(z.data(), i), bend = h.bend(l, z, i, i);
      if (t == 0 && i < size_t(nx)) slope += h.start.slope(z.data(), i), bend += h.bend(h.start, z, i, i);
      steep += std::fabs(d * slope), curved += d * d * bend;
    }
  }
  same("steepness", 12, 0, steep), same("bend", 12, 1, curved);
  if (bends != 2) return;

  // The Hessian along a direction is the slope of the gradient along it.
  const auto dx0 = in_room(random_matrix(nx, 1, 1).v), dus = in_room(random_matrix(N * nu, 1, 1).v);
  const auto gx0 = room<double>(nx), gus = room<double>(N * nu), dxs = room<double>((N + 1) * nx), turned = room<double>((N + 1) * nx);
  const auto& r = found.rooms;
  void* const operands[] = {r[3].get(), r[4].get(), r[16].get(), r[14].get(), r[15].get(), dx0.get(),
                            dus.get(),  gx0.get(),  gus.get(),   dxs.get(),   turned.get()};
  kernels.hessian_product(sizes, operands);
  std::vector<double> ahead[2];
  for (int side = 0; side < 2; ++side) {
    const double step = side ? -1e-5 : 1e-5;
    Horizon moved = h;
    for (int i = 0; i < nx; ++i) moved.x0[i] += step * dx0.get()[i];
    for (int i = 0; i < N * nu; ++i) moved.us[i] += step * dus.get()[i];
    const Found there(h, bends, true);
    std::copy_n(moved.x0.begin(), nx, there.rooms[1].get());
    const auto inputs = in_room(moved.us);
    std::vector<void*> given = {program.get(), memory.get(), inputs.get(), nullptr};
    for (const auto& one : there.rooms) given.push_back(one.get());
    kernels.gradient(sizes, given.data());
    for (int k : {1, 8, 9, 10}) ahead[side].insert(ahead[side].end(), there.rooms[k].get(), there.rooms[k].get() + there.sizes[k]);
  }
  std::vector<double> product;
  for (const auto& [part, size] : {std::pair{dxs, (N + 1) * nx}, {turned, (N + 1) * nx}, {gus, N * nu}, {gx0, nx}})
    product.insert(product.end(), part.get(), part.get() + size);
  double size = 1;
  for (double of : product) size = std::max(size, std::fabs(of));
  for (size_t i = 0; i < product.size(); ++i) {
    const double want = (ahead[0][i] - ahead[1][i]) / 2e-5;
    if (!expect(std::fabs(product[i] - want) <= 1e-4 * size, "a Hessian's product", product[i], want)) return;
  }
}

// Iterative LQR: what it claims to have solved is a rollout at which no input within its bounds brings less.
inline void check_ilqr(const HostKernels& kernels) {
  Horizon h;
  h.np = 0, h.N = std::max(h.N, 1), h.us.resize(h.N * h.nu), h.signs.resize((h.N + 1) * h.nx + h.N * h.nu, 1.0);
  const int N = h.N, nx = h.nx, nu = h.nu, exact = chance(50), most = between(0, 60);
  std::vector<int32_t> packed, packed_values;
  std::vector<double> numbers, numbers_values;
  h.write(1 + exact, packed, numbers), h.write(-1, packed_values, numbers_values);
  const bool bounded = chance(50);
  std::vector<double> lower(N * nu, -INFINITY), upper(N * nu, INFINITY);
  for (int i = 0; i < N * nu && bounded; ++i) lower[i] = -uniform(0, 0.5), upper[i] = chance(10) ? lower[i] : uniform(0, 0.5);
  for (int i = 0; i < N * nu; ++i) h.us[i] = std::min(std::max(h.us[i], lower[i]), upper[i]);
  const auto program = in_room(packed), values = in_room(packed_values);
  const auto memory = in_room(numbers), values_memory = in_room(numbers_values), x0 = in_room(h.x0), us = in_room(h.us),
             low = in_room(lower), high = in_room(upper), signs = in_room(h.signs),
             settings = in_room(std::vector<double>{1e-7, 0.1, 0.3, 1e-3, 0.1, 10, 1e16, 1e-5, 1e15});
  const auto xs = room<double>((N + 1) * nx), best = room<double>(N * nu), slope = room<double>(N * nu), K = room<double>(N * nu * nx),
             costates = room<double>((N + 1) * nx), history = room<double>(4 * (most + 1)), figures = room<double>(3);
  const int64_t sizes[] = {N, nx, nu, exact, bounded, most, 5, 10};
  void* const arrays[] = {program.get(), memory.get(), values.get(), values_memory.get(), x0.get(), us.get(), low.get(), high.get(),
                          signs.get(), settings.get(), xs.get(), best.get(), slope.get(), K.get(), costates.get(), history.get(),
                          figures.get()};
  kernels.ilqr(sizes, arrays);
  const double* figure = figures.get();
  expect(figure[2] >= 0 && figure[2] <= 5 && figure[1] <= most, "iterative LQR's status", figure[2], 0);
  if (figure[2] != 0) return;
  Horizon at = h;
  at.us.assign(best.get(), best.get() + N * nu);
  std::vector<double> states = h.x0, costate(nx);
  states.resize((N + 1) * nx);
  double cost = h.start.value(h.x0.data());
  for (int t = 0; t < N; ++t) {
    const auto z = h.z(states, at.us, t);
    cost += h.stage.value(z.data());
    for (int i = 0; i < nx; ++i) states[(t + 1) * nx + i] = h.f[i].value(z.data());
  }
  cost += h.end.value(h.z(states, at.us, N).data());
  expect(near(figure[0], cost, std::fabs(cost)), "iterative LQR's cost", figure[0], cost);
  for (int i = 0; i < (N + 1) * nx; ++i) expect(near(xs.get()[i], states[i], std::fabs(states[i])), "its states", xs.get()[i], states[i]);
  for (int i = 0; i < nx; ++i) costate[i] = h.end.slope(states.data() + N * nx, i);
  for (int t = N - 1; t >= 0; --t) {
    const auto z = h.z(states, at.us, t);
    std::vector<double> earlier(h.nz);
    for (int j = 0; j < h.nz; ++j) {
      earlier[j] = h.stage.slope(z.data(), j);
      for (int i = 0; i < nx; ++i) earlier[j] += h.f[i].slope(z.data(), j) * costate[i];
      if (j < nx) continue;
      const int i = t * nu + j - nx;
      const double u = at.us[i], left = u - std::min(std::max(u - earlier[j], lower[i]), upper[i]);
      expect(u >= lower[i] && u <= upper[i], "an input within its bounds", u, lower[i]);
      expect(std::fabs(left) <= 1e-5 * (1 + std::fabs(cost)), "a slope at the optimum", left, 0);
    }
    costate.assign(earlier.begin(), earlier.begin() + nx);
  }
}

}  // namespace optctl::fuzz
