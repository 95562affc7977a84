"""Bits per dimension under the few steps of a flow map: an estimate from above, for small images."""

import functools
import math

import jax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import PyTree

from evaluation import dequantisers
from evaluation.context import Context
from evaluation.fold import Fold, write_arrays
from evaluation.jobs.base import Job, Opened
from evaluation.jobs.rounds import per_image
from sampling.base import Stream, example_keys, split
from sampling.change_of_variables import log_density
from sampling.likelihood import bits_per_dim
from score_flow.config.options import EvalOptions
from score_flow.errors import UserError
from score_flow.experiment import Experiment
from score_flow.numerics import mean_and_error
from score_flow.runs.places import Place

LARGEST = 1024  # numbers of an image, of which the Jacobian has the square


def open_flow_map(run: Experiment, options: EvalOptions, workdir: Place) -> Opened:
    """Refuse networks that are told of one time alone, and images whose Jacobian is too large."""
    if not getattr(run.model.network, "span", False):
        raise UserError("the job likelihood_flow_map needs a flow map between any two times: config.model.span = True.")
    if (size := math.prod(run.image_shape)) > LARGEST:
        raise UserError(f"the job likelihood_flow_map is for images of {LARGEST} numbers; these have {size}.")
    dequantisers.refuse_missing(run, options, options.dequantizer, workdir=workdir)
    return Opened()


def build(context: Context, opened: None) -> Fold:
    """Compute bits/dim by inverting the sampler's steps, num_repeats times: mean and standard error over images."""
    run, options, name = context.run, context.options, context.options.dequantizer
    intervals = getattr(context.sampler, "intervals", None)
    if intervals is None:
        raise UserError("the job likelihood_flow_map inverts the steps of config.sampling.name = flow_map: set it.")
    chosen = dequantisers.choose(run, options, name, workdir=context.workdir, begun=context.begun)
    steps, d = intervals(run.model.path), math.prod(run.image_shape)

    # Each device inverts for its own images: none waits in a loop for what others need.
    @functools.partial(
        jax.shard_map, mesh=Mesh(run.mesh.devices.ravel(), ("data",)), out_specs=PartitionSpec("data"),
        in_specs=(PartitionSpec(), PartitionSpec("data"), PartitionSpec("data")), check_vma=False,
    )  # fmt: skip
    def alone(params, condition, x):
        return log_density(run.model.bind(params, condition), x, steps)

    def bits(params: PyTree, batch, seeds, dequantise):
        noise_keys, _ = split(example_keys(run.seed, seeds, Stream.LIKELIHOOD))
        with jax.default_matmul_precision("highest"):
            x, offset = dequantise(noise_keys, batch["image"])
            found = alone(params, run.condition(batch), x)
        return {"bits": bits_per_dim(found.log_prob, d, offset)}, found.ok

    def finish(state):
        write_arrays(context.directory / "bits.npz", bits=state["bits"])
        mean, error = mean_and_error(state["bits"].mean(axis=0))
        return {
            "bits_per_dim": mean,
            "standard_error": error,
            **context.about(options.num_repeats),
            **chosen.said,
            "n_steps": len(steps),
            "sampler": context.sampler_said,
            "is": "an estimate from above: exact where the steps are one to one",
        }

    return per_image(
        context.depending_on(chosen.of), bits, finish, repeats=options.num_repeats, arguments=(chosen.dequantise,),
        advice=": no latent was found that the steps lead to them from; take more, config.sampling.n_steps",
    )  # fmt: skip


job = Job(
    build, frozenset({"denoiser", "pixels", "levels", "split", "sampler"}),
    ("num_repeats", "dequantizer", "decoder_time", "smallest_time"), open_flow_map,
)  # fmt: skip
