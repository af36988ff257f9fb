"""Figures for eyes: functions that take data and `ax=None`, draw with labels and units, and return the axes.

They need matplotlib, which the extra `optctl[plot]` installs. Nothing is shown and no global style is touched; save
with `ax.figure.savefig(...)`, or `axes[0].figure.savefig(...)` where several axes are returned. `animation` returns the
animation, which saves itself.
"""

from typing import Any

import numpy as np

from optctl._validate import check_shape

__all__ = [
    "animation",
    "convergence",
    "costate_growth",
    "costates",
    "field",
    "phase_portrait",
    "smoothing",
    "trajectory",
]

SPACE_TIME = ("position", "time [s]", "value")


def trajectory(sol: Any, problem: Any = None, *, dt: float | None = None, label: str = "", ax: Any = None) -> Any:
    """Draw states as lines and inputs as steps, with bounds where the problem has them.

    Args:
        sol: a `Solution`, `LQSolution` or `Gradient`: anything with xs (N+1, nx) and us (N, nu).
        problem: the problem, for labels and bounds.
        dt: step length [s] for the time axis; None counts stages, or takes the dt of the dynamics.
        label: name of this solution, to tell several on the same axes apart.
        ax: the axes, for states and inputs, as an earlier call returned them; None makes them.

    Returns:
        The axes: two, or one where there are no inputs.
    """
    _needs(sol, "sol", "xs")
    if sol.xs is None:
        raise ValueError("`sol` holds no states, since its problem bounds the memory; roll it out first.")
    xs, us = np.asarray(sol.xs), np.asarray(sol.us)
    with_inputs = us.ndim == 2 and us.shape[1] > 0
    axes = _axes(1 + with_inputs, ax)
    dt = _step(problem) if dt is None else dt
    time = np.arange(len(xs)) * (1 if dt is None else dt)
    for i, name in enumerate(_names(problem, "states", xs.shape[1])):
        (line,) = axes[0].plot(time, xs[:, i], label=_with(name, label))
        _draw_bounds(axes[0], problem, "x", i, time, xs.shape, line.get_color())
    axes[0].set_ylabel("state" if _labels(problem) else "state x")
    axes[0].legend(fontsize="small")
    if with_inputs:
        for i, name in enumerate(_names(problem, "inputs", us.shape[1])):
            (line,) = axes[1].step(time, np.append(us[:, i], us[-1, i]), where="post", label=_with(name, label))
            _draw_bounds(axes[1], problem, "u", i, time, us.shape, line.get_color())
        names = _names(problem, "inputs", us.shape[1])
        axes[1].set_ylabel(names[0] if len(names) == 1 else "input" if _labels(problem) else "input u")
        if len(names) > 1 or label:
            axes[1].legend(fontsize="small")
    axes[-1].set_xlabel(_time_label(dt))
    return axes


def costates(sol: Any, problem: Any = None, *, dt: float | None = None, ax: Any = None) -> Any:
    """Draw the costates dJ/dx_t over time; for `Layers`, the size of each layer's costate.

    Args:
        sol: anything with costates (N+1, nx), or a list of them.
        problem: the problem, for labels.
        dt: step length [s]; None counts stages, or takes the dt of the dynamics.
        ax: one axes; None makes it.

    Returns:
        The axes.
    """
    _needs(sol, "sol", "costates")
    (ax,) = _axes(1, ax)
    if isinstance(sol.costates, list | tuple):
        sizes = [np.linalg.norm(np.asarray(value)) for value in sol.costates]
        ax.bar(np.arange(len(sizes)), sizes)
        ax.set_xlabel("layer input (the last is the output)")
        ax.set_ylabel("size of the costate |dJ/dx| [cost per unit]")
        return ax
    values = np.asarray(sol.costates)
    dt = _step(problem) if dt is None else dt
    for i, name in enumerate(_names(problem, "states", values.shape[1])):
        ax.plot(np.arange(len(values)) * (1 if dt is None else dt), values[:, i], label=f"of {name}")
    ax.axhline(0.0, color="0.7", linewidth=0.8, zorder=0)
    ax.set_xlabel(_time_label(dt))
    ax.set_ylabel("costate dJ/dx [cost per unit of state]")
    ax.legend(fontsize="small")
    return ax


