"""FID, sFID and FD-DINOv2 of two sets of drawn images: from pixels to the value, beside the sources' own code."""

import json
from functools import partial

import jax
import numpy as np
import pytest

from evaluation.metrics.frechet import frechet_distance, moments
from score_flow.networks.inception import InceptionV3
from score_flow.pretrained.dinov2 import from_tensors
from tests.evaluation.metrics.drawn_images import sets
from tests.golden_data import COMMITTED
from tests.pretrained.drawn_weights import drawn
from tests.pretrained.inception_weights import params_of

GOLDEN = json.loads((COMMITTED / "metrics" / "distances.json").read_text())
INCEPTION, RTOL = COMMITTED / "inception_fid", 1e-6


def features(apply, n, at_once):
    """Those that a network gives the images of both sets, each a tuple's or array's first axis."""
    parts = [[apply(x[i : i + at_once]) for i in range(0, len(x), at_once)] for x in sets(tuple(n))]
    return [jax.tree.map(lambda *of: np.concatenate(of), *each) for each in parts]


def in_their_span(a, b):
    """Coordinates of both, by which no distance changes: the roots of thousands of zero eigenvalues are noise."""
    vectors = np.concatenate([a - a.mean(axis=0), b - b.mean(axis=0), [a.mean(axis=0) - b.mean(axis=0)]])
    basis = np.linalg.svd(vectors, full_matrices=False)[2]
    return a @ basis.T, b @ basis.T


def distance(a, b):
    return frechet_distance(*moments(a), *moments(b))


def test_fd_dinov2_is_edm2s():
    """Of the class token of a drawn network, by its authors' code in torch, and EDM2's formula."""
    with jax.enable_x64(True):
        network, params = from_tensors(drawn(GOLDEN["fd_dinov2"]["shapes"]), "float64")
        run = jax.jit(lambda params, x: network.apply({"params": params}, x.astype("float64")).token)
        found = distance(*features(partial(run, params), GOLDEN["images"]["fd_dinov2"], 8))
    print(f"FD-DINOv2 {found:.9f}, off by {found / GOLDEN['fd_dinov2']['value'] - 1:.1e}")
    assert found == pytest.approx(GOLDEN["fd_dinov2"]["value"], rel=RTOL)


@pytest.mark.slow
def test_fid_and_sfid_are_the_sources():
    """Of torch-fidelity's network with drawn weights, and the formula of guided-diffusion's evaluator."""
    with jax.enable_x64(True):
        run = jax.jit(lambda params, x: InceptionV3("float64").apply({"params": params}, x.astype("float64")))
        one, other = features(partial(run, params_of(INCEPTION, "float64")), GOLDEN["images"]["fid"], 2)
    for name, of in (("fid", "pool"), ("sfid", "spatial")):
        a, b = getattr(one, of), getattr(other, of)
        assert a.dtype == np.float64
        found = distance(*in_their_span(a, b))
        print(f"{name} {found:.9f}, off by {found / GOLDEN[name]['value'] - 1:.1e}")
        assert found == pytest.approx(GOLDEN[name]["value"], rel=RTOL)
