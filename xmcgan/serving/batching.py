"""A queue with a bound, in front of one thread that does equal work of several clients at once."""

import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

MOST_IMAGES = 64  # of one batch, over all clients in it


class QueueFull(Exception):
    """Too many requests are waiting."""


class Job(NamedTuple):
    """Work of one request.

    Attributes:
        run: gets the works of all jobs of a batch, and returns a result for each.
        key: jobs with the same key that follow each other are one batch; None stays alone.
        size: images.
    """

    run: Callable[[Sequence[Any]], Sequence[Any]]
    work: Any
    key: Hashable
    size: int
    future: Future[Any]


class BatchQueue:
    """Jobs in the order in which they came.

    Args:
        limit: jobs that may wait; the one that is running does not count.
        between: called between batches, and once a minute.
    """

    def __init__(self, limit: int, between: Callable[[], object] = lambda: None) -> None:
        self._limit, self._between = limit, between
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="sampler", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        return len(self._waiting)

    def submit(
        self,
        run: Callable[[Sequence[Any]], Sequence[Any]],
        work: Any,
        key: Hashable = None,
        size: int = 1,
    ) -> Future[Any]:
        """Add a job; raises QueueFull at once if too many wait."""
        job = Job(run, work, key, size, Future())
        with self._changed:
            if self._closed or len(self._waiting) >= self._limit:
                raise QueueFull
            self._waiting.append(job)
            self._changed.notify()
        return job.future

    def close(self) -> None:
        """Finish the batch that is running, and refuse the rest."""
        with self._changed:
            self._closed = True
            while self._waiting:
                self._waiting.pop().future.cancel()
            self._changed.notify()
        self._thread.join()

    def _next_batch(self) -> list[Job]:
        with self._changed:
            if not self._waiting:
                self._changed.wait(timeout=60)
            batch: list[Job] = []
            while self._waiting and (not batch or self._joins(self._waiting[0], batch)):
                batch.append(self._waiting.popleft())
        return [job for job in batch if job.future.set_running_or_notify_cancel()]

    @staticmethod
    def _joins(job: Job, batch: list[Job]) -> bool:
        same = job.key is not None and job.key == batch[0].key
        return same and sum(each.size for each in batch) + job.size <= MOST_IMAGES

    def _work(self) -> None:
        while not self._closed:
            batch = self._next_batch()
            try:
                results = batch[0].run([job.work for job in batch]) if batch else []
                for job, result in zip(batch, results, strict=True):
                    job.future.set_result(result)
                self._between()
            except BaseException as error:  # the thread must outlive it; the routes report it
                for job in batch:
                    if not job.future.done():
                        job.future.set_exception(error)
