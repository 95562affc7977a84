"""Every recipe of the source projects is here, value by value, and builds, has the published size and trains."""

import ast
import functools
import inspect
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from configs import families
from sampling.building import build_sampler
from score_flow.build import experiment
from score_flow.config import registries
from score_flow.config.loading import flatten, load, recipes, with_settings
from score_flow.model import count_parameters
from score_flow.pretrained.layouts import score_sde_config
from score_flow.pretrained.projects import edm2, improved_diffusion, jit, lightningdit, sit
from score_flow.runs.sharding import BATCH_AXES, state_shardings
from score_flow.training.steps import init_state, make_train_steps
from tests.discover import thinned

SOURCES = json.loads((Path(__file__).parents[1] / "golden" / "source_configs.json").read_text())
REGISTRIES = {"path": registries.PATHS, "network": registries.NETWORKS, "sampling": registries.SAMPLERS}

# Values that differ on purpose, by the key here.
ELSEWHERE = {
    "data.source": "where the data are is not the recipe's to say; latents and LSUN's are to be prepared by the user",
    "sampling": "SiT, LightningDiT and improved-diffusion sample by a program of their own, with settings of its own",
    "sampling.respacing": "the paper takes 250 steps of its class-conditional models; the published flags, all",
    "eval": "SiT and improved-diffusion evaluate elsewhere",
    "training.n_iters": "improved-diffusion trains until it is stopped",
    "training.n_jitted_steps": "changes speed only, and two files of score_sde lack it",
}


def score_sde_cases(project, folder):
    for file, settings in SOURCES[project].items():
        name = file.removeprefix("configs/")
        if not name.startswith("default_"):  # no network: configs/families has them
            yield f"configs/{folder}{name}", functools.partial(score_sde_config.translate, settings), ()


def sit_cases():
    for model in SOURCES["SiT"]["models"]:
        size, patch = model.removeprefix("SiT-").lower().split("/")
        for side in (256, 512):
            settings = {"model": model, "image_size": side}
            skipped = ("data.source", "sampling", "eval")
            yield f"configs/sit/{size}_{patch}_{side}.py", functools.partial(sit.translate, settings), skipped


def improved_diffusion_cases():
    for published in SOURCES["improved_diffusion"]["published"]:
        settings = published["resolved_model_and_diffusion"] | published["resolved_train"]
        if "large_size" in settings:
            settings.pop("image_size", None)
        name = published["name"].replace("e-", "e_")
        skipped = ("data.source", "sampling.respacing", "eval", "training.n_iters")
        yield (
            f"configs/improved_diffusion/{name}.py",
            functools.partial(improved_diffusion.translate, settings),
            skipped,
        )


def dit_cases():
    for model, guidance, more in (("b", 2.9, {}), ("l", 2.4, {}), ("h", 2.2, {"proj_dropout": 0.2})):
        given = {"model": f"JiT-{model.upper()}/16", "cfg": guidance, "interval_min": 0.1}
        settings = given | {"epochs": 600, "world_size": 8} | more
        yield f"configs/jit/{model}_16_256.py", functools.partial(jit.translate, settings), ("data.source",)
    model = {"model_type": "LightningDiT-XL/1", "use_swiglu": True, "use_rope": True, "use_rmsnorm": True}
    settings = {
        "model": model | {"use_qknorm": False, "wo_shift": False, "in_chans": 32}, "data": {"image_size": 256},
        "train": {"max_steps": 1_000_800, "ckpt_every": 50_000},
        "transport": {"use_lognorm": True, "use_cosine_loss": True},
    }  # fmt: skip
    skipped = ("data.source", "sampling")
    yield "configs/lightningdit/xl_1_256.py", functools.partial(lightningdit.translate, settings), skipped


def edm2_cases():
    for side, names in ((64, ("s", "m", "l", "xl")), (512, edm2.PRESETS)):
        for name in names:
            settings = {"preset": f"edm2-img{side}-{name}"}
            yield f"configs/edm2/{name}_{side}.py", functools.partial(edm2.translate, settings), ("data.source",)


CASES = [
    *score_sde_cases("score_sde", ""),
    *score_sde_cases("score_flow", "score_flow/"),
    *sit_cases(),
    *improved_diffusion_cases(),
    *dit_cases(),
    *edm2_cases(),
]
RECIPES = [file for file, _, _ in CASES]
OURS = {
    f"configs/{name}.py"
    for name in (
        "digits", "digits_conditional", "digits_classifier", "cifar10_classifier", "digits_flow_map", "emoji",
        "cifar10_vdm",
    )
}  # fmt: skip


loaded = functools.cache(lambda file: load(file, []))  # a config is a value that does not change


