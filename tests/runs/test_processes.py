"""Whoever started several processes, they join; one on its own stays alone; what is said by halves is refused.

The launchers are their variables, and for a TPU of Compute Engine its metadata server, on this machine. The processes
are real: forks of one that has loaded jax, with an address of their own for each launcher.
"""

import contextlib
import http.server
import json
import socket
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest

from score_flow.runs import processes
from score_flow.runs.launchers import ALONE, PLACE
from tests.launch import ROOT, environment

# Reads a list of environments, forks a process for each, and prints (exit code, output) of each, in order.
FORKS = """
import json, os, sys, tempfile, traceback

import jax

from score_flow.errors import UserError
from score_flow.runs import processes

os.environ.pop("TPU_SKIP_MDS_QUERY", None)  # jax sets it where no TPU is plugged in


def answers():
    # What all hear: each by itself, the main one alone, and an error of either.
    own = jax.process_index()
    yield [processes.gathered("own", lambda: {"of": [own, time]}) for time in range(3)]
    yield processes.decided("main", lambda: own)
    errors = (0, UserError("no")), (1, FileNotFoundError(2, "No such file", "x")), (1, ZeroDivisionError("by"))
    for where, error in errors:
        def fail():
            if own == where:
                raise error
        try:
            yield processes.gathered("fail", fail)
        except Exception as raised:
            yield isinstance(raised, (UserError, OSError)), str(raised)


def work():
    processes.START = int(os.environ.get("START", processes.START))
    try:
        processes.initialise()
        last = processes.agree(jax.process_index() == jax.process_count() - 1)
        if jax.process_count() > 1:
            ahead = processes.Ahead(stop=iter([False, jax.process_index() == 1, False]).__next__)
            print("stop:", [ahead.ask()["stop"] for _ in range(3)])
            print("heard:", *answers())
        print(f"joined {jax.process_index()} of {jax.process_count()}: {last}")
        jax.distributed.shutdown() if jax.process_count() > 1 else None
        return 0
    except UserError as error:
        print(f"error: {error}")
        return 2
    except BaseException:
        traceback.print_exc(file=sys.stdout)
        return 1


started = []
for variables in json.load(sys.stdin):
    output = tempfile.TemporaryFile()
    if (pid := os.fork()) == 0:
        os.environ.update(variables)
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        code = work()
        sys.stdout.flush()
        os._exit(code)
    started.append((pid, output))
done = []
for pid, output in started:
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    output.seek(0)
    done.append((code, output.read().decode()))
print(json.dumps(done))
"""
TPU = {"JAX_FORCE_TPU_INIT": "1"}  # jax takes this machine for one of Cloud TPU


