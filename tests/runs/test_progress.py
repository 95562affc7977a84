"""What a run says: rows that survive interruptions."""

import math
import subprocess
import sys

import numpy as np
import pytest

from score_flow.errors import UserError
from score_flow.runs.progress import MetricLog, read_lines
from tests.launch import ROOT, environment

RNG = np.random.default_rng(0)


def test_rows_beyond_the_restored_step_are_cut_and_the_rest_is_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricLog(tmp_path, 0)
    for step in range(1, 9):
        log.write(step, {"loss": 1.0 / step})
    log.close()
    kept = path.read_text().splitlines()[:5]
    log = MetricLog(tmp_path, 5)  # restored at step 5
    log.write(6, {"loss": 0.0})
    log.close()
    assert path.read_text().splitlines() == [*kept, '{"step": 6, "loss": 0.0}']
    MetricLog(tmp_path, 0).close()  # nothing was restored: from the start
    assert path.read_text() == ""


@pytest.mark.parametrize("end", ['{"step": 3, "lo', '{"step": 3, "loss": 0.25', "{", "\0" * 40, "\xff\xfe"])
def test_a_last_line_cut_short_is_dropped(tmp_path, end):
    path = tmp_path / "metrics.jsonl"
    whole = '{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.125}\n'
    path.write_bytes(whole.encode() + end.encode("latin-1"))
    assert [row["step"] for row in read_lines(path)] == [1, 2]
    log = MetricLog(tmp_path, 3)
    log.write(4, {"loss": 0.5})
    log.close()
    assert path.read_text() == whole + '{"step": 4, "loss": 0.5}\n'


def test_floats_read_back_bitwise(tmp_path):
    values = [float(v) for v in RNG.integers(0, 2**32, 500, np.uint32).view(np.float32) if np.isfinite(v)]
    values += [0.1, math.pi, 5e-324, 1.7976931348623157e308, -0.0]
    log = MetricLog(tmp_path, 0)
    for step, value in enumerate(values):
        log.write(step, {"value": value})
    log.close()
    MetricLog(tmp_path, len(values)).close()  # rewritten once
    got = [row["value"] for row in read_lines(tmp_path / "metrics.jsonl")]
    np.testing.assert_array_equal(np.array(got).view(np.uint64), np.array(values).view(np.uint64))


def test_tensorboard_files_are_written(tmp_path):
    log = MetricLog(tmp_path, 0)
    log.write(3, {"loss": 0.5})
    log.close()
    events = list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))
    assert len(events) == 1 and b"loss" in events[0].read_bytes()


def test_nothing_imports_tensorflow_or_torch():
    code = "import sys, main, score_flow.training.run, evaluation.run, evaluation.modes.snapshot; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    imported = {module.split(".")[0] for module in done.stdout.split()}
    assert {"jax", "score_flow"} <= imported and not {"tensorflow", "torch"} & imported


BAD = {
    "torn last line": b'{"step": 3, "lo',
    "zeros": b"\0" * 300,
    "no JSON": b'{"step": 2; "loss": 1}',
    "no step": b'{"loss": 1}',
    "a step that is none": b'{"step": "2", "loss": 1}',
    "true is no step": b'{"step": true}',
    "a number": b"3",
    "no text": b"\xff\xfe",
    "too deep": b"[" * 100_000,
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_rows_are_kept_aside_and_all_others_stay(tmp_path, capsys, kind):
    path, aside = tmp_path / "metrics.jsonl", tmp_path / "metrics.bad.jsonl"
    good = [f'{{"step": {step}, "loss": {1 / step}}}'.encode() for step in range(1, 8)]
    path.write_bytes(b"\n".join([*good[:2], BAD[kind], *good[2:], BAD[kind]]))
    aside.write_bytes(b"of an earlier time\n")
    assert [row["step"] for row in read_lines(path)] == list(range(1, 8))
    MetricLog(tmp_path, 6).close()
    assert path.read_bytes() == b"".join(line + b"\n" for line in good[:6])
    assert aside.read_bytes() == b"of an earlier time\n" + (BAD[kind] + b"\n") * 2
    assert "2 line(s)" in (said := capsys.readouterr().out) and said.count("\n") == 1
    MetricLog(tmp_path, 6).close()
    assert path.read_bytes() == b"".join(line + b"\n" for line in good[:6]) and not capsys.readouterr().out


@pytest.mark.parametrize("name", ["metrics.jsonl", "tensorboard"])
def test_what_is_in_the_way_is_named(tmp_path, name):
    (tmp_path / "tensorboard").write_text("") if name == "tensorboard" else (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f"cannot write .*{name}") as error:
        MetricLog(tmp_path, 0)
    assert "\n" not in str(error.value)


def test_a_full_disk_ends_a_log_in_one_line(tmp_path):
    log = MetricLog(tmp_path, 0)
    log.write(1, {"loss": 0.5})
    log._file.close()
    log._file = open("/dev/full", "a", buffering=1)  # noqa: SIM115
    with pytest.raises(UserError, match=r"cannot write .*metrics\.jsonl: No space left on device \(.* free\)"):
        log.write(2, {"loss": 0.25})
    log.close()
    assert [row["step"] for row in read_lines(tmp_path / "metrics.jsonl")] == [1]
