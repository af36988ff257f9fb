"""What is integrated: an ODE, the input signal that drives it, and the events that interrupt it."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from optctl import _door
from optctl._arrays import namespace, to_device
from optctl._record import record
from optctl._validate import as_float, check_choice, is_concrete, keep_whole
from optctl.continuous.pieces import Pieces, coefficients, pull
from optctl.dynamics.stage import StageFunction, own_arguments, stage_function

KINDS = ("hold", "linear", "spline")
STATE_TIME = ("z", "t", "params")
STATE_INPUT_TIME = ("z", "u", "t", "params")


MOST_EVENTS = 1_000_000


@record()
class ODE:
    """dz/dt = f.

    Args:
        f: `f(z, t, params)` or, with an input signal, `f(z, u, t, params)`; trailing arguments may be left out, and
            where all carry these names, any of them. A first argument `u` without an input signal is the state. Returns
            dz/dt in the shape of z; t in seconds, f smooth in t: jumps in time belong into a `Signal`, an `Event` or
            `jump_ts`. A function is traced once per function object, with the numbers it captured: define it once,
            and hand over as params what changes.

    Raises:
        ValueError: if f takes other arguments.

    Example:
        >>> import optctl as oc
        >>> decay = oc.ODE(lambda z, t, rate: -rate * z)
        >>> print(oc.integrate(decay, [1.0], [0.0, 1.0], 0.5).zs[-1].round(6))
        [0.606531]
    """

    f: Any

    def __post_init__(self) -> None:
        if isinstance(self.f, ODE):
            object.__setattr__(self, "f", self.f.f)
            return
        own = own_arguments(self.f)[0] if callable(self.f) else None
        names = own if own is None or set(own) <= set(STATE_INPUT_TIME) else own[1:]  # the first name is the user's
        driven = own is not None and names is not None and (len(own) > 3 or "u" in names)
        object.__setattr__(
            self, "f", stage_function(self.f, "f", STATE_INPUT_TIME if driven else STATE_TIME, least=1, vector=True)
        )

    @property
    def takes_input(self) -> bool:
        """True if f takes an input u."""
        return self.f.arguments == STATE_INPUT_TIME

    def without_input(self) -> "ODE":
        """Return the ODE as it is where no signal drives it: f(u, t, params) is then f(z, t, params)."""
        if not self.takes_input or self.f.takes("z"):
            return self
        f = self.f
        names = ["z" if f.arguments[k] == "u" else f.arguments[k] for k in f.picks]
        picks = tuple(STATE_TIME.index(name) for name in names)
        return ODE(StageFunction(f.call, picks, f.keywords, STATE_TIME, f.name))

    def __call__(self, z: Any, u: Any, t: Any, params: Any) -> Any:
        """Return dz/dt, whatever arguments f takes; so an ODE can be handed to `discretize`."""
        return self.f(z, u, t, params) if self.takes_input else self.f(z, t, params)


@record(static=("kind",))
class Signal:
    """An input u(t) through given values; its knots are ends of steps.

    Args:
        ts: (K,) increasing times in seconds. The first and the last piece go on beyond them.
        values: "hold": (K, nu) or (K-1, nu), values[k] holds from ts[k] to ts[k+1], the last one onwards; "linear" and
            "spline": (K, nu), the values at ts.
        kind: "hold", "linear", or "spline", the natural cubic spline.

    Raises:
        ValueError: for times that do not increase, wrong shapes, an unknown kind.

    Example:
        >>> import optctl as oc
        >>> ramp = oc.Signal([0.0, 1.0, 3.0], [[0.0], [1.0], [5.0]], kind="linear")
        >>> print(ramp(2.0))
        [3.]

    References:
        de Boor (1978), A Practical Guide to Splines, chapter IV.
    """

    ts: Any
    values: Any
    kind: str = "hold"

    def __post_init__(self) -> None:
        check_choice(self.kind, "kind", KINDS)
        ts = increasing(self.ts, "ts")
        values = as_float(self.values, "values")
        rows = (ts.shape[0], ts.shape[0] - 1) if self.kind == "hold" else (ts.shape[0],)
        if values.ndim != 2 or values.shape[0] not in rows:
            expected = " or ".join(f"({n}, nu)" for n in rows)
            raise ValueError(f"`values` has shape {values.shape}; expected {expected} for {ts.shape[0]} times.")
        for field, array in _door.hold({"ts": ts, "values": values}).items():
            object.__setattr__(self, field, array)

    def __call__(self, t: Any) -> Any:
        """Return u(t), shape (nu,); at a jump the value after it."""
        signal = self if is_concrete(t) else to_device(self)
        xp = namespace(signal.ts)
        k = xp.searchsorted(signal.ts, t, side="right") - 1
        return signal.pieces()(xp.clip(k, 0, self.many - 1), t)

    @property
    def many(self) -> int:
        """Number of pieces."""
        return self.values.shape[0] if self.kind == "hold" else self.ts.shape[0] - 1

    def pieces(self) -> Pieces:
        """Return the polynomials between the knots."""
        return Pieces(self.ts[: self.many], coefficients(self.kind, self.ts, self.values))

    def pull_pieces(self, gstarts: np.ndarray, gcoefficients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the slopes in ts and values from those in the pieces, on the host."""
        gts, gvalues = pull(self.kind, self.ts, self.values, gcoefficients)
        gts[: self.many] += gstarts
        return gts, gvalues


