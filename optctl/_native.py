"""The compiled kernels: found, registered with JAX, and called.

The kernels live in `native/` (C++) and are built into one shared library next to the package. They run on the CPU;
elsewhere, and where the library was not built, the JAX definitions of the same recursions do the work.
"""

import ctypes
import functools
import importlib.util
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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
    return dict(zip(("sizes", "settings", "numbers", "operands", "results"), lists, strict=True))


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


def run_tape(packed: np.ndarray, memory: np.ndarray, values: np.ndarray, outputs: int) -> np.ndarray:
    """Return the results (N, outputs) of a packed tape for inputs (N, .), without XLA."""
    library = _library()
    assert library is not None
    packed, values = np.ascontiguousarray(packed, np.int32), np.array(values, np.float64)  # the body may overwrite it
    memory, results = np.ascontiguousarray(memory, np.float64), np.empty((len(values), outputs))
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (packed, memory, values, results)]
    library.optctl_run_tape(*pointers[:2], ctypes.c_int64(len(values)), *pointers[2:])
    return results


def call(
    name: str, shapes: tuple[tuple[int, ...], ...], *operands: Any, N: int, nx: int, nu: int = 0, ny: int = 0,
    **options: Any,
) -> Any:  # fmt: skip
    """Call a kernel: results of the given shapes, and what failed where (-1: nothing) as last one.

    Under `vmap` operands that do not vary are passed once; the kernel runs the batch on all cores.
    """
    require()
    dtype = operands[0].dtype
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

    made = kernel(*(operands[name] for name in names["operands"]))
    return dict(zip(names["results"], made, strict=True))
