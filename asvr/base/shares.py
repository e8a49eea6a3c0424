"""Work shared by the processes of a run. Each does its share without waiting; an error in one ends all."""

from collections.abc import Callable, Sequence

from asvr.base.distributed import gather, get_rank, get_world_size, is_main_process
from asvr.base.interruption import Interrupted, received


def in_all(make: Callable) -> list:
    """Run ``make()`` in each process and return all results by rank. All processes must call it.

    An error is raised in its process. The others raise a ``ValueError``, or a ``RuntimeError`` for other kinds of
    errors, that names the process.
    """
    if get_world_size() == 1:
        return [make()]
    value, error = None, None
    try:
        value = make()
    except Exception as caught:
        error = caught
    found = gather((value, _portable(error)))
    if error is not None:
        raise error
    for rank, (_, theirs) in enumerate(found):
        if theirs is not None:
            kind, text = theirs
            raise kind(f"process {rank}: {text}")
    return [value for value, _ in found]


def _portable(error: Exception | None) -> tuple[type, str] | None:
    """Kind and text of an error, for other processes: some errors cannot be pickled."""
    if error is None:
        return None
    return (
        (ValueError, str(error))
        if isinstance(error, ValueError)
        else (RuntimeError, f"{type(error).__name__}: {error}")
    )


def by_main(make: Callable):
    """Run ``make()`` in the first process only, and return its result in all. Errors as in `in_all`."""
    return in_all(lambda: make() if is_main_process() else None)[0]


def shared_out(parts: Sequence, work: Callable, *, done: Callable[[Sequence], None] | None = None) -> list:
    """Share ``work(part)`` among processes, and return the results of all parts in order in every process.

    Each of n processes works on every n-th part. The parts must be the same in all of them.

    done: called after each part, with that part and those of the other processes. Raises `Interrupted` in all processes
    if one has recorded a signal (`asvr.base.interruption.postponed`); it first finishes its current part. Errors as in
    `in_all`.
    """
    rank, world = get_rank(), get_world_size()

    def own() -> tuple[dict, int | None]:
        found = {}
        for first in range(0, len(parts), world):
            if world > 1 and received() is not None:  # a single process gets it from `at_once`
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
