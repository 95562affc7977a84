"""The flags of SiT's and improved-diffusion's scripts, typed here: answered with the commands that do the same.

Their settings are translated as those of a published file are (score_flow/pretrained/projects); the answer is the
recipe that is nearest to them, or the one that was given, with the fields in which it differs.
"""

import re
import shlex
from collections.abc import Mapping
from typing import Any, NamedTuple

OURS = re.compile(
    r"--(config(\..*)?|workdir|mode|checkpoint|reference_config|eval_folder|watch|topology|help)(=.*)?|-h"
)
FLAG = re.compile(r"--([A-Za-z][\w-]*)(?:=(.*))?", re.DOTALL)


class Script(NamedTuple):
    """What a project's scripts take besides settings of a model and its training.

    fields: their flags -> fields of ours; folders: the flags that name data, weights, results; unused: what has no
    counterpart, because nothing depends on it here.
    """

    recipes: str
    fields: Mapping[str, str]
    data: str
    weights: str
    unused: tuple[str, ...]


SCRIPTS = {
    "sit": Script(
        "configs/sit/",
        {
            "cfg_scale": "guidance.scale", "num_sampling_steps": "sampling.n_steps",
            "num_fid_samples": "eval.num_samples", "per_proc_batch_size": "eval.batch_size", "seed": "seed",
            "atol": "sampling.atol", "rtol": "sampling.rtol",
        },
        "data_path", "ckpt",
        ("results_dir", "sample_dir", "num_workers", "wandb", "vae", "tf32", "sample_eps"),
    ),
    "improved_diffusion": Script(
        "configs/improved_diffusion/",
        {"num_samples": "eval.num_samples"},
        "data_dir", "model_path",
        ("use_fp16", "fp16_scale_growth", "resume_checkpoint", "clip_denoised", "use_ddim"),
    ),
}  # fmt: skip
NAMES = {"sit": "SiT", "improved_diffusion": "improved-diffusion"}


def answer(argv: list[str]) -> str | None:
    """What to write in place of a command line with their flags; None where there are none of theirs, or others too.

    Nothing is loaded for a command line of ours.
    """
    theirs, mode = _flags(argv)
    if not theirs:
        return None
    from score_flow.errors import UserError

    known = {name: _known(name) for name in SCRIPTS}
    fitting = [name for name in SCRIPTS if theirs.keys() <= known[name].keys()]
    if not fitting:
        return None
    project = "sit" if "sit" in fitting and (mode or "model" in theirs) else fitting[-1]
    try:
        return _answer(project, {key: _read(text, known[project][key]) for key, text in theirs.items()}, mode, argv)
    except UserError as error:
        return f"these are flags of {NAMES[project]}, and one is wrong: {error}"


def _flags(argv: list[str]) -> tuple[dict[str, str | None], str]:
    """(their flags with their values, SiT's mode of sampling): --image-size 256, --image_size=256, --wandb."""
    found, mode, last = {}, "", None
    for word in argv:
        if OURS.fullmatch(word):
            last = None
        elif match := FLAG.fullmatch(word):
            name = match[1].replace("-", "_")
            found[name], last = match[2], None if match[2] is not None else name
        elif last:
            found[last], last = word, None
        elif word in ("ODE", "SDE"):
            mode = word.lower()
    return found, mode


def _known(project: str) -> dict[str, Any]:
    """Every flag of a project's scripts -> its default, whose type the value has; None: any."""
    from score_flow.pretrained.projects import improved_diffusion, sit

    if project == "sit":
        settings = sit.CONSTRUCTOR | sit.TRAINING | {"model": "SiT-XL/2", "image_size": 256}
    else:
        settings = improved_diffusion.FLAGS | improved_diffusion.DIFFUSION | improved_diffusion.TRAIN
        settings |= dict.fromkeys(("image_size", "large_size", "small_size"), 64)
    script = SCRIPTS[project]
    return dict.fromkeys((*script.fields, script.data, script.weights, *script.unused)) | settings


def _read(text: str | None, default: Any) -> Any:
    """A flag's value: text where its default is text, else what Python reads of it; none is True."""
    from score_flow.config.loading import parse

    if text is None:
        return True
    return text if isinstance(default, str) else None if text == "None" else parse(text)


