"""config.model.precision: what a training step computes in bfloat16, and what stays in float32, for every network."""

import collections
import functools

import jax
import jax.numpy as jnp
import pytest

from evaluation.plan import chips
from evaluation.plan.compiling import step_of
from sampling.flow import Solver
from sampling.likelihood import log_likelihood
from score_flow.config.hints import parameters_of
from score_flow.config.loading import load
from tests.networks.test_networks import MODULES, NETWORKS

SMALL = {
    "width": 24, "depth": 1, "num_heads": 6, "num_res_blocks": 1, "channel_mult": (1, 2), "attention_resolutions": (4,)
}  # fmt: skip
CLASSIFIER = [
    "training.objective=classifier", "training.snapshot_sampling=False", "network.name=classifier",
    "network.channel_multiplier=1", "network.blocks_per_group=1",
]  # fmt: skip
# What a recipe may add, and its products with float32 factors: none is of a network.
MORE = {
    "a classifier": (CLASSIFIER, set()),
    "NCSN++": (["network.name=ncsnpp", "network.fir=True", "network.progressive_input=residual"], set()),
    "Muon's iterations": (["network.name=mlp", "optim.optimizer=Muon"], {(24, 24)}),
    "pairs of optimal transport": (["network.name=mlp", "training.coupling=ot"], {(16, 64)}),
}


def settings(name):
    """Flags of a network that takes the digits and is soon traced."""
    offered = parameters_of(MODULES[name].build)
    return [f"network.name={name}", *(f"network.{key}={value}" for key, value in SMALL.items() if key in offered)]


def step(*flags):
    """A step of training in bfloat16, of the program that training compiles."""
    config = load("configs/digits.py", [f"--config.{flag}" for flag in (*flags, "training.batch_size=16")])
    return step_of(config, chips.machine("here"))


def traced(found):
    """(its jaxpr, the shapes of its results)."""
    program, arguments = found.program, (found.state, found.batch)
    while isinstance(program, functools.partial):
        program, arguments = program.func, (*program.args, *arguments)
    trace = program.trace(*arguments)
    return trace.jaxpr.jaxpr, jax.tree.unflatten(jax.tree.structure(trace.out_info), trace.jaxpr.out_avals)


def factors(jaxpr):
    """How often products have factors of (dtypes, the first one's shape)."""
    found = collections.Counter()
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            left, right = (variable.aval for variable in equation.invars)
            found[str(left.dtype), str(right.dtype), left.shape] += 1
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            found += factors(inner)
    return found


def dtypes(tree):
    return {str(leaf.dtype) for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)}


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=[] if name == "sit" else [pytest.mark.slow]) for name in NETWORKS
])  # fmt: skip
def test_a_step_multiplies_in_bfloat16_and_keeps_float32(name):
    """No product has a float32 factor; parameters, averages, moments and losses are float32."""
    found = step(*settings(name), "model.precision=bf16")
    jaxpr, (state, metrics) = traced(found)
    assert {dtype for left, right, _ in factors(jaxpr) for dtype in (left, right)} == {"bfloat16"}
    assert dtypes(found.state) == dtypes(state) == dtypes(metrics) == {"float32"}


@pytest.mark.slow
@pytest.mark.parametrize("what", MORE)
def test_float32_factors_are_of_no_network(what):
    flags, known = MORE[what]
    own = settings("mlp") if "network.name=mlp" in flags else []
    products = factors(traced(step(*own, *flags, "model.precision=bf16"))[0])
    other = {shape for left, right, shape in products if (left, right) != ("bfloat16", "bfloat16")}
    assert {shape[-2:] for shape in other} == known


@pytest.mark.slow
def test_a_likelihood_is_integrated_in_float32():
    """Of a network that computes in bfloat16: image, divergence and log p."""
    run = step(*settings("sit"), "model.precision=bf16").run
    params = jax.eval_shape(run.init, jax.random.key(0))
    x, keys = jnp.zeros((2, *run.image_shape)), jax.random.split(jax.random.key(0), 2)

    def bits(params):
        return log_likelihood(keys, run.model.bind(params), x, solver=Solver("heun", n_steps=2))

    loops = []

    def look(jaxpr):
        for equation in jaxpr.eqns:
            loops.extend(equation.outvars if equation.primitive.name in ("scan", "while") else ())
            for inner in jax.extend.core.jaxprs_in_params(equation.params):
                look(inner)

    jaxpr = jax.make_jaxpr(bits, return_shape=True)(params)
    look(jaxpr[0].jaxpr)
    assert any(left == "bfloat16" for left, _, _ in factors(jaxpr[0].jaxpr))
    state = [v.aval for v in loops if v.aval.shape[-3:] == run.image_shape]
    assert dtypes(jaxpr[1]) == dtypes(state) == {"float32"}
