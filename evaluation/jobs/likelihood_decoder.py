"""The likelihood of levels that are read off x at eval.decoder_time, beside that of eval.dequantizer."""

import functools

from evaluation.jobs.base import Job
from evaluation.jobs.likelihood import NEEDS, READS, build, open_for

job = Job(build, NEEDS, READS, functools.partial(open_for, "decoder"))
