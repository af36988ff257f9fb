"""Figures carry labels, units and the data; the command line lists, runs and refuses."""

import numpy as np
import pytest
from PIL import Image

import optctl as oc
from optctl import cli, demos
from tests import zoo


def test_trajectory_draws_steps_bounds_labels_and_seconds():
    problem = oc.problems.cartpole_swing_up()
    g = oc.gradient(problem, np.zeros((100, 1)))
    sol = type("Result", (), {"xs": g.xs, "us": np.arange(100.0)[:, None]})
    states, inputs = oc.plot.trajectory(sol, problem)
    assert [line.get_label() for line in states.get_lines()] == list(problem.dynamics.labels.states)
    assert inputs.get_xlabel() == "time [s]"
    line, lower, upper = inputs.get_lines()
    assert line.get_drawstyle() == "steps-post"
    np.testing.assert_array_equal(line.get_ydata(), [*range(100), 99])
    np.testing.assert_allclose(line.get_xdata()[-1], 2.0)
    assert set(lower.get_ydata()) == {-20.0}
    assert set(upper.get_ydata()) == {20.0}


def test_trajectory_without_labels_and_on_given_axes():
    sol = oc.solve(zoo.lq_problem())
    axes = oc.plot.trajectory(sol)
    assert axes[1].get_xlabel() == "stage t"
    again = oc.plot.trajectory(sol, ax=axes)
    assert again[0] is axes[0]
    assert len(axes[0].get_lines()) == 6


def test_labels_of_own_models_and_overlays():
    labels = oc.Labels(("level [m]",), ("inflow [m^3/s]",))
    tank = oc.discretize(lambda x, u: u - x, 0.5, "zoh", nx=1, nu=1, labels=labels)
    problem = oc.Problem(tank, lambda x, u: x @ x + u @ u, horizon=4, x0=[1.0])
    axes = oc.plot.trajectory(oc.solve(problem), problem)
    oc.plot.trajectory(oc.solve(problem), problem, label="again", ax=axes)
    assert [line.get_label() for line in axes[0].get_lines()] == ["level [m]", "level [m], again"]
    assert axes[1].get_xlabel() == "time [s]"
    np.testing.assert_allclose(axes[0].get_lines()[0].get_xdata()[-1], 2.0)
    with pytest.raises(ValueError, match="`labels` names 1 states; expected 2"):
        oc.Dynamics(lambda x, u: x, 2, 1, labels=labels)


def test_figures_without_inputs_and_of_layers():
    network, x0, _, weights = zoo.kinds()["layers"]
    g = oc.gradient(oc.Problem(network, terminal_cost=lambda x: x @ x, params=weights), None, x0=x0)
    bars = oc.plot.costates(g).patches
    np.testing.assert_allclose(bars[0].get_height(), np.linalg.norm(g.costates[0]))
    autonomous = oc.Problem(oc.Dynamics(lambda x, u: 0.5 * x, 1, 0), lambda x, u: x @ x, horizon=3, x0=[1.0])
    moved = type("Result", (), {"xs": oc.gradient(autonomous, None).xs, "us": np.zeros((3, 0))})
    assert len(oc.plot.trajectory(moved, autonomous)) == 1


def test_costates_growth_and_convergence():
    sol = oc.solve(zoo.pendulum_problem())
    ax = oc.plot.costates(sol)
    np.testing.assert_array_equal(ax.get_lines()[0].get_ydata(), sol.costates[:, 0])
    assert "dJ/dx" in ax.get_ylabel()
    growth = oc.costate_growth(zoo.kinds()["function"][0], sol.xs, sol.us, zoo.PARAMS)
    ax = oc.plot.costate_growth(growth)
    assert ax.get_yscale() == "log"
    huge = oc.CostateGrowth(log10_norms=np.linspace(400, 0, 5), spectral_radius=1e80, rate=1e80)
    assert "log10" in oc.plot.costate_growth(huge).get_ylabel()
    ax = oc.plot.convergence({"newton": sol, "again": sol}, best=float(sol.cost) - 1.0)
    assert ax.get_yscale() == "log"
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["newton", "again"]
    assert (ax.get_lines()[0].get_ydata() >= 1.0).all()


def test_smoothing_band_is_two_sigma():
    ys, means = np.array([1.0, np.nan, 2.0]), np.array([[1.0], [1.5], [2.0]])
    ax = oc.plot.smoothing(ys, means, np.full((3, 1, 1), 0.25), labels=("year", "flow [m^3]"))
    vertices = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert vertices.min() == 0.0
    assert vertices.max() == 3.0
    assert ax.get_xlabel() == "year"


def test_phase_portrait_shows_the_policy():
    policy = lambda x, t, K: K @ x
    ax = oc.plot.phase_portrait(
        policy, np.array([[-1.0, -2.0]]), oc.discretize(oc.models.Pendulum(), 0.05), span=(1.0, 2.0),
        trajectories=np.zeros((1, 3, 2)),
    )  # fmt: skip
    assert ax.get_xlabel() == "angle [rad]"
    mesh = ax.collections[0].get_array()
    np.testing.assert_allclose([mesh.min(), mesh.max()], [-5.0, 5.0])


def test_fields_share_a_color_scale_and_move(tmp_path):
    positions, times = np.linspace(0.0, 1.0, 5), np.array([0.0, 0.5, 1.0])
    fields = {"low": np.arange(15.0).reshape(3, 5), "high": 10 + np.arange(15.0).reshape(3, 5)}
    labels = ("place [m]", "time [s]", "heat [K]")
    low, high = oc.plot.field(fields, positions, times, labels=labels)
    assert [ax.get_title() for ax in (low, high)] == ["low", "high"]
    assert (low.get_xlabel(), low.get_ylabel(), low.figure.axes[-1].get_ylabel()) == labels
    for ax, values in ((low, fields["low"]), (high, fields["high"])):
        np.testing.assert_array_equal(ax.collections[0].get_array().ravel(), values.ravel())
        assert ax.collections[0].get_clim() == (0.0, 24.0)
    film = oc.plot.animation(
        fields, positions, times, labels=labels, limits=(0, 20), every=2, ax=low.figure.add_subplot()
    )
    film.save(tmp_path / "film.gif", "pillow", fps=10)
    with Image.open(tmp_path / "film.gif") as pictures:
        assert pictures.n_frames == 2
    ax = low.figure.axes[-1]
    np.testing.assert_array_equal(ax.get_lines()[1].get_ydata(), fields["high"][2])
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_ylim()) == ("place [m]", "heat [K]", (-1.0, 21.0))
    assert ax.get_title(loc="left") == "time [s]: 1"
    with pytest.raises(ValueError, match=r"`fields\['low'\]` has shape \(3, 5\); expected \(3, 4\)"):
        oc.plot.field(fields, positions[1:], times)


def test_cli_lists_runs_and_refuses(tmp_path, capsys):
    assert cli.main(["list"]) == 0
    listed = capsys.readouterr().out
    for name in (*demos.DEMOS, "newton_cg", "CartPole"):
        assert name in listed
    assert cli.main(["demo", "lqr", "--out", str(tmp_path)]) == 0
    table = capsys.readouterr().out
    assert "exact cost" in table
    assert "cvxpy (oracle)" in table
    assert {"lqr_bounded.png", "lqr_costates.png"} == {p.name for p in tmp_path.iterdir()}
    assert cli.main(["demo", "nothing"]) == 2
    assert "no demo named nothing; expected: nile" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main([])


def test_demo_rows_have_small_gaps(tmp_path):
    for row in demos.run(["nile"], tmp_path):
        assert abs(row.gap) < 1e-6, row
