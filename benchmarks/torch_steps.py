"""A train step on one thread of a CPU against the same layers in PyTorch, where it is installed (`pip install torch`).

Both sides: the same network and parameters, the same loss on random images of 16 x 16 x 3 in batches of 32, dropout,
the recipe's Adam or AdamW and clip, one EMA. Before anything is timed both losses are compared at the same parameters,
images, noise and times, without dropout. Times are seconds of the processor, by turns, so that other work of the
machine tells less; each row has a process of its own. Goals: 1.15 (SiT, iDDPM), 1.10 (DDPM++), .60 (NCSN++).

    python -m benchmarks.torch_steps
    python -m benchmarks.torch_steps --seconds=60
"""

import functools
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.measure import Options, Row, interleave, made_by, main, row
from benchmarks.train_step import carry, train_steps
from score_flow.build import experiment
from score_flow.config.loading import load
from score_flow.config.options import Config
from score_flow.errors import UserError
from score_flow.experiment import Experiment
from score_flow.runs.processes import keep_memory

ROOT = Path(__file__).parents[1]
SIDE, BATCH = 16, 32
ONE_THREAD = {"NPROC": "1", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
CLOSE = 1e-3  # relative, of the losses of an example in float32


class Case(NamedTuple):
    """A recipe of ours and what makes it small, its loss in torch_losses.py, and the goal of the ratio."""

    recipe: str
    settings: dict[str, Any]
    loss: str
    goal: float


UNET = {
    "network.width": 64, "network.channel_mult": (1, 2), "network.num_res_blocks": 2,
    "network.attention_resolutions": (8,), "data.image_shape": (SIDE, SIDE, 3),
}  # fmt: skip
CASES = {
    "sit": Case("configs/digits.py", {"network.width": 128, "data.uniform_dequantization": False}, "velocity", 1.15),
    "iddpm": Case("configs/improved_diffusion/cifar10_uncond_hybrid.py", UNET, "hybrid", 1.15),
    "ddpmpp": Case("configs/vp/cifar10_ddpmpp_continuous.py", UNET, "vp", 1.10),
    "ncsnpp": Case("configs/ve/cifar10_ncsnpp_continuous.py", UNET, "ve", 0.60),
}


def measure(config: Config, options: Options) -> Iterable[Row]:
    """One row a case, each from a process that has one thread; none without PyTorch, which a line says."""
    if importlib.util.find_spec("torch") is None:
        print("torch is not installed: no row against its layers", file=sys.stderr, flush=True)
        return
    for name in CASES:
        code = f"from benchmarks.torch_steps import one; one({name!r}, {options.seconds})"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=os.environ | ONE_THREAD, stdout=subprocess.PIPE, text=True
        )
        if done.returncode:
            raise UserError(f"torch_{name}: no row: exit code {done.returncode}.")
        yield json.loads(done.stdout.splitlines()[-1])


def one(name: str, seconds: float) -> None:
    """Measure a case in this process and print its row."""
    keep_memory()  # as main.py does; PyTorch's tensors have it too
    import torch

    from benchmarks import torch_layers
    from benchmarks.torch_losses import LOSSES

    torch.set_num_threads(1)
    case = CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "images.npz"
        np.savez(file, image=np.random.default_rng(0).integers(0, 256, (2 * BATCH, SIDE, SIDE, 3), np.uint8))
        settings = {"data.source.name": "arrays", "data.source.path": str(file), "training.batch_size": BATCH}
        config = load(case.recipe, [], settings | {"training.n_jitted_steps": 1} | case.settings)
        run = experiment(config)
        steps, state, batch = train_steps(run, config)
    params = {key: torch.tensor(value).requires_grad_() for key, value in leaves(state.params)}
    network = torch_layers.NETWORKS[type(run.model.network)](run.model.network)
    check(run, state.params, params, network, LOSSES[case.loss])
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert count == sum(leaf.numel() for leaf in params.values())
    images = torch.tensor(np.asarray(batch["image"])[0])
    other = functools.partial(TorchStep(params, network, LOSSES[case.loss], config), images)
    timing = interleave(carry(steps, state, batch), other, seconds, time.process_time)
    line = row(
        f"torch_{name}", 1 / timing.ours, "steps/s", timing.ratios, f"PyTorch {torch.__version__}", case.goal,
        parameters=count, batch_size=BATCH, clock="processor", other=1 / float(np.median(timing.other)),
    )  # fmt: skip
    print(json.dumps(line | made_by("jax", "jaxlib", "flax", "torch")), flush=True)


