// The linear-Gaussian kernels: filter (forward) and adjoint (backward).
//
// Forward, m, P the moments of x_t before the measurement z = C x + v:
//     S = C P C' + V = U'DU,   e = U'^{-1} (z - C m),   H = U'^{-1} C P,   Y = D^{-1} H,
//     m <- m + Y'e,   P <- P - H'Y,   then   m <- A m + b,   P <- A P A' + W.
// Backward, rho and Lambda the slope and minus the curvature of the later log-likelihood at the filtered state:
//     G = D^{-1} + Y Lambda Y',   Chat = U'^{-1} C,   Z = Y Lambda - G Chat / 2,
//     r = rho + Chat'(D^{-1} e - Y rho),   n = Lambda - Chat'Z - Z'Chat,   rho <- A'r,   Lambda <- A'n A.
// The smoothed moments are m + P rho and P - P Lambda P at the filtered m, P; the gradient of the log-likelihood in
// every matrix is a sum of outer products of the same vectors. No inverse of P, V or W is taken.
// optctl/estimation/kalman.py states the same recursions in JAX and is their definition.
#pragma once

#include <cmath>

#include "dense.h"
#include "stages.h"

namespace optctl::OPTCTL_ISA {

namespace filter_io {
enum In { A, C, W, V, mean0, cov0, b, z };
enum Out { log_likelihood, means, covs, S, Y, e };
enum OfPredicted { predicted_means = 3, predicted_covs };  // in place of S, Y and e
}  // namespace filter_io

namespace smooth_io {
enum In { A, C, W, z, means, covs, S, Y, e };
enum Out { smoothed_means, smoothed_covs, lag_one_covs, r };
}  // namespace smooth_io

namespace score_io {
enum In { A, C, W, V, b, z, means, covs, S, Y, e };
enum Out { gA, gC, gW, gV, gmean0, gcov0, gb, gz };
}  // namespace score_io

// A product of many positive numbers whose logarithm is taken once.
struct LogProduct {
  double mantissa = 1;
  int64_t exponent = 0;
  OPTCTL_INLINE void times(double factor) {
    if (factor > 1e150 || factor < 1e-150) factor = shifted(factor);
    mantissa *= factor;
    if (mantissa > 1e150 || mantissa < 1e-150) mantissa = shifted(mantissa);
  }
  double shifted(double number) {
    int shift;
    number = std::frexp(number, &shift);
    exponent += shift;
    return number;
  }
  double log() const { return std::log(mantissa) + exponent * 0.69314718055994530942; }
};

// What went wrong at a stage, in one number: 4 stage + reason; -1 is nothing.
enum Reason { singular, not_finite, lost_digits };
OPTCTL_INLINE int32_t failure(int64_t stage, Reason reason) { return static_cast<int32_t>(4 * stage + reason); }
OPTCTL_INLINE bool is_lost(int32_t code) { return code >= 0 && code % 4 == lost_digits; }

// Half of the digits: results that may have lost more count as lost.
template <class T>
OPTCTL_INLINE T half_of_digits() {
  return std::sqrt(std::numeric_limits<T>::epsilon());
}

template <class T>
OPTCTL_INLINE int missing_count(int ny, const T* z) {
  int missing = 0;
  for (int i = 0; i < ny; ++i) missing += std::isnan(z[i]);
  return missing;
}

enum class Keep { nothing, factors, filtered, predicted };  // factors: as filtered, for the gradient alone

// The covariance E of the rounding errors in P or in n, in units of eps: to first order it goes through a recursion as
// these do, and each operation adds what it rounds. It is followed from where much more is rounded than is left (`on`)
// until no more than the last digits are in error, so that well conditioned models do not pay for it.
template <class T, class VX>
class Rounding {
 public:
  using Space = Workspace<T>;
  bool on = false;

  Rounding(int nx, int ny, int mx, int my, int lx)
      : nx_(nx), ny_(ny), mx_(mx), my_(my), lx_(lx), space_(3 * Space::padded(mx * lx)) {
    E_ = space_.take(mx * lx);
    F_ = space_.take(mx * lx);
    work_ = space_.take(mx * lx);
  }

 protected:
  // E <- M E M' for M given transposed.
  void through(const T* Mt) {
    multiply_any<1, VX>(mx_, lx_, mx_, transposed(Mt, lx_), E_, lx_, static_cast<T*>(nullptr), 0, work_, lx_);
    multiply_any<1, VX>(mx_, lx_, mx_, plain(work_, lx_), Mt, lx_, static_cast<T*>(nullptr), 0, E_, lx_);
  }

