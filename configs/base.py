"""Every field of a run with its default, as a recipe changes it; score_flow/config/options.py says what each is.

A section with a `name` is a component: the name is a file of its folder, the other entries are arguments of that file's
`build`, and what stands here is not the limit: any argument that `build` takes may be given. Elsewhere a recipe may add
nothing: a field that does not exist is an error in its line.

All recipes compute in float32 (model.precision): those of papers as the figures that they are held against, the small
ones for CPUs, which emulate bfloat16. For a GPU or a TPU there is --config.model.precision=bf16, whose loss `python -m
benchmarks.precision` compares; the state is float32 in both.
"""

import functools

from ml_collections import ConfigDict, FieldReference

from score_flow.config.components import Component
from score_flow.config.options import SCHEMA, Config


def component(name: str, **fields) -> ConfigDict:
    """A section that names a plug-in file and the arguments of its `build`."""
    return ConfigDict({"name": name, **fields})


def get_config() -> ConfigDict:
    """The defaults, locked but for the arguments of components."""
    config = ConfigDict(Config().to_dict())
    config.lock()
    for key, field in SCHEMA.items():
        *sections, last = key.split(".")
        section = functools.reduce(ConfigDict.__getitem__, sections, config)
        if isinstance(field.default, Component):
            section[last].unlock()
        elif field.metadata["limits"].also:  # may have another type too, of which its own is one: int, beside bool
            with section.unlocked():
                del section[last]
                section[last] = FieldReference(field.default, field_type=field.metadata["limits"].also)
    return config
