"""Search a super-network with several workers: processes of this machine, or a cluster of Dask.

    python examples/distributed_search.py --workers 2
    python examples/distributed_search.py --workers 2 --dask

It searches what `examples/distributed_training.py` left in ``runs/distributed``. Only sub-networks and numbers travel:
each worker loads the super-network once, by `Remote`, which names a function of a module that workers can import. Who
evaluates does not change what is found: the front is that of ``--workers 0``, to the last bit.

``--dask`` starts a cluster on this machine; give `Client` the address of yours instead.

Needs scikit-learn, and for Dask `pip install 'bnas[demo,dask]'`. About half a minute of one core.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from distributed_training import evaluator

import bnas
from bnas.search import Remote, Workers


@contextmanager
def executor(workers: int, dask: bool) -> Iterator[Any]:
    """What evaluates: nothing for this process itself, or an executor, or a function that makes one."""
    if not workers:
        yield None
    elif not dask:  # a function: a new pool is made if a worker dies
        yield partial(ProcessPoolExecutor, workers, get_context("spawn"))
    else:
        from distributed import Client

        with Client(n_workers=workers, threads_per_worker=1, dashboard_address=None) as client:
            pool: Executor = client.get_executor()
            yield pool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/distributed"), help="holds the super-network")
    parser.add_argument("--workers", type=int, default=2, help="0: this process evaluates")
    parser.add_argument("--dask", action="store_true", help="workers of a Dask cluster")
    parser.add_argument("--evals", type=int, default=100, help="evaluations, 4 at least")
    settings = parser.parse_args()
    folder = str(settings.folder.resolve())
    supernet = evaluator(folder).supernet
    objectives = [bnas.Objective("accuracy", "max"), bnas.Objective("macs", "min")]
    start = time.perf_counter()
    with executor(settings.workers, settings.dask) as pool:
        workers = None if pool is None else Workers(pool, chunk=4)
        how = bnas.SearchSettings(num_evals=settings.evals, workers=workers)
        searcher = bnas.Searcher(supernet, Remote(evaluator, folder), objectives, how)
        result = searcher.run()

    print("M MACs  accuracy")
    for one in result.pareto():
        print(f"{one.values['macs'] / 1e6:6.2f}  {one.values['accuracy']:8.2%}")
    worked = sum(one.seconds for one in result.evaluations)
    print(f"{worked:.1f} s of evaluations in {time.perf_counter() - start:.1f} s, the start of the workers included")


if __name__ == "__main__":
    main()
