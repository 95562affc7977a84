"""What every network is that training.objective = classifier may train; shapes alone are looked at."""

import jax
import jax.numpy as jnp
import pytest

from score_flow.config import registries
from tests.discover import builds

CLASSIFIERS = builds(registries.CLASSIFIERS)
SHAPE, CLASSES = (4, 16, 16, 2), 3


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_logits_of_every_class_are_differentiable_by_the_image(name):
    """float32 parameters and logits; a label beside the image changes nothing: it is what is asked for."""
    network, x, time = CLASSIFIERS[name](num_classes=CLASSES), jnp.zeros(SHAPE), jnp.zeros(SHAPE[0])

    def logits(key, x, condition):
        return network.init_with_output(key, x, time, condition)

    told = {"label": jnp.zeros(SHAPE[0], jnp.int32)}
    (output, variables), (same, _) = (jax.eval_shape(logits, jax.random.key(0), x, c) for c in (None, told))
    assert output == same and (output.shape, output.dtype) == ((SHAPE[0], CLASSES), jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables["params"])} == {jnp.dtype("float32")}

    def score(x, params):
        return jax.nn.log_softmax(network.apply({"params": params}, x, time))[:, 0].sum()

    assert jax.eval_shape(jax.grad(score), x, variables["params"]).shape == SHAPE
