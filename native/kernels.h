// The kernels by name, and the sizes they are compiled for.
#pragma once

#include "stages.h"

namespace optctl {

template <int...>
struct Sequence {};
#ifdef OPTCTL_RUN_TIME_SIZES
using StateSizes = Sequence<>;
#else
using StateSizes = Sequence<2, 4, 6, 8, 12, 16>;
#endif
using SmallSizes = Sequence<1, 2, 4, 8>;  // inputs, or measurements
using Widths = Sequence<2, 4>;            // where sizes only choose how wide vectors are

enum class Name { lq_factor, lq_sweep };

struct Finders {
  Kernel<float> (*in_float)(Name, const Sizes&);
  Kernel<double> (*in_double)(Name, const Sizes&);
};

const Finders& best_finders();  // of the best instruction set this processor has

template <class T>
Kernel<T> find_kernel(Name name, const Sizes& sizes);
template <>
inline Kernel<float> find_kernel<float>(Name name, const Sizes& sizes) { return best_finders().in_float(name, sizes); }
template <>
inline Kernel<double> find_kernel<double>(Name name, const Sizes& sizes) {
  return best_finders().in_double(name, sizes);
}

}  // namespace optctl