def values(config):
    """dotted key -> value, the arguments of components completed by their defaults, where these are known."""
    flat = flatten(json.loads(config.to_json()))
    for section, registry in REGISTRIES.items():
        build = registry.entry(getattr(config, section).name, f"config.{section}.name")
        parameters = inspect.signature(build).parameters
        known = {k: p.default for k, p in parameters.items() if k not in ("parent", "name")}
        flat = {f"{section}.{k}": list(v) if isinstance(v, tuple) else v for k, v in known.items()} | flat
    return flat


def test_every_recipe_of_the_sources_is_here_and_no_other():
    assert set(RECIPES) | OURS == set(recipes())
    assert len([f for f in RECIPES if f.count("/") > 1 and f.split("/")[1] in ("ve", "vp", "subvp")]) == 42 - 3
    assert len([f for f in RECIPES if f.startswith("configs/score_flow/")]) == 10 - 2
    assert len([f for f in RECIPES if f.startswith("configs/sit/")]) == 24


@pytest.mark.parametrize("file, translate, skipped", CASES, ids=RECIPES)
def test_values_are_those_of_the_source(file, translate, skipped):
    recipe = values(loaded(file))
    theirs = translate()
    wanted = values(load("configs/base.py", [], theirs))
    assert set(skipped) <= ELSEWHERE.keys()
    for key in theirs | dict.fromkeys(k for s in REGISTRIES for k in wanted if k.startswith(f"{s}.")):
        if not key.startswith(skipped) or not skipped:
            assert recipe[key] == wanted[key], key


CODE_LINES = 12  # two imports, `def`, `return`, and a call of a line an argument


@pytest.mark.parametrize("file", RECIPES)
def test_a_recipe_of_a_source_is_its_docstring_and_one_call(file):
    """Ours are explicit, a line a field: users copy them, and no source says their values."""
    text = (registries.ROOT / file).read_text()
    doc, *imports, function = ast.parse(text).body
    said = doc.value.value
    assert all(said.count(f"\n{word:11}") == 1 for word in ("Hardware", "Expected", "Reached"))
    assert all(type(node) is ast.ImportFrom and node.module.split(".")[0] == "configs" for node in imports)
    assert function.name == "get_config" and [type(node) for node in function.body] == [ast.Return]
    called = ast.unparse(function.body[0].value.func)
    assert called.startswith("families.") and called.removeprefix("families.") in families.__all__
    assert sum(bool(line.strip()) for line in text.splitlines()[doc.end_lineno :]) <= CODE_LINES


def test_no_two_recipes_are_equal():
    texts = {file: ast.dump(ast.parse((registries.ROOT / file).read_text())) for file in recipes()}
    assert len(set(texts.values())) == len(texts)


def test_every_family_is_called():
    """What no recipe calls, none needs; the defaults of a project are there for recipes of one's own."""
    text = "".join((registries.ROOT / file).read_text() for file in recipes())
    assert set(re.findall(r"families\.(\w+)\(", text)) == set(families.__all__) - {"improved_diffusion"}


def test_what_has_no_counterpart_is_listed():
    used = set()
    for project in ("score_sde", "score_flow"):
        for settings in SOURCES[project].values():
            used |= {key for key in flatten(settings) if key in score_sde_config.DROPPED}
    assert used == set(score_sde_config.DROPPED) - {"eval.offset"} | ({"eval.offset"} & used)
    assert all(score_sde_config.DROPPED.values())


def test_a_setting_that_is_unknown_is_refused_with_the_nearest():
    settings = SOURCES["score_sde"]["configs/vp/cifar10_ddpmpp.py"]
    changed = settings | {"model": settings["model"] | {"ch_mul": (1, 2)}}
    with pytest.raises(ValueError, match="'model.ch_mul'; allowed.*Did you mean 'model.ch_mult'"):
        score_sde_config.translate(changed)


# Parameters of the sources, by their own code; a label table of ours has one more row, for the null class.
COUNTS = {
    "configs/vp/cifar10_ddpmpp_continuous.py": 61_804_419,
    "configs/vp/cifar10_ddpmpp_deep_continuous.py": 106_632_579,
    "configs/ve/cifar10_ncsnpp_continuous.py": 62_758_915,
    "configs/ve/cifar10_ncsnpp_deep_continuous.py": 107_587_075,
    "configs/ve/bedroom_ncsnpp_continuous.py": 65_574_549,
    "configs/ve/ffhq_ncsnpp_continuous.py": 105_785_896,
    "configs/vp/ddpm/cifar10.py": 35_218_947,
    "configs/vp/ddpm/bedroom.py": 111_569_923,
    "configs/ve/ncsn/cifar10.py": 34_428_675,
    "configs/ve/ncsn/cifar10_124.py": 44_828_931,
    "configs/ve/ncsnv2/cifar10.py": 33_970_563,
    "configs/ve/ncsnv2/bedroom.py": 83_445_379,
    "configs/improved_diffusion/cifar10_uncond_hybrid.py": 52_546_438,
    "configs/improved_diffusion/imagenet64_uncond_vlb.py": 121_063_942,
    "configs/improved_diffusion/imagenet64_cond.py": 273_049_350 + 4 * 192,
    "configs/improved_diffusion/lsun_bedroom_lr1e_4.py": 113_676_678,
    "configs/improved_diffusion/upsample_64_to_256_cond.py": 279_792_390 + 4 * 192,
    # Of the papers: 131 M, 459 M, 953 M and 675 M.
    "configs/jit/b_16_256.py": 131_123_712,
    "configs/jit/l_16_256.py": 458_877_664,
    "configs/jit/h_16_256.py": 952_514_368,
    "configs/lightningdit/xl_1_256.py": 674_961_824,
    "configs/edm2/s_64.py": 280_209_381 + 6 * 192,  # the fixed waves of the time, and a row for no class
} | {
    f"configs/sit/{model.removeprefix('SiT-').lower().replace('/', '_')}_{side}.py": entry["params"][
        f"image{side}_learn_sigma_True"
    ]["params_trainable"]
    for model, entry in SOURCES["SiT"]["models"].items()
    for side in (256,)
}


