"""Work that processes share out: each does its part, and what goes wrong in one ends all."""

import json
import os
import signal
from pathlib import Path

import pytest
from torch import distributed, multiprocessing

from asvr.base.interruption import Interrupted, interruptible, postponed
from asvr.base.shares import by_main, in_all, shared_out

RANKS = 3


def rank(number: int, folder: Path) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=number, world_size=RANKS)
    found = dict(
        uneven=_shared(number, list(range(10, 17))),
        few=_shared(number, ["a", "b"]),
        none=_shared(number, []),
        main=by_main(lambda: f"of {number}"),
        wrong=_error(lambda: in_all(lambda: _broken(number, ValueError("the file none.png is missing")))),
        bug=_error(lambda: in_all(lambda: _broken(number, Unpicklable("x")))),
        stopped=_stopped(number),
    )
    (folder / f"{number}.json").write_text(json.dumps(found))
    distributed.destroy_process_group()


class Unpicklable(Exception):
    def __reduce__(self):
        raise TypeError("this error stays where it is")


def _shared(number: int, parts: list) -> list:
    own, told = [], []

    def work(part):
        own.append(part)
        return [part, number]

    return [shared_out(parts, work, done=lambda together: told.extend(together)), own, told]


def _broken(number: int, error: Exception) -> int:
    if number == 1:
        raise error
    return number


def _error(call) -> str:
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def _stopped(number: int) -> list:
    """The signal comes to one process, while it works on its first part."""
    own = []

    def work(part: int) -> int:
        own.append(part)
        if number == 2:
            os.kill(os.getpid(), signal.SIGUSR1)
        return part

    try:
        with interruptible(), postponed():
            try:
                shared_out(list(range(9)), work)
            except Interrupted as stop:
                return [stop.received.name, stop.code, own]
    except Interrupted:  # what `postponed` raises at its end where a signal was noted
        return [signal.SIGUSR1.name, Interrupted(signal.SIGUSR1).code, own]


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.spawn(rank, (folder,), RANKS)
    return [json.loads((folder / f"{number}.json").read_text()) for number in range(RANKS)]


def test_every_process_gets_all_that_others_made_in_order(found):
    for number, own in enumerate(found):
        for parts, (result, worked, told) in {tuple(range(10, 17)): own["uneven"], ("a", "b"): own["few"]}.items():
            assert result == [[part, j % RANKS] for j, part in enumerate(parts)]
            assert worked == list(parts[number::RANKS]) and told == list(parts)
        assert own["none"] == [[], [], []] and own["main"] == "of 0"


def test_an_error_in_one_is_told_by_all_and_names_the_process(found):
    message = "the file none.png is missing"
    other = f"ValueError: process 1: {message}"
    assert [own["wrong"] for own in found] == [other, f"ValueError: {message}", other]
    assert [own["bug"] for own in found] == [
        "RuntimeError: process 1: Unpicklable: x",
        "Unpicklable: x",
        "RuntimeError: process 1: Unpicklable: x",
    ]


def test_a_signal_to_one_ends_all(found):
    assert [own["stopped"] for own in found] == [
        ["SIGUSR1", 75, [0, 3, 6]],
        ["SIGUSR1", 75, [1, 4, 7]],
        ["SIGUSR1", 75, [2]],
    ]


def test_one_process_does_everything_itself():
    told = []
    assert shared_out([1, 2, 3], lambda part: 2 * part, done=told.extend) == [2, 4, 6] and told == [1, 2, 3]
    with pytest.raises(KeyError, match="as it was raised"):
        by_main(lambda: {}["as it was raised"])
