r"""Tapes judged when they are made: values, Jacobians and curvature against those that NumPy finds, without XLA.

    values      at the guess, and at random points around it
    F d, J d    against differences of the values along a random direction d a stage
    d'W d       against second differences of l + costate'f + y'(g, h), with random costates and multipliers, at the
                random points alone: a guess may rest where curvature changes within less than any h

The tapes run by a plain call of compiled code (`_native.run_tape`). Data that are being traced are replaced by random
numbers: what is judged is the tape, not the data. A tape that disagrees, or that cannot be judged, is not used.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from optctl import _native
from optctl.judge.evaluation import Evaluator
from optctl.judge.independent import (
    SLOPE,
    STENCIL,
    STEPS,
    Disagreement,
    around,
    differ,
    differ_in_value,
    differences,
    directions,
)
from optctl.problem import PATH, TERMINAL, Problem
from optctl.tape import Tape

CURVATURE = 1e-4
"""Relative difference of second derivatives that may be rounding."""
LAGRANGIAN = "the Lagrangian of a stage"
BENDS = (1e-3, 1e-2, 3e-4)
"""Sizes of h of second differences."""
FINER = (1e-7, 1e-9)
"""Sizes of h that can acquit: for states much smaller than the guess tells, the others step over whole waves."""


class _Numbers:
    """Numbers for values that are being traced, the same for the tape and its judge."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(5)
        self.drawn: dict[int, Any] = {}

    def __call__(self, value: Any) -> np.ndarray:
        if not isinstance(value, jax.core.Tracer):
            return np.asarray(value)
        if id(value) not in self.drawn:
            kind = value.dtype.kind
            if kind == "f":
                drawn: Any = self.rng.uniform(0.5, 1.5, value.shape)
            else:
                drawn = self.rng.integers(0, 2, value.shape)
            # with the value itself, so that its id stays its own
            self.drawn[id(value)] = value, np.asarray(drawn, value.dtype)
        return self.drawn[id(value)][1]


class _Point:
    """A trajectory, random multipliers, and the tapes there."""

    def __init__(
        self,
        tapes: tuple[Tape, ...],
        memories: list[np.ndarray],
        xs: np.ndarray,
        us: np.ndarray,
        seed: int,
        exact: bool,
    ) -> None:
        self.xs, self.us = xs, us
        rng = np.random.default_rng(seed)
        self.dxs, self.dus = directions(xs, us, seed)
        N, nx, nu = len(us), xs.shape[1], us.shape[1]
        stage, end = tapes[1], tapes[3]
        self.costates = rng.normal(size=(N, nx))
        widths = stage.inputs.size - nx - nu - 1 - nx, end.inputs.size - nx
        self.y, self.y_end = rng.normal(size=(N, widths[0])), rng.normal(size=widths[1])
        self.exact = exact
        ts = np.arange(N, dtype=float)[:, None]

        def run(k: int, values: np.ndarray) -> np.ndarray:
            return _native.run_tape(tapes[k].packed(), memories[k], values, tapes[k].outputs.size)

        inputs = [
            np.hstack([xs[:-1], us, ts]), np.hstack([xs[:-1], us, ts, self.costates, self.y]),
            xs[-1:], np.hstack([xs[-1:], self.y_end[None]]), xs[:1], xs[:1],
        ]  # fmt: skip
        self.plain = [run(0, inputs[0]), run(2, inputs[2]), run(4, inputs[4])]
        self.full = [run(1, inputs[1]), run(3, inputs[3]), run(5, inputs[5])]


