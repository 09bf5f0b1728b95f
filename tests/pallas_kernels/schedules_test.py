"""What is read out of optimised HLO: loops, kernels, memory that is touched."""

from pallas_kernels import schedules

HLO = """HloModule jit_f

%sliced (p0: f32[7,64], p1: s32[]) -> f32[1,64] {
  %p0 = f32[7,64]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %same = f32[7,64]{1,0} bitcast(%p0)
  ROOT %slice = f32[1,64]{1,0} dynamic-slice(%same, %p1, %p1), dynamic_slice_sizes={1,64}
}

%relabelled (p0: f32[7,64]) -> f32[7,64] {
  %p0 = f32[7,64]{1,0} parameter(0)
  ROOT %copy = f32[7,64]{1,0} copy(%p0)
}

%around (p0: f32[7,64], p1: s32[]) -> f32[1,64] {
  %p0 = f32[7,64]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %moved = f32[7,64]{1,0} fusion(%p0), kind=kLoop, calls=%relabelled
  ROOT %inside = f32[1,64]{1,0} fusion(%moved, %p1), kind=kLoop, calls=%sliced
}

%updated (p0: f32[7,64], p1: f32[1,64], p2: s32[]) -> f32[7,64] {
  %p0 = f32[7,64]{1,0} parameter(0)
  %p1 = f32[1,64]{1,0:S(1)} parameter(1)
  %p2 = s32[] parameter(2)
  ROOT %update = f32[7,64]{1,0} dynamic-update-slice(%p0, %p1, %p2, %p2)
}

%body.1 (x: (s32[], f32[7,64])) -> (s32[], f32[7,64]) {
  %x = (s32[], f32[7,64]{1,0}) parameter(0)
  %n = s32[] get-tuple-element(%x), index=0
  %all = f32[7,64]{1,0} get-tuple-element(%x), index=1
  %one = f32[1,64]{1,0:T(8,128)S(1)} fusion(%all, %n), kind=kLoop, calls=%around, c={"estimated_cycles":"10"}
  %new = f32[7,64]{1,0} fusion(%all, %one, %n), kind=kLoop, calls=%updated
  ROOT %out = (s32[], f32[7,64]{1,0}) tuple(%n, %new)
}

%condition.1 (x: (s32[], f32[7,64])) -> pred[] {
  %x = (s32[], f32[7,64]{1,0}) parameter(0)
  %n = s32[] get-tuple-element(%x), index=0
  %bound = s32[]{:T(128)} constant(7)
  %zero = s32[] constant(0)
  ROOT %lt = pred[]{:S(6)} compare(%n, %bound), direction=LT
}

ENTRY %main.1 (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %b = f32[8]{0} fusion(%a), kind=kLoop, calls=%elsewhere, backend_config={"estimated_cycles":"5"}
  %start = (f32[8]{0:S(1)}, f32[8]{0}, u32[]{:S(2)}) copy-start(%b)
  %done = f32[8]{0:S(1)} copy-done(%start)
  %part = ((f32[8]{0}), f32[2]{0:S(1)}, s32[]{:S(2)}) slice-start(%b), slice={[0:2]}
  %there = f32[2]{0:S(1)} slice-done(%part)
  %negated = f32[8]{0} negate(%done)
  %while = (s32[], f32[7,64]{1,0}) while(%t), condition=%condition.1, body=%body.1
  ROOT %k = (bf16[2,64]{1,0}, f32[4]{0}) custom-call(%b), custom_call_target="tpu_custom_call", KERNEL
}
""".replace('KERNEL', 'operand_layout_constraints={bf16[2,64]{1,0}, f32[8]{0}}, frontend_attributes={}')


def test_a_loop_counts_as_often_as_it_turns():
  assert schedules.traffic(HLO).xla_cycles == 5 + 7 * 10


def test_a_kernel_moves_its_operands_and_results():
  assert schedules.traffic(HLO).kernel_bytes == 2 * (2 * 64 * 2) + 4 * 4 + 8 * 4


def test_operations_move_what_they_touch_of_what_lies_in_hbm():
  slice_and_index, update = 64 * 4 + 4, 64 * 4 + 4
  read_and_written, prefetched, part, out_of_vmem = 2 * 8 * 4, 8 * 4, 2 * 4, 8 * 4
  want = 7 * (slice_and_index + update) + read_and_written + prefetched + part + out_of_vmem
  assert schedules.traffic(HLO).xla_bytes == want


EXCHANGES = """HloModule jit_f

%begun (p0: f32[4]) -> (f32[4], f32[16]) {
  %p0 = f32[4]{0} parameter(0)
  ROOT %all-gather.1 = f32[16]{0} all-gather(%p0), channel_id=1, dimensions={0}
}

%async_collective_fusion.1 (p0: f32[4]) -> f32[16] {
  %p0 = f32[4]{0} parameter(0)
  ROOT %all-gather.2 = f32[16]{0} all-gather(%p0), channel_id=1, dimensions={0}
}

%body.1 (x: (s32[], f32[8])) -> (s32[], f32[8]) {
  %x = (s32[], f32[8]{0}) parameter(0)
  %n = s32[] get-tuple-element(%x), index=0
  %a = f32[8]{0} get-tuple-element(%x), index=1
  %sum = f32[8]{0} all-reduce(%a), channel_id=2, to_apply=%add
  ROOT %out = (s32[], f32[8]{0}) tuple(%n, %sum)
}

%condition.1 (x: (s32[], f32[8])) -> pred[] {
  %x = (s32[], f32[8]{0}) parameter(0)
  %n = s32[] get-tuple-element(%x), index=0
  %bound = s32[] constant(5)
  ROOT %lt = pred[] compare(%n, %bound), direction=LT
}

ENTRY %main.1 (a: f32[4]) -> f32[8] {
  %a = f32[4]{0} parameter(0)
  %async-collective-start = (f32[4]{0}, f32[16]{0}) fusion(%a), kind=kCustom, calls=%begun
  %beside = f32[16]{0} fusion(%a), kind=kOutput, calls=%async_collective_fusion.1
  %async-collective-done = f32[16]{0} fusion(%a), kind=kCustom, calls=%begun
  %sent = (f32[4]{0}, f32[4]{0}, u32[]) collective-permute-start(%a), channel_id=3
  %got = f32[4]{0} collective-permute-done(%sent)
  %two = (f32[4]{0}, bf16[4]{0}) all-reduce(%a, %a), channel_id=4, to_apply=%add
  %w = (s32[], f32[8]{0}) while(%t), condition=%condition.1, body=%body.1
  ROOT %r = f32[8]{0} get-tuple-element(%w), index=1
}
"""


def test_exchanges_are_counted_once_and_in_loops_as_often_as_they_turn():
  assert schedules.collectives(EXCHANGES) == {
    'all-gather': (1, 64), 'collective-permute': (1, 16), 'all-reduce': (6, 24 + 5 * 32)
  }  # fmt: skip