def leaves(params: Any) -> Iterable[tuple[str, np.ndarray]]:
    """Names and values of parameters in torch's order of axes; of stacked blocks each by itself."""
    for path, leaf in jax.tree.leaves_with_path(params):
        *names, kind = (key.key for key in path)
        stacked = names[:1] == ["blocks"]
        for i, value in enumerate(np.array(leaf) if stacked else [np.array(leaf)]):
            name = "/".join([names[0], str(i), *names[1:], kind] if stacked else [*names, kind])
            order = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[value.ndim]
            yield name, np.ascontiguousarray(value.transpose(order))


def check(run: Experiment, theirs: Any, params: Any, network: Callable, loss: Callable) -> None:
    """Assert that both losses agree, example by example, at parameters of which none is zero."""
    import torch

    rng = np.random.default_rng(1)
    woken = jax.tree.map(lambda leaf: leaf + 0.03 * rng.standard_normal(leaf.shape, np.float32), theirs)
    x0, noise = rng.integers(0, 256, (BATCH, SIDE, SIDE, 3)) / 255, rng.standard_normal((BATCH, SIDE, SIDE, 3))
    x0 = run.scaling.low + (run.scaling.high - run.scaling.low) * x0
    t = rng.integers(1, 4001, BATCH) / 4000  # of the chain too
    t[0] = 1 / 4000
    x0, noise, t = (np.asarray(each, np.float32) for each in (x0, noise, t))
    ours = jax.jit(run.loss.at)(woken, x0, noise, t)
    weights = {name: torch.tensor(value) for name, value in leaves(woken)}
    assert weights.keys() == params.keys()
    of_images = [torch.tensor(each).movedim(-1, 1) for each in (x0, noise)]
    with torch.no_grad():
        other = loss(lambda x, time: network(weights, x, time, False), *of_images, torch.tensor(t))
    np.testing.assert_allclose(other.numpy(), np.asarray(ours), rtol=CLOSE)


class TorchStep:
    """Our step in PyTorch: scaling, mirroring, loss, gradient, clip, Adam or AdamW, EMA; it keeps what it trains."""

    def __init__(self, params: dict[str, Any], network: Callable, loss: Callable, config: Config):
        import torch

        options = config.optim
        kind = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}[options.optimizer]
        self.params, self.network, self.loss, self.config = params, network, loss, config
        self.optimiser = kind(
            params.values(), options.lr, (options.beta1, options.beta2), options.eps, options.weight_decay, fused=True
        )
        self.average = [leaf.detach().clone() for leaf in params.values()]

    def __call__(self, images: Any) -> float:
        import torch

        of, leaves = self.config, list(self.params.values())
        x0 = images.movedim(-1, 1).float() / 255
        if of.data.random_flip:
            x0 = torch.where(torch.rand(len(x0), 1, 1, 1) < 0.5, x0.flip(-1), x0)
        x0 = 2 * x0 - 1 if of.data.centered else x0
        t = 1e-5 + (1 - 1e-5) * torch.rand(len(x0))  # a chain takes the nearest of its times
        loss = self.loss(lambda x, time: self.network(self.params, x, time, True), x0, torch.randn_like(x0), t).mean()
        self.optimiser.zero_grad()
        loss.backward()
        if of.optim.grad_clip > 0:
            torch.nn.utils.clip_grad_norm_([leaf for leaf in leaves if leaf.grad is not None], of.optim.grad_clip)
        self.optimiser.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.average, leaves, 1 - of.model.ema_rate[0])
        return loss.item()


if __name__ == "__main__":
    sys.exit(main(measure))