def check_tapes(
    tapes: tuple[Tape, ...], problem: Problem, params: Any, uniform: Any, xs: Any, us: Any, exact: bool
) -> Disagreement | None:
    """Return what tapes and NumPy do not agree on, or None.

    Raises:
        Uninterpreted: where NumPy cannot evaluate the functions.
    """
    numbers = _Numbers()
    N, nx, nu = us.shape[0], xs.shape[1], us.shape[1]
    traced = any(tape.captured for tape in tapes) or any(
        isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((problem, params))
    )
    evaluate = Evaluator(problem, params, (N, nx, nu), numbers if traced else None)
    shared = jax.tree.leaves(uniform)
    parts = [(*shared, tape.constants, *tape.captured) for tape in tapes]
    memories = [np.concatenate([np.ravel(numbers(part)).astype(float) for part in several]) for several in parts]
    rng = np.random.default_rng(3)
    guess = [np.zeros(z.shape) if isinstance(z, jax.core.Tracer) else np.asarray(z, float) for z in (xs, us)]
    guess = [np.nan_to_num(z, posinf=0.0, neginf=0.0) for z in guess]

    def near(z: np.ndarray) -> np.ndarray:
        size = np.abs(z).max(axis=0, initial=0.0)
        return z + np.where(size > 0, 0.3 * size, 1.0) * rng.uniform(-1, 1, z.shape)

    points = [guess, [near(z) for z in guess], [rng.uniform(0.2, 0.8, z.shape) for z in guess]]
    for seed, (x, u) in enumerate(points):
        with np.errstate(all="ignore"):
            found = _judge(_Point(tapes, memories, x, u, seed, exact), evaluate, bends=seed > 0)
        if found is not None:
            return found
    return None


class _Moving:
    """The Lagrangians l + costate'f of the stages, of the end and of the start, by NumPy, near a point.

    Attributes:
        inputs: what tapes of the three read there: x, u, t, costate; x; x.
        moves: a direction in states, inputs, costates and parameters.
    """

    def __init__(self, problem: Problem, params: Any, xs: Any, us: Any) -> None:
        (N, nu), nx, rng = us.shape, xs.shape[1], np.random.default_rng(11)
        self.evaluate = Evaluator(problem, params, (N, nx, nu))
        self.xs = np.asarray(xs, float) + 0.1 * rng.uniform(-1, 1, xs.shape) * (1 + np.abs(xs))
        self.us = np.asarray(us, float) + 0.1 * rng.uniform(-1, 1, us.shape) * (1 + np.abs(us))
        self.costates, ts = rng.normal(size=(N, nx)), np.arange(N, dtype=float)[:, None]
        leaves, self.structure = jax.tree.flatten(params)
        self.params = [np.asarray(leaf, float) for leaf in leaves]
        dparams = [rng.choice([-1.0, 1.0], p.shape) * np.maximum(np.abs(p), 1e-3) for p in self.params]
        dxs, dus = [rng.choice([-1.0, 1.0], z.shape) * np.maximum(np.abs(z), 0.1) for z in (self.xs, self.us)]
        self.moves = dxs, dus, rng.normal(size=(N, nx)), dparams
        self.inputs = [np.hstack([self.xs[:-1], self.us, ts, self.costates]), self.xs[-1:], self.xs[:1]]

    def along_params(self) -> np.ndarray:
        """Return the direction in the parameters, flat."""
        return np.concatenate([np.ravel(move) for move in self.moves[3]] or [np.zeros(0)])

    def __call__(self, h: float, *, of_params_alone: bool) -> list[np.ndarray]:
        """Return the three at the point plus h times the direction, (N,), (1,) and (1,)."""
        dxs, dus, dcostates, dparams = self.moves
        k = 0.0 if of_params_alone else h
        given = [p + h * dp for p, dp in zip(self.params, dparams, strict=True)]
        many = np.tile(self.xs + k * dxs, (3, 1, 1)), np.tile(self.us + k * dus, (3, 1, 1))
        v = self.evaluate(*many, jax.tree.unflatten(self.structure, given))
        parts = [(v["f"][0] * (self.costates + k * dcostates)).sum(-1), np.zeros(1), np.zeros(1)]
        for which, name in enumerate(("stage_cost", "terminal_cost", "initial_cost")):
            if name in v:
                parts[which] = parts[which] + v[name][0].reshape(parts[which].shape)
        return parts

    def agrees(self, claimed: list[np.ndarray], differences: Callable, *, power: int) -> Disagreement | None:
        """Compare with differences over h^power, as good as the best of several h finds them."""
        best = [np.full(own.shape, np.inf) for own in claimed]
        for h in (1e-2, 1e-3, 1e-4, 1e-5)[: 3 if power == 2 else 4]:
            found, sizes = differences(h)
            for which, (own, other, size) in enumerate(zip(claimed, found, sizes, strict=True)):
                scale = np.abs(own) + np.abs(other) + 1e-11 * size / h**power + 1e-300
                gap = np.where(np.isfinite(other), np.abs(own - other) / scale, 0.0)
                best[which] = np.fmin(best[which], gap)
        names = ("the Lagrangian of a stage", "terminal_cost", "initial_cost")
        for which, (name, gaps) in enumerate(zip(names, best, strict=True)):
            if np.any(gaps > CURVATURE):
                at, what = int(np.argmax(gaps)), ("derivative in params", "second derivative with params")[power - 1]
                return Disagreement(name, at if which == 0 else None, what, float(claimed[which][at]), np.nan)
        return None


