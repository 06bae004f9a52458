"""Large tensors on a CPU."""

import ctypes
import functools
import mmap
from collections.abc import Callable, Sequence

from torch import Tensor

_HUGE_PAGE = 2 << 20


def new_empty(like: Tensor, shape: Sequence[int]) -> Tensor:
    """``like.new_empty(shape)``, in huge pages if it is large and the system has them.

    The system gives fresh memory page by page, as it is touched; the fewer the faster (measured:
    docs/performance.md).
    """
    tensor = like.new_empty(shape)
    advise = _advise()
    if tensor.device.type == "cpu" and advise is not None:
        begin = -(-tensor.data_ptr() // _HUGE_PAGE) * _HUGE_PAGE
        size = tensor.data_ptr() + tensor.nbytes - begin
        if size >= _HUGE_PAGE:
            advise(begin, size // _HUGE_PAGE * _HUGE_PAGE, mmap.MADV_HUGEPAGE)
    return tensor


@functools.cache
def _advise() -> Callable[[int, int, int], int] | None:
    """The system's ``madvise``, where it knows of huge pages; that is on Linux."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    return function
