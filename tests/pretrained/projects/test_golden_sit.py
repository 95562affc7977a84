"""Every stored output of SiT networks, from their checkpoints through the importer; time and velocity are mirrored."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_flow.networks.blocks import layers, transformer
from tests.discover import thinned
from tests.golden_data import golden_dir, load
from tests.pretrained.imported import Imported, allowed, nhwc, relative_error

FOLDER = "sit/models"
CASES = sorted(f.stem for f in golden_dir().glob(f"{FOLDER}/*.json"))
IN_CHANNELS_GUIDED = 3  # of the source's forward_with_cfg


class Theirs:
    """The source's functions of (x, t, y), by our denoiser."""

    def __init__(self, imported, kind):
        self.model = imported.model()
        self.params = imported.params(self.model, kind)

    def forward(self, x, t, y):
        return -self.model.bind(self.params, {"label": y}).velocity(x, 1 - t)

    def guided(self, x, t, y, scale):
        """Both halves of x are its first half; the guided channels are the first three."""
        half = len(x) // 2
        out = self.forward(jnp.concatenate([x[:half], x[:half]]), t, y)
        given, null = out[:half, ..., :IN_CHANNELS_GUIDED], out[half:, ..., :IN_CHANNELS_GUIDED]
        mixed = null + scale * (given - null)
        return jnp.concatenate([jnp.concatenate([mixed, mixed]), out[..., IN_CHANNELS_GUIDED:]], axis=-1)


def outputs(theirs, arrays, settings, dtype, suffix):
    """(name, ours) of every stored output of one set of weights."""
    x, t, y = nhwc(arrays["x"], dtype), jnp.asarray(arrays["t"], dtype), jnp.asarray(arrays["y"], jnp.int32)
    null = jnp.full_like(y, settings["num_classes"])
    yield f"out{suffix}", lambda: theirs.forward(x, t, y)
    yield f"out_null{suffix}", lambda: theirs.forward(x, t, null)
    if not suffix and "train_mode_drop_rand" in arrays:
        hidden = arrays["train_mode_drop_rand"] < settings["class_dropout_prob"]
        yield "out_train_mode", lambda: theirs.forward(x, t, jnp.where(hidden, null, y))
    if "cfg_x" in arrays:
        cx, ct = nhwc(arrays["cfg_x"], dtype), jnp.asarray(arrays["cfg_t"], dtype)
        cy = jnp.asarray(arrays["cfg_y"], jnp.int32)
        scales = {m[1] for name in arrays if (m := re.fullmatch(r"cfg_out_([\d.]+?)(_64|_ema)?", name))}
        for scale in sorted(scales):
            yield f"cfg_out_{scale}{suffix}", lambda scale=scale: theirs.guided(cx, ct, cy, float(scale))


@pytest.mark.parametrize("x64", thinned([True, False], 2), ids=["float64", "float32"])
@pytest.mark.parametrize("case", CASES)
def test_every_stored_output(case, x64):
    description, arrays = load(f"{FOLDER}/{case}")
    settings, dtype = description["kwargs"], "float64" if x64 else "float32"
    files = [(description["checkpoint"], "raw", ""), (description["checkpoint"], "ema", "_ema")]
    files += [(description["bare_checkpoint"], "ema", "_ema")] if description["bare_checkpoint"] else []
    off, seen = [], set()
    with jax.enable_x64(x64):
        for file, kind, suffix in files:
            theirs = Theirs(Imported(golden_dir() / FOLDER / file, settings, dtype), kind)
            for name, compute in outputs(theirs, arrays, settings, dtype, suffix):
                plain = name.removesuffix("_ema")
                double = plain + ("_64" if plain[-1].isdigit() else "64")
                stored = double if x64 and not suffix else name
                if stored not in arrays or not arrays[stored].size or x64 != (stored == double):
                    continue
                error, most = relative_error(compute(), arrays[stored]), allowed(stored, arrays, double)
                print(f"{error:9.1e} of {most:.1e}  {case} {file} {stored}")
                seen.add(stored)
                if not error <= most:
                    off.append(f"{stored}: {error:.1e}, allowed {most:.1e}")
    assert seen and not off
    outs = {name for name, array in arrays.items() if "out" in name and array.size and name.endswith("64") == x64}
    assert outs <= seen, outs - seen


@pytest.mark.parametrize("case", CASES)
def test_features_of_time_and_position(case):
    description, arrays = load(f"{FOLDER}/{case}")
    settings = description["kwargs"]
    side = settings["input_size"] // settings["patch_size"]
    # Sines of products rounded to float32: a few units in the last place of the angle.
    positions = transformer.sincos_positions(side, side, settings["hidden_size"])
    np.testing.assert_allclose(positions, arrays["pos_embed_init"][0], atol=side * np.finfo("float32").eps)
    for name, reference in arrays.items():
        if name.startswith("timestep_embedding_"):
            features = layers.transformer_features(jnp.asarray(arrays["t"]), int(name.rsplit("_", 1)[1]))
            np.testing.assert_allclose(features, reference, atol=4 * np.finfo("float32").eps)
