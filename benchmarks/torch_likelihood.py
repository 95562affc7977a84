"""log p(x) by the probability-flow ODE on one thread of a CPU, against PyTorch, where it is installed.

The other side is score_sde_pytorch's way: the same network and weights in PyTorch (torch_layers.py), the divergence
along a Rademacher probe by reverse mode, and scipy's RK45 at rtol = atol = 1e-5, the whole batch in float64.
Ours is sampling.likelihood.log_likelihood: by the default, each image by its own steps, and by the formulas, step
control and tolerance of scipy's. Images, noise and probes are the same, and the right-hand sides are compared before
anything is timed. Times are seconds of the processor, by turns. Goals: .75 of PyTorch's, .50 by the same formulas.

    OMP_NUM_THREADS=1 XLA_FLAGS=--xla_cpu_multi_thread_eigen=false NPROC=1 \
        python -m benchmarks.torch_likelihood --workdir=runs/digits --batch=16
"""

import functools
import importlib.util
import math
import sys
import time
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.likelihood import SOLVERS, Field, Problem, by_scipy, problem
from benchmarks.measure import Options, Row, interleave, made_by, main, params_of, row, significant
from score_flow.build import experiment
from score_flow.config.options import Config
from score_flow.errors import UserError
from score_flow.experiment import Experiment
from score_flow.model import velocity_of
from score_flow.types import Images, Params

ROWS = {"torch_likelihood": "likelihood", "torch_likelihood_same_solver": "likelihood_same_solver"}
CLOSE = 1e-3


def measure(config: Config, options: Options) -> Iterable[Row]:
    """A row a solver: ms for the likelihood of a batch, and its time over PyTorch's; none without PyTorch."""
    if importlib.util.find_spec("torch") is None:
        print("torch is not installed: no row against it", file=sys.stderr, flush=True)
        return
    import torch

    torch.set_num_threads(1)
    run = experiment(config)
    params = params_of(run, config, options)
    with jax.default_matmul_precision("highest"):
        given = problem(run, params, config.eval, options.batch)
        field = of_torch(run, params, given)
        check(field, given)
        other = functools.partial(by_scipy, field, given)
        for name, like in ROWS.items():
            solver, goal = SOLVERS[like]
            timing = interleave(functools.partial(given.ours, solver), other, options.seconds, time.process_time)
            ours, theirs = timing.answers
            apart = np.sqrt(np.mean((ours.log_prob - theirs.log_prob) ** 2)) / (
                math.prod(run.image_shape) * math.log(2)
            )
            yield row(
                name, 1e3 * timing.ours, "ms/batch", timing.ratios, f"PyTorch {torch.__version__}, scipy RK45", goal,
                clock="processor", calls=ours.calls, calls_torch=theirs.calls,
                difference_bits_per_dim=significant(apart, 2)[0], solver=solver.described(), batch_size=len(given.x0),
                weights="trained" if options.workdir else "random", network=type(run.model.network).__name__,
            ) | made_by("jax", "jaxlib", "flax", "diffrax", "torch")  # fmt: skip


def of_torch(run: Experiment, params: Params, given: Problem) -> Field:
    """The velocity and its divergence in PyTorch; raises UserError for a network that is not written there."""
    import torch

    from benchmarks import torch_layers
    from benchmarks.torch_steps import leaves

    model = run.model
    if (made := torch_layers.NETWORKS.get(type(model.network))) is None:
        raise UserError(f"{type(model.network).__name__} is not in benchmarks/torch_layers.py.")
    network, weights = made(model.network), {name: torch.tensor(value) for name, value in leaves(params)}
    e = torch.tensor(given.probe).movedim(-1, 1)

    @jax.jit
    def numbers(t):
        """What the network is told of t; of what it sees and of the velocity, which are linear, the coefficients."""
        t, zero, one = jnp.full(1, t), jnp.zeros((1, 1, 1, 1)), jnp.ones((1, 1, 1, 1))
        c = model.path.at(t)
        seen = lambda x: model.preconditioning.scale_input(x, c)  # noqa: E731
        velocity = lambda output, x: velocity_of(model.prediction.decode(output, x, c.expand(x)), c.expand(x))  # noqa: E731
        told = model.preconditioning.time_feature(t, c), seen(zero), seen(one) - seen(zero)
        return jnp.concatenate(list(map(jnp.ravel, (*told, velocity(one, zero), velocity(zero, one)))))

    def field(x: Images, t: np.float32) -> tuple[Images, Any]:
        time, shift, scale, of_output, of_x = np.asarray(numbers(t)).tolist()
        x = torch.tensor(np.asarray(x)).movedim(-1, 1).requires_grad_()
        velocity = of_output * network(weights, shift + scale * x, torch.full((len(x),), time), False) + of_x * x
        (back,) = torch.autograd.grad((velocity * e).sum(), x)
        return velocity.detach().movedim(1, -1).numpy(), (back * e).sum((1, 2, 3)).numpy()

    return field


def check(field: Field, given: Problem) -> None:
    """Assert that both right-hand sides agree."""
    for t in (0.01, 0.3, 0.9):
        for theirs, ours in zip(field(given.x0, np.float32(t)), given.field(given.x0, np.float32(t)), strict=True):
            np.testing.assert_allclose(theirs, ours, rtol=CLOSE, atol=CLOSE * np.abs(ours).max())


if __name__ == "__main__":
    sys.exit(main(measure))
