"""The likelihood of levels that are read off x at eval.decoder_time, beside that of eval.dequantizer."""

from evaluation.jobs import bits

job = bits.job_of("decoder")
