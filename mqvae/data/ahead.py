"""Prefetching."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ahead(function: Callable[[T], R], items: Iterable[T], depth: int) -> Iterator[R]:
    """`function` of each item, in order, `depth` of them done before they are asked for.

    One thread does them one after another: what it does follows from the items alone. With a depth
    of 0 there is no thread.
    """
    if not depth:
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(1, thread_name_prefix="ahead")
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
