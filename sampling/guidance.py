"""Guidance: what a config's section asks for, as one function from denoisers to a denoiser."""

from collections.abc import Callable

from sampling.guided import (
    Autoguided,
    ClassifierFree,
    ClassifierGuided,
    Extrapolation,
    LogProb,
    Tempered,
    Thresholded,
    Told,
)
from score_flow.errors import UserError
from score_flow.model import Denoiser


def guide(
    null: int,
    image_channels: int,
    data_range: tuple[float, float],
    *,
    scale: float = 1.0,
    interval: tuple = (0.0, 1.0),
    rescale: float = 0.0,
    channels: int = 0,
    threshold: str = "none",
    percentile: float = 0.995,
    classifier_scale: float = 1.0,
    autoguided: bool = False,
    scales: tuple[float, float] | None = None,
    temperature: float = 1.0,
) -> Callable[..., Denoiser]:
    """Return (denoiser, worse one or None, a classifier's log_prob or None) -> guided one; what is off costs nothing.

    Autoguidance if `autoguided`, else classifier-free guidance; then that of a classifier; then thresholding.

    The model has `null` classes, after which its null class is numbered (0: it knows none), and images of so many
    channels in data_range, [low, high]. scales: those of which it was told in training, None of a model that was not.
    Raises UserError for a scale without a null class, an interval out of order, or more channels than an image has.
    """
    guidance = Extrapolation(scale, interval, rescale, channels)
    if scales and not autoguided:
        _refuse_untold(guidance, scales)
    if scale != 1 and not null and not autoguided:
        raise UserError(
            f"config.guidance.scale is {scale}, but the model knows no null class: it must be trained with "
            "model.class_conditional and training.label_dropout above 0."
        )
    if channels > image_channels:
        raise UserError(f"config.guidance.channels is {channels}, but images have {image_channels}.")

    def guided(denoiser: Denoiser, bad: Denoiser | None = None, log_prob: LogProb | None = None) -> Denoiser:
        if autoguided:
            denoiser = Autoguided(denoiser, bad, guidance)
        elif scale != 1 and scales:
            denoiser = Told(denoiser, guidance)
        elif scale != 1:
            denoiser = ClassifierFree(denoiser, null, guidance)
        if log_prob is not None and classifier_scale:
            denoiser = ClassifierGuided(denoiser, log_prob, classifier_scale)
        if threshold != "none":
            denoiser = Thresholded(denoiser, *data_range, percentile if threshold == "dynamic" else None)
        return denoiser if temperature == 1 else Tempered(denoiser, temperature)

    return guided


def _refuse_untold(guidance: Extrapolation, scales: tuple[float, float]) -> None:
    """Raise UserError for guidance of which a network that is told of its scale was not told in training."""
    least, most = scales
    if guidance.scale != 1 and not least <= guidance.scale <= most:
        raise UserError(
            f"config.guidance.scale is {guidance.scale}, but the model was trained with scales from {least} to {most} "
            "(training.flow_map_guidance)."
        )
    for name in ("rescale", "channels"):
        if value := getattr(guidance, name):
            raise UserError(f"config.guidance.{name} is {value}, but the model's guidance is its own: leave it at 0.")
