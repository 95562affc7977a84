"""Losses, one a file: score_flow.losses.simple(...) is that of simple.py."""

from typing import TYPE_CHECKING

from score_flow.config import packages

packages.of_plug_ins(__name__)

if TYPE_CHECKING:  # what an editor knows of them
    from score_flow.losses.classifier import build as classifier
    from score_flow.losses.contrastive import build as contrastive
    from score_flow.losses.hybrid import build as hybrid
    from score_flow.losses.simple import build as simple
    from score_flow.losses.uncertainty import build as uncertainty
    from score_flow.losses.vlb import build as vlb
