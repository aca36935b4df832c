"""Large arrays whose memory is used again once nobody looks at them.

A batch of patches is hundreds of megabytes. Fresh memory of that size comes from the kernel page by
page, at a cost comparable to normalising the pixels that go into it.
"""

from collections import deque
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


class Buffers:
    """Gives out arrays like ``numpy.empty``; safe to use from several threads.

    Every array and view made from one keeps its memory, so a consumer that holds on to a batch
    (a test, a device transfer that aliases it) never sees it change.
    """

    def __init__(self, keep: int = 2) -> None:
        """Keep at most ``keep`` blocks that nobody uses."""
        self._free: deque[NDArray[np.uint8]] = deque(maxlen=keep)

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """An array whose content is arbitrary."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        try:
            memory = self._free.popleft()
        except IndexError:
            memory = np.empty(0, np.uint8)
        if memory.nbytes != size:  # of another shape: let it go
            memory = np.empty(size, np.uint8)
        return np.asarray(_Lease(memory, self._free)).view(dtype).reshape(shape)


class _Lease:
    """Stands between memory and the arrays that look at it; gives it back when the last is gone.

    numpy keeps the object behind ``__array_interface__`` alive through every view, which it does
    not do for an array that does not own its memory.
    """

    def __init__(self, memory: NDArray[np.uint8], free: deque[NDArray[np.uint8]]) -> None:
        self.__array_interface__ = memory.__array_interface__
        self._memory, self._free = memory, free

    def __del__(self) -> None:
        self._free.append(self._memory)
