// The doors: XLA's foreign function interface to the kernels.
//
// Every operand is (batch..., core): the core's rank is a digit of the signature, and where it counts stages, its first
// axis has one row per stage or a single row for all. Batch axes of length 1 are repeated, never copied.
#include <cstdlib>
#include <functional>
#include <numeric>
#include <string>
#include <type_traits>
#include <vector>

#include "batch.h"
#include "kernels.h"
#include "operands.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace optctl {
namespace {

// Ranks of the cores of operands and results: lower case letters have stages first, upper case do not.
// m: (stages, ., .)   v: (stages, .)   M: (., .)   V: (.)   S: ()
struct Signature {
  const char *in, *out;
};

int core_rank(char kind) { return kind == 'm' ? 3 : kind == 'v' || kind == 'M' ? 2 : kind == 'V' ? 1 : 0; }

struct Operand {
  char* data;
  ptrdiff_t core;               // numbers of one problem
  ptrdiff_t step;               // numbers from one stage to the next
  std::vector<ptrdiff_t> batch;  // numbers from one problem to the next, for each batch axis
};

struct Shape {
  std::vector<int64_t> batch;
  int64_t count = 1;
};

Operand operand(const ffi::AnyBuffer& buffer, char kind, size_t batch_rank) {
  const auto dims = buffer.dimensions();
  const size_t rank = core_rank(kind);
  Operand made{static_cast<char*>(buffer.untyped_data()), 1, 0, std::vector<ptrdiff_t>(batch_rank, 0)};
  const size_t given = dims.size() - rank;
  for (size_t i = given; i < dims.size(); ++i) made.core *= dims[i];
  if ((kind == 'm' || kind == 'v') && dims[given] != 1)  // per stage, even where there are no stages
    made.step = std::accumulate(dims.begin() + given + 1, dims.end(), ptrdiff_t{1}, std::multiplies<ptrdiff_t>());
  ptrdiff_t stride = made.core;
  for (size_t i = given; i-- > 0;) {
    if (dims[i] > 1) made.batch[i + batch_rank - given] = stride;
    stride *= dims[i];
  }
  return made;
}

// Where an operand's numbers of one problem of the batch begin.
template <class T>
T* numbers_of(const Operand& o, const Shape& shape, int64_t index) {
  ptrdiff_t at = 0;
  for (size_t axis = shape.batch.size(); axis-- > 0; index /= shape.batch[axis])
    at += (index % shape.batch[axis]) * o.batch[axis];
  return reinterpret_cast<T*>(o.data) + at;
}

template <class T, class Run>
ffi::Error call(const Run& kernel, const Sizes& sizes, const Shape& shape, const std::vector<Operand>& ins,
                const std::vector<Operand>& outs, int32_t* status, ffi::ThreadPool& pool) {
  run_batch(pool, shape.count, [&](int64_t index) {
    constexpr size_t most = 32;
    Stages<T> in[most];
    T* out[most];
    for (size_t i = 0; i < ins.size(); ++i) in[i] = {numbers_of<T>(ins[i], shape, index), ins[i].step};
    for (size_t i = 0; i < outs.size(); ++i) out[i] = reinterpret_cast<T*>(outs[i].data) + index * outs[i].core;
    status[index] = kernel(sizes, in, out);
  });
  return ffi::Error::Success();
}

// The last result is the status, int32, one for each problem: -1, or the stage that failed.
// `kernel(sizes, in, out)` runs one problem, its type told by that of `in`.
template <class Run>
ffi::Error handle(const Signature& signature, const Run& kernel, ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets,
                  int64_t N, int64_t nx, int64_t nu, int64_t ny) {
  const std::string in_kinds = signature.in, out_kinds = signature.out;
  if (args.size() != in_kinds.size() || rets.size() != out_kinds.size() + 1)
    return ffi::Error(ffi::ErrorCode::kInvalidArgument, "optctl: wrong number of operands");
  auto status = *rets.get<ffi::AnyBuffer>(out_kinds.size());
  Shape shape;
  for (auto n : status->dimensions()) {
    shape.batch.push_back(n);
    shape.count *= n;
  }
  if (shape.count == 0) return ffi::Error::Success();
  std::vector<Operand> ins, outs;
  ffi::DataType type = ffi::DataType::F64;
  for (size_t i = 0; i < in_kinds.size(); ++i) {
    const auto buffer = *args.get<ffi::AnyBuffer>(i);
    if (i && buffer.element_type() != type)
      return ffi::Error(ffi::ErrorCode::kInvalidArgument, "optctl: operands differ in type");
    type = buffer.element_type();
    if (static_cast<int>(buffer.dimensions().size()) < core_rank(in_kinds[i]))
      return ffi::Error(ffi::ErrorCode::kInvalidArgument, "optctl: an operand has too few axes");
    ins.push_back(operand(buffer, in_kinds[i], shape.batch.size()));
  }
  for (size_t i = 0; i < out_kinds.size(); ++i) {
    auto result = *rets.get<ffi::AnyBuffer>(i);
    if (static_cast<int>(result->dimensions().size()) < core_rank(out_kinds[i]))
      return ffi::Error(ffi::ErrorCode::kInvalidArgument, "optctl: a result has too few axes");
    outs.push_back(operand(*result, out_kinds[i], shape.batch.size()));
  }
  const Sizes sizes{N, static_cast<int>(nx), static_cast<int>(nu), static_cast<int>(ny)};
  int32_t* codes = static_cast<int32_t*>(status->untyped_data());
  if (type == ffi::DataType::F64) return call<double>(kernel, sizes, shape, ins, outs, codes, pool);
  if (type == ffi::DataType::F32) return call<float>(kernel, sizes, shape, ins, outs, codes, pool);
  return ffi::Error(ffi::ErrorCode::kInvalidArgument, "optctl: operands are neither float32 nor float64");
}

// The interior point method; operands.h names its operands and results.
ffi::Error solve(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets) {
#define OPTCTL_KIND(name, kind) #kind
  const std::string in_kinds = OPTCTL_OPERANDS(OPTCTL_KIND), out_kinds = OPTCTL_RESULTS(OPTCTL_KIND);
#undef OPTCTL_KIND
  const size_t cost = out_kinds.find('S');
  if (args.size() != in_kinds.size() || rets.size() != out_kinds.size())
    return ffi::Error(ffi::ErrorCode::kInvalidArgument, "optctl: wrong number of operands");
  Shape shape;
  for (auto n : (*rets.get<ffi::AnyBuffer>(cost))->dimensions()) {
    shape.batch.push_back(n);
    shape.count *= n;
  }
  std::vector<Operand> ins, outs;
  for (size_t i = 0; i < in_kinds.size(); ++i) {
    const auto buffer = *args.get<ffi::AnyBuffer>(i);
    if (buffer.element_type() != (i < 2 ? ffi::DataType::S32 : ffi::DataType::F64))
      return ffi::Error(ffi::ErrorCode::kInvalidArgument, "optctl: an operand has the wrong type");
    ins.push_back(operand(buffer, in_kinds[i], shape.batch.size()));
  }
  for (size_t i = 0; i < out_kinds.size(); ++i)
    outs.push_back(operand(**rets.get<ffi::AnyBuffer>(i), out_kinds[i], shape.batch.size()));
  run_batch(pool, shape.count, [&](int64_t index) {
    const void* in[32];
    double* out[32];
    for (size_t i = 0; i < ins.size(); ++i) {
      if (i < 2) in[i] = numbers_of<const int32_t>(ins[i], shape, index);
      else in[i] = numbers_of<const double>(ins[i], shape, index);
    }
    for (size_t i = 0; i < outs.size(); ++i) out[i] = numbers_of<double>(outs[i], shape, index);
    find_interior_point()(in, out);
  });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace optctl

// A door called `name`: `kernel` runs one problem on (sizes, data, results) of type T. `more` are parameters behind the
// sizes, and `bound` is what XLA passes.
#define OPTCTL_DOOR(name, in, out, more, bound, kernel)                                                          \
  static ffi::Error name##_door(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets, int64_t N, \
                                int64_t nx, int64_t nu, int64_t ny more) {                                       \
    auto run = [=](const auto& sizes, auto* data, auto* results) {                                               \
      using T = std::remove_reference_t<decltype(**results)>;                                                    \
      return optctl::kernel;                                                                                     \
    };                                                                                                           \
    return optctl::handle({in, out}, run, pool, args, rets, N, nx, nu, ny);                                      \
  }                                                                                                              \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(optctl_##name, name##_door, bound)

#define OPTCTL_NO_MORE
#define OPTCTL_SIZES_BOUND                                                                            \
  ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().RemainingArgs().RemainingRets().Attr<int64_t>("N").Attr<int64_t>("nx") \
      .Attr<int64_t>("nu").Attr<int64_t>("ny")
#define OPTCTL_LQ_DOOR(name, in, out) \
  OPTCTL_DOOR(name, in, out, OPTCTL_NO_MORE, OPTCTL_SIZES_BOUND, find_kernel<T>(optctl::Name::name, sizes)(sizes, data, results))

// Of series of a linear-Gaussian model; `roots` asks for square roots throughout.
#define OPTCTL_ROOTS , bool roots
#define OPTCTL_SERIES_DOOR(name, out)                                                              \
  OPTCTL_DOOR(name, "mmmmVMvv", out, OPTCTL_ROOTS, OPTCTL_SIZES_BOUND.Attr<bool>("roots"), \
              name<T>(roots, sizes, data, results))

// What operands.h says, for Python: one line for each list.
#define OPTCTL_NAME(name) #name " "
#define OPTCTL_NAME_OF(name, kind) #name " "
static const char* operand_names() {
  return OPTCTL_SIZES(OPTCTL_NAME) "\n" OPTCTL_SETTINGS(OPTCTL_NAME) "\n" OPTCTL_NUMBERS(OPTCTL_NAME) "\n"
      OPTCTL_OPERANDS(OPTCTL_NAME_OF) "\n" OPTCTL_RESULTS(OPTCTL_NAME_OF);
}
#undef OPTCTL_NAME
#undef OPTCTL_NAME_OF

// Memory that nobody has written to: room for what a loop fills in, without a pass of zeros over all of it.
static ffi::Error unset_door(ffi::RemainingRets) { return ffi::Error::Success(); }

static ffi::Error tape_door(ffi::Buffer<ffi::S32> program, ffi::Buffer<ffi::F64> memory, ffi::Buffer<ffi::F64> values,
                            ffi::ResultBuffer<ffi::F64> results, int64_t repeat) {
  optctl::find_tape_runner()(program.typed_data(), memory.typed_data(), values.dimensions()[0], values.typed_data(),
                             results->typed_data(), repeat);
  return ffi::Error::Success();
}

#pragma GCC visibility push(default)
// A tape run without XLA, for those who judge it: its body once, inputs and results (N, .).
extern "C" void optctl_run_tape(const int32_t* program, const double* memory, int64_t N, double* values,
                                double* results) {
  optctl::find_tape_runner()(program, memory, N, values, results, 1);
}

extern "C" const char* optctl_operand_names() { return operand_names(); }
XLA_FFI_DEFINE_HANDLER_SYMBOL(optctl_tape, tape_door,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::F64>>()
                                  .Arg<ffi::Buffer<ffi::F64>>()
                                  .Ret<ffi::Buffer<ffi::F64>>()
                                  .Attr<int64_t>("repeat"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(optctl_unset, unset_door, ffi::Ffi::Bind().RemainingRets());
XLA_FFI_DEFINE_HANDLER_SYMBOL(optctl_interior_point, optctl::solve,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().RemainingArgs().RemainingRets());
OPTCTL_LQ_DOOR(lq_factor, "mmmmmMMV", "mmmM");
OPTCTL_LQ_DOOR(lq_sweep, "mmvvvVVmmmM", "Vvvvvv");
OPTCTL_SERIES_DOOR(estimate_likelihood, "S");
OPTCTL_SERIES_DOOR(estimate_filter, "Svmvm");
OPTCTL_SERIES_DOOR(estimate_smoother, "Svmmv");
OPTCTL_SERIES_DOOR(estimate_score, "SmmmmVMvv");
#pragma GCC visibility pop
