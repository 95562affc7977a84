"""Networks, one a file: score_flow.networks.mlp(width=32) is that of mlp.py."""

from typing import TYPE_CHECKING

from score_flow.config import packages

packages.of_plug_ins(__name__)

if TYPE_CHECKING:  # what an editor knows of them
    from score_flow.networks.adm import ADM as adm
    from score_flow.networks.ddpm import DDPM as ddpm
    from score_flow.networks.dit import DiT as dit
    from score_flow.networks.mit import MiT as mit
    from score_flow.networks.mlp import MLP as mlp
    from score_flow.networks.ncsn import NCSN as ncsn
    from score_flow.networks.ncsnpp import NCSNpp as ncsnpp
    from score_flow.networks.ncsnv2 import NCSNv2 as ncsnv2
    from score_flow.networks.sit import SiT as sit
    from score_flow.networks.vdm import VDM as vdm
