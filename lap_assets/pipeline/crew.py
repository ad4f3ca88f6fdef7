"""Calls handed to an executor, so many at once, and what became of each: the hands of the engine.

What is called, and what an answer means, is the engine's; which executor there is, `compute.py`'s. Here: the order, how
many at once, and what to do when a worker is lost.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from typing import Any

from lap_assets.pipeline.compute import BROKEN, describe_loss, discard_executor


@dataclass(frozen=True)
class Call:
    """A function and its arguments, under a key by which the answer is told."""

    key: Any
    function: Callable
    arguments: tuple
    alone: bool = False  # it was lost once: made again while nothing else is, so that it takes no other along


@dataclass(frozen=True)
class Answer:
    """What a call returned, or why it did not."""

    key: Any
    value: Any = None
    error: Exception | None = None
    lost: str = ""  # with its worker; one line


class Crew:
    """Calls in order on an executor; a call that was lost with its worker is made once more, alone, at the end.

    Parameters
    ----------
    hire : callable
        Gives the executor; asked again after one was lost.
    at_once : int or None
        Calls handed over at the same time; None: all of them.
    """

    def __init__(self, hire: Callable[[], Executor], at_once: int | None) -> None:
        self._hire, self._at_once = hire, at_once
        self._waiting: deque[Call] = deque()
        self._lost: deque[Call] = deque()
        self._running: dict[Future, tuple[Call, Executor]] = {}
        self._ended: SimpleQueue[Future] = SimpleQueue()

    def add(self, key: Any, function: Callable, *arguments: Any) -> None:
        """Have one more call made."""
        self._waiting.append(Call(key, function, arguments))
        self._hand_over()

    def collect(self, wait: bool) -> Iterator[Answer]:
        """Answers that are there, in the order of their ends; with `wait` until there are no calls left.

        Raises
        ------
        LapError
            No executor is to be had any more; calls that were handed over may be running still.
        """
        while True:
            self._hand_over()
            if not self._running and not (self._lost and wait):
                return
            try:
                future = self._ended.get(block=wait)
            except Empty:
                return
            answer = self._read(future)
            if answer is not None:
                yield answer

    def dismiss(self) -> None:
        """Take back what has not begun; for a caller that wants no more answers."""
        self._waiting.clear()
        self._lost.clear()
        for future in list(self._running):
            future.cancel()

    def _hand_over(self) -> None:
        while self._waiting and (self._at_once is None or len(self._running) < self._at_once):
            self._submit(self._waiting.popleft())
        if self._lost and not self._running and not self._waiting:
            self._submit(self._lost.popleft())

    def _submit(self, call: Call) -> None:
        executor = self._hire()
        try:
            future = executor.submit(call.function, *call.arguments)
        except BROKEN:  # it lost a worker while it had nothing to do
            discard_executor(executor)
            executor = self._hire()
            future = executor.submit(call.function, *call.arguments)
        self._running[future] = (call, executor)
        future.add_done_callback(self._ended.put)

    def _read(self, future: Future) -> Answer | None:
        """The answer of a future that ended; None where its call is made once more."""
        call, executor = self._running.pop(future)
        try:
            return Answer(call.key, future.result())
        except Exception as error:  # whatever the worker or the way to it raised: the engine decides what it means
            if isinstance(error, BROKEN):
                discard_executor(executor)
            lost = describe_loss(error)
            if lost and not call.alone:  # it may only have waited on the worker that another call killed
                self._lost.append(replace(call, alone=True))
                return None
            return Answer(call.key, error=error, lost=lost)