  // E <- M E M' for M' = I - a'b.
  void through_measurement(const T* a, const T* b) {
    for (int i = 0; i < mx_; ++i)
      for (int j = 0; j < lx_; ++j) F_[i * lx_ + j] = T(i == j);
    multiply_any<-1, VX>(mx_, lx_, my_, transposed(a, lx_), b, lx_, F_, lx_, F_, lx_);
    through(F_);
  }

  void start() {
    on = true;
    for (int i = 0; i < mx_ * lx_; ++i) E_[i] = 0;
  }

  // Add what was rounded; go on where more than the last digits are in error.
  void add(const T* rounded, int step, const T* result) {
    on = false;
    for (int i = 0; i < nx_; ++i) {
      E_[i * lx_ + i] += rounded[i * step];
      on |= E_[i * lx_ + i] > 100 * result[i * lx_ + i];
    }
  }

  const int nx_, ny_, mx_, my_, lx_;
  Space space_;
  T *E_, *F_, *work_;
};

// Of P:  E <- F E F' + diag P,  F = I - L C,     E <- A E A' + diag(W + A.^2 diag P).
template <class T, class VX>
class RoundingForward : public Rounding<T, VX> {
 public:
  using typename Rounding<T, VX>::Space;
  using Rounding<T, VX>::on;

  RoundingForward(int nx, int ny, int mx, int my, int lx)
      : Rounding<T, VX>(nx, ny, mx, my, lx), own_(Space::padded(my * lx) + Space::padded(mx)) {
    chat_ = own_.take(my * lx);
    variances_ = own_.take(mx);
  }

  // Before the measurement: S is known and not yet eliminated. True where its rounding has taken its digits.
  __attribute__((noinline)) bool before(const T* z, const T* S, const T* V, int ly, const T* ct, const T* P) {
    for (int i = 0; i < ny_ && !on; ++i)
      if (!std::isnan(z[i]) && S[i * ly + i] > 1000 * V[i * ly + i]) this->start();
    if (!on) return false;
    for (int i = 0; i < nx_; ++i) variances_[i] = P[i * lx_ + i];
    for (int i = 0; i < ny_; ++i) {
      if (std::isnan(z[i])) continue;
      T error = 0;
      for (int j = 0; j < nx_; ++j)
        for (int k = 0; k < nx_; ++k) error += ct[j * ly + i] * E_[j * lx_ + k] * ct[k * ly + i];
      if (error * half_of_digits<T>() > S[i * ly + i]) return true;
    }
    return false;
  }

  // After it, with S eliminated and Y. True where a variance has lost its digits.
  __attribute__((noinline)) bool after(const T* S, int ly, const T* ct, const T* Y, const T* P) {
    for (int i = 0; i < my_; ++i)
      for (int j = 0; j < lx_; ++j) chat_[i * lx_ + j] = j < nx_ && i < ny_ ? ct[j * ly + i] : T(0);
    forward_substitute<VX>(my_, S, ly, lx_, chat_, lx_);
    this->through_measurement(chat_, Y);
    this->add(variances_, 1, P);
    bool lost = false;
    for (int i = 0; i < nx_; ++i) lost |= E_[i * lx_ + i] * half_of_digits<T>() > P[i * lx_ + i];
    return lost;
  }

  // Step in time: `at` is A', P as filtered.
  __attribute__((noinline)) void step(const T* at, const T* W, const T* P) {
    this->through(at);
    for (int i = 0; i < nx_; ++i) {
      T size = W[i * lx_ + i];
      for (int j = 0; j < nx_; ++j) size += at[j * lx_ + i] * at[j * lx_ + i] * P[j * lx_ + j];
      E_[i * lx_ + i] += size;
    }
  }

 private:
  using Rounding<T, VX>::nx_;
  using Rounding<T, VX>::ny_;
  using Rounding<T, VX>::my_;
  using Rounding<T, VX>::lx_;
  using Rounding<T, VX>::E_;
  Space own_;
  T *chat_, *variances_;
};

// Of n, and what it does to the smoothed covariance:
//     E <- A'E A + diag(A.^2' diag n),     E <- F'E F + diag Lambda,     error of P - P Lambda P: P E P + P.
template <class T, class VX>
class RoundingBack : public Rounding<T, VX> {
 public:
  using typename Rounding<T, VX>::Space;
  using Rounding<T, VX>::on;

