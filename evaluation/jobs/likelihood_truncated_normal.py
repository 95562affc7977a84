"""The likelihood of levels under noise that is cut to their cells, beside that of eval.dequantizer."""

from evaluation.jobs import bits

job = bits.job_of("truncated_normal")