def costate_growth(growth: Any, *, dt: float | None = None, ax: Any = None) -> Any:
    """Draw the size of the end state's sensitivity to each earlier state, on a log axis.

    Args:
        growth: a `CostateGrowth`.
        dt: step length [s]; None counts stages.
        ax: one axes; None makes it.

    Returns:
        The axes.
    """
    (ax,) = _axes(1, ax)
    _needs(growth, "growth", "log10_norms")
    exponents = np.asarray(growth.log10_norms)
    time = np.arange(len(exponents)) * (1 if dt is None else dt)
    if np.abs(exponents).max() < 300:
        ax.semilogy(time, 10.0**exponents)
        ax.set_ylabel("sensitivity |dx_N/dx_t| [1]")
    else:
        ax.plot(time, exponents)
        ax.set_ylabel("log10 |dx_N/dx_t| [1]")
    ax.set_xlabel(_time_label(dt))
    ax.set_title(f"spectral radius {float(growth.spectral_radius):.4g} a step", fontsize="medium")
    return ax


def convergence(solutions: Any, *, best: float | None = None, ax: Any = None) -> Any:
    """Draw the cost of each iteration on a log axis, as the gap to the best cost.

    Args:
        solutions: a `Solution`, or a dictionary of them by name.
        best: the optimal cost; None takes the lowest cost seen.
        ax: one axes; None makes it.

    Returns:
        The axes.
    """
    (ax,) = _axes(1, ax)
    if not isinstance(solutions, dict):
        _needs(solutions, "solutions", "history")
    named = solutions if isinstance(solutions, dict) else {solutions.method: solutions}
    lowest = min(float(np.nanmin(np.asarray(s.history.cost))) for s in named.values()) if best is None else best
    for name, solution in named.items():
        gap = np.asarray(solution.history.cost) - lowest
        keep = gap > 1e-14 * max(1.0, abs(lowest))
        ax.semilogy(np.flatnonzero(keep), gap[keep], label=name, marker="." if keep.sum() < 40 else None)
    ax.set_xlabel("iteration")
    ax.set_ylabel("cost above the optimum [units of J]")
    ax.legend(fontsize="small")
    return ax


def smoothing(
    ys: Any,
    means: Any,
    covs: Any = None,
    *,
    times: Any = None,
    labels: Any = None,
    label: str = "smoothed mean",
    ax: Any = None,
) -> Any:
    """Draw measurements as dots and the smoothed mean with its 2-sigma band.

    Args:
        ys: (N+1,) or (N+1, 1) measurements of the first state, NaN where missing.
        means: (N+1, nx) smoothed states; the first component is drawn.
        covs: (N+1, nx, nx) covariances; None leaves the band out.
        times: (N+1,) of the horizontal axis; None counts.
        labels: (x label, y label), with units.
        label: name of the mean's line.
        ax: one axes, to draw another mean into it (the measurements are not drawn again); None makes it.

    Returns:
        The axes.
    """
    fresh = ax is None
    (ax,) = _axes(1, ax)
    ys, mean = np.asarray(ys).reshape(len(np.asarray(ys)), -1)[:, 0], np.asarray(means).reshape(len(ys), -1)[:, 0]
    times = np.arange(len(ys)) if times is None else np.asarray(times)
    if fresh:
        ax.plot(times, ys, ".", color="0.4", label="measured")
    (line,) = ax.plot(times, mean, label=label)
    if covs is not None:
        band = 2 * np.sqrt(np.asarray(covs)[:, 0, 0])
        ax.fill_between(times, mean - band, mean + band, color=line.get_color(), alpha=0.2, label="2 sigma")
    if fresh or labels is not None:
        names = ("stage t", "first state [units of the data]") if labels is None else labels
        ax.set_xlabel(names[0])
        ax.set_ylabel(names[1])
    ax.legend(fontsize="small")
    return ax


