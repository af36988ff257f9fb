"""Gradients that compiled code found, as JAX differentiates them: `jax.grad` of a plain call compiles nothing.

The derivative of a gradient is the Hessian times a direction (`hessian.py`), which is its own transpose in us, x0 and
params; that of the cost is the gradient.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.dtypes import float0

from optctl._arrays import own, to_device, to_host
from optctl._linear import apply
from optctl._validate import is_concrete
from optctl.problem import Problem


@dataclass(frozen=True, eq=False)
class Response:
    """The linear map from what moves, among the leaves of us, x0 and params, to how all parts of a gradient move.

    Attributes:
        parts: the leaves of the gradient: cost, xs, costates, then the slopes in us, x0 and params.
        point: the leaves of (us, x0, params).
        moving: places among them.
        along: the derivative of every part along a direction, leaves both.
        back: its transpose, where states and costates count, too.
    """

    parts: list[np.ndarray]
    point: list[np.ndarray]
    moving: Sequence[int]
    along: Callable
    back: Callable

    @property
    def inputs(self) -> Sequence[jax.ShapeDtypeStruct]:
        """What it takes."""
        return [jax.ShapeDtypeStruct(self.point[k].shape, self.point[k].dtype) for k in self.moving]

    @property
    def outputs(self) -> Sequence[jax.ShapeDtypeStruct]:
        """What it makes."""
        return [jax.ShapeDtypeStruct(part.shape, part.dtype) for part in self.parts]

    def forward(self, tangents: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """Return how the parts move."""
        return self.along(self._whole(tangents))

    def backward(self, cotangents: Sequence[np.ndarray | None]) -> Sequence[np.ndarray]:
        """Return the derivative of sum weight . part in what moves."""
        cost, xs, costates, *slopes = cotangents
        total = [np.zeros_like(leaf) for leaf in self.point]
        if xs is not None or costates is not None:
            pairs = zip(cotangents, self.parts, strict=True)
            total = self.back([np.zeros_like(part) if weight is None else weight for weight, part in pairs])
        else:
            if cost is not None:
                total = [cost * slope for slope in self.parts[3:]]
            if any([slope is not None for slope in slopes]):
                pairs = zip(slopes, self.point, strict=True)
                moved = self.along([np.zeros_like(leaf) if w is None else w for w, leaf in pairs])
                total = [a + b for a, b in zip(total, moved[3:], strict=True)]
        return [total[k] for k in self.moving]

    def _whole(self, tangents: Sequence[np.ndarray]) -> list[np.ndarray]:
        given = dict(zip(self.moving, tangents, strict=True))
        return [given.get(k, np.zeros_like(leaf)) for k, leaf in enumerate(self.point)]


def linked(problem: Problem, point: tuple, known: Any, product: Callable, definition: Callable) -> Any:
    """Return a known gradient with its derivatives in the point that JAX follows.

    Args:
        problem: the problem, of numbers.
        point: us, x0, params; some of their leaves are being differentiated.
        known: the gradient there, of NumPy's arrays.
        product: (problem, us, x0, params, dus, dx0, dparams) -> the derivative of every field along a direction.
        definition: (problem, us, x0, params) -> the gradient, by JAX.
    """
    leaves, structure = jax.tree.flatten(point)
    parts, of_parts = jax.tree.flatten(known)
    shown = to_device(parts)

    @jax.custom_jvp
    def values(leaves: list[Any]) -> list[Any]:
        return shown

    def tangent(primals: tuple, tangents: tuple) -> tuple:
        (at,), (moves,) = primals, tangents
        moving = [k for k, move in enumerate(moves) if not isinstance(move, SymbolicZero) and move.dtype != float0]
        if not moving:
            return shown, [np.zeros_like(part) for part in parts]
        if not is_concrete(at):
            here = [at[k] for k in moving], [moves[k] for k in moving]

            def defined(*some: Any) -> list[Any]:
                given = list(at)
                for k, leaf in zip(moving, some, strict=True):
                    given[k] = leaf
                return jax.tree.leaves(definition(problem, *jax.tree.unflatten(structure, given)))

            return shown, jax.jvp(defined, *here)[1]
        at = own(to_host(list(at)))
        numbers = jax.tree.unflatten(structure, at)

        def along(direction: list[np.ndarray]) -> list[np.ndarray]:
            return jax.tree.leaves(product(problem, *numbers, *jax.tree.unflatten(structure, direction)))

        def back(weights: list[np.ndarray]) -> list[np.ndarray]:
            pull = jax.vjp(functools.partial(definition, problem), *numbers)[1]
            return to_host(jax.tree.leaves(pull(jax.tree.unflatten(of_parts, weights))))

        response = Response([np.asarray(part) for part in parts], at, moving, along, back)
        return shown, apply(response, [moves[k] for k in moving])

    values.defjvp(tangent, symbolic_zeros=True)
    return jax.tree.unflatten(of_parts, values(leaves))
