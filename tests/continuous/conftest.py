"""What XLA compiles while a test runs."""

import jax
import pytest

_COMPILED: list[str] = []


def _listen(event: str, duration: float, **about: object) -> None:
    if event.endswith("backend_compile_duration"):
        _COMPILED.append(str(about.get("fun_name")))


jax.monitoring.register_event_duration_secs_listener(_listen)


@pytest.fixture
def compiled_by_xla():
    """Names of what was compiled; a test may empty the list."""
    return _COMPILED
