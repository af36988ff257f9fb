// The kernels by name, and the sizes they are compiled for.
#pragma once

#include "stages.h"

namespace optctl {

template <int...>
struct Sequence {};
#ifdef OPTCTL_RUN_TIME_SIZES
using StateSizes = Sequence<>;
using KalmanSizes = Sequence<>;
#else
using StateSizes = Sequence<2, 4, 6, 8, 12>;
using KalmanSizes = Sequence<2, 4, 6, 8>;
#endif
using SmallSizes = Sequence<1, 2, 4, 8>;     // of inputs
using MeasurementSizes = Sequence<1, 2, 4>;
using Widths = Sequence<2, 4>;               // where sizes only choose how wide vectors are

enum class Name { lq_factor, lq_sweep, kalman_likelihood, kalman_forward, kalman_filter, kalman_smoother, kalman_score };

struct Finders {
  Kernel<float> (*in_float)(Name, const Sizes&);
  Kernel<double> (*in_double)(Name, const Sizes&);
};

// The kernel of the best instruction set this processor has.
template <class T>
Kernel<T> find_kernel(Name name, const Sizes& sizes);

}  // namespace optctl
