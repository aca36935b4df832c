"""Memory of a batch is used again, but never while somebody can see it."""

import gc

import ml_dtypes
import numpy as np

from vlaa_jax.data.rows.buffers import Buffers


def address(array):
    return array.__array_interface__["data"][0]


def test_memory_comes_back_when_the_last_view_is_gone():
    buffers = Buffers()
    first = buffers.empty((4, 8))
    place, view = address(first), first[2:].reshape(-1)[3:]
    view[:] = 7
    del first
    gc.collect()
    second = buffers.empty((4, 8))  # the view still looks at the first block
    assert address(second) != place
    second[:] = 1
    assert (view == 7).all()
    del view
    gc.collect()
    assert address(buffers.empty((4, 8))) == place


def test_shapes_and_dtypes_are_as_asked_for():
    buffers = Buffers(keep=1)
    for shape, dtype in (((2, 3), np.float32), ((0, 5), np.float32), ((4,), ml_dtypes.bfloat16)):
        array = buffers.empty(shape, dtype)
        array[...] = 1
        assert array.shape == shape and array.dtype == dtype
        assert array.flags.c_contiguous and array.flags.writeable and (array == 1).all()
