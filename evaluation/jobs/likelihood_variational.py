"""The likelihood with the variational dequantiser (`--mode=train_deq`), beside that of eval.dequantizer."""

from evaluation.jobs import bits

job = bits.job_of("variational")