def run(environments, **extra):
    """(exit code, lines printed) of a process for each."""
    command = [sys.executable, "-c", FORKS]
    started = subprocess.run(
        command, cwd=ROOT, env=environment(2, **extra), input=json.dumps(environments), capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert started.returncode == 0, started.stderr
    return [(code, text.splitlines()) for code, text in json.loads(started.stdout.splitlines()[-1])]


def port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def slurm(i):
    return {
        "SLURM_JOB_ID": "4711", "SLURM_NTASKS": "2", "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i),
        "SLURM_STEP_NODELIST": "localhost", "SLURM_NODEID": "0", "SLURM_STEP_TASKS_PER_NODE": "2",
    }  # fmt: skip


def openmpi(i):
    return {
        "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": str(i), "OMPI_COMM_WORLD_LOCAL_RANK": str(i),
        "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://127.0.0.1:34911",
    }  # fmt: skip


def gke(i):
    """As GKE tells the pods of a slice of TPUs."""
    return {"TPU_WORKER_HOSTNAMES": "localhost,127.0.0.1", "TPU_WORKER_ID": str(i)}


def slices(i):
    """Two slices of one host each."""
    return {
        "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0", "MEGASCALE_COORDINATOR_ADDRESS": "localhost:8080",
        "MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": str(i),
    }  # fmt: skip


def jobset(i):
    """As launch/jobset.yaml makes them of the index of a pod."""
    return dict(zip(PLACE, (f"localhost:{port()}", "2", str(i)), strict=True))


class Metadata(http.server.BaseHTTPRequestHandler):
    """The metadata server of a worker of a TPU slice of Compute Engine."""

    def do_GET(self):
        attribute = self.path.removeprefix("/computeMetadata/v1/instance/attributes/")
        found = self.server.attributes.get(attribute) if self.headers["Metadata-Flavor"] == "Google" else None
        self.send_response(200 if found else 404)
        self.end_headers()
        self.wfile.write((found or "").encode())

    def log_message(self, *arguments):
        pass


@contextlib.contextmanager
def metadata(worker, hosts="unknown:8470:127.0.0.1,unknown:8470:127.0.0.2"):
    """The address of the metadata server of a worker among hosts."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as server:
        server.attributes = {
            "agent-worker-number": str(worker), "worker-network-endpoints": hosts, "tpu-env": "ZONE: 'here'",
        }  # fmt: skip
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def together(launcher, **more):
    """The environments of the two processes of a launcher, at a port that nobody has."""
    first, second = {**launcher(0), **more}, {**launcher(1), **more}
    shared = {"JAX_COORDINATOR_PORT": port()} | {name: first[name] for name in PLACE[:1] if name in first}
    return [first | shared, second | shared]


def check_joined(results, name):
    assert [code for code, _ in results] == [0, 0], results
    assert f"2 processes ({name}), 4 devices" in results[0][1]
    assert all(f"joined {i} of 2: True" in lines for i, (_, lines) in enumerate(results)), results
    assert all("stop: [False, False, True]" in lines for _, lines in results)
    assert not [line for line in results[1][1] if line.startswith("2 processes")]  # it is said once
    heard = [[{"of": [i, time]} for i in range(2)] for time in range(3)]
    errors = (True, "no"), (True, "[Errno 2] No such file: 'x'")
    for _, lines in results:
        assert f"heard: {heard} 0 {errors[0]} {errors[1]} (False, 'by')" in lines, lines


def test_processes_of_slurm_openmpi_and_an_indexed_job_join_and_one_alone_stays_alone():
    alone = {}, slurm(1) | {ALONE: "1"}, slurm(0) | {"SLURM_NTASKS": "1"}
    halved = {name: value for name, value in slurm(0).items() if name != "SLURM_PROCID"}
    refused = {PLACE[0]: "localhost:1"}, {"SLURM_NTASKS": "2"}, halved
    waiting = together(slurm, START="1")[1]
    found = run([*together(slurm), *together(openmpi), *together(jobset), *alone, *refused, waiting])
    for i, name in enumerate(("slurm", "openmpi", "as given")):
        check_joined(found[2 * i : 2 * i + 2], name)
    assert found[6:9] == [(0, ["joined 0 of 1: True"])] * 3
    assert [(code, len(lines), lines[0][:7]) for code, lines in found[9:12]] == [(2, 1, "error: ")] * 3
    for (_, [line]), word in zip(found[9:12], ("JAX_NUM_PROCESSES", "srun", "SLURM_PROCID"), strict=True):
        assert word in line
    code, lines = found[12]  # the other one does not come
    assert code == 76 and lines[-1].startswith("error: process 1 of 2 (slurm) did not meet all others at localhost:")


def test_hosts_of_a_tpu_join_by_gke_by_the_metadata_server_and_over_slices():
    with metadata(0) as first, metadata(1) as second, metadata(0, "localhost") as single:
        gce = lambda i: {"GCE_METADATA_IP": (first, second)[i]}  # noqa: E731
        both = {"GCE_METADATA_IP": first}  # jax asks it for slices that GKE did not name
        launched = [*together(gke, **both), *together(gce), *together(slices, **both)]
        found = run([*launched, {"GCE_METADATA_IP": single}], **TPU)
    for i in range(3):
        check_joined(found[2 * i : 2 * i + 2], "tpu")
    assert found[6] == (0, ["joined 0 of 1: True"])


@pytest.mark.parametrize(
    "chips, gpu, platforms, backend, said",
    [
        (0, True, None, "cpu", 'pip install "jax[cuda13]"'),
        (4, False, None, "cpu", 'pip install "jax[tpu]"'),
        (0, True, "cpu", "cpu", None),
        (0, True, None, "gpu", None),
        (4, False, None, "tpu", None),
        (0, False, None, "cpu", None),
    ],
)
def test_a_device_that_jax_does_not_see_is_said(monkeypatch, chips, gpu, platforms, backend, said):
    monkeypatch.setattr(processes.hardware_utils, "num_available_tpu_chips_and_device_id", lambda: (chips, None))
    monkeypatch.setattr(processes.hardware_utils, "has_visible_nvidia_gpu", lambda: gpu)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    asked = jax.config.jax_platforms
    jax.config.update("jax_platforms", platforms)
    try:
        found = processes.unused_device()
    finally:
        jax.config.update("jax_platforms", asked)
    assert said in found if said else found is None


class Late:
    """What processes said, which may be looked at only once they have said something more."""

    newest = None

    def __init__(self, words):
        self.words, Late.newest = words, self

    def __array__(self, dtype=None, copy=None):
        assert Late.newest is not self, "it waits for its own step"
        return np.array(self.words, dtype)


def test_a_loop_reads_the_answers_of_the_one_before_and_waits_for_none_of_its_own(monkeypatch):
    said = {"stop": [False, True, False, False], "save": [True, False, False, False]}
    alone = processes.Ahead(**{name: iter(words).__next__ for name, words in said.items()})
    answers = [dict(zip(said, words, strict=True)) for words in zip(*said.values(), strict=True)]
    assert [alone.ask() for _ in range(4)] == answers
    monkeypatch.setattr(processes.jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes, "said_by_any", Late)
    several = processes.Ahead(**{name: iter(words).__next__ for name, words in said.items()})
    assert [several.ask() for _ in range(4)] == [dict.fromkeys(said, False), *answers[:3]]
    assert several.answers == answers[2]