  RoundingBack(int nx, int ny, int mx, int my, int lx)
      : Rounding<T, VX>(nx, ny, mx, my, lx), own_(2 * Space::padded(lx)) {
    rounded_ = own_.take(lx);
    error_ = own_.take(lx);
  }

  // Step in time, to Lambda = A'n A. True where P - P Lambda P, `cov`, has lost half of its digits.
  OPTCTL_INLINE bool step(int mx, int lx, const T* a, const T* n, const T* P, const T* cov) {
    for (int j = 0; j < lx; j += VX::lanes) {
      VX sum = VX::zero();
      for (int i = 0; i < mx; ++i) {
        const VX x = VX::load(a + i * lx + j);
        sum = sum + std::fabs(n[i * lx + i]) * (x * x);
      }
      sum.store(rounded_ + j);
    }
    for (int j = 0; j < lx; j += VX::lanes) {
      VX sum = diagonal(P, mx, lx, j);
      for (int i = 0; i < mx; ++i) {
        const VX x = VX::load(P + i * lx + j);
        sum = sum + rounded_[i] * (x * x);
      }
      sum.store(error_ + j);
    }
    if (on) follow_step(a, P);
    bool lost = false;
    for (int j = 0; j < lx; j += VX::lanes)
      lost |= any_above(half_of_digits<T>() * VX::load(error_ + j), diagonal(cov, mx, lx, j));
    return lost;
  }

  // Back through the measurement, from Lambda to n.
  OPTCTL_INLINE void measure(int mx, int lx, const T* Lambda, const T* Chat, const T* Y, const T* n) {
    bool vague = on;
    for (int j = 0; j < lx; j += VX::lanes) {
      const VX before = diagonal(Lambda, mx, lx, j), after = diagonal(n, mx, lx, j);
      vague |= any_above(VX::load(rounded_ + j), 1000 * before) | any_above(before, 1000 * after);
    }
    if (vague) follow_measurement(Lambda, Chat, Y, n);
  }

 private:
  static OPTCTL_INLINE VX diagonal(const T* M, int mx, int lx, int j) {
    return VX::load_strided(M + j * lx + j, lx + 1, mx - j);
  }

  // E <- A'E A, and the error of P - P Lambda P from it.
  __attribute__((noinline)) void follow_step(const T* a, const T* P) {
    this->through(a);
    multiply_any<1, VX>(mx_, lx_, mx_, plain(P, lx_), E_, lx_, static_cast<T*>(nullptr), 0, work_, lx_);
    for (int i = 0; i < nx_; ++i) error_[i] += dot<VX>(lx_, work_ + i * lx_, P + i * lx_);
  }

  __attribute__((noinline)) void follow_measurement(const T* Lambda, const T* Chat, const T* Y, const T* n) {
    if (!on) this->start();
    for (int i = 0; i < nx_; ++i) E_[i * lx_ + i] += rounded_[i];
    this->through_measurement(Y, Chat);
    this->add(Lambda, lx_ + 1, n);
  }

