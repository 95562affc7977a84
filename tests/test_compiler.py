"""The compiler's flags that the tests set."""

import os

from tests.compiler import FAST, taken


def test_flags_that_the_compiler_does_not_know_are_left_out():
    """One of them would end every process of the tests without a word."""
    unknown, known = "--xla_of_another_version=true", "--xla_force_host_platform_device_count=8"
    assert taken([unknown, known]) == [known]


def test_every_process_has_the_flags_that_the_compiler_knows():
    """Decided once; the workers of a run inherit it."""
    given = os.environ["XLA_FLAGS"].split()
    assert given.count("--xla_force_host_platform_device_count=8") == 1
    assert [flag for flag in FAST if flag in given] == taken(FAST)
