"""Processes, one a file: score_flow.paths.gvp() is that of gvp.py."""

from typing import TYPE_CHECKING

from score_flow.config import packages

packages.of_plug_ins(__name__)

if TYPE_CHECKING:  # what an editor knows of them
    from score_flow.paths.ddpm import DDPM as ddpm
    from score_flow.paths.gvp import GVP as gvp
    from score_flow.paths.linear import Linear as linear
    from score_flow.paths.subvp import SubVP as subvp
    from score_flow.paths.ve import VE as ve
    from score_flow.paths.vp import VP as vp
