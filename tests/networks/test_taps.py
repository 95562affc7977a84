"""What a transformer returns of one of its blocks beside its output, and that it costs nothing when it is not asked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_flow.errors import UserError
from score_flow.networks.blocks.transformer import ASIDE
from score_flow.networks.dit import DiT
from score_flow.networks.mit import MiT
from score_flow.networks.sit import SiT

X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 4, 3)), jnp.float32)
TIME = jnp.array([0.3, 0.6])
DEPTH = 3
SMALL = {"width": 16, "depth": DEPTH, "num_heads": 2, "dropout": 0.3}
KINDS = {"sit": (SiT, {}), "mit": (MiT, {}), "dit": (DiT, {"register_tokens": 2, "context_start": 2})}
others = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("mit", "dit")]
every_kind = pytest.mark.parametrize("kind", ["sit", *others])


def network(kind, tap=0):
    build, fields = KINDS[kind]
    return build(**SMALL, **fields, tap=tap)


def drawn(kind):
    """Parameters without zeros; taps change none of their shapes."""
    shapes = [jax.eval_shape(network(kind, tap).init, jax.random.key(0), X, TIME)["params"] for tap in (0, 2)]
    assert shapes[0] == shapes[1]
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(0.2 * rng.normal(size=leaf.shape), jnp.float32), shapes[0])


def applied(kind, params, tap=0, key=None, **options):
    rngs = None if key is None else {"dropout": key}
    return network(kind, tap).apply({"params": params}, X, TIME, deterministic=key is None, rngs=rngs, **options)


def without_blocks_after(k, params):
    """Parameters of which the blocks after k are zero, so that they add nothing."""
    parts, first = {}, 0
    for name in ("blocks", "context_blocks"):
        if name in params:
            n = len(jax.tree.leaves(params[name])[0])
            kept = max(min(k - first, n), 0)
            parts[name] = jax.tree.map(lambda leaf, kept=kept: leaf.at[kept:].set(0), params[name])
            first += n
    return params | parts


@pytest.mark.slow
@every_kind
def test_a_tap_is_what_the_block_returns_and_changes_no_bit_of_the_output(kind):
    """Blocks of zeros add nothing: what the block before them returns is then the last."""
    params, key, at, mutable = drawn(kind), jax.random.key(2), 2, [ASIDE]

    @jax.jit
    def outputs(params, key):
        tapped, last = (applied(kind, params, tap, key, mutable=mutable) for tap in (at, DEPTH))
        of_zeros = applied(kind, without_blocks_after(at, params), DEPTH, key, mutable=mutable)[1]
        return applied(kind, params, 0, key), tapped, last, of_zeros[ASIDE]["hidden"]

    plain, *both, of_zeros = outputs(params, key)
    (_, hidden), (_, last) = ((output, found[ASIDE]["hidden"]) for output, found in both)
    assert hidden.shape == (2, 4, 16) and not np.allclose(hidden, last, atol=1e-3)
    np.testing.assert_allclose(hidden, of_zeros, rtol=1e-5, atol=1e-6)
    for output, _ in both:
        np.testing.assert_array_equal(output, plain)


@every_kind
def test_nothing_is_computed_for_who_does_not_ask(kind):
    params = drawn(kind)
    programs = [str(jax.make_jaxpr(lambda p, tap=tap: applied(kind, p, tap))(params)) for tap in (0, 2)]
    assert programs[0] == programs[1]
    assert programs[0] != str(jax.make_jaxpr(lambda p: applied(kind, p, 2, mutable=[ASIDE]))(params))


@every_kind
def test_a_block_that_is_not_there_is_refused(kind):
    with pytest.raises(UserError, match="alignment_block is 4, and .iT has blocks 1 to 3"):
        network(kind, DEPTH + 1)
