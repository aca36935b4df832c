"""Bytes that cross the memory, read from compiled text."""

import jax
import jax.numpy as jnp
import pytest

from vlaa_jax.plan.traffic import traffic

TEXT = """
HloModule jit_f, entry_computation_layout={()->f32[]}

%slice_of (stack: bf16[36,64,32], i: s32[]) -> bf16[64,32] {
  %stack = bf16[36,64,32]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %one = bf16[1,64,32]{2,1,0} dynamic-slice(%stack, %i, %zero, %zero), dynamic_slice_sizes={1,64,32}
  ROOT %out = bf16[64,32]{1,0} bitcast(%one)
}

%in_place (all: f32[36,8], new: f32[1,8], j: s32[]) -> f32[36,8] {
  %all = f32[36,8]{1,0} parameter(0)
  %new = f32[1,8]{1,0} parameter(1)
  %j = s32[] parameter(2)
  %none = s32[] constant(0)
  ROOT %put = f32[36,8]{1,0} dynamic-update-slice(%all, %new, %j, %none)
}

%branch_a (x: f32[8,64]) -> f32[8,64] {
  %x.a = f32[8,64]{1,0} parameter(0)
  ROOT %copy.a = f32[8,64]{1,0} copy(%x.a)
}

%branch_b (x: f32[8,64]) -> f32[8,64] {
  ROOT %x.b = f32[8,64]{1,0} parameter(0)
}

%body (arg: (s32[], f32[8,64], bf16[36,64,32], f32[36,8])) -> (s32[], f32[8,64]) {
  %arg = (s32[], f32[8,64]{1,0}, bf16[36,64,32]{2,1,0}, f32[36,8]{1,0}) parameter(0)
  %n = s32[] get-tuple-element(%arg), index=0
  %more = s32[] constant(1)
  %next = s32[] add(%n, %more)
  %x = f32[8,64]{1,0} get-tuple-element(%arg), index=1
  %w = bf16[36,64,32]{2,1,0} get-tuple-element(%arg), index=2
  %h = f32[36,8]{1,0} get-tuple-element(%arg), index=3
  %kernel = bf16[64,32]{1,0:T(8,128)(2,1)} fusion(%w, %n), kind=kLoop, calls=%slice_of
  %fast = bf16[64,32]{1,0:T(8,128)(2,1)S(1)} copy(%kernel)
  %row = f32[1,8]{1,0} slice(%x), slice={[0:1], [0:8]}
  %kept = f32[36,8]{1,0} fusion(%h, %row, %n), kind=kLoop, calls=%in_place
  %y = f32[8,32]{1,0} dot(%x, %fast), metadata={op_name="jit(f)/layer/dot_general"}
  %z = f32[8,64]{1,0} conditional(%p, %x, %x), branch_computations={%branch_a, %branch_b}
  ROOT %out = (s32[], f32[8,64]{1,0}) tuple(%next, %z)
}

%condition (arg: (s32[], f32[8,64])) -> pred[] {
  %arg = (s32[], f32[8,64]) parameter(0)
  %limit = s32[] constant(36)
  %i = s32[] get-tuple-element(%arg), index=0
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (p: f32[8,64]) -> f32[8,64] {
  %p = f32[8,64]{1,0} parameter(0)
  %w = (s32[], f32[8,64]) while(%t), condition=%condition, body=%body
  ROOT %r = f32[8,64]{1,0} get-tuple-element(%w), index=1
}
"""


def test_slices_updates_and_fast_memory_count_as_they_cross():
    found = {(one.kind, one.shape.partition("{")[0]): one for one in traffic(TEXT)}
    kernel, x = 64 * 32 * 2, 8 * 64 * 4
    slice_, update = found["fusion", "bf16[64,32]"], found["fusion", "f32[36,8]"]
    # One of 36 slices is read, and written; the counter too.
    assert slice_.bytes == 36 * (2 * kernel + 4)
    # Of an array that is updated in place, the update alone is written; it and the place are read.
    assert update.bytes == 36 * (8 * 4 + 4 + 8 * 4)
    product = found["dot", "f32[8,32]"]
    assert product.bytes == 36 * (x + 8 * 32 * 4)  # the kernel lies in the faster memory
    assert product.source.endswith("layer/dot_general")
    assert found["copy", "bf16[64,32]"].bytes == 36 * kernel  # read once
    assert found["copy", "f32[8,64]"].bytes == 36 * 2 * x  # the dearer branch


def test_a_loop_that_does_not_say_has_the_given_turns():
    text = TEXT.replace(", direction=LT", ", direction=LT\n  ROOT %a = pred[] and(%less, %x)")
    text = text.replace("ROOT %less", "%less")
    once, often = (sum(one.bytes for one in traffic(text, dynamic)) for dynamic in (1, 36))
    assert often == 36 * once > 0


@pytest.mark.parametrize("layers", [2, 5])
def test_a_real_program_reads_its_weights_once_a_layer(layers):
    width, rows = 256, 64

    def run(stack, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, stack)[0]

    shapes = [(layers, width, width), (rows, width)]
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    text = jax.jit(run).lower(*shapes).compile().as_text()
    total = sum(one.bytes for one in traffic(text))
    weights, activations = layers * width * width * 4, layers * rows * width * 4
    assert weights + 2 * activations <= total <= 4 * weights + 12 * activations
