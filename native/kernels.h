// The kernels by name, and the sizes they are compiled for.
#pragma once

#include "stages.h"

namespace optctl {

// Small sizes are compiled where they take half the time of run-time sizes or less, those of Kalman's recursions in double
// precision alone; by measurement no others earn the time it takes to compile them. Sizes between two are rounded up.
template <int...>
struct Sequence {};
#ifdef OPTCTL_RUN_TIME_SIZES
using StateSizes = Sequence<>;
using KalmanSizes = Sequence<>;
using RootSizes = Sequence<>;
#elif defined(OPTCTL_FEW_SIZES)  // for the fuzz test, which is slow to compile
using StateSizes = Sequence<2, 12>;
using KalmanSizes = Sequence<2, 6>;
using RootSizes = Sequence<1, 4>;
#else
using StateSizes = Sequence<2, 4, 6, 8, 12>;
using KalmanSizes = Sequence<2, 4, 6, 8>;
using RootSizes = Sequence<1, 2, 3, 4, 6, 8>;  // exactly
#endif
#ifdef OPTCTL_FEW_SIZES
using SmallSizes = Sequence<1, 4>;
using MeasurementSizes = Sequence<1, 4>;
#else
using SmallSizes = Sequence<1, 2, 4>;  // of inputs
using MeasurementSizes = Sequence<1, 2, 4>;
#endif

enum class Name {
  lq_factor, lq_sweep,
  kalman_likelihood, kalman_factors, kalman_forward, kalman_filter, kalman_smoother, kalman_score,
  square_root_likelihood, square_root_forward, square_root_filter, square_root_smoother
};

// What the doors call: filter, smoother, likelihood and its gradient by covariances and, where these lose digits, by
// square roots; or by square roots throughout.
template <class T>
int32_t estimate_likelihood(bool roots, const Sizes&, const Stages<T>* in, T* const* out);
template <class T>
int32_t estimate_filter(bool roots, const Sizes&, const Stages<T>* in, T* const* out);
template <class T>
int32_t estimate_smoother(bool roots, const Sizes&, const Stages<T>* in, T* const* out);
template <class T>
int32_t estimate_score(bool roots, const Sizes&, const Stages<T>* in, T* const* out);

struct Finders {
  Kernel<float> (*in_float)(Name, const Sizes&);
  Kernel<double> (*in_double)(Name, const Sizes&);
};

// A tape over N stages, inputs and results (N, .), its body `repeat` times (see tape.h).
using TapeRunner = void (*)(const int32_t* program, const double* memory, int64_t N, double* values, double* results,
                            int64_t repeat);
TapeRunner find_tape_runner();

// Kernels that the host alone calls, with sizes and with arrays, operands before results (tape.cpp, gradient.h):
//   run_tape          N                                    program, memory, inputs (N, .); results (N, .)
//   roll              N, nx, nu                            program, memory, us; xs, whose first row is given
//   gradient          N, nx, nu, np, rolls, bends          program, memory, us, signs; those of GradientResults
//   hessian_product   N, nx, nu                            A, B, W, Wf, W0, dx0, dus; gx0, gus, dxs, dcostates
//   follow            N, nx, nu                            program, memory, x_aim, u_aim, K, low, high; xs, whose first
//                                                          row is given, us, cost
//   ilqr              N, nx, nu, exact, bounded, max_iterations, patience, rounds
//                                                          program, memory, those of `follow`, x0, us, lower, upper, signs,
//                                                          numbers; xs, us, slope, K, costates, history, figures
#define OPTCTL_HOST_KERNELS(X) X(run_tape) X(roll) X(gradient) X(hessian_product) X(follow) X(ilqr)
using HostKernel = void (*)(const int64_t* sizes, void* const* arrays);
struct HostKernels {
#define OPTCTL_FIELD(name) HostKernel name;
  OPTCTL_HOST_KERNELS(OPTCTL_FIELD)
#undef OPTCTL_FIELD
};
const HostKernels& host_kernels();

// The same for any instruction set (sweeps.cpp).
//   tangent           N, nx, nu                            A, B, c, dx0, dus; dxs
//   costates          N, nx, nu                            A, B, gxs, gus; costates, gus
void tangent(const int64_t* sizes, void* const* arrays);
void costates(const int64_t* sizes, void* const* arrays);

// Steps through time (march.h), states between them, and the costate recursion back: operands as march.cpp lists them.
using MarchKernel = void (*)(const int32_t* program, const double* memory, const int64_t* sizes, const double* numbers,
                             const double* const* in, const int32_t* pieces, double* const* out, int32_t* const* marks);
MarchKernel find_march();
MarchKernel find_dense();
MarchKernel find_pull_back();

// The interior point method: its operands and results as operands.h lists them.
using SolverKernel = void (*)(const void* const* in, double* const* out);
SolverKernel find_interior_point();

// The kernel of the best instruction set this processor has.
template <class T>
Kernel<T> find_kernel(Name name, const Sizes& sizes);

}  // namespace optctl
