"""The compiled kernels: found, registered with JAX, and called.

The kernels live in `native/` (C++) and are built into one shared library next to the package. They run on the CPU;
elsewhere, and where the library was not built, the JAX definitions of the same recursions do the work.
"""

import ctypes
import functools
import importlib.util
import math
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optctl._arrays import HOST, on_host

KERNELS = (
    "unset",
    "lq_factor",
    "lq_sweep",
    "estimate_likelihood",
    "estimate_filter",
    "estimate_smoother",
    "estimate_score",
    "tape",
    "interior_point",
)


@functools.cache
def available() -> bool:
    """True if the kernels are there and arrays live on the CPU by default."""
    return jax.default_backend() == "cpu" and _register()


@functools.cache
def _library() -> ctypes.CDLL | None:
    spec = importlib.util.find_spec("optctl._kernels")
    if spec is None or spec.origin is None:
        warnings.warn(
            "the compiled kernels of optctl are not installed, so it computes in JAX alone: the interior point method"
            " is 10 to 20 times slower. Install a C++ compiler (GCC 9, Clang 12 or newer), then optctl again.",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return ctypes.CDLL(spec.origin)


@functools.cache
def _register() -> bool:
    library = _library()
    if library is None:
        return False
    for name in KERNELS:
        handler = jax.ffi.pycapsule(getattr(library, f"optctl_{name}"))
        jax.ffi.register_ffi_target(f"optctl_{name}", handler, platform="cpu")
    return True


@functools.cache
def operand_names() -> dict[str, tuple[str, ...]]:
    """Return the names that the interior point kernel gives to what it takes and makes (`native/operands.h`)."""
    library = _library()
    assert library is not None
    said = library.optctl_operand_names
    said.restype = ctypes.c_char_p
    lists = [tuple(line.split()) for line in said().decode().split("\n")]
    return dict(zip(("sizes", "settings", "numbers", "figures", "operands", "results"), lists, strict=True))


def require() -> None:
    """Raise where the kernels cannot run.

    Raises:
        ValueError: naming what is missing and what to use instead.
    """
    if not available():
        why = "the compiled kernels are not installed" if jax.default_backend() == "cpu" else "the kernels need a CPU"
        raise ValueError(f"`method` is 'native', but {why}; use 'auto', 'scan' or 'parallel'.")


def unset(shape: tuple[int, ...], dtype: Any) -> Any:
    """Return an array of which no entry counts: room for a loop to write to, made without a pass over it."""
    if not available():
        return jnp.zeros(shape, dtype)
    return jax.ffi.ffi_call("optctl_unset", jax.ShapeDtypeStruct(shape, dtype))()


def run_tape(packed: np.ndarray, memory: Any, values: Any, outputs: int, repeat: int = 1) -> Any:
    """Return the results (N, outputs) of a packed tape for inputs (N, .); the body is run `repeat` times under XLA."""
    if not on_host(values) or not on_host(memory):
        made = jax.ShapeDtypeStruct((values.shape[0], outputs), jnp.float64)
        kernel = jax.ffi.ffi_call("optctl_tape", made, vmap_method="sequential")
        return kernel(packed, memory, values, repeat=np.int64(repeat))
    packed, values = np.ascontiguousarray(packed, np.int32), np.ascontiguousarray(values, np.float64)
    memory, results = np.ascontiguousarray(memory, np.float64), np.empty((len(values), outputs))
    on_host_run("run_tape", (len(values),), (packed, memory, values, results))
    return results


def roll(packed: np.ndarray, memory: np.ndarray, x0: np.ndarray, us: np.ndarray) -> np.ndarray:
    """Return the states (N+1, nx) of a packed tape whose last results are the next state, without XLA."""
    N, nx, nu = len(us), x0.size, us.shape[1]
    us, xs = np.ascontiguousarray(us, np.float64), np.empty((N + 1, nx))
    xs[0] = x0
    on_host_run("roll", (N, nx, nu), (packed, memory, us, xs))
    return xs


def on_host_run(name: str, sizes: tuple[int, ...], arrays: tuple[np.ndarray | None, ...]) -> None:
    """Run a kernel of the host, which writes into the last arrays; `native/kernels.h` has names, sizes and arrays.

    Arrays have no gaps, and are of float64 (programs of int32).
    """
    if _host_kernel(name)(sizes, arrays):
        raise RuntimeError(f"optctl: too many arrays for {name}")


@functools.cache
def _host_kernel(name: str) -> Any:
    kernel = getattr(_under_lock(), f"optctl_{name}")  # until it runs
    kernel.argtypes = [ctypes.py_object, ctypes.py_object]
    return kernel


def tangent(A: np.ndarray, B: np.ndarray, c: np.ndarray, dx0: np.ndarray, dus: np.ndarray) -> np.ndarray:
    """Return dxs (N+1, nx) of dx+ = A dx + B du + c, from dx0 (`native/sweeps.cpp`)."""
    N, nx, nu = B.shape
    operands, dxs = [np.ascontiguousarray(array, np.float64) for array in (A, B, c, dx0, dus)], np.empty((N + 1, nx))
    on_host_run("tangent", (N, nx, nu), (*operands, dxs))
    return dxs


def costates(A: np.ndarray, B: np.ndarray, gxs: np.ndarray, gus: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return costates (N+1, nx) of lambda = gx + A' lambda+, and gu + B' lambda+ (`native/sweeps.cpp`)."""
    N, nx, nu = B.shape
    operands = [np.ascontiguousarray(array, np.float64) for array in (A, B, gxs, gus)]
    made = np.empty((N + 1, nx)), np.empty((N, nu))
    on_host_run("costates", (N, nx, nu), (*operands, *made))
    return made


def step_through(name: str, operands: Sequence[np.ndarray], results: Sequence[np.ndarray]) -> None:
    """Run "march", "dense" or "pull_back" (`native/march.cpp`), which write into `results`.

    Operands are program, memory, sizes (int64), numbers, the signal's pieces (int32), and then of float64.
    """
    _call_now(name, operands, results, ())


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


_Options = ctypes.c_int64 * 8


@functools.cache
def _under_lock() -> ctypes.PyDLL:
    """Return the library for calls under Python's lock, whose arrays they look at."""
    spec = importlib.util.find_spec("optctl._kernels")
    assert spec is not None
    assert spec.origin is not None
    return ctypes.PyDLL(spec.origin)


_TYPES = {np.dtype(np.float64): 0, np.dtype(np.float32): 1, np.dtype(np.int32): 2}


def _described(array: np.ndarray) -> tuple[int, ...]:
    """Return how a kernel is told of an array: where it lies, its type, its axes."""
    return _address(array), _TYPES[array.dtype], array.ndim, *array.shape


def _call_now(name: str, operands: Sequence[np.ndarray], results: Sequence[np.ndarray], options: Sequence[int]) -> None:
    """Run a kernel on NumPy arrays; it writes into `results`."""
    try:
        wrong = _kernel_now(name)((*operands, *results), len(operands), _Options(*options))
    except (BufferError, ValueError):  # of an array with gaps
        whole = [np.ascontiguousarray(operand) for operand in operands]
        wrong = _kernel_now(name)((*whole, *results), len(operands), _Options(*options))
    if wrong is not None:
        raise RuntimeError(wrong.decode())


@functools.cache
def _kernel_now(name: str) -> Any:
    kernel = getattr(_under_lock(), f"optctl_{name}_now")
    kernel.restype, kernel.argtypes = ctypes.c_char_p, [ctypes.py_object, ctypes.c_int64, _Options]
    return kernel


def _run(name: str, said: Any, options: Any) -> None:
    wrong = _door(name)(said, options)
    if wrong is not None:
        raise RuntimeError(wrong.decode())


@functools.cache
def _door(name: str) -> Any:
    library = _library()
    assert library is not None
    door = getattr(library, f"optctl_{name}_now")
    door.restype, door.argtypes = ctypes.c_char_p, (ctypes.c_void_p, ctypes.c_void_p)
    return door


def call(
    name: str, shapes: tuple[tuple[int, ...], ...], *operands: Any, N: int, nx: int, nu: int = 0, ny: int = 0,
    **options: Any,
) -> Any:  # fmt: skip
    """Call a kernel: results of the given shapes, and what failed where (-1: nothing) as last one.

    Under `vmap` operands that do not vary are passed once; the kernel runs the batch on all cores. NumPy's arrays are
    worked on at once.
    """
    require()
    dtype = operands[0].dtype
    if all([isinstance(operand, HOST) for operand in operands]):
        made = [np.empty(shape, dtype) for shape in shapes]
        made.append(np.empty((), np.int32))
        given = [o if o.dtype == dtype else o.astype(dtype) for o in operands]
        _call_now(name, given, made, (N, nx, nu, ny, *options.values()))
        return [result if result.ndim else result[()] for result in made]
    results = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    results.append(jax.ShapeDtypeStruct((), np.int32))
    kernel = jax.ffi.ffi_call(f"optctl_{name}", results, vmap_method="expand_dims")
    sizes = {"N": N, "nx": nx, "nu": nu, "ny": ny}
    return kernel(
        *(o.astype(dtype) for o in operands), **{key: np.int64(value) for key, value in sizes.items()}, **options
    )


def solve(operands: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """Call the interior point kernel by XLA; operands, and its results' shapes, by the names of `operand_names`."""
    names = operand_names()
    ordered = [operands[name] for name in names["operands"]]
    results = [jax.ShapeDtypeStruct(shapes[name], np.float64) for name in names["results"]]

    @jax.custom_jvp
    def kernel(*operands: Any) -> Any:
        return jax.ffi.ffi_call("optctl_interior_point", results, vmap_method="expand_dims")(*operands)

    @kernel.defjvp
    def refuse(primals: tuple, tangents: tuple) -> Any:
        raise ValueError(
            "a solution is differentiated in a value that a function of the problem closes over; make it one of the"
            " parameters: f(x, u, t, params), and Problem(..., params=value)."
        )

    made = kernel(*ordered)
    return dict(zip(names["results"], made, strict=True))


LASTING = ("figures", "numbers", "xs", "us", "costates", "y", "c", "gaps", "K")
"""Results that become part of a solution. They lie apart from the others, which go when the solution is made."""


class SolveNow:
    """The interior point kernel on NumPy's arrays, ready to be called with others of the same shapes.

    What the kernel is told of its operands and results is a row of numbers; those that change are written into it.

    Args:
        operands: by name; arrays that stay the same.
        others: shapes of the float64 arrays that change, by name.
        results: shapes of the results, by name.
    """

    def __init__(
        self, operands: dict[str, np.ndarray], others: dict[str, tuple[int, ...]], results: dict[str, tuple[int, ...]]
    ) -> None:
        names = operand_names()
        self.kept = {name: np.asarray(array, order="C") for name, array in operands.items()}
        self.others, self.sizes, self.results = [], [0, 0], []
        said, places = [len(names["operands"]), len(names["results"])], ([], [])
        for name in names["operands"]:
            if name in others:
                self.others.append((name, len(said), others[name]))
                said += (0, 0, len(others[name]), *others[name])
            else:
                said += _described(self.kept[name])
        for name in names["results"]:
            block, shape = int(name not in LASTING), results[name]
            begin, end = self.sizes[block], self.sizes[block] + math.prod(shape)
            places[block].append(len(said))
            said += (8 * begin, 0, len(shape), *shape)
            self.results.append((name, block, slice(begin, end), shape))
            self.sizes[block] = end
        self.said, self.places = np.array(said), [np.array(place) for place in places]
        self.options = np.zeros(1, np.int64)

    def __call__(self, others: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the results by name."""
        said, alive = self.said.copy(), []
        for name, place, shape in self.others:
            array = np.asarray(others[name], np.float64, order="C")
            assert array.shape == shape, name
            alive.append(array)
            said[place] = _address(array)
        blocks = [np.empty(size) for size in self.sizes]
        for block, places in zip(blocks, self.places, strict=True):
            said[places] += _address(block)
        _run("interior_point", _address(said), _address(self.options))
        return {name: blocks[block][place].reshape(shape) for name, block, place, shape in self.results}