def _run_each(tapes: Sequence[Tape], uniform: Any, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    shared = [np.ravel(np.asarray(leaf)).astype(float) for leaf in jax.tree.leaves(uniform)]
    memories = [np.concatenate([*shared, tape.constants]) for tape in tapes]
    return [
        _native.run_tape(tape.packed(), memory, values, tape.outputs.size)
        for tape, memory, values in zip(tapes, memories, inputs, strict=True)
    ]


def check_priced(
    tapes: tuple[Tape, ...], problem: Problem, params: Any, uniform: Any, xs: Any, us: Any
) -> Disagreement | None:
    """Return where the derivatives in the parameters are not those that NumPy finds along a random direction, or None.

    Raises:
        Uninterpreted: where NumPy cannot evaluate the functions.
    """
    near = _Moving(problem, params, xs, us)

    def differences(h: float) -> tuple[list[np.ndarray], list[np.ndarray]]:
        ahead, back, far, farther = [near(k * h, of_params_alone=True) for k in (1, -1, 2, -2)]
        slopes = [(8 * (a - b) - (c - d)) / (12 * h) for a, b, c, d in zip(ahead, back, far, farther, strict=True)]
        return slopes, [np.abs(a) + np.abs(b) for a, b in zip(ahead, back, strict=True)]

    with np.errstate(all="ignore"):
        claimed = [found @ near.along_params() for found in _run_each(tapes, uniform, near.inputs)]
        return near.agrees(claimed, differences, power=1)


def check_turned(
    turned: tuple[Tape, ...], pushed: tuple[Tape, ...], problem: Problem, params: Any, uniform: Any, xs: Any, us: Any
) -> Disagreement | None:
    """Return where second derivatives with parameters are not those that NumPy finds, d'Hd along a direction, or None.

    That of the next state in the parameters, `pushed`, is compared with what the second derivatives make of it.

    Raises:
        Uninterpreted: where NumPy cannot evaluate the functions.
    """
    near = _Moving(problem, params, xs, us)
    (N, nx), dp = near.costates.shape, near.along_params()
    dxs, dus, dcostates, _ = near.moves
    stage = np.hstack([dxs[:-1], dus, np.tile(dp, (N, 1)), dcostates])
    ways = [stage, np.concatenate([dxs[-1], dp])[None], np.concatenate([dxs[0], dp])[None]]

    def differences(h: float) -> tuple[list[np.ndarray], list[np.ndarray]]:
        here, ahead, back, far, farther = [near(k * h, of_params_alone=False) for k in (0, 1, -1, 2, -2)]
        bends = [
            (16 * (a + b) - (c + d) - 30 * v) / (12 * h**2)
            for v, a, b, c, d in zip(here, ahead, back, far, farther, strict=True)
        ]
        return bends, [np.abs(v) + np.abs(a) for v, a in zip(here, ahead, strict=True)]

    with np.errstate(all="ignore"):
        inputs = [np.hstack(pair) for pair in zip(near.inputs, ways, strict=True)]
        found = _run_each(turned, uniform, inputs)
        claimed = [np.sum(made * way, axis=1) for made, way in zip(found, ways, strict=True)]
        wrong = near.agrees(claimed, differences, power=2)
        if wrong is not None:
            return wrong
        still = np.hstack([np.zeros_like(dxs[:-1]), np.zeros_like(dus), np.tile(dp, (N, 1)), np.zeros_like(dcostates)])
        (through,) = _run_each(turned[:1], uniform, [np.hstack([near.inputs[0], still])])
        (own,) = _run_each(pushed, uniform, [np.hstack([near.inputs[0][:, :-nx], np.tile(dp, (N, 1))])])
        other = through[:, -nx:]
        gaps = np.abs(own - other) > CURVATURE * (np.abs(own) + np.abs(other) + 1e-300)
        return _first("f", "derivative in params", gaps, own, other)


def _judge(at: _Point, evaluate: Evaluator, *, bends: bool) -> Disagreement | None:
    def values(h: float) -> dict[str, np.ndarray]:
        return evaluate(around(at.xs, at.dxs, h), around(at.us, at.dus, h))

    v = values(STEPS[0])
    slopes = {name: [differences(value, STEPS[0])] for name, value in v.items()}
    nx = at.xs.shape[1]
    dz = np.hstack([at.dxs[:-1], at.dus])
    rows = {name: v[name].shape[-1] if name in v else 0 for name in (*PATH, *TERMINAL)}
    layout = [("stage_cost", 1), *((name, rows[name]) for name in PATH), ("f", nx)]
    ending = [("terminal_cost", 1), *((name, rows[name]) for name in TERMINAL)]
    groups = [
        (0, layout, dz, [("stage_cost", 1), ("f", nx), *((name, rows[name]) for name in PATH)]),
        (1, ending, at.dxs[-1:], ending),
        (2, [("initial_cost", 1)], at.dxs[:1], [("initial_cost", 1)]),
    ]
    for k, outputs, d, jacobians in groups:
        column = 0
        for name, width in outputs:
            for claimed in (at.plain[k], at.full[k]):
                found = _value(name, claimed[:, column : column + width], slopes)
                if found is not None:
                    return found
            column += width
        many = d.shape[1]
        for name, width in jacobians:
            if name == "f":  # the part of the states, then that of the inputs
                J = at.full[k][:, column : column + width * many]
                first = J[:, : nx * nx].reshape(len(d), nx, nx)
                J = np.concatenate([first, J[:, nx * nx :].reshape(len(d), nx, many - nx)], axis=2)
            else:
                J = at.full[k][:, column : column + width * many].reshape(len(d), width, many)
            column += width * many
            found = _jacobian(name, J, d, slopes, values)
            if found is not None:
                return found
        bends = bends and at.full[k].shape[1] > column
        found = _curvature(k, at.full[k][:, column:], d, at, values) if bends else None
        if found is not None:
            return found
    return None


def _first(name: str, what: str, wrong: np.ndarray, claimed: np.ndarray, found: np.ndarray) -> Disagreement | None:
    if not wrong.any():
        return None
    at = tuple(np.argwhere(wrong)[0])
    staged = name in ("f", "stage_cost", LAGRANGIAN, *PATH)
    return Disagreement(name, int(at[0]) if staged else None, what, float(claimed[at]), float(found[at]))


def _value(name: str, claimed: np.ndarray, slopes: dict) -> Disagreement | None:
    if name not in slopes:
        return None
    s = slopes[name][0]
    own = s.values if s.values.ndim == 2 else s.values[None]
    scale = np.abs(s.values) + np.abs(np.nan_to_num(s.slope))
    wrong = np.atleast_2d(differ_in_value(claimed if s.values.ndim == 2 else claimed[0], s, scale))
    return _first(name, "value", wrong, claimed, own)


def _jacobian(name: str, J: np.ndarray, d: np.ndarray, slopes: dict, values: Any) -> Disagreement | None:
    if name not in slopes or J.size == 0:
        return None
    with np.errstate(all="ignore"):
        claimed, scale = (J * d[:, None]).sum(-1), np.abs(J * d[:, None]).sum(-1)
    if slopes[name][0].slope.ndim == 1:
        claimed, scale = claimed[0], scale[0]
    scale = scale + np.abs(slopes[name][0].slope)
    if differ(claimed, slopes[name][:1], scale, SLOPE).any():
        for h in STEPS[len(slopes[name]) :]:
            found = values(h)
            for other, value in found.items():
                slopes[other].append(differences(value, h))
    wrong = differ(claimed, slopes[name], scale, SLOPE)
    for h in FINER if wrong.any() else ():
        wrong &= ~_acquitted(claimed, slopes[name][0].slope, differences(values(h)[name], h).slope)
    return _first(
        name, "derivative", np.atleast_2d(wrong), np.atleast_2d(claimed), np.atleast_2d(slopes[name][0].slope)
    )


def _acquitted(claimed: np.ndarray, coarse: np.ndarray, fine: np.ndarray) -> np.ndarray:
    """Return where a finer step finds what is claimed: the function has ripples that the others step over."""
    return np.abs(claimed - fine) <= 0.1 * np.abs(claimed - coarse)


def _curvature(k: int, W: np.ndarray, d: np.ndarray, at: _Point, values: Any) -> Disagreement | None:
    """Compare d'Wd with second differences of the Lagrangian."""
    many = d.shape[1]
    if k == 0:
        full = np.zeros((len(W), many, many))
        upper = np.triu_indices(many)
        full[:, upper[0], upper[1]] = W
        full = full + np.swapaxes(full, 1, 2) - full * np.eye(many)
    else:
        full = W.reshape(-1, many, many)
    with np.errstate(all="ignore"):
        claimed = np.einsum("ti,tij,tj->t", d, full, d)
        scale = np.einsum("ti,tij,tj->t", np.abs(d), np.abs(full), np.abs(d))
        wrong, bends = np.isfinite(claimed), []
        for h in BENDS:
            v = _lagrangian(k, at, values(h))
            near, far = (v[1] + v[2] - 2 * v[0]) / h**2, (v[3] + v[4] - 2 * v[0]) / (4 * h**2)
            bend = (4 * near - far) / 3
            kink = np.abs((v[1] - v[2]) / (2 * h) - (v[3] - v[4]) / (4 * h)) / h  # of the slope, in the odd part
            noise = 3 * (np.abs(near - far) + kink) + 1e-13 * (np.abs(v[0]) + np.abs(v[1])) / h**2
            wrong &= np.abs(claimed - bend) > CURVATURE * (scale + np.abs(bend)) + noise
            bends.append(bend)
            if not wrong.any():
                return None
        least = np.min([np.abs(claimed - b) for b in bends], axis=0)
        for b in bends[1:]:
            wrong &= np.abs(b - bends[0]) <= 0.2 * least
        for h in FINER if wrong.any() else ():
            v = _lagrangian(k, at, values(h))
            wrong &= ~_acquitted(claimed, bends[0], (v[1] + v[2] - 2 * v[0]) / h**2)
    name = (LAGRANGIAN, "the Lagrangian of the end", "initial_cost")[k]
    return _first(name, "second derivative", wrong, claimed, bends[0])


def _lagrangian(k: int, at: _Point, v: dict[str, np.ndarray]) -> np.ndarray:
    """Return l + costate'f + y'(g, h) along the stencil, (5, N), or that of the end or the start, (5, 1)."""
    if k == 2:
        return v["initial_cost"] if "initial_cost" in v else np.zeros((len(STENCIL), 1))
    names: tuple[str, ...]
    names, y = (PATH, at.y) if k == 0 else (TERMINAL, at.y_end)
    total = (v["f"] * at.costates).sum(-1) if k == 0 else np.zeros(len(STENCIL))
    if not at.exact:
        names, total = (), 0.0 * total
    cost = "stage_cost" if k == 0 else "terminal_cost"
    if cost in v:
        total = total + v[cost][..., 0]
    column = 0
    for name in names:
        if name in v:
            width = v[name].shape[-1]
            total = total + (v[name] * y[..., column : column + width]).sum(-1)
            column += width
    return total if k == 0 else total[:, None]