  using Rounding<T, VX>::nx_;
  using Rounding<T, VX>::mx_;
  using Rounding<T, VX>::lx_;
  using Rounding<T, VX>::E_;
  using Rounding<T, VX>::work_;
  Space own_;
  T *rounded_, *error_;
};

template <class T, int NX, int NY>
__attribute__((noinline)) int32_t kalman_forward(Keep keep, const Sizes& sizes, const Stages<T>* in, T* const* out) {
  using namespace filter_io;
  using VX = Vec<T, lanes_for<T>(NX ? NX : 1 << 20)>;
  using VY = Vec<T, lanes_for<T>(NY ? NY : 1 << 20)>;
  const int nx = sizes.nx, ny = sizes.ny;
  const int mx = NX ? NX : nx, my = NY ? NY : ny;
  const int lx = round_up(mx, VX::lanes), ly = round_up(my, VY::lanes);
  using Space = Workspace<T>;
  Space space(4 * Space::padded(mx * lx) + 2 * Space::padded(mx * ly) + 2 * Space::padded(my * lx) +
              2 * Space::padded(my * ly) + 2 * Space::padded(lx) + 2 * Space::padded(ly));
  T* at = space.take(mx * lx);  // A'
  T* w = space.take(mx * lx);
  T* P = space.take(mx * lx);
  T* AP = space.take(mx * lx);
  T* ct = space.take(mx * ly);       // C'
  T* ct_seen = space.take(mx * ly);  // with the columns of missing measurements zero
  T* h = space.take(my * lx);
  T* y = space.take(my * lx);
  T* v = space.take(my * ly);
  T* s = space.take(my * ly);
  T* m = space.take(lx);
  T* m_next = space.take(lx);
  T* innovation = space.take(ly);
  T* diagonal = space.take(ly);
  const int64_t N = sizes.N;
  RoundingForward<T, VX> rounding(nx, ny, mx, my, lx);
  bool vague = false;  // as rounding.on, in a register
  LogProduct determinant;
  double square = 0;
  int64_t seen = 0;
  copy_in<VX>(1, nx, in[mean0][0], nx, m, lx);
  copy_in<VX>(nx, nx, in[cov0][0], nx, P, lx);
  for (int64_t t = 0;; ++t) {
    if (keep == Keep::predicted) {
      copy_out<VX>(1, nx, m, lx, out[predicted_means] + t * nx, nx);
      copy_out<VX>(nx, nx, P, lx, out[predicted_covs] + t * nx * nx, nx);
    }
    // Measurement.
    const T* zt = in[z][t];
    if (t == 0 || in[C].step) copy_transposed<VY>(ny, nx, in[C][t], nx, ct, ly);
    if (t == 0 || in[V].step) {
      copy_in<VY>(ny, ny, in[V][t], ny, v, ly);
      for (int i = ny; i < my; ++i) v[i * ly + i] = 1;
    }
    for (int i = 0; i < my; ++i)
      for (int j = 0; j < ly; j += VY::lanes) VY::load(v + i * ly + j).store(s + i * ly + j);
    copy_in<VY>(1, ny, zt, ny, innovation, ly);
    const T* c = ct;
    const int missing = missing_count(ny, zt);
    seen += ny - missing;
    if (missing) {
      for (int k = 0; k < mx; ++k)
        for (int i = 0; i < ny; ++i) ct_seen[k * ly + i] = std::isnan(zt[i]) ? T(0) : ct[k * ly + i];
      for (int i = 0; i < ny; ++i) {
        if (!std::isnan(zt[i])) continue;
        innovation[i] = 0;
        for (int j = 0; j < ny; ++j) s[i * ly + j] = s[j * ly + i] = 0;
        s[i * ly + i] = 1;
      }
      c = ct_seen;
    }
    multiply<1, VX, NY, NX, NX>(my, lx, mx, transposed(c, ly), P, lx, static_cast<T*>(nullptr), 0, h, lx);
    multiply<1, VY, NY, NX, NY>(my, ly, mx, plain(h, lx), c, ly, s, ly, s, ly);
    for (int k = 0; k < mx; ++k) add_row<VY>(ly, -m[k], c + k * ly, innovation);
    for (int i = 0; i < my; ++i) vague |= s[i * ly + i] > 1000 * v[i * ly + i];
    if (vague) {
      if (rounding.before(zt, s, v, ly, c, P)) return failure(t, lost_digits);
      vague = rounding.on;
    }
    const bool good = eliminate<VX>(my, s, ly, lx, h, lx, y, diagonal);
    for (int i = 0; i < my; ++i)
      for (int r = i + 1; r < my; ++r) innovation[r] -= s[i * ly + r] * innovation[i];
    for (int i = 0; i < my; ++i) {
      add_row<VX>(lx, innovation[i], y + i * lx, m);
      square += innovation[i] * innovation[i] / s[i * ly + i];
      determinant.times(s[i * ly + i]);
    }
    multiply_symmetric<-1, VX, NX, NY>(mx, lx, my, transposed(h, lx), y, lx, P, lx, P, lx);
    T trace = 0;
    for (int i = 0; i < mx; ++i) trace += P[i * lx + i];
    if (!good) {
      bool finite = true;
      for (int i = 0; i < ny; ++i) finite &= std::isfinite(diagonal[i]);  // of S
      if (finite) return failure(t, lost_digits);  // roots tell whether S is singular
    }
    if (!good || !std::isfinite(trace)) {
      out[log_likelihood][0] = std::numeric_limits<T>::quiet_NaN();
      if (keep != Keep::nothing) {
        const int64_t left = N + 1 - t;
        fill_nan(out[means] + t * nx, left * nx);
        fill_nan(out[covs] + t * nx * nx, left * nx * nx);
      }
      if (keep == Keep::factors || keep == Keep::filtered) {
        const int64_t left = N + 1 - t;
        fill_nan(out[S] + t * ny * ny, left * ny * ny);
        fill_nan(out[Y] + t * ny * nx, left * ny * nx);
        fill_nan(out[e] + t * ny, left * ny);
      }
      if (keep == Keep::predicted) {
        fill_nan(out[predicted_means] + (t + 1) * nx, (N - t) * nx);
        fill_nan(out[predicted_covs] + (t + 1) * nx * nx, (N - t) * nx * nx);
      }
      return failure(t, not_finite);
    }
    if (vague) {
      if (rounding.after(s, ly, c, y, P) && keep > Keep::factors) return failure(t, lost_digits);
      vague = rounding.on;
    }
    if (keep != Keep::nothing) {
      copy_out<VX>(1, nx, m, lx, out[means] + t * nx, nx);
      copy_out<VX>(nx, nx, P, lx, out[covs] + t * nx * nx, nx);
    }
    if (keep == Keep::factors || keep == Keep::filtered) {
      copy_out<VY>(ny, ny, s, ly, out[S] + t * ny * ny, ny);
      copy_out<VX>(ny, nx, y, lx, out[Y] + t * ny * nx, nx);
      copy_out<VY>(1, ny, innovation, ly, out[e] + t * ny, ny);
    }
    if (t == N) break;
    // Step in time.
    if (t == 0 || in[A].step) copy_transposed<VX>(nx, nx, in[A][t], nx, at, lx);
    if (t == 0 || in[W].step) copy_in<VX>(nx, nx, in[W][t], nx, w, lx);
    copy_in<VX>(1, nx, in[b][t], nx, m_next, lx);
    for (int k = 0; k < mx; ++k) add_row<VX>(lx, m[k], at + k * lx, m_next);
    T* swap = m;
    m = m_next;
    m_next = swap;
    if (vague) rounding.step(at, w, P);
    multiply<1, VX, NX, NX, NX>(mx, lx, mx, transposed(at, lx), P, lx, static_cast<T*>(nullptr), 0, AP, lx);
    multiply_symmetric<1, VX, NX, NX>(mx, lx, mx, plain(AP, lx), at, lx, w, lx, P, lx);
  }
  out[log_likelihood][0] =
      static_cast<T>(-0.5 * (square + determinant.log() + seen * 1.83787706640934548356));
  return -1;
}

// The backward recursion, with what both its users need at each time.
template <class T, int NX, int NY>
class Adjoint {
 public:
  using VX = Vec<T, lanes_for<T>(NX ? NX : 1 << 20)>;
  using VY = Vec<T, lanes_for<T>(NY ? NY : 1 << 20)>;
  using Space = Workspace<T>;
  const int nx, ny;
  const int mx_, my_, lx_, ly_;
  Space space;
  T *a, *c, *rho, *r, *Lambda, *n, *nA, *P, *PL, *Chat, *y, *YL, *Z, *G, *s, *slope, *weight;

