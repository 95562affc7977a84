"""What is read off compiled programs, against programs whose collectives and loops are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from evaluation.plan.program import Shape, attention, collectives, kernels, largest, read
from score_flow.runs.sharding import make_mesh

ROUNDS = 3


@pytest.fixture(scope="module")
def program():
    """In each of three rounds a weight of (64, 32) float32 is gathered; then a sum over all devices."""
    mesh = make_mesh(True)
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("fsdp",), ()))

    def f(x, w):
        def one(x, w):
            gathered = jax.lax.with_sharding_constraint(w, whole)
            return jnp.sin(x @ gathered @ gathered.T), None

        return jax.lax.scan(one, x, w)[0].sum()

    x = jax.ShapeDtypeStruct((8, 64), jnp.float32, sharding=split)
    w = jax.ShapeDtypeStruct((ROUNDS, 64, 32), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(None, "fsdp")))
    return read(jax.jit(f, out_shardings=whole).lower(x, w).compile().as_text())


def test_loops_count_as_often_as_they_go_round(program):
    gathered = [each for each in collectives(program) if each.kind == "all-gather"]
    assert sum(each.count for each in gathered) == ROUNDS and program.unknown_loops == 0
    assert sum(each.bytes for each in gathered) == ROUNDS * 64 * 32 * 4
    assert {str(shape) for each in gathered for shape in each.shapes} <= {"f32[64,32]", "f32[1,64,32]"}


def test_a_sum_is_sent_twice(program):
    [total] = [each for each in collectives(program) if each.kind == "all-reduce"]
    assert total.count == 1 and total.bytes == 2 * 4


def test_kernels_and_arrays(program):
    """Each round has its products at least; the largest array is the whole weight."""
    assert 2 * ROUNDS < kernels(program) < 40 * ROUNDS
    assert largest(program, 1)[0].shape.bytes == 64 * 32 * 4 and attention(program) == "none"


TPU = """\
HloModule jit_f, is_scheduled=true

%started (p: bf16[4,8]) -> (bf16[4,8], bf16[32,8]) {
  %p = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  %all-gather.1 = bf16[32,8]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=7, frontend_attributes={chain_id="0"}
  ROOT %c = (bf16[4,8]{1,0}, bf16[32,8]{1,0}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%done (p: bf16[4,8]) -> bf16[32,8] {
  %p = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  %all-gather.2 = bf16[32,8]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=7, frontend_attributes={chain_id="0"}
  ROOT %c = bf16[32,8]{1,0} custom-call(%p, %all-gather.2), custom_call_target="AsyncCollectiveDone"
}

%all-reduce-scatter.3 (p: bf16[32,8]) -> bf16[4,8] {
  %p = bf16[32,8]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %all-reduce.3 = bf16[32,8]{1,0:T(8,128)(2,1)} all-reduce(%p), channel_id=1, to_apply=%add
  ROOT %s = bf16[4,8]{1,0:T(8,128)(2,1)S(1)} dynamic-slice(%all-reduce.3, %p), dynamic_slice_sizes={4,8}
}

%less (p: (s32[], bf16[4,8])) -> pred[] {
  %n = s32[]{:T(128)} constant(28)
  %p = (s32[]{:T(128)}, bf16[4,8]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %n), direction=LT
}

%body (p: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %p = (s32[]{:T(128)}, bf16[4,8]{1,0}) parameter(0)
  %x = bf16[4,8]{1,0} get-tuple-element(%p), index=1
  %f1 = (bf16[4,8]{1,0}, bf16[32,8]{1,0}) fusion(%x), kind=kCustom, calls=%started
  %f2 = bf16[32,8]{1,0} fusion(%x), kind=kCustom, calls=%done, metadata={op_name="jit(f)/blocks.attention/dot"}
  %f3 = bf16[4,8]{1,0:T(8,128)(2,1)S(1)} fusion(%f2), kind=kCustom, calls=%all-reduce-scatter.3
  ROOT %t = (s32[]{:T(128)}, bf16[4,8]{1,0}) tuple(%x, %f3)
}

ENTRY %main (a: bf16[4,8]) -> bf16[4,8] {
  %a = bf16[4,8]{1,0} parameter(0)
  %w = (s32[]{:T(128)}, bf16[4,8]{1,0}) while(%a), condition=%less, body=%body
  ROOT %r = bf16[4,8]{1,0} get-tuple-element(%w), index=1
}
"""


def test_what_a_tpu_overlaps_is_one_collective():
    """Its parts stand in several fusions; its sum with a slice is a reduce-scatter; the condition says 28 rounds."""
    program = read(TPU)
    found = {each.kind: each for each in collectives(program)}
    whole = 32 * 8 * 2
    assert {kind: (each.count, each.bytes) for kind, each in found.items()} == {
        "all-gather": (28, 28 * whole), "reduce-scatter": (28, 28 * whole),
    }  # fmt: skip
    assert kernels(program) == 28 * 3 and attention(program) == "not fused"
    assert [str(each.shape) for each in largest(program, 5)] == ["bf16[32,8]", "bf16[4,8]"]


def test_fused_attention_is_named():
    call = 'custom-call(%x), custom_call_target="__cudnn$fmhaSoftmax"'
    assert attention(read(TPU.replace("get-tuple-element(%p), index=1", call))) == "fused: 28 x __cudnn$fmhaSoftmax"


@pytest.mark.parametrize("dtype, bits", [("bf16", 16), ("pred", 8), ("f8e4m3fn", 8), ("s4", 4), ("c64", 64)])
def test_bytes_of_an_array(dtype, bits):
    assert Shape(dtype, (6, 4)).bytes == np.prod((6, 4)) * bits // 8
