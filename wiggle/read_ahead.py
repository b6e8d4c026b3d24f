"""A thread that reads ahead of its consumer."""

import contextlib
import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


class ReadAhead:
    """Iterates over `items` in a thread of its own, at most `count` ahead. An error comes after the items before it."""

    def __init__(self, items: Iterable[Item], count: int):
        self.items, self.ready, self.stop = items, queue.Queue(count), threading.Event()
        self.thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Iterator[Item]:
        self.thread.start()
        return iter(self._next, None)

    def __exit__(self, *error: object) -> None:
        self.stop.set()
        self.thread.join(5)  # one that waits for the network is left behind

    def _read(self) -> None:
        try:
            for item in self.items:
                self._offer(item)
                if self.stop.is_set():
                    return
            self._offer(None)
        except BaseException as error:
            self._offer(error)

    def _offer(self, item: object) -> None:
        while not self.stop.is_set():
            with contextlib.suppress(queue.Full):
                self.ready.put(item, timeout=0.1)
                return

    def _next(self) -> Item | None:
        item = self.ready.get()
        if isinstance(item, BaseException):
            raise item
        return item