  explicit Adjoint(const Sizes& sizes)
      : nx(sizes.nx), ny(sizes.ny), mx_(NX ? NX : nx), my_(NY ? NY : ny), lx_(round_up(mx_, VX::lanes)),
        ly_(round_up(my_, VY::lanes)),
        space(6 * Space::padded(mx_ * lx_) + 5 * Space::padded(my_ * lx_) + 2 * Space::padded(my_ * ly_) +
              2 * Space::padded(lx_) + 2 * Space::padded(ly_)) {
    const int mx = mx_, my = my_, lx = lx_, ly = ly_;
    a = space.take(mx * lx);
    Lambda = space.take(mx * lx);
    n = space.take(mx * lx);
    nA = space.take(mx * lx);
    P = space.take(mx * lx);
    PL = space.take(mx * lx);
    c = space.take(my * lx);
    Chat = space.take(my * lx);
    y = space.take(my * lx);
    YL = space.take(my * lx);
    Z = space.take(my * lx);
    G = space.take(my * ly);
    s = space.take(my * ly);
    rho = space.take(lx);
    r = space.take(lx);
    slope = space.take(ly);   // D^{-1} e - Y rho
    weight = space.take(ly);  // 1 / D
  }

  // Sizes of loops and rows; constants where they are compiled in.
  OPTCTL_INLINE int mx() const { return NX ? NX : mx_; }
  OPTCTL_INLINE int my() const { return NY ? NY : my_; }
  OPTCTL_INLINE int lx() const { return NX ? round_up(NX, VX::lanes) : lx_; }
  OPTCTL_INLINE int ly() const { return NY ? round_up(NY, VY::lanes) : ly_; }
  bool missing() const { return missing_; }  // at the stage last loaded

