r"""The derivative of a solution by NumPy and the kernels: `sensitivity.py` is its definition.

`jax.grad` of a plain call has numbers at hand: the solve runs on the host like any other, and what JAX is to know of it
is one linear map, from the leaves of the problem that move to the parts of the solution that follow. Reverse mode reads
the formulas of `sensitivity.respond` from right to left. With weights (xs, us, costates, y) on the solution,

    a = S (weights + J'(W y + W H v)),      v = y - J a',   a' the same without v,

S being the inverse of the symmetric system, W = 1/d of the rows, H those that are held: the solution answers to a
change of the conditions as a answers. What the conditions do in the numbers p of the functions is one tape a stage,

    d/dp  d/ds  ( k l + lambda'f + y'(g, h) )( z + s dz;  k + s dk, lambda + s dlambda, y + s dy ),

with -a for dz and dlambda; for forward mode it runs along each direction. Bounds and prices need no tape.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.dtypes import float0

from optctl import _native
from optctl._arrays import to_device
from optctl._door import numbers
from optctl._linear import apply
from optctl._record import changed
from optctl._validate import is_concrete
from optctl.engine.graphs import Graphs, graphs_of
from optctl.lq import sweeps
from optctl.lq.kkt import Point
from optctl.problem import PATH, TERMINAL, parts_of
from optctl.shooting import native
from optctl.shooting.expansion import Expansion
from optctl.shooting.primal_dual import Program, Unknowns
from optctl.shooting.rows import along, make_rows, transposed
from optctl.shooting.sensitivity import TWICE, Conditions, Optimum, held, linear_system, respond, settle, unknown
from optctl.solution import Solution
from optctl.tape import Tape, Unsupported, memories_now

AGREES = 1e-4
"""Relative difference to differences of values that counts as none."""
AT_ONCE = 2_000_000
"""Numbers that a tape may write in one call."""


@dataclass(frozen=True, eq=False)
class Settled:
    """The optimum of a program, and what its derivative needs.

    Attributes:
        program: the program, its arrays NumPy's.
        z: its unknowns.
        e: its expansion.
        mu: its barrier parameter, 0 where it is polished.
        factor: what its derivative is multiplied by.
        settings: how it was found.
    """

    program: Program
    z: Unknowns
    e: Expansion
    mu: Any
    factor: Any
    settings: Any


@dataclass(frozen=True, eq=False)
class Origin:
    """What a solution on the host is being differentiated in, as JAX follows it; to JAX this is no pytree.

    Attributes:
        leaves: of problem and parameters.
        structure: of (problem, params).
        x0: the given x_0.
    """

    leaves: list[Any]
    structure: Any
    x0: Any


def linked(solution: Solution, at: Settled, origin: Origin, by_name: Callable) -> Solution:
    """Return a solution of NumPy's with its derivative in the origin.

    Args:
        solution: the solution.
        at: the optimum that it holds.
        origin: what it is differentiated in.
        by_name: how multipliers by name move with those of the rows.
    """
    names = list(solution.multipliers)
    parts = [solution.cost, solution.xs, solution.us, solution.x0, solution.costates, solution.K, solution.k]
    parts = to_device([np.asarray(part) for part in (*parts, *solution.multipliers.values())])
    # the given x_0 counts once: no function reads that of the problem
    own = jax.tree.unflatten(origin.structure, range(len(origin.leaves)))[0].x0
    every = [*[numbers(leaf) if k == own else leaf for k, leaf in enumerate(origin.leaves)], origin.x0]

    @jax.custom_jvp
    def values(every: list[Any]) -> list[Any]:
        return parts

    def tangent(primals: tuple, tangents: tuple) -> tuple:
        (leaves,), (moves,) = primals, tangents
        if not is_concrete(leaves):
            raise ValueError(TWICE)
        leaves = [leaf if hasattr(leaf, "shape") else np.asarray(leaf) for leaf in leaves]
        moving = [k for k, move in enumerate(moves) if not isinstance(move, SymbolicZero) and move.dtype != float0]
        if not moving:
            return parts, [np.zeros_like(part) for part in parts]
        try:
            with np.errstate(all="ignore"):
                answer = Answer(at, leaves, origin.structure, moving, by_name)
        except Unsupported:
            of = functools.partial(_defined, at, leaves, origin.structure, moving, by_name)
            return parts, jax.jvp(jax.jit(of), [leaves[k] for k in moving], [moves[k] for k in moving])[1]
        return parts, apply(answer, [moves[k] for k in moving])

    values.defjvp(tangent, symbolic_zeros=True)
    cost, xs, us, x0, costates, K, k, *of_rows = values(every)
    params = jax.tree.unflatten(origin.structure, origin.leaves)[1]
    return changed(
        solution, cost=cost, xs=xs, us=us, x0=x0, costates=costates, K=K, k=k, params=params,
        multipliers=dict(zip(names, of_rows, strict=True)),
    )  # fmt: skip


def _defined(
    at: Settled, leaves: list[Any], structure: Any, moving: Sequence[int], by_name: Callable, *moved: Any
) -> list[Any]:
    """Return the parts of an optimum with the derivative in the leaves that move as JAX defines it."""
    leaves = list(leaves)
    for k, leaf in zip(moving, moved, strict=True):
        leaves[k] = leaf
    problem, params = jax.tree.unflatten(structure, leaves[:-1])
    program, z, e = to_device((at.program, at.z, at.e))
    rows = make_rows(problem, z.xs, z.us, program.tapes.shapes, program.x0_free)
    rows = replace(program.rows, bounds=rows.bounds, l1=rows.l1, l2=rows.l2)
    x0 = jnp.concatenate([leaves[-1], z.xs[0, leaves[-1].size :]])
    program = replace(program, problem=problem, params=params, rows=rows)
    best = settle(program, x0, z, e, at.mu, at.factor, at.settings.exact)
    unseen = unknown((jnp.zeros((*z.us.shape, z.xs.shape[1])), z.us), leaves)
    return [best.cost, best.xs, best.us, best.xs[0], best.costates, *unseen, *by_name(best.y).values()]


class Answer:
    """The linear map from the leaves of problem and parameters, and a given x_0, to the parts of the optimum.

    Args:
        at: the optimum.
        leaves: the leaves; behind them x_0.
        structure: of (problem, params).
        moving: which of them move, by place.
        by_name: how multipliers by name move with those of the rows.

    Raises:
        Unsupported: where no tape holds how the functions move.
    """

    def __init__(
        self, at: Settled, leaves: Sequence[Any], structure: Any, moving: Sequence[int], by_name: Callable
    ) -> None:
        self.at, self.moving, self.by_name = at, moving, by_name
        last = len(leaves) - 1
        problem, params = jax.tree.unflatten(structure, leaves[:last])
        numbered, numbered_params = jax.tree.unflatten(structure, range(last))
        self.shapes = [np.shape(leaf) for leaf in leaves]
        read = jax.tree.leaves(parts_of(numbered, numbered_params))
        self.uniform = [np.asarray(leaves[k]) for k in read]
        self.wanted = [(place, k) for place, k in enumerate(read) if k in moving]
        self.begins = np.cumsum([0, *[leaf.size for leaf in self.uniform]])
        self.e = at.e if at.settings.exact else native.curved(at.program, at.z, self.uniform, at.settings)
        self.direct = _direct(at, numbered, problem, moving)
        self.tapes: tuple[Tape, ...] = ()
        (N, nx), nu = at.e.at.gaps.shape, at.z.us.shape[1]
        if self.wanted:
            graphs = graphs_of(problem, params, nx, nu)
            self.tapes = graphs.moved(tuple([place for place, _ in self.wanted]))
            self.memory, self.begins_memory = memories_now(self.tapes, self.uniform)
            self._judge(graphs)
        spec = functools.partial(jax.ShapeDtypeStruct, dtype=np.float64)
        self.inputs = [jax.ShapeDtypeStruct(np.shape(leaves[k]), leaves[k].dtype) for k in moving]
        of_rows = [part.shape for part in by_name(np.zeros_like(at.z.y)).values()]
        shapes = (), (N + 1, nx), (N, nu), (nx,), (N + 1, nx), (N, nu, nx), (N, nu), *of_rows
        self.outputs = [spec(shape) for shape in shapes]

    def forward(self, tangents: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return how cost, states, inputs, x_0, costates, gains, offsets and multipliers by name move.

        How gains and offsets do is not known: NaN.
        """
        at = self.at
        moves = dict(zip(self.moving, tangents, strict=True))
        dx0 = np.zeros_like(at.z.xs[0])
        dx0[: self.shapes[-1][0]] = moves.get(len(self.shapes) - 1, 0.0)  # states behind those of x_0 are free
        d = respond(at.program, at.z, at.e, self.system, self._conditions(moves), dx0)
        d = jax.tree.map(lambda leaf: at.factor * leaf, d)
        unknown = [np.full(of.shape, np.nan) for of in self.outputs[5:7]]
        return [d.cost, d.xs, d.us, d.xs[0], d.costates, *unknown, *self.by_name(d.y).values()]

    def backward(self, cotangents: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        """Return the derivative of sum weight . part in the leaves that move."""
        at, rows = self.at, self.at.program.rows
        given = [np.zeros(of.shape) if w is None else w for w, of in zip(cotangents, self.outputs, strict=True)]
        cost, xs, us, x0, costates, _, _, *of_names = given
        unknown = any(w is not None for w in cotangents[5:7])
        y = self._of_rows(of_names) if any(np.any(w) for w in of_names) else np.zeros_like(at.z.y)
        first = np.concatenate([x0[None], np.zeros_like(xs[1:])])
        weights = [at.factor * w for w in (cost, xs + first, us, costates, y)]
        of, dx0 = self._respond_back(Optimum(*weights))
        made = {k: np.zeros(self.shapes[k]) for k in self.moving}
        made[len(self.shapes) - 1] = dx0[: self.shapes[-1][0]]
        for k, name, spread, (of_cost, of_c, of_push) in self.direct:
            c, push = rows.split(of.c)[name], rows.split(of.push)[name]
            made[k] += spread.back(of_cost * of.cost + of_c * c + of_push * push)
        for (_, k), slope in zip(self.wanted, self._in_functions(of), strict=True):
            made[k] += slope
        return [made[k] * (np.nan if unknown else 1.0) for k in self.moving]

    @cached_property
    def system(self) -> tuple[Any, Any, Any]:
        """1/d of the rows, the model and its factors."""
        return linear_system(self.at.program, self.at.z, self.e, self.at.mu)

    def _of_rows(self, weights: Sequence[np.ndarray]) -> np.ndarray:
        """Return the transpose of how multipliers by name follow from those of the rows.

        Each number by name is a sum over blocks, of the numbers at its place times factors, which ones make visible.
        """
        made = np.zeros_like(self.at.z.y)
        for name, shape, place in self.at.program.rows.places:
            ones = np.zeros_like(made)
            ones[place] = 1.0
            for factor, w in zip(self.by_name(ones).values(), weights, strict=True):
                if factor.any():
                    both = factor * w
                    if both.shape != shape:  # those of states have a row for x_0 before the others
                        both = both[0] if name.startswith("x0") else both[1:]
                    made[place] += both.ravel()
        return made

    def _respond_back(self, weights: Optimum) -> tuple[Conditions, np.ndarray]:
        """Return the transpose of `sensitivity.respond`: weights of the conditions, and of a given x_0."""
        program, z, e = self.at.program, self.at.z, self.at.e
        rows, free, (N, nx), nu = program.rows, np.asarray(program.x0_free), e.at.gaps.shape, e.rs.shape[1]
        q0, c = np.zeros(nx), weights.cost * z.y
        xs, us, gaps = np.zeros((N + 1, nx)), np.zeros((N, nu)), weights.cost * z.costates[1:]
        push, dx0 = np.zeros_like(c), weights.cost * np.where(free, 0.0, e.q0 + z.costates[0])
        if any(np.any(part) for part in (weights.xs, weights.us, weights.costates, weights.y)):
            weight, model, factors = self.system

            def solved(y: np.ndarray) -> tuple[Point, np.ndarray]:
                start, hx, hu = transposed(rows, e.J, y, N, nx, nu)
                b = Point(np.where(free, start, 0.0), weights.xs + hx, weights.us + hu, weights.costates)
                a = sweeps.sweep(model, factors, b)
                of_rows = along(rows, e.J, a.xs, a.us)
                for name, sign in (("x0_min", -1.0), ("x0_max", 1.0)):  # which hold what is free, not the states
                    if name in dict(rows.shapes):
                        rows.split(of_rows)[name][...] = sign * a.start
                return a, of_rows

            _, of_rows = solved(weight * weights.y)
            late = np.where(held(rows, z), weight * (weights.y - of_rows), 0.0)
            a, of_rows = solved(weight * weights.y + late)
            push, c = weights.y - of_rows, c + late
            q0, xs, us, gaps = np.where(free, -a.start, 0.0), -a.xs, -a.us, gaps - a.costates[1:]
            dx0 = dx0 + np.where(free, 0.0, a.start - a.costates[0])
        push = np.where(rows.inequality | rows.equality, push, 0.0)
        # push follows c by 1/d.
        c = c + (self.system[0] * push if push.any() else 0.0)
        return Conditions(weights.cost, q0, xs, us, gaps, c, push), dx0

    def _conditions(self, moves: dict[int, np.ndarray]) -> Conditions:
        """Return how the conditions move."""
        at, (N, nx), nu = self.at, self.at.e.at.gaps.shape, self.at.z.us.shape[1]
        rows = at.program.rows
        dcost, dc, dpush = 0.0, np.zeros_like(at.z.y), np.zeros_like(at.z.y)
        of_c, of_push = rows.split(dc), rows.split(dpush)
        for k, name, spread, (in_cost, in_c, in_push) in self.direct:
            if k in moves:
                move = spread.out(moves[k])
                dcost += np.sum(in_cost * move)
                of_c[name][...] += in_c * move
                of_push[name][...] += in_push * move
        q0, xs, us, gaps = np.zeros(nx), np.zeros((N + 1, nx)), np.zeros((N, nu)), np.zeros((N, nx))
        if self.wanted:
            dp = np.zeros(self.begins[-1])
            for place, k in self.wanted:
                if k in moves:
                    dp[self.begins[place] : self.begins[place + 1]] = np.ravel(moves[k])
            stage, end, start = [self._along_each(which, dp) for which in range(3)]
            xs[:-1], us, xs[-1], q0 = stage[:, :nx], stage[:, nx : nx + nu], end[0, :nx], start[0, :nx]
            dcost += stage[:, nx + nu].sum() + end[0, nx] + start[0, nx]
            gaps, behind = stage[:, nx + nu + 1 : 2 * nx + nu + 1], stage[:, 2 * nx + nu + 1 :]
            for names, block in ((PATH, behind), (TERMINAL, end[:, nx + 1 :])):
                present = [of_c[name] for name in names if name in of_c]
                ends = np.cumsum([c.shape[-1] for c in present])
                for c, part in zip(present, np.split(block, ends, axis=1), strict=False):
                    c[...] += part.reshape(c.shape)
        dpush += self.system[0] * dc
        return Conditions(np.asarray(dcost), q0, xs, us, gaps, dc, dpush)

    def _inputs(self, which: int) -> np.ndarray:
        """Return what the tape of a stage, the end or the start reads at the optimum, but for directions."""
        z, ys = self.at.z, self.at.program.rows.split(self.at.z.y)
        if which == 2:
            return z.xs[:1].copy()
        names = (TERMINAL, PATH)[which == 0]
        prices = [np.atleast_2d(ys[name]) for name in names if name in ys]
        if which == 1:
            return np.hstack([z.xs[-1:], *prices])
        ts = np.arange(len(z.us), dtype=float)[:, None]
        return np.hstack([z.xs[:-1], z.us, ts, z.costates[1:], *prices])

    def _run(self, which: int, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the derivatives in the wanted numbers; then addresses, and the derivatives in what lies there."""
        tape = self.tapes[which]
        packed, wide = tape.packed(self.begins_memory[which]), sum([self._leaf(wanted).size for wanted in self.wanted])
        found = _native.run_tape(packed, self.memory, directions, tape.outputs.size)
        own, picked = found[:, :wide], found[:, wide:]
        half = picked.shape[1] // 2
        return own, np.rint(picked[:, :half]).astype(int), picked[:, half:]

    def _judge(self, graphs: Graphs) -> None:
        """See once that the tapes agree with differences of the functions' values, which NumPy has judged.

        Raises:
            Unsupported: where they do not.
        """
        key = f"moved {[place for place, _ in self.wanted]}"
        if key not in graphs.judged:
            if not all(np.isfinite(self._inputs(which)).all() for which in range(3)):
                return  # no solution, and no derivative
            graphs.judged[key] = all(self._agrees(which) for which in range(3))
        if not graphs.judged[key]:
            raise Unsupported("the derivative of its optimality conditions rightly, by differences")

    def _agrees(self, which: int) -> bool:
        """Compare along a random direction, at a point nearby."""
        rng, (nx, nu) = np.random.default_rng(5), (self.at.z.xs.shape[1], self.at.z.us.shape[1])
        nz, behind = ((nx + nu, nx + nu + 1), (nx, nx), (nx, nx))[which]
        point = self._inputs(which)
        point[:, :nz] += 0.1 * rng.uniform(-1, 1, (len(point), nz)) * (1 + np.abs(point[:, :nz]))
        point[:, behind:] = rng.normal(size=(len(point), point.shape[1] - behind))
        towards = rng.normal(size=(len(point), self.tapes[which].inputs.size - point.shape[1]))
        moving = {place for place, _ in self.wanted}
        dps = [
            rng.choice([-1.0, 1.0], leaf.shape) * np.maximum(np.abs(leaf), 1e-3) * (place in moving)
            for place, leaf in enumerate(self.uniform)
        ]
        claimed = self._move(which, np.hstack([point, towards]), np.concatenate([dp.ravel() for dp in dps]))
        tape = self.at.program.tapes.every[2 * which]

        def lagrangian(h: float, k: float) -> tuple[np.ndarray, np.ndarray]:
            """Return it with its prices, and with those of the direction, at p + h dp and z + k dz."""
            memory, _ = memories_now((tape,), [leaf + h * dp for leaf, dp in zip(self.uniform, dps, strict=True)])
            at = point[:, :behind].copy()
            at[:, :nz] += k * towards[:, :nz]
            cost, *rest = _native.run_tape(tape.alone, memory, at, tape.outputs.size).T
            rows = np.array([*rest[len(rest) - nx :], *rest[: len(rest) - nx]] if which == 0 else rest).T
            rows = rows.reshape(len(point), -1)
            own, priced = (point[:, behind:] * rows).sum(1), (towards[:, nz + 1 :] * rows).sum(1)
            return cost + own, towards[:, nz] * cost + priced

        wrong = np.ones(len(point), bool)
        for h in (1e-3, 1e-4):
            corners = [lagrangian(i * h, j * h)[0] for i, j in ((1, 1), (1, -1), (-1, 1), (-1, -1))]
            found = (corners[0] - corners[1] - corners[2] + corners[3]) / (4 * h**2)
            found += (lagrangian(h, 0.0)[1] - lagrangian(-h, 0.0)[1]) / (2 * h)
            size = np.abs(claimed) + np.abs(found) + 1e-10 / h**2 * np.abs(corners).max(axis=0)
            wrong &= np.isfinite(found) & ~(np.abs(claimed - found) <= AGREES * (1 + size))
        return not wrong.any()

    def _leaf(self, wanted: tuple[int, int]) -> np.ndarray:
        return self.uniform[wanted[0]]

    def _in_functions(self, of: Conditions) -> list[np.ndarray]:
        """Return the derivative of sum weight . condition in the leaves that functions read."""
        if not self.wanted:
            return []
        N, rows = len(of.us), self.at.program.rows
        cs = rows.split(of.c)
        path = [cs[name] for name in PATH if name in cs]
        end = [cs[name][None] for name in TERMINAL if name in cs]
        one, many = np.full((1, 1), of.cost), np.full((N, 1), of.cost)
        along_ = (
            np.hstack([of.xs[:-1], of.us, many, of.gaps, *path]), np.hstack([of.xs[-1:], one, *end]),
            np.hstack([of.q0[None], one]),
        )  # fmt: skip
        total, flat = np.zeros(sum([self._leaf(wanted).size for wanted in self.wanted])), np.zeros(self.begins[-1])
        for which, direction in enumerate(along_):
            inputs = np.hstack([self._inputs(which), direction])
            for some in _shares(inputs, self.tapes[which].outputs.size):
                own, addresses, slopes = self._run(which, some)
                total += own.sum(axis=0)
                np.add.at(flat, addresses, slopes)
        made, begin = [], 0
        for place, _ in self.wanted:
            leaf = self.uniform[place]
            picked = flat[self.begins[place] : self.begins[place + 1]]
            made.append((total[begin : begin + leaf.size] + picked).reshape(leaf.shape))
            begin += leaf.size
        return made

    def _along_each(self, which: int, dp: np.ndarray) -> np.ndarray:
        """Return, for each stage, how all conditions of it move where the numbers that functions read move by dp."""
        inputs = self._inputs(which)
        size, columns = self.tapes[which].inputs.size - inputs.shape[1], []
        for k in range(size):
            direction = np.zeros((len(inputs), size))
            direction[:, k] = 1.0
            columns.append(self._move(which, np.hstack([inputs, direction]), dp))
        return np.stack(columns, axis=1)

    def _move(self, which: int, inputs: np.ndarray, dp: np.ndarray) -> np.ndarray:
        """Return what the results of a tape along these directions are, where what functions read moves by dp."""
        own_dp = np.concatenate([dp[self.begins[place] : self.begins[place + 1]] for place, _ in self.wanted])
        parts = []
        for some in _shares(inputs, self.tapes[which].outputs.size):
            own, addresses, slopes = self._run(which, some)
            parts.append(own @ own_dp + np.sum(slopes * dp[addresses], axis=1))
        return np.concatenate(parts)


@dataclass(frozen=True)
class Spread:
    """How a bound or a price lies over the rows that it is for: repeated, and some of the stages."""

    shape: tuple[int, ...]
    over: tuple[int, ...]
    stages: Any

    def out(self, move: np.ndarray) -> np.ndarray:
        """Return the numbers at the rows."""
        return np.broadcast_to(move, self.over)[self.stages]

    def back(self, weights: np.ndarray) -> np.ndarray:
        """Return the sums of the rows' weights."""
        full = np.zeros(self.over)
        full[self.stages] = weights
        full = full.sum(axis=tuple(range(full.ndim - len(self.shape))))
        once = tuple([axis for axis, size in enumerate(self.shape) if size == 1])
        return full.sum(axis=once, keepdims=True)


def _direct(at: Settled, numbered: Any, problem: Any, moving: Sequence[int]) -> list[tuple]:
    """Return the leaves that rows read themselves, each with name and spread, and its part of cost, c and r/d."""
    rows, (N1, nx), nu = at.program.rows, at.z.xs.shape, at.z.us.shape[1]
    made = []
    for name, bound in rows.bounds.items():
        sign = np.where(np.isfinite(bound), 1.0 if name.endswith("min") else -1.0, 0.0)
        for field in {name, name.replace("x0", "x")}:
            leaf, k = getattr(problem, field), getattr(numbered, field)
            if k not in moving or leaf is None:
                continue
            over, stages = {"x": ((N1, nx), slice(1, None)), "u": ((N1 - 1, nu), slice(None)), "x0": ((nx,), ...)}[
                name[:-4]
            ]
            share: Any = 1.0
            if name.startswith("x0"):  # the tighter of two, half of each where they are equal
                over, stages = ((N1, nx), 0) if field[:2] == "x_" else (over, stages)
                other = getattr(problem, "x0" + field[1:] if field[:2] == "x_" else "x" + field[2:])
                if other is not None:
                    other = np.broadcast_to(other, (N1, nx))[0]
                    own = np.broadcast_to(leaf, (N1, nx))[0]
                    share = np.where(own == bound, np.where(other == bound, 0.5, 1.0), 0.0)
            made.append((k, name, Spread(np.shape(leaf), over, stages), (0.0, sign * share, 0.0)))
    if rows.soft is not None:
        for name, shape in rows.shapes:
            constraint = getattr(problem, name)
            if name not in (*PATH, *TERMINAL) or not constraint.soft:
                continue
            parts = zip(("l1", "l2"), _of_prices(at), strict=True)
            for field, (in_cost, in_push) in parts:
                k = getattr(getattr(numbered, name), field)
                if k in moving:
                    spread = Spread(np.shape(getattr(constraint, field)), shape, ...)
                    made.append((k, name, spread, (rows.split(in_cost)[name], 0.0, rows.split(in_push)[name])))
    return made


def _of_prices(at: Settled) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the derivatives of cost and r/d in l1 and in l2 of each row (`primal_dual.newton_rows`)."""
    rows, z, c = at.program.rows, at.z, at.e.at.c
    gives = rows.soft & (z.e > 0) & ~((z.y == 0) & (z.s > 0))
    y, e = np.where(gives, z.y, 1.0), np.where(gives, z.e, 1.0)
    ratio = np.where(gives, z.s / y, 0.0)
    less = 1 / (1 + (rows.l2 + z.v / e) * ratio)
    missing, r = z.y + at.mu / e - rows.l1 - rows.l2 * e, c + at.mu / y
    in_l2 = less**2 * (r - e) + less * e + missing * ratio * less**2
    costs = [np.where(rows.soft, part, 0.0) for part in (z.e, 0.5 * z.e**2)]
    return [(costs[0], np.where(gives, less, 0.0)), (costs[1], np.where(gives, in_l2, 0.0))]


def _shares(inputs: np.ndarray, outputs: int) -> list[np.ndarray]:
    """Return the rows in shares, of which none makes a tape write too much at once."""
    return np.array_split(inputs, max(1, min(len(inputs), len(inputs) * outputs // AT_ONCE + 1)))
