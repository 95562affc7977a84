"""JiT-H/16, pixels of ImageNet 256 x 256 (Li and He 2025, arXiv:2511.13720, 600 epochs).

952,514,368 parameters, the fixed positions not counted.

Weights    checkpoint-last.pth of JiT-H/16, in the folder that its README names,
           https://www.dropbox.com/scl/fo/3ken1avtsd81ip67b9qpi/AK218ZNvXKSv74igVvht4PQ?rlkey=14gjrblmljewpl6ygxzlr3njm&st=ffkl77al&dl=0
Statistics jit_in256_stats.npz, https://github.com/LTH14/JiT/tree/main/fid_stats
Hardware   8 H200.
Expected   FID 1.86 at guidance 2.2 between t = 0 and 0.9.
Reached    not yet reached: not run here.
"""

from configs import families


def get_config():
    return families.jit(
        256, guidance=2.2, width=1280, depth=32, num_heads=16, bottleneck=256, context_start=10, dropout=0.2
    )