  // Load stage t: its filtered covariance and factors, rows of C that were seen.
  __attribute__((noinline)) void load(int64_t t, const Stages<T>& C, const T* z, const T* cov, const T* S, const T* Y) {
    const int lx = this->lx(), ly = this->ly();
    copy_in<VX>(nx, nx, cov, nx, P, lx);
    copy_in<VX>(ny, nx, Y, nx, y, lx);
    copy_in<VY>(ny, ny, S, ny, s, ly);
    if (C.step || !loaded_ || missing_) {
      copy_in<VX>(ny, nx, C[t], nx, c, lx);
      loaded_ = true;
    }
    missing_ = missing_count(ny, z) > 0;
    if (missing_)
      for (int i = 0; i < ny; ++i)
        if (std::isnan(z[i]))
          for (int j = 0; j < lx; ++j) c[i * lx + j] = 0;
  }

  // From (rho, Lambda) after the measurement to (r, n) before it.
  __attribute__((noinline)) void measure(const T* e) {
    const int mx = this->mx(), my = this->my(), lx = this->lx(), ly = this->ly();
    for (int i = 0; i < my; ++i)
      for (int j = 0; j < lx; j += VX::lanes) VX::load(c + i * lx + j).store(Chat + i * lx + j);
    forward_substitute<VX>(my, s, ly, lx, Chat, lx);
    multiply<1, VX, NY, NX, NX>(my, lx, mx, plain(y, lx), Lambda, lx, static_cast<T*>(nullptr), 0, YL, lx);
    for (int i = 0; i < my; ++i) {
      weight[i] = i < ny ? 1 / s[i * ly + i] : T(0);
      slope[i] = (i < ny ? e[i] * weight[i] : T(0)) - dot<VX>(lx, y + i * lx, rho);
      for (int j = 0; j < my; ++j) G[i * ly + j] = dot<VX>(lx, YL + i * lx, y + j * lx) + (i == j ? weight[i] : T(0));
    }
    for (int i = 0; i < my; ++i) {
      for (int j = 0; j < lx; j += VX::lanes) {
        VX sum = VX::load(YL + i * lx + j);
        for (int k = 0; k < my; ++k) sum = sum - (G[i * ly + k] / 2) * VX::load(Chat + k * lx + j);
        sum.store(Z + i * lx + j);
      }
    }
    for (int j = 0; j < lx; j += VX::lanes) VX::load(rho + j).store(r + j);
    for (int i = 0; i < my; ++i) add_row<VX>(lx, slope[i], Chat + i * lx, r);
    multiply<-1, VX, NX, NY, NX>(mx, lx, my, transposed(Chat, lx), Z, lx, Lambda, lx, n, lx);
    multiply_symmetric<-1, VX, NX, NY>(mx, lx, my, transposed(Z, lx), Chat, lx, n, lx, n, lx);
  }

  // From (r, n) of stage t+1 to (rho, Lambda) of stage t.
  __attribute__((noinline)) void step(int64_t t, const Stages<T>& A) {
    const int mx = this->mx(), lx = this->lx();
    if (A.step || !stepped_) {
      copy_in<VX>(nx, nx, A[t], nx, a, lx);
      stepped_ = true;
    }
    for (int j = 0; j < lx; j += VX::lanes) VX::zero().store(rho + j);
    for (int i = 0; i < mx; ++i) add_row<VX>(lx, r[i], a + i * lx, rho);
    multiply<1, VX, NX, NX, NX>(mx, lx, mx, plain(n, lx), a, lx, static_cast<T*>(nullptr), 0, nA, lx);
    multiply_symmetric<1, VX, NX, NX>(mx, lx, mx, transposed(a, lx), nA, lx, static_cast<T*>(nullptr), 0, Lambda, lx);
  }

