"""threads_on_one_core_each: a pool beside which torch and OpenCV start no threads of their own."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import threads_in_use

from face_gender.threads import map_in_order, threads_on_one_core_each


@pytest.mark.usefixtures("two_and_three_threads")
@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt, GeneratorExit])
def test_torch_and_opencv_have_their_threads_again(error: type[BaseException] | None) -> None:
    found = []
    try:
        with threads_on_one_core_each(2) as pool:
            found = list(pool.map(lambda _: threads_in_use(), range(8)))
            if error:
                raise error
    except BaseException as raised:
        assert type(raised) is error
    assert set(found) == {(1, 1)}
    assert threads_in_use() == (2, 3)
    later = []  # what a new thread starts from
    thread = threading.Thread(target=lambda: later.append(threads_in_use()))
    thread.start()
    thread.join()
    assert later == [(2, 3)]


@pytest.mark.usefixtures("two_and_three_threads")
def test_pools_that_overlap_leave_the_threads_as_they_were_before_both() -> None:
    first, second = threads_on_one_core_each(1), threads_on_one_core_each(1)
    first.__enter__()
    with second as pool:
        first.__exit__(None, None, None)
        assert pool.submit(threads_in_use).result() == (1, 1)
    assert threads_in_use() == (2, 3)


class Work:
    """Work that goes on when it is told to; ``done`` has the numbers of what came to its end."""

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.done: list[int] = []

    def __call__(self, number: int) -> None:
        self.begun.set()
        self.go_on.wait(60)
        self.done.append(number)


def test_what_has_not_begun_is_dropped_and_what_runs_is_not_waited_for() -> None:
    work = Work()
    with pytest.raises(KeyboardInterrupt), threads_on_one_core_each(1, leave_running=True) as pool:
        futures = [pool.submit(work, number) for number in range(3)]
        work.begun.wait(60)
        raise KeyboardInterrupt
    assert work.done == []
    work.go_on.set()
    futures[0].result(60)
    assert work.done == [0]
    assert [future.cancelled() for future in futures] == [False, True, True]


def test_what_runs_is_waited_for() -> None:
    work = Work()
    with pytest.raises(KeyboardInterrupt), threads_on_one_core_each(1) as pool:
        for number in range(3):
            pool.submit(work, number)
        work.begun.wait(60)
        work.go_on.set()
        raise KeyboardInterrupt
    assert 0 in work.done


def test_after_an_interruption_no_item_is_begun() -> None:
    begun, go = [], threading.Event()

    def wait(item: int) -> int:
        begun.append(item)
        if item >= 40:
            go.wait(30)
        return item

    with ThreadPoolExecutor(2) as pool:
        results = map_in_order(pool, wait, range(1000))
        assert next(results) == 0
        results.close()  # type: ignore[attr-defined]
        go.set()
    assert len(begun) < 100


def test_what_waits_for_a_thread_is_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """A future for each of a million pictures would take 2 GB."""
    monkeypatch.setattr("face_gender.threads.cpu_count", lambda: 2)
    with ThreadPoolExecutor(2) as pool:
        submitted, submit = [], pool.submit
        monkeypatch.setattr(pool, "submit", lambda *of: submitted.append(of) or submit(*of))
        assert list(map_in_order(pool, str, range(1000))) == list(map(str, range(1000)))
        assert len(submitted) < 100
        assert list(map_in_order(pool, str, [])) == []
