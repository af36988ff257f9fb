"""The line that says why a call waits for XLA's compiler."""

import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest

import optctl as oc
from optctl import _slow


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(_slow, "WAIT", 0.05)
    monkeypatch.setattr(_slow, "_SAID", set())


def wait_for_timers():
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):
            thread.join()


def test_a_call_that_waits_names_primitive_line_and_what_would_fit(caplog):
    def step(x, u):
        w = jnp.linalg.eigvalsh(jnp.array([[2.0, x[0]], [x[0], 3.0]]))
        return x + 0.1 * w[0] * u

    problem = oc.Problem(oc.Dynamics(step, 1, 1), lambda x, u: u @ u, horizon=3, x0=[1.0])
    oc.gradient(problem, np.ones((3, 1)))
    wait_for_timers()
    (said,) = caplog.messages
    assert "the primitive `eigh` (line" in said
    assert "eigvalsh" in said
    assert "would fit" in said


def of_the_package(text):
    """Return a function that counts as one of the package."""
    namespace = {"refused": _slow.refused, "sleep": time.sleep}
    exec(compile(text, _slow.__file__, "exec"), namespace)
    return namespace["f"]


def test_a_call_that_is_over_says_nothing(caplog):
    of_the_package("def f():\n    refused('a thing')")()
    wait_for_timers()
    assert not caplog.messages


def test_it_is_said_once(caplog):
    f = of_the_package("def f():\n    refused('a while')\n    sleep(0.2)")
    f()
    f()
    (said,) = caplog.messages
    assert "a known number of turns" in said
