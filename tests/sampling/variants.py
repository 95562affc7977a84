"""Settings of every sampler but the reverse SDE beside its defaults; others are tested with theirs."""

from score_flow.config import registries

# How long the steps of correctors are.
SHORT = {"annealed_langevin": {"snr": 0.05}, "langevin": {"snr": 0.03, "t_min": 1e-2}}

# name -> (settings, their order or None where the steps are the solver's own)
VARIANTS = {
    "ode": [
        ({"rtol": 1e-5, "atol": 1e-5}, None),
        ({"rtol": 1e-5, "atol": 1e-5, "per_example": False}, None),
        ({"method": "heun"}, 2),
        ({"method": "bosh3", "per_example": False, "grid": "quadratic"}, 2),
    ],
    # Langevin steps are as long as the score is short, and nearer to the data (x - alpha x0) / sigma^2 has few digits.
    "predictor_corrector": [
        ({"predictor": predictor} | corrector, 1)
        for predictor in registries.PREDICTORS.names()
        for corrector in ({}, *({"corrector": name} | SHORT.get(name, {}) for name in registries.CORRECTORS.names()))
    ]
    + [({"predictor": "euler", "probability_flow": True}, 1)],
    "ancestral": [({"variance": "small"}, 1), ({"variance": "large"}, 1)],
    "ddim": [({"eta": 0.0}, 1), ({"eta": 1.0}, 1), ({"eta": 0.5, "grid": "log_snr"}, 1)],
    "heun": [({}, 2), ({"s_churn": 40.0, "s_min": 0.02, "grid": "log_snr"}, 2)],
    "multistep": [
        *(({"order": order}, order) for order in (1, 2, 3)),
        ({"order": 2, "grid": "uniform"}, 2),
        *(({"order": order, "variant": "sde"}, 1) for order in (1, 2, 3)),
    ],
    # The last of even steps in t is long in log SNR, and nearer to the data too long to extrapolate over.
    "unipc": [
        *(({"order": order}, order) for order in (1, 2, 3)),
        ({"order": 3, "b": "bh1", "grid": "uniform", "t_min": 1e-3}, 3),
    ],
}