 private:
  bool loaded_ = false, stepped_ = false, missing_ = false;
};

template <class T, int NX, int NY>
int32_t kalman_smoother(const Sizes& sizes, const Stages<T>* in, T* const* out) {
  using namespace smooth_io;
  using Back = Adjoint<T, NX, NY>;
  using VX = typename Back::VX;
  Back back(sizes);
  const int nx = back.nx, mx = back.mx(), lx = back.lx();
  using Space = Workspace<T>;
  Space space(3 * Space::padded(mx * lx) + Space::padded(lx));
  T* cov = space.take(mx * lx);
  T* w = space.take(mx * lx);
  T* lag = space.take(mx * lx);
  T* mean = space.take(lx);
  RoundingBack<T, VX> rounding(nx, back.ny, mx, back.my(), lx);
  const int64_t N = sizes.N;
  for (int64_t t = N; t >= 0; --t) {
    if (t < N) back.step(t, in[A]);
    back.load(t, in[C], in[z][t], in[covs][t], in[S][t], in[Y][t]);
    copy_in<VX>(1, nx, in[means][t], nx, mean, lx);
    for (int i = 0; i < mx; ++i) add_row<VX>(lx, back.rho[i], back.P + i * lx, mean);
    multiply<1, VX, NX, NX, NX>(mx, lx, mx, plain(back.Lambda, lx), back.P, lx, static_cast<T*>(nullptr), 0, back.PL, lx);
    multiply_symmetric<-1, VX, NX, NX>(mx, lx, mx, plain(back.P, lx), back.PL, lx, back.P, lx, cov, lx);
    if (t < N && rounding.step(mx, lx, back.a, back.n, back.P, cov)) return failure(t, lost_digits);
    copy_out<VX>(1, nx, mean, lx, out[smoothed_means] + t * nx, nx);
    copy_out<VX>(nx, nx, cov, lx, out[smoothed_covs] + t * nx * nx, nx);
    if (t < N) {  // A cov - W n A P, n of stage t+1: the covariance of A x + w with x
      if (t == N - 1 || in[W].step) copy_in<VX>(nx, nx, in[W][t], nx, w, lx);
      T* nAP = back.PL;
      multiply<1, VX, NX, NX, NX>(mx, lx, mx, plain(back.nA, lx), back.P, lx, static_cast<T*>(nullptr), 0, nAP, lx);
      multiply<1, VX, NX, NX, NX>(mx, lx, mx, plain(back.a, lx), cov, lx, static_cast<T*>(nullptr), 0, lag, lx);
      multiply<-1, VX, NX, NX, NX>(mx, lx, mx, plain(w, lx), nAP, lx, lag, lx, lag, lx);
      copy_out<VX>(nx, nx, lag, lx, out[lag_one_covs] + t * nx * nx, nx);
    }
    back.measure(in[e][t]);
    rounding.measure(mx, lx, back.Lambda, back.Chat, back.y, back.n);
    copy_out<VX>(1, nx, back.r, lx, out[r] + t * nx, nx);
  }
  return -1;
}

// Where a gradient goes: its own rows at every stage, or one sum where the matrix is the same at all of them.
template <class V, class T>
struct Gradient {
  T* out;
  T* sum;  // padded
  bool varies;

