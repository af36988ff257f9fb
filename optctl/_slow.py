"""One line that says why a call waits for XLA's compiler, while it waits."""

import logging
import sys
import threading
from pathlib import Path
from types import FrameType

WAIT = 2.0
"""Seconds after which the line is said."""
_HERE = Path(__file__).parent
_LOG = logging.getLogger("optctl")
_SAID: set[str] = set()
_SMALL = "Elementary functions, indexing, and solve, inv, det and cholesky of small matrices would fit."
_LARGE = "For large arrays XLA is the better choice, and new numbers do not compile anew."
_FITS = (
    ("large", _LARGE),
    ("instructions", _LARGE),
    ("while", "A loop with a known number of turns would fit."),
    ("random", "Random numbers drawn beforehand and given as params or data would fit."),
    ("float32", "float64 would fit."),
)


def refused(why: str) -> None:
    """Say why no tape holds a function, once, if the public call that is at work still is after some seconds."""
    if why in _SAID:
        return
    frame: FrameType | None = sys._getframe(1)
    call = frame
    while frame is not None:
        if _HERE in Path(frame.f_code.co_filename).parents:
            call = frame
        frame = frame.f_back
    waiting = threading.Timer(WAIT, _say, (why, call, threading.get_ident()))
    waiting.daemon = True
    waiting.start()


def _say(why: str, call: FrameType, thread: int) -> None:
    frame = sys._current_frames().get(thread)
    while frame is not None and frame is not call:
        frame = frame.f_back
    if frame is None or why in _SAID:
        return
    _SAID.add(why)
    fits = [text for word, text in _FITS if word in why]
    what = fits[0] if fits else _SMALL
    _LOG.warning("optctl waits for XLA's compiler, since no tape holds %s. %s", why, what)
