"""Data sets, one a file: score_flow.data.digits("test") is that of digits.py."""

from typing import TYPE_CHECKING

from score_flow.config import packages

packages.of_plug_ins(__name__)

if TYPE_CHECKING:  # what an editor knows of them
    from score_flow.data.archive import build as archive
    from score_flow.data.arrays import build as arrays
    from score_flow.data.cifar10 import build as cifar10
    from score_flow.data.cifar100 import build as cifar100
    from score_flow.data.digits import build as digits
    from score_flow.data.folder import build as folder
    from score_flow.data.latents import build as latents
    from score_flow.data.lmdb import build as lmdb
    from score_flow.data.mnist import build as mnist
    from score_flow.data.packed import build as packed
    from score_flow.data.parquet import build as parquet
    from score_flow.data.tfds import build as tfds
    from score_flow.data.tfrecord import build as tfrecord
