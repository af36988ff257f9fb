"""The derivative of a solution that the kernels found: `jax.grad` of a plain `integrate` takes it, as one linear map.

The definition is `replay.solved`. The map's transpose is the costate recursion back through the accepted steps; forward
derivatives have no such map, as of the definition.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.custom_derivatives import SymbolicZero

from optctl._arrays import to_device
from optctl._linear import apply
from optctl._record import changed
from optctl.continuous.march import Mesh
from optctl.continuous.native import Flow
from optctl.continuous.replay import event_times, observed
from optctl.continuous.system import Free


def linked(flow: Flow, mesh: Mesh, free: Free) -> tuple[Any, Any, Any, Mesh]:
    """Return what was observed with its derivative: states at ts, the end's time, times of events, the mesh.

    Args:
        flow: the flow, of numbers.
        mesh: its steps.
        free: the same numbers, as JAX follows them.
    """
    system = flow.system
    times, of_times = jax.tree.flatten(event_times(system, mesh))
    parts = [observed(system, flow.free, mesh), system.sign * mesh.t, mesh.ts, mesh.ys, *times]
    parts = to_device([np.asarray(part) for part in parts])

    @jax.custom_jvp
    def values(leaves: list[Any]) -> list[Any]:
        return parts

    def tangent(primals: tuple, tangents: tuple) -> tuple:
        moves = tangents[0]
        moving = [k for k, move in enumerate(moves) if not isinstance(move, SymbolicZero)]
        if not moving:
            return parts, [np.zeros_like(part) for part in parts]
        return parts, apply(_Solution(flow, mesh, parts, of_times, moving), [moves[k] for k in moving])

    values.defjvp(tangent, symbolic_zeros=True)
    zs, t, ts, ys, *times = values(jax.tree.leaves(free))
    return zs, t, jax.tree.unflatten(of_times, times), changed(mesh, ts=ts, ys=ys)


class _Solution:
    """From the leaves of `Free` that move to the parts of a solution."""

    def __init__(self, flow: Flow, mesh: Mesh, parts: list[Any], of_times: Any, moving: Sequence[int]) -> None:
        self.flow, self.mesh, self.of_times, self.moving = flow, mesh, of_times, moving
        leaves = jax.tree.leaves(flow.free)
        self.inputs = [jax.ShapeDtypeStruct(leaves[k].shape, leaves[k].dtype) for k in moving]
        self.outputs = [jax.ShapeDtypeStruct(part.shape, part.dtype) for part in parts]

    def forward(self, tangents: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        raise TypeError(
            "a solution of `integrate` has no forward derivative; use jax.grad, or ode_gradient with mode='forward'."
        )

    def backward(self, cotangents: Sequence[np.ndarray | None]) -> Sequence[np.ndarray]:
        filled = [np.zeros(of.shape) if c is None else c for c, of in zip(cotangents, self.outputs, strict=True)]
        zs, t, ts, ys, *times = filled
        flow, mesh = self.flow, self.mesh
        gtimes = jax.tree.unflatten(self.of_times, times)
        _, gat, gy_end, gts = flow.slopes_of_loss(mesh, 0.0, zs, gtimes)
        gts += ts[: len(gts)]
        gts[-1] += flow.system.sign * t
        slope, _ = flow.pull_back(mesh, gat, gy_end, gts, np.ascontiguousarray(ys))
        slopes = jax.tree.leaves(slope)
        return [slopes[k] for k in self.moving]
