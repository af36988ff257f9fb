"""NumPy's answer to each primitive of a jaxpr, for `interpreter`.

A rule takes an equation and returns a function of NumPy arrays, whose result is an array or a list of them; or None,
where it does not know. Ufuncs and functions marked as `_into` can write into an array that is there already; those
marked as `_views` only look at their operand in another way.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

RULES: dict[str, Callable] = {}


def rule(*names: str) -> Callable:
    """Register a rule for primitives."""

    def register(function: Callable) -> Callable:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def _plain(function: Callable, *names: str) -> None:
    """Register a function of arrays that needs nothing from the equation."""
    RULES.update(dict.fromkeys(names, lambda eqn: function))


def _views(function: Callable) -> Callable:
    """Mark a function whose results look at the numbers of its first operand, mostly."""
    function.views = True  # type: ignore[attr-defined]
    return function


def _into(function: Callable) -> Callable:
    """Mark a function that can write its result into an array, `out`."""
    function.into = True  # type: ignore[attr-defined]
    return function


# Number by number.


def _logistic(x: Any) -> Any:
    return 1.0 / (1.0 + np.exp(-x))


def _erf(name: str) -> Callable:
    def evaluate(x: Any) -> Any:
        import scipy.special

        return getattr(scipy.special, name)(x)

    return evaluate


def _less_in_total_order(a: Any, b: Any) -> Any:
    return (a < b) | (np.isnan(b) & ~np.isnan(a))


_ELEMENTWISE: dict[str, Callable] = {
    "add": np.add, "add_any": np.add, "sub": np.subtract, "mul": np.multiply, "neg": np.negative, "max": np.maximum,
    "min": np.minimum, "abs": np.abs, "sign": np.sign, "floor": np.floor, "ceil": np.ceil, "sqrt": np.sqrt,
    "cbrt": np.cbrt, "exp": np.exp, "exp2": np.exp2, "expm1": np.expm1, "log": np.log, "log1p": np.log1p,
    "sin": np.sin, "cos": np.cos, "tan": np.tan, "asin": np.arcsin, "acos": np.arccos, "atan": np.arctan,
    "sinh": np.sinh, "cosh": np.cosh, "tanh": np.tanh, "asinh": np.arcsinh, "acosh": np.arccosh, "atanh": np.arctanh,
    "atan2": np.arctan2, "is_finite": np.isfinite, "eq": np.equal, "ne": np.not_equal, "lt": np.less,
    "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal, "pow": np.power, "nextafter": np.nextafter,
    "shift_left": np.left_shift, "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
    "square": np.square, "rsqrt": lambda x: 1.0 / np.sqrt(x), "logistic": _logistic,
    "clamp": lambda low, x, high: np.minimum(np.maximum(x, low), high),
    "erf": _erf("erf"), "erfc": _erf("erfc"), "erf_inv": _erf("erfinv"), "lgamma": _erf("gammaln"),
    "digamma": _erf("psi"), "lt_to": _less_in_total_order, "le_to": lambda a, b: ~_less_in_total_order(b, a),
    "not": np.invert,
}  # fmt: skip
for _name, _function in _ELEMENTWISE.items():
    _plain(_function, _name)


def _is_whole(aval: Any) -> bool:
    return aval.dtype.kind in "iu"


@rule("div")
def _div(eqn: Any) -> Callable:
    if not _is_whole(eqn.outvars[0].aval):
        return np.divide
    return lambda a, b: ((np.abs(a) // np.abs(b)) * (np.sign(a) * np.sign(b))).astype(eqn.outvars[0].aval.dtype)


@rule("rem")
def _rem(eqn: Any) -> Callable:
    return np.fmod


@rule("integer_pow")
def _integer_pow(eqn: Any) -> Callable:
    y = eqn.params["y"]
    if y == 2:
        return np.square
    if y == 3:
        return lambda x: x * x * x
    power = y if _is_whole(eqn.outvars[0].aval) else float(y)
    return lambda x: np.power(x, power)


@rule("round")
def _round(eqn: Any) -> Callable:
    if eqn.params["rounding_method"] == jax.lax.RoundingMethod.AWAY_FROM_ZERO:
        return lambda x: np.trunc(x + np.copysign(np.nextafter(0.5, 0.0), x))
    return np.rint


@rule("select_n")
def _select(eqn: Any) -> Callable:
    if eqn.invars[0].aval.dtype == bool:
        return lambda which, a, b: np.where(which, b, a)

    def choose(which: Any, *cases: Any) -> Any:
        chosen = cases[0]
        for k, case in enumerate(cases[1:], 1):
            chosen = np.where(which == k, case, chosen)
        return chosen

    return choose


@rule("convert_element_type")
def _convert(eqn: Any) -> Callable | None:
    old, new = eqn.invars[0].aval.dtype, np.dtype(eqn.params["new_dtype"])
    if old.kind == "f" and new.kind in "iu":
        low, high = np.iinfo(new).min, np.iinfo(new).max

        def whole(x: Any) -> Any:
            x = np.asarray(x, np.float64)
            inside = (x > low) & (x < high)
            return np.where(inside, np.where(inside, x, 0.0).astype(new), np.where(x >= high, high, low)) * ~np.isnan(x)

        return lambda x: whole(x).astype(new)
    if new.kind not in "fiub":
        return None
    if old == new:
        return _views(lambda x: x)
    return lambda x: np.asarray(x).astype(new, copy=False)


@rule("copy", "copy_p", "device_put", "optimization_barrier", "name", "stop_gradient", "reduce_precision", "pvary",
      "sharding_constraint")  # fmt: skip
def _same(eqn: Any) -> Callable | None:
    if eqn.params.get("mantissa_bits", 52) < 52 or eqn.params.get("exponent_bits", 11) < 11:
        return None
    return _views(lambda x: x) if len(eqn.outvars) == 1 else lambda *xs: list(xs)


# Elements in other places.


@rule("reshape", "squeeze", "expand_dims")
def _reshape(eqn: Any) -> Callable | None:
    if eqn.params.get("dimensions") is not None and eqn.primitive.name == "reshape":
        return None
    shape = eqn.outvars[0].aval.shape
    return _views(lambda a: np.asarray(a).reshape(shape))


@rule("transpose")
def _transpose(eqn: Any) -> Callable:
    order = eqn.params["permutation"]
    return _views(lambda a: np.asarray(a).transpose(order))


@rule("broadcast_in_dim")
def _broadcast(eqn: Any) -> Callable:
    aval = eqn.outvars[0].aval
    lengths = [1] * len(aval.shape)
    for axis, length in zip(eqn.params["broadcast_dimensions"], eqn.invars[0].aval.shape, strict=True):
        lengths[axis] = length
    return _views(lambda a, *_: np.broadcast_to(np.asarray(a).reshape(lengths), aval.shape))


@rule("concatenate")
def _concatenate(eqn: Any) -> Callable:
    axis = eqn.params["dimension"]
    return _into(lambda *parts, out=None: np.concatenate(parts, axis, out))


@rule("stack")
def _stack(eqn: Any) -> Callable:
    axis = eqn.params["axis"]
    places = [(*[slice(None)] * axis, k) for k in range(len(eqn.invars))]

    def stack(*parts: Any, out: Any = None) -> Any:
        if out is None:
            return np.stack(parts, axis)
        for place, part in zip(places, parts, strict=True):
            out[place] = part
        return out

    return _into(stack)


@rule("unstack")
def _unstack(eqn: Any) -> Callable:
    axis = eqn.params["axis"]
    return _views(lambda a: list(np.moveaxis(a, axis, 0)))


@rule("tile")
def _tile(eqn: Any) -> Callable:
    repeats = eqn.params["reps"]
    return lambda a: np.tile(a, repeats)


@rule("slice")
def _slice(eqn: Any) -> Callable:
    p = eqn.params
    where = tuple(map(slice, p["start_indices"], p["limit_indices"], p["strides"] or [1] * len(p["start_indices"])))
    return _views(lambda a: a[where])


@rule("split")
def _split(eqn: Any) -> Callable:
    ends, axis = np.cumsum(eqn.params["sizes"])[:-1], eqn.params["axis"]
    return _views(lambda a: list(np.split(a, ends, axis)))


@rule("pad")
def _pad(eqn: Any) -> Callable:
    shape, config = eqn.outvars[0].aval.shape, eqn.params["padding_config"]

    def pad(a: Any, filling: Any) -> np.ndarray:
        out = np.full(shape, filling, np.asarray(a).dtype)
        to, source = [], []
        for length, (low, _, interior), room in zip(a.shape, config, shape, strict=True):
            places = low + (interior + 1) * np.arange(length)
            inside = (places >= 0) & (places < room)
            to.append(places[inside])
            source.append(np.flatnonzero(inside))
        out[np.ix_(*to)] = a[np.ix_(*source)]
        return out

    return pad


@rule("rev")
def _rev(eqn: Any) -> Callable:
    axes = eqn.params["dimensions"]
    return _views(lambda a: np.flip(a, axes))


@rule("empty", "empty2")
def _empty(eqn: Any) -> Callable:
    aval = eqn.outvars[0].aval
    return lambda *_: np.zeros(aval.shape, aval.dtype)


@rule("platform_index")
def _platform_index(eqn: Any) -> Callable:
    own = [k for k, names in enumerate(eqn.params["platforms"]) if names is None or "cpu" in names]
    return lambda: np.asarray(own[0], np.int32)


@rule("iota")
def _iota(eqn: Any) -> Callable:
    shape, axis = eqn.params["shape"], eqn.params["dimension"]
    lengths = [-1 if k == axis else 1 for k in range(len(shape))]
    counts = np.broadcast_to(np.arange(shape[axis], dtype=eqn.params["dtype"]).reshape(lengths), shape)
    return lambda: counts


# Places that depend on values.


@rule("dynamic_slice")
def _dynamic_slice(eqn: Any) -> Callable:
    sizes = eqn.params["slice_sizes"]

    def take(a: Any, *starts: Any) -> np.ndarray:
        begins = [min(max(int(s), 0), n - m) for s, n, m in zip(starts, a.shape, sizes, strict=False)]
        return a[tuple([slice(b, b + m) for b, m in zip(begins, sizes, strict=True)])]

    return take


@rule("dynamic_update_slice")
def _dynamic_update_slice(eqn: Any) -> Callable:
    def put(a: Any, new: Any, *starts: Any) -> np.ndarray:
        a = np.array(a)
        begins = [min(max(int(s), 0), n - m) for s, n, m in zip(starts, a.shape, new.shape, strict=False)]
        a[tuple([slice(b, b + m) for b, m in zip(begins, new.shape, strict=True)])] = new
        return a

    return put


def _windows(
    shape: Sequence[int], indices: Any, starts_map: Sequence[int], batching: Sequence[tuple[int, int]],
    window: Sequence[int], sizes: Sequence[int], clip: bool,
) -> tuple[tuple, np.ndarray | None]:  # fmt: skip
    """Return index arrays (batch..., window...), one for each axis of the operand, and where windows lie within."""
    batch = indices.shape[:-1]
    inside: np.ndarray | None = None
    places = []
    for axis, (length, size) in enumerate(zip(shape, sizes, strict=True)):
        start: Any = 0
        if axis in starts_map:
            wanted = indices[..., starts_map.index(axis)].astype(np.int64)
            start = np.clip(wanted, 0, length - size)
            if not clip:
                fits = start == wanted
                inside = fits if inside is None else inside & fits
            start = np.reshape(start, (*batch, *[1] * len(window)))
        for own, other in batching:
            if own == axis:
                start = np.arange(length).reshape([-1 if k == other else 1 for k in range(len(batch) + len(window))])
        if axis in window:
            k = len(batch) + window.index(axis)
            start = start + np.arange(size).reshape([-1 if j == k else 1 for j in range(len(batch) + len(window))])
        places.append(start)
    return tuple(np.broadcast_arrays(*places)), inside


@rule("gather")
def _gather(eqn: Any) -> Callable:
    d, sizes, mode = eqn.params["dimension_numbers"], eqn.params["slice_sizes"], eqn.params["mode"]
    shape, aval = eqn.invars[0].aval.shape, eqn.outvars[0].aval
    gone = (*d.collapsed_slice_dims, *d.operand_batching_dims)
    window = [axis for axis in range(len(shape)) if axis not in gone]
    batching = list(zip(d.operand_batching_dims, d.start_indices_batching_dims, strict=True))
    fills = mode == jax.lax.GatherScatterMode.FILL_OR_DROP
    fill = eqn.params["fill_value"]
    if fill is None and fills:
        kind = aval.dtype.kind
        fill = {"f": np.nan, "b": True}.get(kind)
        if fill is None:
            fill = np.iinfo(aval.dtype).min if kind == "i" else np.iinfo(aval.dtype).max
    batch_rank = eqn.invars[1].aval.ndim - 1
    rest = [axis for axis in range(aval.ndim) if axis not in d.offset_dims]

    def gather(a: Any, indices: Any) -> np.ndarray:
        places, inside = _windows(shape, indices, d.start_index_map, batching, window, sizes, not fills)
        out = a[places] if shape else np.broadcast_to(a, indices.shape[:-1])
        if inside is not None and not inside.all():
            out = np.where(inside.reshape(*inside.shape, *[1] * (out.ndim - batch_rank)), out, fill)
        return np.moveaxis(out, range(out.ndim), (*rest, *d.offset_dims))

    return gather


@rule("scatter", "scatter-add", "scatter_add", "scatter-sub", "scatter_sub", "scatter-mul", "scatter_mul",
      "scatter-min", "scatter_min", "scatter-max", "scatter_max")  # fmt: skip
def _scatter(eqn: Any) -> Callable:
    d = eqn.params["dimension_numbers"]
    combines = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "min": np.minimum, "max": np.maximum}
    combine = combines.get(eqn.primitive.name[8:])
    clips = eqn.params["mode"] == jax.lax.GatherScatterMode.CLIP
    shape, updated = eqn.invars[0].aval.shape, eqn.invars[2].aval
    gone = (*d.inserted_window_dims, *d.operand_batching_dims)
    window = [axis for axis in range(len(shape)) if axis not in gone]
    batching = list(zip(d.operand_batching_dims, d.scatter_indices_batching_dims, strict=True))
    rest = [axis for axis in range(updated.ndim) if axis not in d.update_window_dims]
    sizes = [1] * len(shape)
    for axis, k in zip(window, d.update_window_dims, strict=True):
        sizes[axis] = updated.shape[k]

    def scatter(a: Any, indices: Any, updates: Any) -> np.ndarray:
        a, updates = np.array(a), updates.transpose((*rest, *d.update_window_dims))
        places, inside = _windows(shape, indices, d.scatter_dims_to_operand_dims, batching, window, sizes, clips)
        if inside is not None and not inside.all():
            keep = np.broadcast_to(inside.reshape(*inside.shape, *[1] * len(window)), updates.shape)
            places, updates = tuple([p[keep] for p in places]), updates[keep]
        if combine is None:
            a[places] = updates
        else:
            combine.at(a, places, updates)
        return a

    return scatter


# Along axes.


def _reduction(name: str, function: Any) -> None:
    def made(eqn: Any) -> Callable:
        axes, dtype = tuple(eqn.params["axes"]), eqn.outvars[0].aval.dtype
        first = {"reduce_max": -np.inf, "reduce_min": np.inf}.get(name)
        extra = {} if first is None or dtype.kind != "f" else {"initial": first}
        if name in ("reduce_sum", "reduce_prod"):
            extra = {"dtype": dtype}
        return _into(lambda a, out=None: function.reduce(a, axis=axes, out=out, **extra))

    RULES[name] = made


for _name, _ufunc in {
    "reduce_sum": np.add, "reduce_prod": np.multiply, "reduce_max": np.maximum, "reduce_min": np.minimum,
    "reduce_and": np.bitwise_and, "reduce_or": np.bitwise_or, "reduce_xor": np.bitwise_xor,
}.items():  # fmt: skip
    _reduction(_name, _ufunc)


@rule("argmax", "argmin")
def _argmax(eqn: Any) -> Callable:
    function = np.argmax if eqn.primitive.name == "argmax" else np.argmin
    (axis,), dtype = eqn.params["axes"], eqn.params["index_dtype"]
    return lambda a: np.asarray(function(a, axis)).astype(dtype)


@rule("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")
def _cumulative(eqn: Any) -> Callable:
    ufuncs = {"sum": np.add, "prod": np.multiply, "max": np.maximum, "min": np.minimum, "logsumexp": np.logaddexp}
    function, axis = ufuncs[eqn.primitive.name[3:]], eqn.params["axis"]
    dtype = eqn.outvars[0].aval.dtype
    if eqn.params["reverse"]:
        return lambda a: np.flip(function.accumulate(np.flip(a, axis), axis, dtype), axis)
    return lambda a: function.accumulate(a, axis, dtype)


@rule("sort")
def _sort(eqn: Any) -> Callable:
    axis, keys = eqn.params["dimension"], eqn.params["num_keys"]

    def sort(*operands: Any) -> list[np.ndarray]:
        order = np.lexsort(operands[:keys][::-1], axis)
        return [np.take_along_axis(operand, order, axis) for operand in operands]

    return sort


@rule("dot_general")
def _dot_general(eqn: Any) -> Callable:
    (a_sum, b_sum), (a_batch, b_batch) = eqn.params["dimension_numbers"]
    a_ndim, b_ndim = (v.aval.ndim for v in eqn.invars)
    dtype = eqn.outvars[0].aval.dtype
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    a_names, b_names = [""] * a_ndim, [""] * b_ndim
    for i, j in (*zip(a_batch, b_batch, strict=True), *zip(a_sum, b_sum, strict=True)):
        a_names[i] = b_names[j] = next(letters)
    a_names, b_names = [n or next(letters) for n in a_names], [n or next(letters) for n in b_names]
    a_free = [k for k in range(a_ndim) if k not in (*a_sum, *a_batch)]
    b_free = [k for k in range(b_ndim) if k not in (*b_sum, *b_batch)]
    plain = all(v.aval.dtype == dtype for v in eqn.invars)
    if not a_batch and plain and len(a_sum) == 1 and max(a_ndim, b_ndim) <= 2:
        turn_a, turn_b = a_sum[0] != a_ndim - 1, b_sum[0] != 0
        return _into(lambda a, b, out=None: np.matmul(a.T if turn_a else a, b.T if turn_b else b, out))
    if not a_batch:
        return lambda a, b: np.tensordot(a, b, (a_sum, b_sum)).astype(dtype, copy=False)
    out = [a_names[k] for k in (*a_batch, *a_free)] + [b_names[k] for k in b_free]
    subscripts = f"{''.join(a_names)},{''.join(b_names)}->{''.join(out)}"
    inner = int(np.prod([eqn.invars[0].aval.shape[k] for k in a_sum], dtype=int))
    if len(a_free) == len(b_free) == len(a_sum) == len(a_batch) == 1 and inner > 16:
        to_a, to_b = (*a_batch, *a_free, *a_sum), (*b_batch, *b_sum, *b_free)
        return lambda a, b: np.matmul(a.transpose(to_a), b.transpose(to_b)).astype(dtype, copy=False)
    if plain:
        return _into(lambda a, b, out=None: np.einsum(subscripts, a, b, out=out))
    return lambda a, b: np.einsum(subscripts, a, b).astype(dtype, copy=False)


# Linear algebra, for all matrices of a batch at once.


@rule("cholesky")
def _cholesky(eqn: Any) -> Callable:
    def factor(a: Any) -> np.ndarray:
        L = np.zeros_like(a)
        for j in range(a.shape[-1]):
            rest = a[..., j:, j] - np.einsum("...ik,...k->...i", L[..., j:, :j], L[..., j, :j])
            pivot = np.where(rest[..., :1] > 0, rest[..., :1], np.nan)
            L[..., j:, j] = rest / np.sqrt(pivot)
        failed = np.isnan(np.diagonal(L, axis1=-2, axis2=-1)).any(-1)[..., None, None]
        return np.where(failed & np.tri(a.shape[-1], dtype=bool), np.nan, L)

    return factor


@rule("triangular_solve")
def _triangular_solve(eqn: Any) -> Callable:
    p = eqn.params

    def solve(a: Any, b: Any) -> np.ndarray:
        A, B, lower = a, b, p["lower"]
        if p["transpose_a"]:
            A, lower = np.swapaxes(A, -1, -2), not lower
        if not p["left_side"]:  # X A = B is A' X' = B'
            A, B, lower = np.swapaxes(A, -1, -2), np.swapaxes(B, -1, -2), not lower
        X = np.zeros(np.broadcast_shapes(A.shape[:-2], B.shape[:-2]) + B.shape[-2:], B.dtype)
        n = A.shape[-1]
        for i in range(n) if lower else range(n)[::-1]:
            done = slice(0, i) if lower else slice(i + 1, n)
            rest = B[..., i, :] - np.einsum("...k,...kj->...j", A[..., i, done], X[..., done, :])
            X[..., i, :] = rest if p["unit_diagonal"] else rest / A[..., i, i, None]
        return X if p["left_side"] else np.swapaxes(X, -1, -2)

    return solve


@rule("lu")
def _lu(eqn: Any) -> Callable:
    def factor(a: Any) -> list[np.ndarray]:
        shape, n = a.shape, min(a.shape[-2:])
        A = np.array(a.reshape(-1, *shape[-2:]))
        each = np.arange(len(A))
        pivots = np.zeros((len(A), n), np.int32)
        order = np.broadcast_to(np.arange(shape[-2], dtype=np.int32), (len(A), shape[-2])).copy()
        for k in range(n):
            best = k + np.argmax(np.abs(A[:, k:, k]), axis=1)
            pivots[:, k] = best
            for array in (A, order):
                array[each, k], array[each, best] = array[each, best].copy(), array[each, k].copy()
            pivot = A[:, k, k, None]
            A[:, k + 1 :, k] = np.where(pivot == 0, A[:, k + 1 :, k], A[:, k + 1 :, k] / pivot)
            A[:, k + 1 :, k + 1 :] -= A[:, k + 1 :, k, None] * A[:, k, None, k + 1 :]
        batch = shape[:-2]
        return [A.reshape(shape), pivots.reshape(*batch, n), order.reshape(*batch, shape[-2])]

    return factor


@rule("lu_pivots_to_permutation")
def _permutation(eqn: Any) -> Callable:
    size = eqn.params["permutation_size"]

    def permute(pivots: Any) -> np.ndarray:
        flat = pivots.reshape(-1, pivots.shape[-1])
        order = np.broadcast_to(np.arange(size, dtype=np.int32), (len(flat), size)).copy()
        each = np.arange(len(flat))
        for k in range(flat.shape[1]):
            order[each, k], order[each, flat[:, k]] = order[each, flat[:, k]].copy(), order[each, k].copy()
        return order.reshape(*pivots.shape[:-1], size)

    return permute