def _answer(project: str, theirs: dict[str, Any], mode: str, argv: list[str]) -> str:
    from evaluation.modes.importing import sources

    script = SCRIPTS[project]
    own = {script.data, script.weights, *script.fields, *script.unused}
    settings = {key: value for key, value in theirs.items() if key not in own}
    if project == "sit":
        settings = {"model": "SiT-XL/2"} | settings  # as theirs has it
    translated = sources()[project].translate(settings)
    recipe, differing = nearest(_given("config", argv), script.recipes, translated)
    start = f"these are flags of {NAMES[project]}: write python main.py --config={recipe}"
    fields = {ours: theirs[key] for key, ours in script.fields.items() if key in theirs}
    workdir, weights = f"--workdir={_given('workdir', argv) or 'FOLDER'}", theirs.get(script.weights)
    if not (weights or mode or fields.keys() - {"seed"}):
        data = {"data.source.path": theirs[script.data]} if script.data in theirs else {}
        latents = (
            " (the latents that --mode=encode makes of it: docs/guide/data.md)" if project == "sit" and data else ""
        )
        return f"{start} {workdir} --mode=train{_written(differing | fields | data)}{latents}."
    # What only training looks at says nothing of a checkpoint.
    network = {key: value for key, value in differing.items() if not key.startswith(("training.", "optim.", "seed"))}
    fields = (_sit_sampler(mode, fields) if project == "sit" else _ddim(theirs, translated)) | fields
    if project == "sit":
        fields["eval.autoencoder"] = f"PATH/sd-vae-ft-{theirs.get('vae', 'ema')}"
    file = shlex.quote(str(weights or "PATH/SiT-XL-2-256.pt"))
    return (
        f"{start} {workdir} --mode=import --checkpoint={file}{_written(network)} && "
        f"python main.py {workdir} --mode=sample{_written(fields)}."
    )


def _given(flag: str, argv: list[str]) -> str | None:
    """The value of a flag of ours."""
    both = zip(argv, [*argv[1:], ""], strict=True)
    return next((w.partition("=")[2] or after for w, after in both if w.partition("=")[0] == f"--{flag}"), None)


def _sit_sampler(mode: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Their ODE, whose number of steps is only that of the times at which it is looked at, or a sampler of their SDE.

    Of N steps of the SDE the last is ours by itself; guidance acts on three of the four channels. `fields` loses what
    is said otherwise.
    """
    found = {"guidance.channels": 3} if fields.get("guidance.scale", 1) != 1 else {}
    steps = fields.pop("sampling.n_steps", None)
    if mode == "ode":
        return found | {
            "sampling.name": "ode",
            "sampling.method": "dopri5",
            "sampling.atol": 1e-6,
            "sampling.rtol": 1e-3,
        }
    return found | {"sampling.name": "sde"} | ({"sampling.n_steps": steps - 1} if isinstance(steps, int) else {})


def _ddim(theirs: Mapping[str, Any], translated: Mapping[str, Any]) -> dict[str, Any]:
    """improved-diffusion's DDIM, on the steps of the chain."""
    if not theirs.get("use_ddim"):
        return {}
    kept = ("sampling.n_steps", "sampling.t_min", "sampling.respacing")
    return {"sampling.name": "ddim"} | {key: translated[key] for key in kept if translated[key] != ""}


def nearest(given: str | None, folder: str, translated: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The recipe of a folder that differs least from some settings, or the one given, and the fields that differ."""
    from score_flow.config.loading import load, recipes, with_settings

    names = [given] if given else [name for name in recipes() if name.startswith(folder)]
    found = {}
    for name in names:
        config = load(name, [])
        was, wanted = entire(config), entire(with_settings(config, translated))
        found[name] = {key: value for key, value in wanted.items() if was.get(key, "") != value}
    best = min(found, key=lambda name: ("data.image_shape" in found[name], len(found[name])))
    return best, found[best]


def entire(config: Any) -> dict[str, Any]:
    """Every field of a config, those of plug-ins that it leaves at their defaults among them."""
    from score_flow.config import components
    from score_flow.config.components import Component
    from score_flow.config.loading import values_of
    from score_flow.config.options import SCHEMA

    flat = {}
    for key, value in values_of(config).items():
        if isinstance(value, Component):
            entire = components.with_defaults(SCHEMA[key].metadata["limits"].among, value, f"config.{key}")
            flat |= {f"{key}.name": value.name} | {f"{key}.{name}": given for name, given in entire.arguments.items()}
        else:
            flat[key] = value
    return flat


def _written(fields: dict[str, Any]) -> str:
    """Fields as flags, names of plug-ins first, with nothing that a shell would read."""
    ordered = sorted(fields, key=lambda key: key.rpartition(".")[2] != "name")
    return "".join(f" --config.{key}={shlex.quote(str(fields[key]).replace(', ', ','))}" for key in ordered)