def phase_portrait(
    policy: Any,
    params: Any,
    dynamics: Any,
    *,
    states: tuple[int, int] = (0, 1),
    around: Any = None,
    span: tuple[float, float] = (1.0, 1.0),
    trajectories: Any = None,
    ax: Any = None,
) -> Any:
    """Draw a policy's input as color over a plane of states, with arrows of the closed loop and trajectories.

    Args:
        policy: `policy(x, t, params)`, evaluated at t = 0; the first input is drawn.
        params: its parameters.
        dynamics: the plant, whose step gives the arrows.
        states: indices of the two states of the plane.
        around: (nx,) the state at the middle; the other components stay at its values. None is zero.
        span: half-widths of the plane.
        trajectories: (n, N+1, nx) closed-loop trajectories to draw.
        ax: one axes; None makes it.

    Returns:
        The axes.
    """
    import jax
    import jax.numpy as jnp

    from optctl.dynamics.closed_loop import ClosedLoop

    (ax,) = _axes(1, ax)
    i, j = states
    center = np.zeros(dynamics.nx) if around is None else np.asarray(around, dtype=float)
    loop = ClosedLoop(dynamics, policy)
    grids = [np.linspace(center[k] - s, center[k] + s, 31) for k, s in zip(states, span, strict=True)]
    first, second = np.meshgrid(*grids)
    points = np.tile(center, (first.size, 1))
    points[:, i], points[:, j] = first.ravel(), second.ravel()
    u = np.asarray(jax.vmap(lambda x: loop.input(x, jnp.asarray(0), params)[0])(jnp.asarray(points)))
    moved = np.asarray(jax.vmap(lambda x: loop.step(x, jnp.zeros(0), jnp.asarray(0), params))(jnp.asarray(points)))
    labels = dynamics.labels
    image = ax.pcolormesh(first, second, u.reshape(first.shape), cmap="coolwarm", shading="gouraud")
    input_name = labels.inputs[0] if labels else "input u1"
    ax.figure.colorbar(image, ax=ax, label=input_name)
    d = (moved - points).reshape(*first.shape, -1)
    ax.streamplot(grids[0], grids[1], d[..., i], d[..., j], color="0.3", linewidth=0.6, density=0.8, arrowsize=0.7)
    for path in [] if trajectories is None else np.asarray(trajectories):
        ax.plot(path[:, i], path[:, j], color="black", linewidth=0.9)
    names = labels.states if labels else [f"x{k + 1}" for k in range(dynamics.nx)]
    ax.set_xlim(grids[0][0], grids[0][-1])
    ax.set_ylim(grids[1][0], grids[1][-1])
    ax.set_xlabel(names[i])
    ax.set_ylabel(names[j])
    return ax


def field(
    fields: Any,
    positions: Any,
    times: Any,
    *,
    labels: tuple[str, str, str] = SPACE_TIME,
    limits: tuple[float, float] | None = None,
    cmap: str = "RdBu_r",
    ax: Any = None,
) -> Any:
    """Draw values in space and time as colors, such as the solution of a partial differential equation.

    Args:
        fields: (K, n) values, or a dictionary of them by title; they share one color scale.
        positions: (n,) where.
        times: (K,) when.
        labels: (position, time, value), with units.
        limits: the lowest and the highest value of the color scale; None takes those of the values.
        cmap: matplotlib's name of the colors.
        ax: one axes for each field; None makes them, side by side.

    Returns:
        The axes, one for each field.

    Example:
        >>> import numpy as np
        >>> import optctl as oc
        >>> rod = oc.pde.Heat(15, dt=0.01, control="none")
        >>> ys, times = rod.rollout(np.sin(np.pi * rod.grid), np.zeros((20, 0))), 0.01 * np.arange(21)
        >>> (ax,) = oc.plot.field(ys, rod.grid, times, labels=("position [m]", "time [s]", "temperature [K]"))
        >>> ax.get_xlabel()
        'position [m]'
    """
    named, (lowest, highest) = _named_fields(fields, positions, times, limits)
    axes = _axes(len(named), ax, side_by_side=True)
    for ax, (title, values) in zip(axes, named.items(), strict=True):
        image = ax.pcolormesh(positions, times, values, cmap=cmap, vmin=lowest, vmax=highest, shading="gouraud")
        ax.set_xlabel(labels[0])
        ax.set_ylabel(labels[1])
        ax.set_title(title)
    axes[0].figure.colorbar(image, ax=axes, label=labels[2])
    return axes


