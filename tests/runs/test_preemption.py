"""A process that is asked to stop a second time ends at once, wherever it is."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.launch import ROOT

# Waits, under a Preemption, as jax waits for a device: in C, where Python runs no handler.
STUCK = """
import ctypes
from score_flow.runs import preemption

preemption.PATIENCE = 0.5
mutex = ctypes.create_string_buffer(128)
with preemption.Preemption(), preemption.Preemption():
    print("ready", flush=True)
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(mutex)
"""


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_a_second_sigterm_ends_it_with_75_but_not_one_that_comes_with_the_first(first):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", STUCK]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as stuck:
        assert stuck.stdout.readline() == "ready\n"
        for number in (first, signal.SIGTERM):  # as `timeout` does: to the process, and to its group
            stuck.send_signal(number)
        time.sleep(1.0)
        assert stuck.poll() is None
        stuck.send_signal(signal.SIGTERM)
        assert stuck.wait(10) == 75
        assert stuck.stderr.read() == (
            "\nstopped: at once, by a second SIGTERM, with what was saved before; run the same command to go on.\n"
        )
