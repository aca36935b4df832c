"""Collectives read from compiled text: kinds, bytes, loops."""

import pytest

from vlaa_jax.plan.hlo import DYNAMIC, collectives

LOOP = """
HloModule jit_f, entry_computation_layout={()->f32[]}

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%fused (p: bf16[4,8]) -> (bf16[32,8]) {
  %all-gather.1 = bf16[32,8]{1,0:T(8,128)} all-gather(%p), channel_id=4, replica_groups={{0,1}}
  ROOT %t = (bf16[32,8]) tuple(%all-gather.1)
}

%fused.end (p: bf16[4,8]) -> bf16[32,8] {
  %all-gather.2 = bf16[32,8]{1,0:T(8,128)} all-gather(%p), channel_id=4, replica_groups={{0,1}}
  ROOT %c = bf16[32,8] custom-call(%all-gather.2), custom_call_target="AsyncCollectiveDone"
}

%body (arg: (s32[], f32[8,2])) -> (s32[], f32[8,2]) {
  %arg = (s32[], f32[8,2]) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  %one = s32[]{:T(128)} constant(STEP)
  %next = s32[] add(%i, %one)
  %x = f32[8,2] get-tuple-element(%arg), index=1
  %start = (bf16[32,8]) fusion(%x), kind=kCustom, calls=%fused
  %end = bf16[32,8] fusion(%start), kind=kCustom, calls=%fused.end
  %all-reduce.3 = (f32[8,2]{1,0}, /*index=1*/f32[4]) all-reduce(%x, %z), to_apply=%add
  %rs = f32[8,2] reduce-scatter(%x), channel_id=9, replica_groups=mesh['a'=1,'b'=4] {'b'}
  ROOT %out = (s32[], f32[8,2]) tuple(%next, %x)
}

%condition (arg: (s32[], f32[8,2])) -> pred[] {
  %arg = (s32[], f32[8,2]) parameter(0)
  %limit = s32[]{:T(128)} constant(36)
  %i = s32[] get-tuple-element(%arg), index=0
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (p: f32[8,2]) -> f32[8,2] {
  %p = f32[8,2] parameter(0)
  %w = (s32[], f32[8,2]) while(%t), condition=%condition, body=%body
  %send = (f32[8,2], f32[8,2], u32[], u32[]) collective-permute-start(%p), channel_id=2
  %got = f32[8,2] collective-permute-done(%send)
  ROOT %r = f32[8,2] get-tuple-element(%w), index=1
}
"""


@pytest.mark.parametrize(("step", "turns"), [(1, 36), (2, 18), (5, 8)])
def test_a_counted_loop_runs_its_collectives_that_often(step, turns):
    found = collectives(LOOP.replace("STEP", str(step)))
    assert sorted((c.kind, c.bytes, c.loops) for c in found) == [
        ("all-gather", 32 * 8 * 2, (turns,)),  # start and end are one
        ("all-reduce", (16 + 4) * 4, (turns,)),
        ("collective-permute", 8 * 2 * 4, ()),
        ("reduce-scatter", 8 * 2 * 4 * 4, (turns,)),  # four devices have a share each
    ]
    reduced = next(c for c in found if c.kind == "all-reduce")
    assert reduced.moved == 2 * reduced.bytes
    assert reduced.turns(7) == turns


def test_a_loop_that_does_not_say_is_dynamic():
    text = LOOP.replace("STEP", "1").replace(
        "ROOT %less = pred[] compare(%i, %limit), direction=LT",
        "%less = pred[] compare(%i, %limit), direction=LT\n  ROOT %and = pred[] and(%less, %any)",
    )
    gathered = next(c for c in collectives(text) if c.kind == "all-gather")
    assert gathered.loops == (DYNAMIC,)
    assert gathered.turns(64) == 64


def test_what_the_compiler_says_of_a_loop_comes_first():
    text = LOOP.replace("STEP", "1").replace(
        "body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"3"}}'
    )
    assert {c.loops for c in collectives(text)} == {(3,), ()}


KERNEL = """  %kernel = f32[8,2] custom-call(%x), frontend_attributes={kernel_metadata={
"xprof_metadata": {"head": 128
}
}}, metadata={op_name="jit(f)/splash"}, backend_config={"custom_call_config": {"body": "TUzv"}}
"""


def test_what_comes_after_a_kernel_of_several_lines_is_read_too():
    text = LOOP.replace("STEP", "1")
    plain = collectives(text)
    assert plain
    assert collectives(text.replace("  %start =", KERNEL + "  %start =", 1)) == plain
