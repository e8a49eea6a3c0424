"""Signals that ask a run to end. It ends soon, with its own exit code; the same command resumes it.

Outside of training, the first signal raises `Interrupted` at once. That is safe, since all files on the disk survive a
kill. During training the signal is only recorded, and `asvr.engine.hooks.SignalHook` ends the run after the step. A
second signal ends the process at once if it comes more than ``TOGETHER`` seconds later; launchers and terminals send
several signals together.
"""

import os
import signal
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: not done, try again
TOGETHER = 1.0
PATIENCE = 20.0  # seconds from a signal until `waiting` gives up

_state = SimpleNamespace(received=None, at=0.0, postponed=False, waits=False)


class Interrupted(SystemExit):
    """A signal ended the run. It is a ``SystemExit``, so that no code on the way handles it as an error."""

    def __init__(self, received: signal.Signals):
        super().__init__(EXIT_CODE)
        self.received = received

    def __reduce__(self):  # to send it to another process
        return Interrupted, (self.received,)

    def __str__(self) -> str:
        return f"{self.received.name}: the run was stopped; the same command resumes it (exit code {EXIT_CODE})"


def received() -> signal.Signals | None:
    """The signal that asked this process to end, or None."""
    return _state.received


@contextmanager
def interruptible():
    """Inside the block, signals end the run as this module says. It works in Python's main thread only.

    Blocks may be nested. It is also a decorator, like the two below.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _state.received = None
    before = {number: signal.signal(number, _receive) for number in SIGNALS}
    before[signal.SIGALRM] = signal.signal(signal.SIGALRM, _lose_patience)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def postponed():
    """Inside the block, a signal is only recorded. It is raised at the end if nobody has handled it."""
    with _mode(True):
        yield
    _raise_received()


@contextmanager
def at_once():
    """Inside a `postponed` block: signals raise again, and a recorded one is raised now."""
    with _mode(False):
        _raise_received()
        yield


@contextmanager
def waiting():
    """Inside a `postponed` block: a signal is raised if this block still runs `PATIENCE` seconds after it.

    So a run that waits for a stuck worker ends."""
    _state.waits = True
    try:
        yield
    finally:
        _state.waits = False
        if _state.received is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)


def _lose_patience(number: int, frame) -> None:
    if _state.waits and _state.received is not None:
        _state.waits = False
        _raise_received()


def obey_parent_alone(*_) -> None:
    """Let a worker process (``worker_init_fn``) ignore signals that do not come from its parent.

    A signal to the group of processes is for the parent, which needs the worker until it ends it. Call it before the
    worker has threads."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    threading.Thread(target=_wait_for, args=(os.getppid(),), daemon=True).start()


def _wait_for(sender: int) -> None:
    while signal.sigwaitinfo(SIGNALS).si_pid != sender:
        pass
    os._exit(0)  # for other exit codes, torch raises an error at any line of the parent


@contextmanager
def _mode(value: bool):
    before, _state.postponed = _state.postponed, value
    try:
        yield
    finally:
        _state.postponed = before


def _raise_received() -> None:
    if _state.received is not None:
        raise Interrupted(_state.received)


def _receive(number: int, frame) -> None:
    own = signal.Signals(number)
    now = time.monotonic()
    if _state.received is not None:
        if now - _state.at > TOGETHER:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        return
    _state.received, _state.at = own, now
    what = "the run ends after this step" if _state.postponed else "the run ends"
    os.write(2, f"\n{own.name}: {what}; a second signal ends it at once\n".encode())  # print could need a lock
    if not _state.postponed:
        _raise_received()
    if _state.waits:
        signal.setitimer(signal.ITIMER_REAL, PATIENCE)
