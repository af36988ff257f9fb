// Choose the compiled version of a kernel for a problem's sizes.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace optctl::OPTCTL_ISA {

// The smallest compiled size that holds n, or 0 for the version with run-time sizes.
template <int... Compiled>
constexpr int compiled_size(int n, Sequence<Compiled...>) {
  int best = 0;
  ((n <= Compiled && (best == 0 || Compiled < best) ? best = Compiled : 0), ...);
  return best;
}

template <class T, template <class, int, int> class Make, int NX, int... NU>
Kernel<T> pick_second(int m, Sequence<NU...>) {
  Kernel<T> found = nullptr;
  ((m == NU ? found = Make<T, NX, NU>::kernel : nullptr), ...);
  return found;
}

template <class T, template <class, int, int> class Make, int... NX, class Seconds>
Kernel<T> pick(int first, int second, Sequence<NX...> firsts, Seconds seconds) {
  const int n = compiled_size(first, firsts), m = compiled_size(second, seconds);
  Kernel<T> found = Make<T, 0, 0>::kernel;
  if (n && m) ((n == NX ? found = pick_second<T, Make, NX>(m, seconds) : nullptr), ...);
  return found;
}

}  // namespace optctl::OPTCTL_ISA
