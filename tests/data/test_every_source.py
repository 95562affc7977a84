"""What every data set is that reads no files: numbered examples, the same whenever they are read."""

import json

import numpy as np
import pytest

from score_flow.config import registries
from score_flow.data.base import Source, facts
from tests.discover import builds

FROM_FILES = {"arrays", "folder", "latents", "tfds"}
ALONE = {name: build for name, build in builds(registries.SOURCES).items() if name not in FROM_FILES}


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("name", ALONE)
def test_examples_are_a_function_of_their_numbers(name, split):
    source, again = ALONE[name](split=split), ALONE[name](split=split)
    assert isinstance(source, Source) and len(source) > 1
    chosen = np.random.default_rng(0).integers(0, len(source), 9)
    examples, image = source.read(chosen), source.read(chosen)["image"]
    assert image.dtype == np.uint8 and image.shape == (9, *source.image_shape) and image.max() < source.levels
    assert set(examples) == ({"image", "label"} if source.num_classes else {"image"})
    if source.num_classes:
        assert examples["label"].dtype == np.int32 and set(examples["label"]) <= set(range(source.num_classes))
    for i, number in enumerate(chosen):
        one = again.read(np.array([number]))
        assert all(np.array_equal(one[key][0], examples[key][i]) for key in examples)
    assert json.loads(json.dumps(facts(source))) == facts(again)
