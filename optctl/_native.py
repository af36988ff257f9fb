"""The compiled kernels: found, registered with JAX, and called.

The kernels live in `native/` (C++) and are built into one shared library next to the package. They run on the CPU;
elsewhere, and where the library was not built, the JAX definitions of the same recursions do the work.
"""

import ctypes
import functools
import importlib.util
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
    library = _library()
    assert library is not None
    packed, values = np.ascontiguousarray(packed, np.int32), np.ascontiguousarray(values, np.float64)
    memory, results = np.ascontiguousarray(memory, np.float64), np.empty((len(values), outputs))
    pointers = [ctypes.c_void_p(_address(array)) for array in (packed, memory, values, results)]
    library.optctl_run_tape(*pointers[:2], ctypes.c_int64(len(values)), *pointers[2:])
    return results


def roll(packed: np.ndarray, memory: np.ndarray, x0: np.ndarray, us: np.ndarray) -> np.ndarray:
    """Return the states (N+1, nx) of a packed tape whose last results are the next state, without XLA."""
    library = _library()
    assert library is not None
    N, nx, nu = len(us), x0.size, us.shape[1]
    us, xs = np.ascontiguousarray(us, np.float64), np.empty((N + 1, nx))
    xs[0] = x0
    sizes = [ctypes.c_int64(size) for size in (N, nx, nu)]
    first, second, third, fourth = [ctypes.c_void_p(_address(array)) for array in (packed, memory, xs, us)]
    library.optctl_roll(first, second, *sizes, third, fourth)
    return xs


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


ROOM = 1024
"""Most numbers that describe the arrays of a call."""
_Room, _Options = ctypes.c_int64 * ROOM, ctypes.c_int64 * 8


@functools.cache
def _describer() -> Any:
    spec = importlib.util.find_spec("optctl._kernels")
    assert spec is not None
    assert spec.origin is not None
    describe = ctypes.PyDLL(spec.origin).optctl_describe  # under Python's lock, whose arrays it looks at
    describe.argtypes = [ctypes.py_object, ctypes.c_int64, ctypes.c_int64, _Room]
    return describe


@functools.cache
def _door(name: str) -> Any:
    door = getattr(_library(), f"optctl_{name}_now")
    door.argtypes, door.restype = [_Room, _Options], ctypes.c_char_p
    return door


def _call_now(name: str, operands: Sequence[np.ndarray], results: Sequence[np.ndarray], options: Sequence[int]) -> None:
    """Run a kernel on NumPy arrays; it writes into `results`."""
    arrays, said = (*[np.ascontiguousarray(operand) for operand in operands], *results), _Room()
    wrong = _describer()(arrays, len(operands), ROOM, said)
    wrong = b"optctl: too many arrays" if wrong else _door(name)(said, _Options(*options))
    if wrong:
        raise RuntimeError(wrong.decode())


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
    """Call the interior point kernel; operands, and the shapes of its results, by the names of `operand_names`."""
    names = operand_names()
    ordered = [operands[name] for name in names["operands"]]
    if on_host(operands["xs"]):
        made = [np.empty(shapes[name]) for name in names["results"]]
        _call_now("interior_point", ordered, made, (0,))
        return dict(zip(names["results"], made, strict=True))
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