@record(static=("direction", "most"))
class Event:
    """Something that happens when a function of the state crosses zero: the end, or a reset.

    The state is looked at four times in each step, and where `when` turns around between two looks. What oscillates
    faster is not seen; give `dt`, the longest step, to look more often. A start on the surface is no event: the state
    leaves it. Of several events the first one counts; those at one time take place in the order of their list.

    Args:
        when: `when(z, t, params)`, a scalar; the event is its zero, located to rounding. Trailing arguments may be left
            out, as in the resets.
        reset: `reset(z, t, params)` returns the state to go on with.
        direction: -1: only where `when` falls through zero, 1: only where it rises, 0: both, in the order of `ts`.
        most: the largest number of resets.
        reset_params: `reset_params(z, t, params)` returns the parameters to go on with, from the state before the
            event; until the next reset f, events and running cost see these. Without any reset the integration ends.

    Raises:
        ValueError: if these are not functions, or for another direction.

    Example:
        >>> import optctl as oc
        >>> ball = oc.ODE(lambda z, t, g: [z[1], -g])
        >>> bounce = oc.Event(lambda z: z[0], reset=lambda z: [0.0 * z[0], -0.8 * z[1]], direction=-1)
        >>> fall = oc.integrate(ball, [10.0, 0.0], [0.0, 2.0], 9.81, event=bounce)
        >>> print(fall.event_times.round(6), fall.zs[-1, 0].round(6))
        [1.427843] 4.805708
    """

    when: Any
    reset: Any = None
    direction: int = 0
    most: int = 64
    reset_params: Any = None

    def __post_init__(self) -> None:
        for name in ("when", "reset", "reset_params"):
            function = getattr(self, name)
            if function is not None or name == "when":
                object.__setattr__(
                    self, name, stage_function(function, name, STATE_TIME, least=1, vector=name == "reset")
                )
        keep_whole(self, "most", "events")
        if self.most > MOST_EVENTS:
            raise ValueError(
                f"`most` is {self.most}; expected at most {MOST_EVENTS}: there is room for all their times."
            )
        check_choice(self.direction, "direction", (-1, 0, 1))

    def value(self, z: Any, t: Any, params: Any) -> Any:
        """Return `when`, a scalar."""
        return jnp.asarray(self.when(z, t, params))

    @property
    def ends(self) -> bool:
        """True if the integration ends here."""
        return self.reset is None and self.reset_params is None

    def after(self, z: Any, t: Any, params: Any) -> Any:
        """Return the state after the reset."""
        return z if self.reset is None else self.reset(z, t, params)

    def params_after(self, z: Any, t: Any, params: Any) -> Any:
        """Return the parameters after the reset, z the state before it."""
        return params if self.reset_params is None else self.reset_params(z, t, params)


def increasing(ts: Any, name: str, least: int = 2, falling: bool = False) -> Any:
    """Return times as a vector, or raise ValueError where they do not increase (nor, if that is allowed, fall)."""
    ts = as_float(ts, name)
    if ts.ndim != 1 or ts.shape[0] < least:
        many = "a vector of at least two times in seconds" if least == 2 else "a vector of times in seconds"
        raise ValueError(f"`{name}` has shape {ts.shape}; expected {many}.")
    if is_concrete(ts):
        times = np.asarray(ts)  # on the host, also inside jit
        steps = np.diff(times)
        down = falling and times[-1] < times[0]
        wrong = steps >= 0 if down else steps <= 0
        if wrong.any():
            i = int(np.argmax(wrong))
            here, there = float(times[i]), float(times[i + 1])
            what = "fall throughout" if down else "increase"
            raise ValueError(f"`{name}` does not {what}: {name}[{i}] = {here:.6g}, {name}[{i + 1}] = {there:.6g}.")
    return ts