def animation(
    fields: Any,
    positions: Any,
    times: Any,
    *,
    labels: tuple[str, str, str] = SPACE_TIME,
    limits: tuple[float, float] | None = None,
    every: int = 1,
    ax: Any = None,
) -> Any:
    """Animate values in space and time: lines over the positions, which move as time goes on.

    Args:
        fields: (K, n) values, or a dictionary of them by name.
        positions: (n,) where.
        times: (K,) when.
        labels: (position, time, value), with units.
        limits: the lowest and the highest value that the axes have room for; None takes those of the values.
        every: how many times to go on from one picture to the next.
        ax: one axes, which may hold lines that stay; None makes it.

    Returns:
        matplotlib's `FuncAnimation`; write it with its method `save`, or show it in a notebook as `to_jshtml()`.

    Example:
        >>> import numpy as np
        >>> import optctl as oc
        >>> string = oc.pde.Wave(15, dt=0.05, control="none")
        >>> start = np.concatenate([np.sin(np.pi * string.grid), np.zeros(15)])
        >>> ys, times = string.rollout(start, np.zeros((20, 0)))[:, :15], 0.05 * np.arange(21)
        >>> film = oc.plot.animation(ys, string.grid, times, every=10)
        >>> html = film.to_jshtml()  # or film.save("string.gif", "pillow", fps=10)
    """
    named, (lowest, highest) = _named_fields(fields, positions, times, limits)
    (ax,) = _axes(1, ax)
    lines = [ax.plot(positions, values[0], label=name)[0] for name, values in named.items()]
    room = 0.05 * (highest - lowest)
    ax.set_ylim(lowest - room, highest + room)
    ax.set_xlabel(labels[0])
    ax.set_ylabel(labels[2])
    if ax.get_legend_handles_labels()[0]:
        ax.legend(loc="lower left", fontsize="small")  # "best" would jump from picture to picture

    def show(k: int) -> None:
        for line, values in zip(lines, named.values(), strict=True):
            line.set_ydata(values[k])
        ax.set_title(f"{labels[1]}: {times[k]:.3g}", loc="left", fontsize="medium")

    from matplotlib.animation import FuncAnimation

    return FuncAnimation(ax.figure, show, range(0, len(times), every))


def _named_fields(fields: Any, positions: Any, times: Any, limits: Any) -> tuple[dict[str, Any], tuple[float, float]]:
    """Return fields by name, and the limits of their values."""
    named = fields if isinstance(fields, dict) else {"": fields}
    for name, values in named.items():
        check_shape(values, f"fields['{name}']" if name else "fields", (len(times), len(positions)))
    named = {name: np.asarray(values) for name, values in named.items()}
    if limits is None:
        limits = (min(values.min() for values in named.values()), max(values.max() for values in named.values()))
    return named, limits


def _needs(value: Any, name: str, field: str) -> None:
    """Raise unless a result has the field that is drawn."""
    if not hasattr(value, field):
        raise ValueError(f"`{name}` is a {type(value).__name__}; expected a result that has {field}.")


def _axes(n: int, given: Any, side_by_side: bool = False) -> Any:
    if given is not None:
        axes = list(given) if isinstance(given, list | tuple | np.ndarray) else [given]
        if len(axes) != n:
            raise ValueError(f"`ax` holds {len(axes)} axes; expected {n}.")
        return axes
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib; install it with: pip install 'optctl[plot]'") from error
    figure = Figure(figsize=(4 * n + 1, 4) if side_by_side else (7, 2.6 * n + 1), layout="constrained")
    return list(figure.subplots(*(1, n) if side_by_side else (n, 1), squeeze=False).flat)


def _labels(problem: Any) -> Any:
    return getattr(getattr(problem, "dynamics", None), "labels", None)


def _names(problem: Any, kind: str, n: int) -> Any:
    labels = _labels(problem)
    return getattr(labels, kind) if labels else [f"{'x' if kind == 'states' else 'u'}{i + 1}" for i in range(n)]


def _with(name: str, label: str) -> str:
    return f"{name}, {label}" if label else name


def _step(problem: Any) -> float | None:
    dt = getattr(getattr(problem, "dynamics", None), "dt", None)
    return float(dt) if dt is not None and np.ndim(dt) == 0 else None


def _time_label(dt: float | None) -> str:
    return "stage t" if dt is None else "time [s]"


def _draw_bounds(ax: Any, problem: Any, name: str, i: int, time: Any, shape: tuple, color: str) -> None:
    for side in ("min", "max"):
        bound = getattr(problem, f"{name}_{side}", None)
        if bound is not None:
            values = np.broadcast_to(np.asarray(bound), shape)[:, i]
            values = np.append(values, values[-1]) if name == "u" else values
            if np.isfinite(values).any():
                ax.plot(time, values, "--", color=color, linewidth=0.8)
