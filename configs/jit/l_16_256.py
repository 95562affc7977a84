"""JiT-L/16, pixels of ImageNet 256 x 256 (Li and He 2025, arXiv:2511.13720, 600 epochs).

458,877,664 parameters, the fixed positions not counted.

Weights    checkpoint-last.pth of JiT-L/16, in the folder that its README names,
           https://www.dropbox.com/scl/fo/3ken1avtsd81ip67b9qpi/AK218ZNvXKSv74igVvht4PQ?rlkey=14gjrblmljewpl6ygxzlr3njm&st=ffkl77al&dl=0
Statistics jit_in256_stats.npz, https://github.com/LTH14/JiT/tree/main/fid_stats
Hardware   8 H200.
Expected   FID 2.36 at guidance 2.4 between t = 0 and 0.9.
Reached    not yet reached: not run here.
"""

from configs import families


def get_config():
    return families.jit(256, guidance=2.4, width=1024, depth=24, num_heads=16, context_start=8)
