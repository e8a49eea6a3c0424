"""Work that the processes of a run do together: each does its share without waiting for the others, and what goes wrong
in one ends all."""

from collections.abc import Callable, Sequence

from asvr.base.distributed import gather, get_rank, get_world_size, is_main_process
from asvr.base.interruption import Interrupted, received


def in_all(make: Callable) -> list:
    """What ``make()`` returns in each process, by rank. All processes call it.

    An error in one is raised there, and in the others as a ``ValueError`` (a ``RuntimeError`` where it is none) that
    names the process.
    """
    if get_world_size() == 1:
        return [make()]
    value, error = None, None
    try:
        value = make()
    except Exception as caught:
        error = caught
    found = gather((value, _told(error)))
    if error is not None:
        raise error
    for rank, (_, told) in enumerate(found):
        if told is not None:
            kind, text = told
            raise kind(f"process {rank}: {text}")
    return [value for value, _ in found]


def _told(error: Exception | None) -> tuple[type, str] | None:
    """An error as every process can read it: some cannot be pickled."""
    if error is None:
        return None
    return (
        (ValueError, str(error))
        if isinstance(error, ValueError)
        else (RuntimeError, f"{type(error).__name__}: {error}")
    )


def by_main(make: Callable):
    """What ``make()`` returns in the first process, which alone calls it; errors as in `in_all`."""
    return in_all(lambda: make() if is_main_process() else None)[0]


def shared_out(parts: Sequence, work: Callable, *, done: Callable[[Sequence], None] | None = None) -> list:
    """``work(part)`` of each part, in their order, in every process. Each process works on every n-th part, of n
    processes; the parts are the same in all of them.

    done: called behind each part with that and those that the other processes work on meanwhile. Raises `Interrupted`
    in all processes where one of them has noted a signal (`asvr.base.interruption.postponed`): it finishes the part
    that it is at. Errors as in `in_all`.
    """
    rank, world = get_rank(), get_world_size()

    def own() -> tuple[dict, int | None]:
        found = {}
        for first in range(0, len(parts), world):
            if world > 1 and received() is not None:  # one process alone is told by `at_once`
                break
            if first + rank < len(parts):
                found[first + rank] = work(parts[first + rank])
            if done is not None:
                done(parts[first : first + world])
        return found, received() if world > 1 else None

    shares = in_all(own)
    for _, signal in shares:
        if signal is not None:
            raise Interrupted(signal)
    found = {number: value for share, _ in shares for number, value in share.items()}
    return [found[number] for number in range(len(parts))]