def parameters(run):
    return count_parameters(jax.eval_shape(run.init, jax.random.key(0)))


@pytest.mark.parametrize("file", thinned(COUNTS, 17))
def test_sizes_are_the_published_ones(file):
    assert parameters(experiment(loaded(file))) == COUNTS[file]


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted(set(RECIPES) - set(COUNTS)))
def test_every_full_size_network_builds(file):
    run = experiment(loaded(file))
    assert parameters(run) > 1e6
    build_sampler(loaded(file))


SMALL = {
    "ncsnpp": {"width": 4, "num_res_blocks": 1, "channel_mult": (1, 1), "attention_resolutions": (4,)},
    "ddpm": {"width": 32, "num_res_blocks": 1, "channel_mult": (1, 1), "attention_resolutions": (4,)},
    "ncsn": {"width": 4},
    "ncsnv2": {"width": 4},
    "sit": {"width": 16, "depth": 1, "num_heads": 2},
    "edm2": {"width": 8, "num_res_blocks": 1, "channel_mult": (1, 2), "head_channels": 8},
    "dit": {"width": 16, "depth": 2, "num_heads": 2, "patch_size": 4, "context_start": 1},
    "adm": {"width": 32, "num_res_blocks": 1, "channel_mult": (1, 1), "attention_resolutions": (4,)},
}


@functools.cache
def reduced(file):
    """The recipe with a small network on small images; whatever else it says stays."""
    config = loaded(file)
    side = 16 if config.network.name == "sit" else 8
    small = {f"network.{name}": value for name, value in SMALL[config.network.name].items()}
    return with_settings(config, small | {
        "data.image_shape": (side, side, config.data.image_shape[2]),
        "data.num_classes": min(config.data.num_classes, 3),
        "model.low_res": min(config.model.low_res, 4),
        "training.batch_size": 2,
    })  # fmt: skip


def signature(file):
    """What tells one recipe from another once its network is small."""
    config = reduced(file)
    return json.dumps(
        [config.path.name, config.network.to_dict(), config.model.to_dict(), config.training.reduce_mean], default=str
    )


DISTINCT = list({signature(file): file for file in reversed(RECIPES)}.values())
QUICK = [next(f for f in RECIPES if loaded(f).network.name == name) for name in ("sit",)]


@pytest.mark.parametrize(
    "file", [pytest.param(f, marks=() if f in QUICK else pytest.mark.slow) for f in sorted({*DISTINCT, *QUICK})]
)
def test_one_training_step(file):
    config = reduced(file)
    run = experiment(config)
    mesh = jax.make_mesh((1, 1), BATCH_AXES, axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:1])
    rng = np.random.default_rng(0)
    batch = {"image": rng.integers(0, 256, (1, 2, *run.image_shape), np.uint8), "label": np.zeros((1, 2), np.int32)}
    rates = config.model.ema_rate
    state = jax.jit(lambda key: init_state(run.init(key), run.loss, run.optimiser, n_ema=len(rates)))(
        jax.random.key(0, impl="rbg")
    )
    before = jax.tree.map(np.asarray, state.params)
    shardings = state_shardings(mesh, state)
    steps = make_train_steps(
        run.loss, run.optimiser, ema_rates=rates, ema_warmup=False, seed=0, mesh=mesh, shardings=shardings
    )
    state, metrics = steps(jax.device_put(state, shardings), jax.tree.map(jnp.asarray, batch))
    assert np.isfinite(metrics.loss).all() and metrics.grad_norm[0] > 0
    moved = jax.tree.leaves(jax.tree.map(lambda a, b: bool((a != np.asarray(b)).any()), before, state.params))
    assert any(moved) or config.optim.warmup  # the first step of a warm-up has rate 0
