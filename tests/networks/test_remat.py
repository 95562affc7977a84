"""What the backward pass keeps of a block has names, changes no gradient, and takes the less memory the less it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_flow.config.hints import parameters_of
from score_flow.errors import UserError
from score_flow.networks.blocks.remat import POLICIES
from tests.networks.test_networks import LABEL, MODULES, NETWORKS, TIME, X, is_preset, params_of, small

ABLE = [name for name in NETWORKS if "remat" in parameters_of(MODULES[name].build)]
FORMER = {"sit": "dots"}  # what False was; of others "none"


def pulled(name, remat):
    """The gradient of a loss by the parameters of a network."""

    def loss(params):
        return jnp.square(small(name, remat=remat).apply({"params": params}, X, TIME, LABEL)).mean()

    return jax.grad(loss)


def residuals(name, remat):
    """Numbers that are kept for the backward pass."""
    network, x = small(name, remat=remat), jnp.zeros((4, 64, 64, 2))
    kept = jax.eval_shape(
        lambda p: jax.vjp(lambda p: network.apply({"params": p}, x, TIME, LABEL), p)[1], params_of(name)
    )
    return sum(leaf.size for leaf in jax.tree.leaves(kept))


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=[] if name == "sit" else [pytest.mark.slow]) for name in ABLE if not is_preset(name)
])  # fmt: skip
def test_each_name_keeps_less_than_the_one_before(name):
    """A boolean keeps what it kept."""
    kept = {remat: residuals(name, remat) for remat in ("none", *POLICIES, True, False)}
    assert kept["none"] > kept["dots"] > kept["full"]
    assert kept[True] == kept["full"] and kept[False] == kept[FORMER.get(name, "none")]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sit", "ncsnpp", "adm"])
def test_gradients_are_the_same_and_memory_is_less(name):
    """By XLA's account of the compiled program; for a CPU it undoes what is not in a loop."""
    gradients, temporaries = {}, {}
    for remat in ("none", *POLICIES):
        compiled = jax.jit(pulled(name, remat)).lower(params_of(name)).compile()
        gradients[remat] = compiled(params_of(name))
        temporaries[remat] = compiled.memory_analysis().temp_size_in_bytes
    norm = np.sqrt(sum(float(jnp.square(leaf).sum()) for leaf in jax.tree.leaves(gradients["none"])))
    assert norm > 0
    for remat in POLICIES:
        off = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), gradients[remat], gradients["none"])
        assert max(jax.tree.leaves(off)) < 1e-5 * norm
    if name == "sit":
        assert temporaries["none"] > temporaries["dots"] > temporaries["full"]


@pytest.mark.parametrize("remat", ["blocks", "True", ""])
def test_other_names_are_refused(remat):
    with pytest.raises(UserError, match=f"SiT.remat is '{remat}'; allowed: dots, full, none"):
        small("sit", remat=remat)
