"""One thread of torch for a while."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside it torch computes on one thread: sums have one order, so that the same model gives the same bits twice,
    and on small matrices threads cost far more than they bring.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
