"""Signals that ask a run to end: it ends soon, with a code of its own, and the same command goes on.

Outside of training the first one raises `Interrupted` where the run stands: all that lies on the disk can bear that, as
it bears a kill. While a stage trains it is only noted, and `asvr.engine.hooks.SignalHook` ends the run behind the step.
A second one ends the process at once, if it comes later than ``TOGETHER`` seconds: launchers and terminals send several
for one.
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
PATIENCE = 20.0  # seconds that a signal is noted alone while this process waits for what may never come

_state = SimpleNamespace(received=None, at=0.0, postponed=False, waits=False)


class Interrupted(SystemExit):
    """A signal ended the run. A ``SystemExit``, since nothing on the way may take it for a failure of its own."""

    def __init__(self, received: signal.Signals):
        super().__init__(EXIT_CODE)
        self.received = received

    def __reduce__(self):  # by which it comes out of another process
        return Interrupted, (self.received,)

    def __str__(self) -> str:
        return f"{self.received.name}: the run was stopped; the same command goes on (exit code {EXIT_CODE})"


def received() -> signal.Signals | None:
    """The signal that asks this process to end, if one has come."""
    return _state.received


@contextmanager
def interruptible():
    """While it lasts, signals end the run as this module says. Only Python's main thread can have that; may be nested.

    It is a decorator too, like the two below.
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
    """While it lasts, a signal is only noted; one that nobody has seen to by its end is raised there."""
    with _mode(True):
        yield
    _raise_received()


@contextmanager
def at_once():
    """Within `postponed`: signals raise again, the one that was noted too."""
    with _mode(False):
        _raise_received()
        yield


@contextmanager
def waiting():
    """Within `postponed`: a signal is raised if the block still lasts `PATIENCE` seconds behind it. So a run ends that
    waits for a worker which is stuck."""
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
    """For a process that works for this one (``worker_init_fn``): a signal to the whole group of processes is its
    parent's to answer, who needs it meanwhile, and ends it as ever. To be called before it has threads."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    threading.Thread(target=_wait_for, args=(os.getppid(),), daemon=True).start()


def _wait_for(sender: int) -> None:
    while signal.sigwaitinfo(SIGNALS).si_pid != sender:
        pass
    os._exit(0)  # torch raises an error about a worker with another code, wherever its parent is then


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
    what = "the run ends behind this step" if _state.postponed else "the run ends"
    os.write(2, f"\n{own.name}: {what}; a second one ends it at once\n".encode())  # a print may be under way: no lock
    if not _state.postponed:
        _raise_received()
    if _state.waits:
        signal.setitimer(signal.ITIMER_REAL, PATIENCE)
