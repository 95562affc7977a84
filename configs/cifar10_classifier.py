"""WideResNet-28-10 on noisy CIFAR-10 for class-conditional VE sampling (Song et al. 2021, app. I.1, arXiv:2011.13456).

Source     score_sde, models/wideresnet_noise_conditional.py: the network and its inputs. Of its training the paper says
           that cross-entropies at many noise levels are summed: batch, optimiser, rate, decay and length are ours.
Guides     configs/ve/cifar10_ncsnpp_continuous.py and every other recipe on the same path: VE of sigma .01 to 50 on
           images in [0, 1].
Expected   no number is published but a figure of accuracy by noise.
Reached    not yet reached: not trained here.
"""

from configs import families
from configs.base import component


def get_config():
    config = families.score_sde()
    config.path = component("ve", sigma_max=50.0, sigma_min=0.01)
    config.network = component(
        "classifier",
        blocks_per_group=4,
        channel_multiplier=10,
        data_mean=(0.4914, 0.4822, 0.4465),
        data_std=(0.2470, 0.2435, 0.2616),
    )
    config.model.time = "log_sigma"
    config.model.time_scale = 1.0
    config.data.num_classes = 10
    config.data.centered = False

    config.training.objective = "classifier"
    config.training.snapshot_sampling = False
    config.training.n_iters = 200_000

    config.optim.optimizer = "AdamW"
    config.optim.weight_decay = 1e-2

    config.eval.enable_sampling = False
    config.eval.jobs = ("accuracy",)
    return config
