"""Worker processes, each of which computes with one thread."""

import concurrent.futures
import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["default_workers", "worker_pool"]


def default_workers() -> int:
    """Count processes where nobody says how many: one for each CPU, at most 4."""
    return min(4, os.cpu_count() or 1)


@contextlib.contextmanager
def worker_pool(count: int, initializer: Callable[..., None] | None = None,
                initargs: tuple[Any, ...] = ()) -> Iterator[concurrent.futures.ProcessPoolExecutor]:
    """Open a pool of processes with one BLAS thread each; an error or an interrupt ends them."""
    # Read by NumPy when a worker imports it.
    previous = os.environ.get("OPENBLAS_NUM_THREADS")
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    try:
        with concurrent.futures.ProcessPoolExecutor(
                count, mp_context=multiprocessing.get_context("spawn"), initializer=initializer,
                initargs=initargs) as pool:
            try:
                yield pool
            except BaseException:
                # What has been submitted would be computed to its end before the pool is left.
                for process in list((pool._processes or {}).values()):
                    process.terminate()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    finally:
        if previous is None:
            del os.environ["OPENBLAS_NUM_THREADS"]
        else:
            os.environ["OPENBLAS_NUM_THREADS"] = previous
