// The doors: XLA's foreign function interface to the kernels, and plain calls of C from the host.
//
// Every operand is (batch..., core): the core's rank is a digit of the signature, and where it counts stages, its first
// axis has one row per stage or a single row for all. Batch axes of length 1 are repeated, never copied.
#include <algorithm>
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

// Python's buffer protocol, as its stable ABI has it (3.11): to build the kernels, no headers of Python are needed.
extern "C" {
struct Py_buffer {
  void *buf, *obj;
  intptr_t len, itemsize;
  int readonly, ndim;
  char* format;
  intptr_t *shape, *strides, *suboffsets;
  void* internal;
};
int PyObject_GetBuffer(void* object, Py_buffer* view, int flags);
void PyBuffer_Release(Py_buffer* view);
void* PyTuple_GetItem(void* tuple, intptr_t index);
intptr_t PyTuple_Size(void* tuple);
long long PyLong_AsLongLong(void* number);
void* PyEval_SaveThread();
void PyEval_RestoreThread(void* thread);
extern char _Py_NoneStruct;
}

namespace optctl {
namespace {

// Ranks of the cores of operands and results: lower case letters have stages first, upper case do not.
// m: (stages, ., .)   v: (stages, .)   M: (., .)   V: (.)   S: ()
struct Signature {
  const char *in, *out;
};

int core_rank(char kind) { return kind == 'm' ? 3 : kind == 'v' || kind == 'M' ? 2 : kind == 'V' ? 1 : 0; }

// An array, whoever holds it.
enum class Type : int64_t { f64, f32, s32, other };
struct Buffer {
  char* data;
  Type type;
  const int64_t* dims;
  size_t rank;
};

// What a call hands over: operands, then results.
struct Call {
  std::vector<Buffer> in, out;
};

Buffer buffer(const ffi::AnyBuffer& given) {
  const auto type = given.element_type();
  return {static_cast<char*>(given.untyped_data()),
          type == ffi::DataType::F64   ? Type::f64
          : type == ffi::DataType::F32 ? Type::f32
          : type == ffi::DataType::S32 ? Type::s32
                                       : Type::other,
          given.dimensions().begin(), given.dimensions().size()};
}

Call call_of(const ffi::RemainingArgs& args, const ffi::RemainingRets& rets) {
  Call made;
  for (size_t i = 0; i < args.size(); ++i) made.in.push_back(buffer(*args.get<ffi::AnyBuffer>(i)));
  for (size_t i = 0; i < rets.size(); ++i) made.out.push_back(buffer(**rets.get<ffi::AnyBuffer>(i)));
  return made;
}

// From the host: the numbers of operands and of results, then of each array its address, type, rank and axes.
Call call_of(const int64_t* given) {
  Call made;
  const int64_t ins = given[0], outs = given[1];
  given += 2;
  for (int64_t i = 0; i < ins + outs; ++i) {
    const Buffer one{reinterpret_cast<char*>(given[0]), static_cast<Type>(given[1]), given + 3, static_cast<size_t>(given[2])};
    (i < ins ? made.in : made.out).push_back(one);
    given += 3 + one.rank;
  }
  return made;
}

// In the place of XLA's threads, for calls from the host.
struct NoThreads {
  int64_t num_threads() const { return 1; }
  template <class Task>
  void Schedule(const Task&) {}
};

// From the host, under Python's lock: a tuple of arrays without gaps, the first `operands` of them operands. Where one has
// gaps, `good` is false and Python's error set.
struct HostCall {
  static constexpr int64_t most = 256, axes = 8;
  Call call;
  int64_t dims[most][axes];
  bool good = true;

