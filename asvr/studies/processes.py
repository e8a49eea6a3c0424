"""Work in processes of their own. A process that is killed ends alone, and the others go on."""

import multiprocessing
import signal
import threading
from collections.abc import Callable, Hashable
from multiprocessing.connection import Connection, wait

from asvr.base.interruption import Interrupted

OUT_OF_MEMORY = "the system does this when the memory is full: use fewer --jobs or a smaller data.micro_batch"


class Processes:
    """Processes that each do one piece of work. Leaving the ``with`` block waits for all of them.

    SIGTERM is passed on to all of them, else they would go on unseen. (Ctrl-C reaches them by itself.)"""

    def __init__(self):
        self._context = multiprocessing.get_context("spawn")
        self._before = None  # the handler of SIGTERM outside of the block
        self._asked: signal.Signals | None = None  # the signal that asked to end
        self._running: dict[Hashable, tuple[multiprocessing.Process, Connection]] = {}

    def __len__(self) -> int:
        return len(self._running)

    def __enter__(self) -> "Processes":
        if threading.current_thread() is threading.main_thread():  # no other thread may set a handler
            self._before = signal.signal(signal.SIGTERM, self._pass_on)
        return self

    def __exit__(self, *_) -> None:
        for process, _ in self._running.values():
            process.join()
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _pass_on(self, number: int, _frame) -> None:
        self._asked = signal.Signals(number)
        for process, _ in self._running.values():
            process.terminate()
        if not self._running:
            raise Interrupted(self._asked)

    def start(self, key: Hashable, work: Callable[..., str | None], *args) -> None:
        """Start ``work(*args)``, a function of a module, which returns its problem in one line, or None.

        key: names it in `ended`."""
        if self._asked is not None:
            raise Interrupted(self._asked)
        receiver, sender = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_work, args=(sender, work, args))
        process.start()
        sender.close()  # so that the end of the process also ends the connection
        self._running[key] = process, receiver

    def ended(self, timeout: float | None = None) -> list[tuple[Hashable, str | None]]:
        """Wait until a process ends, or for ``timeout`` seconds. Returns the keys of those that ended, with their
        problems. Raises `Interrupted` if a signal has asked this process or one of them to end."""
        ready = wait([own for process, c in self._running.values() for own in (process.sentinel, c)], timeout)
        if self._asked is not None:
            raise Interrupted(self._asked)
        found = []
        for key, (process, receiver) in list(self._running.items()):
            if process.sentinel in ready or receiver in ready:
                found.append((key, _outcome(process, receiver)))
                del self._running[key]
        return found


def _work(sender: Connection, work: Callable, args: tuple) -> None:
    try:
        outcome = work(*args)
    except Interrupted as stop:
        outcome = stop
    sender.send(outcome)


def _outcome(process: multiprocessing.Process, receiver: Connection) -> str | None:
    try:
        outcome = receiver.recv() if receiver.poll() else ""
    except EOFError:  # it died without a word
        outcome = ""
    process.join()
    receiver.close()
    if isinstance(outcome, Interrupted):
        raise outcome
    return how_it_died(process.exitcode) if outcome == "" else outcome


def how_it_died(code: int) -> str:
    """The end of a process, in words. code: its exit code; negative for a signal."""
    if code >= 0:
        return f"its process ended with exit code {code}"
    names = {number.value: number.name for number in signal.Signals}
    killed = f"its process was killed by {names.get(-code, f'signal {-code}')}"
    return f"{killed} ({OUT_OF_MEMORY})" if -code == signal.SIGKILL else killed