  OPTCTL_INLINE void add(int rows, int columns, const T* from, int ld, int padded_rows, int64_t t) {
    if (varies) return copy_out<V>(rows, columns, from, ld, out + t * rows * columns, columns);
    for (int i = 0; i < padded_rows * ld; i += V::lanes) (V::load(sum + i) + V::load(from + i)).store(sum + i);
  }
  OPTCTL_INLINE void finish(int rows, int columns, int ld) {
    if (!varies) copy_out<V>(rows, columns, sum, ld, out, columns);
  }
};

template <class T, int NX, int NY>
int32_t kalman_score(const Sizes& sizes, const Stages<T>* in, T* const* out) {
  using namespace score_io;
  using Back = Adjoint<T, NX, NY>;
  using VX = typename Back::VX;
  using VY = typename Back::VY;
  Back back(sizes);
  const int nx = back.nx, ny = back.ny, mx = back.mx(), my = back.my(), lx = back.lx(), ly = back.ly();
  using Space = Workspace<T>;
  Space space(3 * Space::padded(mx * lx) + 2 * Space::padded(my * lx) + 3 * Space::padded(my * ly) +
              2 * Space::padded(lx) + Space::padded(ly));
  T* gx = space.take(mx * lx);
  T* gy = space.take(my * lx);
  T* D = space.take(my * ly);
  T* Dt = space.take(my * ly);
  T* mean = space.take(lx);
  T* u = space.take(ly);
  Gradient<VX, T> to_A{out[gA], space.take(mx * lx), in[A].step != 0};
  Gradient<VX, T> to_W{out[gW], space.take(mx * lx), in[W].step != 0};
  Gradient<VX, T> to_C{out[gC], space.take(my * lx), in[C].step != 0};
  Gradient<VY, T> to_V{out[gV], space.take(my * ly), in[V].step != 0};
  Gradient<VX, T> to_b{out[gb], space.take(lx), in[b].step != 0};
  const int64_t N = sizes.N;
  for (int64_t t = N; t >= 0; --t) {
    if (t < N) {  // (r, n) are those of stage t+1
      to_b.add(1, nx, back.r, lx, 1, t);
      for (int i = 0; i < mx; ++i)
        for (int j = 0; j < lx; j += VX::lanes)
          (T(0.5) * (back.r[i] * VX::load(back.r + j) - VX::load(back.n + i * lx + j))).store(gx + i * lx + j);
      to_W.add(nx, nx, gx, lx, mx, t);
      back.step(t, in[A]);
    }
    back.load(t, in[C], in[z][t], in[covs][t], in[S][t], in[Y][t]);
    copy_in<VX>(1, nx, in[means][t], nx, mean, lx);
    for (int i = 0; i < mx; ++i) add_row<VX>(lx, back.rho[i], back.P + i * lx, mean);
    if (t < N) {
      for (int i = 0; i < mx; ++i)
        for (int j = 0; j < lx; j += VX::lanes) (back.r[i] * VX::load(mean + j)).store(gx + i * lx + j);
      multiply<-1, VX, NX, NX, NX>(mx, lx, mx, plain(back.nA, lx), back.P, lx, gx, lx, gx, lx);
      to_A.add(nx, nx, gx, lx, mx, t);
    }
    back.measure(in[e][t]);
    // u = U^{-1} (D^{-1} e - Y rho) is minus the slope in z.
    for (int i = 0; i < my; ++i) u[i] = back.slope[i];
    for (int i = my - 1; i >= 0; --i)
      for (int k = i + 1; k < my; ++k) u[i] -= back.s[i * ly + k] * u[k];
    for (int i = 0; i < ny; ++i) out[gz][t * ny + i] = -u[i];
    // C: u x' - U^{-1} (Y - Y Lambda P).
    multiply<-1, VX, NY, NX, NX>(my, lx, mx, plain(back.YL, lx), back.P, lx, back.y, lx, gy, lx);
    back_substitute<VX>(my, back.s, ly, lx, gy, lx);
    for (int i = 0; i < my; ++i)
      for (int j = 0; j < lx; j += VX::lanes)
        (u[i] * VX::load(mean + j) - VX::load(gy + i * lx + j)).store(gy + i * lx + j);
    to_C.add(ny, nx, gy, lx, my, t);
    // V: (u u' - U^{-1} G U^{-T}) / 2.
    for (int i = 0; i < my * ly; i += VY::lanes) VY::load(back.G + i).store(D + i);
    back_substitute<VY>(my, back.s, ly, ly, D, ly);
    for (int i = 0; i < my; ++i)
      for (int j = 0; j < my; ++j) Dt[j * ly + i] = D[i * ly + j];
    back_substitute<VY>(my, back.s, ly, ly, Dt, ly);
    for (int i = 0; i < my; ++i)
      for (int j = 0; j < my; ++j) D[i * ly + j] = (u[i] * u[j] - Dt[i * ly + j]) / 2;
    if (back.missing()) {
      const T* zt = in[z][t];
      for (int i = 0; i < ny; ++i)
        for (int j = 0; j < ny; ++j)
          if (std::isnan(zt[i]) || std::isnan(zt[j])) D[i * ly + j] = 0;
    }
    to_V.add(ny, ny, D, ly, my, t);
  }
  to_A.finish(nx, nx, lx);
  to_W.finish(nx, nx, lx);
  to_C.finish(ny, nx, lx);
  to_V.finish(ny, ny, ly);
  to_b.finish(1, nx, lx);
  copy_out<VX>(1, nx, back.r, lx, out[gmean0], nx);
  for (int i = 0; i < nx; ++i)
    for (int j = 0; j < nx; ++j) out[gcov0][i * nx + j] = (back.r[i] * back.r[j] - back.n[i * lx + j]) / 2;
  return -1;
}

}  // namespace optctl::OPTCTL_ISA
