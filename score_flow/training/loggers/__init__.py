"""Services that are told of a run besides its own files, one a file: config.training.logger names it."""

from typing import TYPE_CHECKING

from score_flow.config import packages

packages.of_plug_ins(__name__)

if TYPE_CHECKING:  # what an editor knows of them
    from score_flow.training.loggers.none import build as none
    from score_flow.training.loggers.trackio import build as trackio
    from score_flow.training.loggers.wandb import build as wandb