  HostCall(void* arrays, int64_t operands) {
    constexpr int contiguous_with_format = 0x0008 | 0x0004;
    const int64_t count = PyTuple_Size(arrays);
    good = count <= most;
    for (int64_t i = 0; good && i < count; ++i) {
      Py_buffer view;
      if (PyObject_GetBuffer(PyTuple_GetItem(arrays, i), &view, contiguous_with_format)) {
        good = false;
        return;
      }
      const char kind = view.format ? view.format[0] : 'B';
      const Type type = kind == 'd' ? Type::f64 : kind == 'f' ? Type::f32 : kind == 'i' && view.itemsize == 4 ? Type::s32 : Type::other;
      good = view.ndim <= axes;
      for (int axis = 0; good && axis < view.ndim; ++axis) dims[i][axis] = view.shape[axis];
      (i < operands ? call.in : call.out).push_back({static_cast<char*>(view.buf), type, dims[i], static_cast<size_t>(view.ndim)});
      PyBuffer_Release(&view);  // whoever calls keeps the arrays
    }
  }
};

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

Shape batch_of(const Buffer& number) {
  Shape shape;
  for (size_t i = 0; i < number.rank; ++i) {
    shape.batch.push_back(number.dims[i]);
    shape.count *= number.dims[i];
  }
  return shape;
}

Operand operand(const Buffer& buffer, char kind, size_t batch_rank) {
  const int64_t* const dims = buffer.dims;
  const size_t rank = core_rank(kind);
  Operand made{buffer.data, 1, 0, std::vector<ptrdiff_t>(batch_rank, 0)};
  const size_t given = buffer.rank - rank;
  for (size_t i = given; i < buffer.rank; ++i) made.core *= dims[i];
  if ((kind == 'm' || kind == 'v') && dims[given] != 1)  // per stage, even where there are no stages
    made.step = std::accumulate(dims + given + 1, dims + buffer.rank, ptrdiff_t{1}, std::multiplies<ptrdiff_t>());
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

template <class T, class Run, class Pool>
void run_all(const Run& kernel, const Sizes& sizes, const Shape& shape, const std::vector<Operand>& ins,
             const std::vector<Operand>& outs, int32_t* status, Pool& pool) {
  run_batch(pool, shape.count, [&](int64_t index) {
    constexpr size_t most = 32;
    Stages<T> in[most];
    T* out[most];
    for (size_t i = 0; i < ins.size(); ++i) in[i] = {numbers_of<T>(ins[i], shape, index), ins[i].step};
    for (size_t i = 0; i < outs.size(); ++i) out[i] = reinterpret_cast<T*>(outs[i].data) + index * outs[i].core;
    status[index] = kernel(sizes, in, out);
  });
}

// The last result is the status, int32, one for each problem: -1, or the stage that failed.
// `kernel(sizes, in, out)` runs one problem, its type told by that of `in`. Returns what is wrong with the call, or null.
template <class Run, class Pool>
const char* handle(const Signature& signature, const Run& kernel, const Sizes& sizes, const Call& call, Pool& pool) {
  const std::string in_kinds = signature.in, out_kinds = signature.out;
  if (call.in.size() != in_kinds.size() || call.out.size() != out_kinds.size() + 1) return "optctl: wrong number of operands";
  const Shape shape = batch_of(call.out.back());
  if (shape.count == 0) return nullptr;
  std::vector<Operand> ins, outs;
  const Type type = call.in[0].type;
  for (size_t i = 0; i < in_kinds.size(); ++i) {
    if (call.in[i].type != type) return "optctl: operands differ in type";
    if (static_cast<int>(call.in[i].rank) < core_rank(in_kinds[i])) return "optctl: an operand has too few axes";
    ins.push_back(operand(call.in[i], in_kinds[i], shape.batch.size()));
  }
  for (size_t i = 0; i < out_kinds.size(); ++i) {
    if (static_cast<int>(call.out[i].rank) < core_rank(out_kinds[i])) return "optctl: a result has too few axes";
    outs.push_back(operand(call.out[i], out_kinds[i], shape.batch.size()));
  }
  int32_t* const codes = reinterpret_cast<int32_t*>(call.out.back().data);
  if (type == Type::f64) run_all<double>(kernel, sizes, shape, ins, outs, codes, pool);
  else if (type == Type::f32) run_all<float>(kernel, sizes, shape, ins, outs, codes, pool);
  else return "optctl: operands are neither float32 nor float64";
  return nullptr;
}

// The interior point method; operands.h names its operands and results.
template <class Pool>
const char* solve(const Call& call, Pool& pool) {
#define OPTCTL_KIND(name, kind) #kind
  const std::string in_kinds = OPTCTL_OPERANDS(OPTCTL_KIND), out_kinds = OPTCTL_RESULTS(OPTCTL_KIND);
#undef OPTCTL_KIND
  if (call.in.size() != in_kinds.size() || call.out.size() != out_kinds.size()) return "optctl: wrong number of operands";
  const Shape shape = batch_of(call.out[out_kinds.find('S')]);
  std::vector<Operand> ins, outs;
  for (size_t i = 0; i < in_kinds.size(); ++i) {
    if (call.in[i].type != (i < 2 ? Type::s32 : Type::f64)) return "optctl: an operand has the wrong type";
    if (static_cast<int>(call.in[i].rank) < core_rank(in_kinds[i])) return "optctl: an operand has too few axes";
    ins.push_back(operand(call.in[i], in_kinds[i], shape.batch.size()));
  }
  for (size_t i = 0; i < out_kinds.size(); ++i) outs.push_back(operand(call.out[i], out_kinds[i], shape.batch.size()));
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
  return nullptr;
}

ffi::Error answer(const char* wrong) {
  return wrong ? ffi::Error(ffi::ErrorCode::kInvalidArgument, wrong) : ffi::Error::Success();
}

}  // namespace
}  // namespace optctl

// Two doors called `name`, for XLA and for the host: `kernel` runs one problem on (sizes, data, results) of type T.
// `more` are parameters behind the sizes, `bound` is what XLA passes, `given` what the host does.
#define OPTCTL_DOOR(name, in, out, more, bound, given, kernel)                                                   \
  template <class Pool>                                                                                          \
  static const char* name##_run(const optctl::Call& call, Pool& pool, int64_t N, int64_t nx, int64_t nu, int64_t ny more) { \
    auto run = [=](const auto& sizes, auto* data, auto* results) {                                               \
      using T = std::remove_reference_t<decltype(**results)>;                                                    \
      return optctl::kernel;                                                                                     \
    };                                                                                                           \
    const optctl::Sizes sizes{N, static_cast<int>(nx), static_cast<int>(nu), static_cast<int>(ny)};              \
    return optctl::handle({in, out}, run, sizes, call, pool);                                                    \
  }                                                                                                              \
  static ffi::Error name##_door(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets, int64_t N, \
                                int64_t nx, int64_t nu, int64_t ny more) {                                       \
    return optctl::answer(name##_run(optctl::call_of(args, rets), pool, N, nx, nu, ny OPTCTL_PASSED##given));    \
  }                                                                                                              \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(optctl_##name, name##_door, bound);                                              \
  extern "C" const char* optctl_##name##_now(void* arrays, int64_t operands, const int64_t* options) {           \
    const optctl::HostCall host(arrays, operands);                                                              \
    if (!host.good) return "optctl: arrays that are too many, or have gaps";                                    \
    optctl::NoThreads alone;                                                                                     \
    const int64_t N = options[0], nx = options[1], nu = options[2], ny = options[3];                             \
    OPTCTL_READ##given void* const thread = PyEval_SaveThread();                                                 \
    const char* const wrong = name##_run(host.call, alone, N, nx, nu, ny OPTCTL_PASSED##given);                 \
    PyEval_RestoreThread(thread);                                                                                \
    return wrong;                                                                                                \
  }

#define OPTCTL_NO_MORE
#define OPTCTL_PASSED_NOTHING
#define OPTCTL_READ_NOTHING
#define OPTCTL_SIZES_BOUND                                                                            \
  ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().RemainingArgs().RemainingRets().Attr<int64_t>("N").Attr<int64_t>("nx") \
      .Attr<int64_t>("nu").Attr<int64_t>("ny")
#define OPTCTL_LQ_DOOR(name, in, out)                                            \
  OPTCTL_DOOR(name, in, out, OPTCTL_NO_MORE, OPTCTL_SIZES_BOUND, _NOTHING, \
              find_kernel<T>(optctl::Name::name, sizes)(sizes, data, results))

// Of series of a linear-Gaussian model; `roots` asks for square roots throughout.
#define OPTCTL_ROOTS , bool roots
#define OPTCTL_PASSED_ROOTS , roots
#define OPTCTL_READ_ROOTS const bool roots = options[4];
#define OPTCTL_SERIES_DOOR(name, out)                                                              \
  OPTCTL_DOOR(name, "mmmmVMvv", out, OPTCTL_ROOTS, OPTCTL_SIZES_BOUND.Attr<bool>("roots"), _ROOTS, \
              name<T>(roots, sizes, data, results))

// What operands.h says, for Python: one line for each list.
#define OPTCTL_NAME(name) #name " "
#define OPTCTL_NAME_OF(name, kind) #name " "
static const char* operand_names() {
  return OPTCTL_SIZES(OPTCTL_NAME) "\n" OPTCTL_SETTINGS(OPTCTL_NAME) "\n" OPTCTL_NUMBERS(OPTCTL_NAME) "\n" OPTCTL_FIGURES(OPTCTL_NAME) "\n"
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

static ffi::Error interior_point_door(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets) {
  return optctl::answer(optctl::solve(optctl::call_of(args, rets), pool));
}

#pragma GCC visibility push(default)
// The kernels of the host, called under Python's lock, which they give back while they run: sizes are a tuple of whole
// numbers, arrays one of arrays without gaps, or None. Returns 1, with Python's error set, where they are not.
static int run_on_host(optctl::HostKernel kernel, void* sizes, void* arrays) {
  constexpr int most = 32, contiguous = 0x0008;
  int64_t numbers[most];
  void* places[most];
  const int64_t count = PyTuple_Size(sizes), many = PyTuple_Size(arrays);
  if (count > most || many > most) return 1;
  for (int64_t i = 0; i < count; ++i) numbers[i] = PyLong_AsLongLong(PyTuple_GetItem(sizes, i));
  for (int64_t i = 0; i < many; ++i) {
    void* const array = PyTuple_GetItem(arrays, i);
    Py_buffer view;
    places[i] = nullptr;
    if (array == &_Py_NoneStruct) continue;
    if (PyObject_GetBuffer(array, &view, contiguous)) return 1;
    places[i] = view.buf;
    PyBuffer_Release(&view);  // whoever calls keeps the arrays
  }
  void* const thread = PyEval_SaveThread();
  kernel(numbers, places);
  PyEval_RestoreThread(thread);
  return 0;
}

#define OPTCTL_HOST_DOOR(name, kernel) \
  extern "C" int optctl_##name(void* sizes, void* arrays) { return run_on_host(kernel, sizes, arrays); }
#define OPTCTL_BEST_HOST_DOOR(name) OPTCTL_HOST_DOOR(name, optctl::host_kernels().name)
OPTCTL_HOST_KERNELS(OPTCTL_BEST_HOST_DOOR)
OPTCTL_HOST_DOOR(tangent, optctl::tangent)
OPTCTL_HOST_DOOR(costates, optctl::costates)

// Steps through time, states between them, and back. Operands: program, memory, sizes, numbers, pieces, then `in`; results
// of double precision are `out`, those of whole numbers `marks`: see march.cpp. An array without numbers is none.
static const char* step_through(optctl::MarchKernel kernel, void* arrays, int64_t operands) {
  const optctl::HostCall host(arrays, operands);
  if (!host.good) return "optctl: arrays that are too many, or have gaps";
  const optctl::Call& call = host.call;
  const auto data = [](const optctl::Buffer& b) {
    return std::find(b.dims, b.dims + b.rank, 0) == b.dims + b.rank ? b.data : nullptr;
  };
  std::vector<const double*> in;
  std::vector<double*> out;
  std::vector<int32_t*> marks;
  for (size_t i = 5; i < call.in.size(); ++i) in.push_back(reinterpret_cast<const double*>(data(call.in[i])));
  for (const optctl::Buffer& b : call.out) {
    if (b.type == optctl::Type::f64) out.push_back(reinterpret_cast<double*>(data(b)));
    else marks.push_back(reinterpret_cast<int32_t*>(data(b)));
  }
  void* const thread = PyEval_SaveThread();
  kernel(reinterpret_cast<const int32_t*>(call.in[0].data), reinterpret_cast<const double*>(call.in[1].data),
         reinterpret_cast<const int64_t*>(call.in[2].data), reinterpret_cast<const double*>(call.in[3].data), in.data(),
         reinterpret_cast<const int32_t*>(call.in[4].data), out.data(), marks.data());
  PyEval_RestoreThread(thread);
  return nullptr;
}
#define OPTCTL_STEPS_DOOR(name)                                                                              \
  extern "C" const char* optctl_##name##_now(void* arrays, int64_t operands, const int64_t*) {                 \
    return step_through(optctl::find_##name(), arrays, operands);                                              \
  }
OPTCTL_STEPS_DOOR(march)
OPTCTL_STEPS_DOOR(dense)
OPTCTL_STEPS_DOOR(pull_back)

extern "C" const char* optctl_operand_names() { return operand_names(); }
XLA_FFI_DEFINE_HANDLER_SYMBOL(optctl_tape, tape_door,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::F64>>()
                                  .Arg<ffi::Buffer<ffi::F64>>()
                                  .Ret<ffi::Buffer<ffi::F64>>()
                                  .Attr<int64_t>("repeat"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(optctl_unset, unset_door, ffi::Ffi::Bind().RemainingRets());
XLA_FFI_DEFINE_HANDLER_SYMBOL(optctl_interior_point, interior_point_door,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().RemainingArgs().RemainingRets());
extern "C" const char* optctl_interior_point_now(const int64_t* arrays, const int64_t*) {
  optctl::NoThreads alone;
  return optctl::solve(optctl::call_of(arrays), alone);
}
OPTCTL_LQ_DOOR(lq_factor, "mmmmmMMV", "mmmM")
OPTCTL_LQ_DOOR(lq_sweep, "mmvvvVVmmmM", "Vvvvvv")
OPTCTL_SERIES_DOOR(estimate_likelihood, "S")
OPTCTL_SERIES_DOOR(estimate_filter, "Svmvm")
OPTCTL_SERIES_DOOR(estimate_smoother, "Svmmv")
OPTCTL_SERIES_DOOR(estimate_score, "SmmmmVMvv")
#pragma GCC visibility pop
