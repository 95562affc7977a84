"""Every field of a run, its default and what it means. A recipe starts from here and may add nothing.

A section with a `name` is a component: the name is a file of its folder, the other entries are arguments of that file's
`build`, and `--help` is not the limit: any argument that `build` takes may be given.
"""

from ml_collections import ConfigDict


def component(name: str, **fields) -> ConfigDict:
    """A section that names a plug-in file and the arguments of its `build`."""
    return ConfigDict({"name": name, **fields})


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0  # every random number of the run is folded from it

    config.path = component("linear")  # the process, score_flow/paths: linear, gvp, vp, subvp, ve, ddpm
    config.network = component("ncsnpp")  # the network, score_flow/networks: ncsnpp, sit, mlp

    config.model = model = ConfigDict()
    model.prediction = "velocity"  # the network's output: noise, data, score, scaled_score, velocity, v, edm
    model.time = "t"  # what the network is told of the time: t, 1-t, log_t, log_sigma, sigma, log_snr
    model.time_scale = 999.0  # ... times this
    model.time_shift = 0.0  # ... plus this
    model.input = "none"  # scaling of the network's input: none, 2x-1, unit_variance
    model.data_std = 0.5  # standard deviation of the data, for unit_variance and edm
    model.class_conditional = False  # give the labels of the data to the network
    model.low_res = 0  # super-resolution: give the image at this many pixels a side to the network; 0 = no
    model.learn_sigma = False  # twice the output channels: the second half is a variance (unused by interpolants)
    model.ema_rate = (0.9999,)  # one average of the weights for each rate; evaluation uses the first
    model.ema_std = ()  # after them, one by powers of the step for each width, a share of the run: 0.05, 0.1 (EDM2)
    model.ema_warmup = True  # min(rate, (1 + n)/(10 + n)): short runs are not averaged with their start

    config.data = data = ConfigDict()
    data.source = component("digits")  # the data set, score_flow/data: digits, arrays, folder, tfds, latents
    data.image_shape = ()  # (h, w, c) of its images; given, what reads none (sampling, importing) needs no data set
    data.num_classes = 0  # ... and how many classes and
    data.levels = 256  # ... pixel levels it has; without image_shape the data set says so
    data.centered = True  # pixels in [-1, 1] instead of [0, 1]
    data.random_flip = False  # mirror images left to right at random
    data.uniform_dequantization = True  # train on pixels with uniform noise added inside their level

    config.training = training = ConfigDict()
    training.batch_size = 128  # global: it is divided among all devices of all processes
    training.n_iters = 100_000  # optimiser steps in all
    training.n_jitted_steps = 1  # steps in one compiled program; changes speed, not results
    training.log_freq = 50  # steps between logged losses
    training.eval_freq = 1000  # steps between losses on a test batch; 0 = never
    training.snapshot_freq = 50_000  # steps between milestone checkpoints (checkpoints/), all kept; 0 = only at the end
    training.snapshot_freq_for_preemption = (
        5000  # steps between resumable checkpoints (checkpoints-meta/), newest two kept
    )
    training.snapshot_sampling = True  # draw a sheet of samples at each milestone
    training.objective = "simple"  # simple (weighted squared error), vlb (bound of a chain), hybrid (both), classifier
    training.vlb_weight = 1e-3  # hybrid: weight of the bound, which trains only the variance, beside a mean square
    training.variance = "range"  # of a step, for the bound: small, large, or learned (model.learn_sigma): range, log
    training.decoder = "tanh"  # normal distribution function of the bound's first step: tanh (as published) or exact
    training.weighting = "simple"  # of the squared error: simple (noise), velocity, data, likelihood, min_snr
    training.min_snr_gamma = 5.0  # of weighting = min_snr
    training.likelihood_weighting = False  # same as weighting = likelihood
    training.time_sampler = component("uniform")  # uniform, stratified, grid, loss_second_moment, ... (times.py)
    training.importance_weighting = (
        False  # same as time_sampler = log_snr: unbiased, less noise with likelihood weighting
    )
    training.smallest_time = 1e-5  # t is drawn from [smallest_time, largest_time]
    training.largest_time = 1.0
    training.reduce_mean = True  # mean of the squared error over pixels instead of half its sum
    training.coupling = "independent"  # of images and noise; ot: optimal transport within a batch, for flows only
    training.label_dropout = 0.0  # probability of hiding a label, for classifier-free guidance
    training.fsdp = False  # shard parameters, EMA and optimiser state over the devices too

    config.optim = optim = ConfigDict()
    optim.optimizer = "Adam"  # Adam or AdamW
    optim.lr = 2e-4  # learning rate after warm-up
    optim.beta1 = 0.9
    optim.beta2 = 0.999
    optim.eps = 1e-8
    optim.warmup = 5000  # steps over which lr grows linearly from 0
    optim.grad_clip = 1.0  # largest global norm of the gradient; 0 or less = no limit
    optim.weight_decay = 0.0

    # what --mode=train_deq trains, by optim and training's batches and frequencies: a Flow++ network by its name (auto:
    # by the size of images), whose fields are given beside the name
    config.dequantizer = component("auto")  # its network: auto, small, cifar10, imagenet32, imagenet64
    config.deq = deq = ConfigDict()
    deq.n_iters = 0  # steps of --mode=train_deq; 0 = as many as training.n_iters
    deq.ema_rate = 0.99  # of the dequantiser's weights
    deq.score_step = 0  # step of the milestone whose model it is trained for; 0 = the newest

    # the sampler, a file of sampling/: ode, sde, predictor_corrector, ancestral, ddim, heun, multistep, unipc
    config.sampling = component("ode", t_min=1e-5, t_max=1.0, method="tsit5", rtol=1e-4, atol=1e-4)

    config.guidance = guidance = ConfigDict()
    guidance.scale = 1.0  # of classifier-free guidance, given + (scale - 1)(given - null); 1 = off
    guidance.interval = (0.0, 1.0)  # first and last time at which it acts
    guidance.rescale = 0.0  # share of the guided x0 that gets the standard deviation of the unguided one
    guidance.channels = 0  # guide only the first so many channels; 0 = all
    guidance.threshold = "none"  # x0 stays in the data's range: none, static (clipped), dynamic (by its percentile)
    guidance.percentile = 0.995  # of |x0| over an image, for dynamic
    guidance.temperature = 1.0  # standard deviation of the noise that samples start from, relative to the prior's
    guidance.classifier = ""  # workdir of a classifier (training.objective) on the same path: guides to a label each
    guidance.classifier_scale = 1.0  # ... by score + classifier_scale grad log p(label | x_t); 0 = off
    guidance.bad = ""  # workdir of a worse model of the same data: `scale` extrapolates from it (autoguidance) instead

    # --mode=control, a file of sampling/control/: inpaint, colourise, super_resolution, linear, sdedit; its fields are
    # given beside the name: input (an image, or an .npz of several), mask, matrix, method, sigma_y, ...
    config.control = component("inpaint")  # what is known of the samples: inpaint, colourise, super_resolution, ...

    config.eval = evaluation = ConfigDict()
    evaluation.enable_loss = True  # the loss on the data set, by time
    evaluation.enable_sampling = True  # draw num_samples samples and compare them with the data
    evaluation.enable_bpd = True  # bits per dimension by the probability-flow ODE
    evaluation.dequantizer = "uniform"  # of bits/dim: uniform, variational (of --mode=train_deq), decoder (of levels)
    evaluation.decoder_time = 0.0  # t at which the decoder reads levels off x; 0 = smallest_time
    evaluation.jobs = ()  # further jobs, by the name of their file in evaluation/
    evaluation.batch_size = 128  # global; changes speed, not results
    evaluation.num_samples = 256
    evaluation.low_res = ""  # what a super-resolution model refines: an .npz of images, as a base model's samples.npz
    evaluation.num_repeats = 1  # passes over the data with new dequantisation noise and probes, for the loss and bpd
    evaluation.bpd_dataset = "test"  # split that the loss and bpd are computed on: train or test
    evaluation.begin_ckpt = 0  # first and last milestone to evaluate, counted from 1;
    evaluation.end_ckpt = 0  # 0 = the newest
    evaluation.ema = 0  # which average to evaluate, of model.ema_rate, then ema_std; -1 = the raw weights
    evaluation.ema_std = 0.0  # evaluate one of this width, made of all milestones' model.ema_std, instead; 0 = off
    evaluation.smallest_time = 1e-5  # the likelihood integrates from here to largest_time
    evaluation.largest_time = 1.0
    evaluation.probe = "rademacher"  # of the divergence: rademacher, gaussian, exact
    evaluation.n_probes = 1
    evaluation.vlb_steps = 0  # of the job vlb: this many even times up to largest_time; 0 = the chain of training
    evaluation.vlb_variance = "small"  # of a step, where training learned none for its bound: small or large
    evaluation.vlb_clip = True  # keep the estimate of x0 in the range of the data, as published
    evaluation.bound_form = "dsm"  # of the job bound: dsm (denoising), or ssm (sliced, with the probes above)
    evaluation.bound_importance = True  # its times by the integrand's weight (even in log SNR) instead of even in t
    evaluation.bound_times = 100  # draws of a time and noise for each image
    # the job fid and --mode=stats; an extractor is a file of evaluation/extractors: small, or inception with `weights`
    evaluation.extractor = component("small")  # of the features that samples are compared by: small, inception
    evaluation.fid_dataset = "train"  # split that samples are compared with: train or test
    evaluation.stats = ""  # its statistics, an .npz file; default: workdir/stats/, where --mode=stats puts them
    evaluation.kept_features = 10_000  # of each set at most, for KID, precision and recall
    evaluation.save_npz = False  # the job fid writes its samples to samples.npz as ADM's evaluator reads them
    evaluation.autoencoder = ""  # folder of an AutoencoderKL whose latents the model makes: samples are decoded by it
    evaluation.solver = ConfigDict()
    evaluation.solver.method = "tsit5"  # tsit5, dopri5, dopri8, bosh3, heun, midpoint, ralston, euler
    evaluation.solver.rtol = 1e-5
    evaluation.solver.atol = 1e-5
    evaluation.solver.n_steps = 0  # 0 = adaptive steps; else this many steps on `grid`
    evaluation.solver.grid = "uniform"  # uniform, quadratic, karras, log_snr, or the times: (1.0, ..., 1e-5)
    evaluation.solver.per_example = True  # adapt the steps of each image alone: results do not depend on the batch
    evaluation.solver.max_steps = 4096
    evaluation.solver.control = "pi"  # of adaptive steps: pi, or integral (fewer calls, less exact)
    return config
