"""What every project of published weights promises: it takes no other file for its own."""

import numpy as np
import pytest

from score_flow.config import registries
from tests.discover import builds

PROJECTS = builds(registries.PROJECTS)
FOREIGN = ([1, 2], {}, {"foreign.weight": np.zeros((2, 2), np.float32)}, {"model": {"foreign.weight": 1}, "ema": {}})


@pytest.mark.parametrize("name", PROJECTS)
def test_a_file_of_another_project_is_none_of_its(name):
    project = PROJECTS[name]()
    assert [project.read(tree) for tree in FOREIGN] == [None] * len(FOREIGN)
    assert callable(project.layout) and callable(project.translate)
