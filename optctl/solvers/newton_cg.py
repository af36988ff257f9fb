r"""Newton's method with truncated conjugate gradients in a trust region, for any smooth problem.

    minimize over d   g'd + 1/2 d'H d,   |d| <= radius,

by conjugate gradients on Hessian-vector products; a direction of negative curvature or the edge of the region ends
them (Steihaug). The region grows where the model predicts the cost well and shrinks where it does not. Per outer
iteration the dynamics are linearized once; each product with H is one tangent and one second-order costate sweep.

References: Steihaug (1983), SIAM Journal on Numerical Analysis 20; Nocedal and Wright (2006), algorithm 7.2.
"""

from typing import Any

from optctl._arrays import namespace, while_loop
from optctl._door import compiled
from optctl._validate import keep_whole
from optctl.adjoint.hessian import require_second_derivatives
from optctl.result import Status
from optctl.solvers.iterate import Iterate, advance, start
from optctl.solvers.method import Method, method
from optctl.solvers.objective import Objective, scaled_stationarity


@method(static=("max_iterations",))
class NewtonCG(Method):
    """Trust-region Newton-CG: `oc.solve(problem, method=oc.NewtonCG(max_iterations=50))`.

    Args:
        max_iterations: limit of the outer iterations.

    Raises:
        ValueError: for a limit that is no whole number; from `solve` where dynamics lack second derivatives.

    Example:
        >>> import optctl as oc
        >>> oc.solve(oc.problems.cartpole_push(), method=oc.NewtonCG(max_iterations=3)).iterations.item()
        3
    """

    name = "newton_cg"
    summary = "trust-region Newton-CG with exact Hessian-vector products"
    on_host = True
    curved = True

    max_iterations: int = 1_000

    def __post_init__(self) -> None:
        keep_whole(self, "max_iterations", least=0)

    def check(self, objective: Objective) -> None:
        """Raise where there are no second derivatives."""
        require_second_derivatives(objective.problem)

    def run(self, objective: Objective, tolerance: Any, us: Any, xs: Any) -> Iterate:
        """Minimize from the guess."""
        z, limit = objective.pack(objective), int(self.max_iterations)
        return newton_cg(objective, z, tolerance=tolerance, max_iterations=limit)


@compiled("max_iterations")
def newton_cg(objective: Objective, z: Any, *, tolerance: Any, max_iterations: int) -> Iterate:
    """Minimize J from z by trust-region Newton-CG."""
    xp = namespace(z)
    cost, slope, size = objective.measure(z)
    first_cost = cost
    eps = xp.finfo(z.dtype).eps

    def body(carry: tuple) -> tuple:
        iterate, radius = carry
        d, predicted = steihaug(objective.hessian(iterate.z), iterate.slope, radius)
        z = iterate.z + d
        cost, slope, size = objective.measure(z, first_cost)
        mark = scaled_stationarity(z, slope, size)
        # Both falls are subject to rounding of the cost near the optimum (Conn, Gould and Toint 2000, 17.4.2).
        noise = 10 * eps * xp.abs(iterate.cost)
        ratio = (iterate.cost - cost + noise) / (predicted + noise)
        finite = xp.isfinite(cost) & xp.all(xp.isfinite(slope))
        accept = finite & (ratio > 1e-4)
        length = xp.linalg.norm(d)
        radius = xp.where(ratio > 0.75, xp.maximum(radius, 3 * length), radius)
        radius = xp.where(~finite | (ratio < 0.25), length / 4, radius)
        keep = lambda new, old: xp.where(accept, new, old)  # noqa: E731
        z, cost, slope = keep(z, iterate.z), keep(cost, iterate.cost), keep(slope, iterate.slope)
        mark = keep(mark, iterate.history.stationarity[iterate.iterations])
        tiny = radius <= eps * (1 + xp.linalg.norm(z))
        stuck = tiny | (length == 0)
        status = xp.where(
            stuck, xp.where(finite, int(Status.STALLED), int(Status.NON_FINITE)), int(Status.ITERATION_LIMIT)
        )
        iterate = advance(
            iterate, z, cost, slope, stationarity=mark, step=keep(length, 0.0), status=status, tolerance=tolerance,
        )  # fmt: skip
        return iterate, radius

    iterate = start(z, cost, slope, scaled_stationarity(z, slope, size), max_iterations, tolerance)
    radius = xp.maximum(1.0, xp.linalg.norm(z))
    go = lambda carry: carry[0].running & (carry[0].iterations < max_iterations)  # noqa: E731
    return while_loop(go, body, (iterate, radius))[0]


def steihaug(hessian: Any, g: Any, radius: Any) -> tuple[Any, Any]:
    """Return a step d within the radius and the fall of the quadratic model that it brings."""
    xp = namespace(g)
    size = xp.linalg.norm(g)
    enough = xp.minimum(0.1, xp.sqrt(size)) * size
    limit = 2 * g.size + 10

    def to_edge(d: Any, p: Any) -> Any:
        """Return tau >= 0 with |d + tau p| = radius."""
        a, b, c = p @ p, 2 * d @ p, d @ d - radius**2
        return (-b + xp.sqrt(xp.maximum(b**2 - 4 * a * c, 0.0))) / (2 * a)

    def body(carry: tuple) -> tuple:
        d, r, p, fall, i, _ = carry
        Hp = hessian(p)
        curvature = p @ Hp
        convex = curvature > 0
        alpha = xp.where(convex, r @ r / xp.where(convex, curvature, 1.0), xp.inf)
        inside = convex & (xp.linalg.norm(d + xp.where(convex, alpha, 0.0) * p) < radius)
        tau = xp.where(inside, alpha, to_edge(d, p))
        fall = fall - tau * (r @ p) - 0.5 * tau**2 * curvature
        r_next = r + tau * Hp
        p_next = -r_next + (r_next @ r_next) / (r @ r) * p
        done = ~inside | (xp.linalg.norm(r_next) <= enough)
        return d + tau * p, r_next, p_next, fall, i + 1, done

    first = (xp.zeros_like(g), g, -g, xp.zeros((), g.dtype), 0, size == 0)
    d, _, _, fall, _, _ = while_loop(lambda c: xp.logical_not(c[-1]) & (c[-2] < limit), body, first)
    return d, fall
