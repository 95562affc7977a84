"""What a network chooses by its devices: by those of the program, not by those of the machine that traces it."""

import jax
import jax.numpy as jnp
import pytest
from jax._src.cudnn import fused_attention_stablehlo
from jax.sharding import AbstractDevice, AbstractMesh

from score_flow.networks.blocks import devices
from score_flow.networks.blocks.attention import attention, derivatives

GPU = AbstractMesh((1,), ("data",), abstract_device=AbstractDevice("NVIDIA H100 80GB HBM3", 132, "gpu"))
TPU = AbstractMesh((1,), ("data",), abstract_device=AbstractDevice("TPU v5 lite", 1, "tpu"))


@pytest.fixture(autouse=True)
def no_cudnn(monkeypatch):
    """jax asks for its version while it traces, which this machine has none of."""
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)


def lowered(mesh, platform: str, width: int = 64, dtype=jnp.bfloat16, function=attention, order="any") -> str:
    """The program of attention as compilers of a platform are given it."""
    q = jax.ShapeDtypeStruct((2, 16, 2, width), dtype)
    with jax.sharding.use_abstract_mesh(mesh), derivatives(order):
        return jax.jit(function).trace(q, q, q).lower(lowering_platforms=(platform,)).as_text()


def pulled(function):
    return jax.grad(lambda *qkv: function(*qkv).astype(jnp.float32).sum(), (0, 1, 2))


def test_attention_is_fused_in_programs_for_a_gpu_alone():
    """On this machine, which has none; in half precision, at widths that cuDNN takes."""
    assert "__cudnn$fmhaSoftmax" in lowered(GPU, "cuda")
    for other in (
        lowered(jax.make_mesh((1,), ("data",), devices=jax.devices()[:1]).abstract_mesh, "cpu"),
        lowered(TPU, "tpu"),
        lowered(GPU, "cuda", width=136),
        lowered(GPU, "cuda", dtype=jnp.float32),
    ):
        assert "cudnn" not in other and "dot_general" in other


def test_its_derivatives_on_a_gpu():
    """The kernel's own backward pass in training, beside forward-mode derivatives too; a likelihood needs none."""
    backward = "__cudnn$fmhaSoftmaxBackward"
    assert backward in lowered(GPU, "cuda", function=pulled(attention), order="backward")
    likelihood = lowered(GPU, "cuda", function=lambda *qkv: jax.jvp(attention, qkv, qkv))
    assert "__cudnn$fmhaSoftmax" in likelihood and backward not in likelihood
    both = lambda *qkv: (lambda value, d: value - jax.lax.stop_gradient(d))(*jax.jvp(attention, qkv, qkv))  # noqa: E731
    assert backward in lowered(GPU, "cuda", function=pulled(both), order="forward inside backward")


def test_without_a_mesh_the_platform_is_that_of_the_machine():
    assert devices.platform() == jax.default_backend() == "cpu"
    with jax.sharding.use_abstract_mesh(GPU):
        assert devices.platform() == "gpu"
        with jax.sharding.use_abstract_mesh(TPU):
            assert devices.platform() == "tpu"
