"""Two data sets of one name: ImageNet at 32 and 64 pixels was released twice, and bits/dim of one are not of the other.

That of van den Oord et al. 2016 (arXiv:1601.06759: PNGs, train_32x32 and valid_32x32, no labels) has 49 999 validation
images. That of Chrabaszcz et al. 2017 (arXiv:1707.08819: batches of npz, labels) has all 50 000, by another filter:
about .3 bits/dim easier.
"""

FIRST = {1_281_149: "train", 49_999: "valid"}  # numbers of images that no other ImageNet has


def named(name: str, n: int) -> str:
    """Return the name of a data set of n images, with its release where two are called the same."""
    return f"{name} (ImageNet of van den Oord et al. 2016)" if n in FIRST else name


def of_batches(name: str, side: int) -> str:
    """Return the name of what is in npz batches."""
    return f"{name} (ImageNet-{side} of Chrabaszcz et al. 2017)"
