"""Every file of launch/ is run by a stand-in of its launcher, or read as its launcher reads it."""

import json
import os
import re
import shlex
import subprocess
import sys
from importlib.metadata import metadata
from pathlib import Path

import pytest
import yaml

from score_flow.runs.launchers import launch_of
from tests.launch import ROOT, TINY, environment, losses

LAUNCH = ROOT / "launch"
FLAGS = ["--config=configs/digits.py", "--workdir=/runs/a b", "--mode=train", "--config.eval.jobs=('vlb',)"]
AGAIN, OVER = (75, 76, 137), (0, 1, 2, 3)  # what another start of all processes mends, and what it does not

# A program in the place of Python: writes what it was given, and exits with the next of its codes.
PROGRAM = """#!{python}
import fcntl, json, os, sys
with open("{log}", "a+") as log:
    fcntl.flock(log, fcntl.LOCK_EX)
    log.seek(0)
    n = len(log.readlines())
    print(json.dumps([sys.argv[1:], dict(os.environ)]), file=log)
sys.exit({codes}[n])
"""
# srun: two tasks on this machine, the highest of their codes.
SRUN = """#!/bin/bash
[[ $1 == --kill-on-bad-exit=0 ]] && shift
for i in 0 1; do
  env SLURM_STEP_NODELIST=localhost SLURM_NTASKS=2 SLURM_PROCID=$i SLURM_LOCALID=$i SLURM_NODEID=0 \\
    SLURM_STEP_TASKS_PER_NODE=2 "$@" & tasks+=($!)
done
for task in "${tasks[@]}"; do wait "$task"; code=$?; ((code > most)) && most=$code; done
exit $((most))
"""
# gcloud compute tpus tpu-vm: a slice of two hosts, which are folders.
GCLOUD = """#!/bin/bash
echo "$*" >> "$HOME/gcloud.log"
case "$4" in
  describe) exit 1 ;;
  create) ;;
  scp) for i in 0 1; do mkdir -p "$HOME/$i"; cp "$5" "$HOME/$i/${6#*:}"; done ;;
  ssh)
    for word in "$@"; do [[ $word == --command=* ]] && remote=${word#--command=}; done
    for i in 0 1; do (cd "$HOME/$i" && HOME="$PWD" bash -c "$remote") & hosts+=($!); done
    for host in "${hosts[@]}"; do wait "$host"; code=$?; ((code > most)) && most=$code; done
    exit $((most)) ;;
esac
"""


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def program(tmp_path):
    """Makes a program that exits with codes in turn; what it was started with."""
    log = tmp_path / "started.jsonl"

    def make(*codes, path=tmp_path / "python"):
        log.unlink(missing_ok=True)
        return executable(path, PROGRAM.format(python=sys.executable, log=log, codes=[*codes]))

    def started():
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    return make, started


def bash(*command, expected=0, **variables):
    """Run a command with some variables; what it printed."""
    done = subprocess.run(
        ["bash", *command], cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == expected, done.stdout + done.stderr
    return done.stdout


# ---- SLURM


def slurm(tmp_path, python, *flags, expected=0, **variables):
    """Run the job as sbatch does; what was requeued."""
    executable(tmp_path / "bin/srun", SRUN)
    executable(tmp_path / "bin/scontrol", f'#!/bin/bash\necho "$*" >> {tmp_path}/scontrol.log\n')
    given = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "PYTHON": str(python), "SLURM_JOB_ID": "4711"}
    bash(LAUNCH / "slurm.sh", *flags, expected=expected, SLURM_SUBMIT_DIR=str(ROOT), **given, **variables)
    log = tmp_path / "scontrol.log"
    return log.read_text() if log.exists() else ""


@pytest.mark.parametrize("code", [*OVER, *AGAIN])
def test_a_job_of_slurm_is_queued_again_after_what_another_start_mends(tmp_path, program, code):
    make, started = program
    requeued = slurm(tmp_path, make(0, code), *FLAGS, expected=code)
    assert requeued == ("requeue 4711\n" if code in AGAIN else "")
    assert [given for given, _ in started()] == [["main.py", *FLAGS]] * 2
    found = [launch_of(variables) for _, variables in started()]
    assert [launch.name for launch in found] == ["slurm"] * 2


def test_a_job_of_slurm_is_not_queued_for_ever(tmp_path, program):
    make, _ = program
    assert slurm(tmp_path, make(137, 137), expected=137, SLURM_RESTART_COUNT="100") == ""


def test_options_of_slurm():
    """Those that sbatch has, one task a node, and a signal before the time is over that goes to the tasks."""
    text = (LAUNCH / "slurm.sh").read_text()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=?(\S*)", text, re.MULTILINE))
    assert options.keys() == {
        "job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "time", "signal", "requeue",
        "open-mode", "output",
    }  # fmt: skip
    assert options["ntasks-per-node"] == "1" and options["signal"] == "TERM@300" and options["open-mode"] == "append"
    assert text.rindex("#SBATCH") < text.index("\ncd ")  # sbatch reads them before the first command alone


@pytest.mark.slow
def test_a_job_of_slurm_trains(tmp_path):
    """Two tasks make one run of the digits."""
    variables = {name: environment()[name] for name in ("JAX_PLATFORMS", "XLA_FLAGS")}
    flags = [*TINY, "--config.training.n_iters=4", f"--workdir={tmp_path / 'run'}", "--mode=train"]
    slurm(tmp_path, sys.executable, *flags, **variables)
    assert list(losses(tmp_path / "run")) == [1, 2, 3, 4]


# ---- TPU slices


def test_a_slice_of_tpus_is_made_installed_and_started_until_it_is_over(tmp_path, program):
    make, started = program
    executable(tmp_path / "bin/gcloud", GCLOUD)
    python = make(75, 76, 137, 75, 2, 2)
    # python3.13 -m venv .venv: the program in the place of its python, and a pip
    venv = f"mkdir -p .venv/bin; cp {python} .venv/bin/python; ln -s /bin/true .venv/bin/pip\n"
    executable(tmp_path / "bin/python3.13", f"#!/bin/bash\n{venv}")
    given = {"NAME": "mine", "ZONE": "here-a", "TYPE": "v6e-16", "HOME": str(tmp_path)}
    given["PATH"] = f"{tmp_path}/bin:{os.environ['PATH']}"
    bash(LAUNCH / "tpu.sh", *FLAGS, expected=2, **given)
    assert [words for words, _ in started()] == [["main.py", *FLAGS]] * 6
    assert all((tmp_path / f"{i}/score-flow/main.py").exists() for i in range(2))
    assert not (tmp_path / "0/score-flow/.git").exists()
    asked = (tmp_path / "gcloud.log").read_text().splitlines()
    asked = [line for line in asked if line.startswith("compute tpus tpu-vm ")]
    assert [line.split()[3] for line in asked] == ["describe", "create", "scp", "ssh", "ssh"]
    assert "--accelerator-type=v6e-16" in asked[1]


@pytest.mark.parametrize("missing", ["NAME", "ZONE", "TYPE"])
def test_a_slice_needs_a_name_a_zone_and_a_type(missing):
    given = {name: "x" for name in ("NAME", "ZONE", "TYPE") if name != missing}
    assert bash(LAUNCH / "tpu.sh", expected=1, **given, **{missing: ""}) == ""


# ---- Kubernetes


@pytest.mark.parametrize("file", ["jobset.yaml", "jobset_tpu.yaml"])
def test_a_jobset_starts_all_pods_again_unless_that_mends_nothing(file):
    """The parts of JobSet v1alpha2 and Job v1 that are used, by name."""
    jobset = yaml.safe_load((LAUNCH / file).read_text())
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    policy = jobset["spec"]["failurePolicy"]
    assert policy["maxRestarts"] > 0 and {rule["action"] for rule in policy["rules"]} == {"FailJobSet"}
    assert all(rule["name"] and rule["onJobFailureReasons"] == ["PodFailurePolicy"] for rule in policy["rules"])
    [hosts] = jobset["spec"]["replicatedJobs"]
    job = hosts["template"]["spec"]
    assert job["completionMode"] == "Indexed" and job["parallelism"] == job["completions"] > 1
    [rule] = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["operator"] == "In"
    assert job["backoffLimit"] == 0 and rule["onExitCodes"]["values"] == [code for code in OVER if code]
    pod = job["template"]["spec"]
    [container] = pod["containers"]
    assert pod["restartPolicy"] == "Never" and rule["onExitCodes"]["containerName"] == container["name"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_the_pods_of_a_jobset_find_each_other(program, tmp_path):
    """Each by its index, at the name that JobSet gives the first."""
    make, started = program
    make(0, 0, path=tmp_path / ".venv/bin/python")
    jobset = yaml.safe_load((LAUNCH / "jobset.yaml").read_text())
    [hosts] = jobset["spec"]["replicatedJobs"]
    [container] = hosts["template"]["spec"]["template"]["spec"]["containers"]
    for i in range(2):
        index = os.environ | {"JOB_COMPLETION_INDEX": str(i)}
        subprocess.run([*container["command"], *container["args"]], cwd=tmp_path, env=index, check=True)
    name = jobset["metadata"]["name"]
    address = f"{name}-{hosts['name']}-0-0.{name}:8476"
    places = [launch_of(variables).arguments for _, variables in started()]
    assert [place["process_id"] for place in places] == [0, 1]
    assert all(place["coordinator_address"] == address and place["num_processes"] == 2 for place in places)
    assert hosts["template"]["spec"]["parallelism"] == 2


# ---- SkyPilot


def test_the_nodes_of_skypilot_find_each_other(program, tmp_path):
    make, started = program
    make(0, 0, path=tmp_path / ".venv/bin/python")
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert task.keys() == {"name", "workdir", "num_nodes", "resources", "envs", "volumes", "setup", "run"}
    assert task["resources"]["job_recovery"] == {"recover_on_exit_codes": [*AGAIN]}
    for i in range(2):
        node = {"SKYPILOT_NODE_IPS": "10.0.0.4\n10.0.0.5", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": str(i)}
        subprocess.run(["bash", "-c", task["run"]], cwd=tmp_path, env=os.environ | node | task["envs"], check=True)
    assert [words for words, _ in started()] == [["main.py", *shlex.split(task["envs"]["FLAGS"])]] * 2
    places = [launch_of(variables).arguments for _, variables in started()]
    assert [place["process_id"] for place in places] == [0, 1] and task["num_nodes"] == 2
    assert {place["coordinator_address"] for place in places} == {"10.0.0.4:8476"}
    assert re.fullmatch(r"make install DEVICE=(\w+)", task["setup"])[1] in DEVICES


# ---- Docker, make


OTHERS = ("dev", "dev-all", "docs")
NAMES = sorted(path.stem.partition("-")[2] for path in ROOT.glob("requirements-*.txt"))
DEVICES = [name for name in NAMES if name not in OTHERS]


def test_the_image_is_made_of_what_is_here():
    lines = [line for line in (LAUNCH / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    steps = [line.split(maxsplit=1) for line in lines]
    assert " ".join(name for name, _ in steps) == "FROM ARG RUN WORKDIR COPY RUN COPY STOPSIGNAL ENTRYPOINT"
    copied = next(rest for name, rest in steps if name == "COPY").split()[:-1]
    assert all(list(ROOT.glob(name)) for name in copied)
    assert "RUN make install DEVICE=$DEVICE" in "\n".join(lines) and "ARG DEVICE=cpu" in lines
    assert json.loads(steps[-1][1]) == [".venv/bin/python", "main.py"] and (ROOT / "main.py").exists()
    assert ".venv" in (LAUNCH / "Dockerfile.dockerignore").read_text().split()


@pytest.mark.parametrize("device", ["cpu", *DEVICES])
def test_make_installs_the_jax_of_a_device(tmp_path, device):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").touch()
    executable(tmp_path / "bin/pip", f'#!/bin/bash\necho "$*" > {tmp_path}/asked\n')
    made = ["make", "install", f"DEVICE={device}", f"VENV={tmp_path}"]
    subprocess.run(made, cwd=ROOT, check=True, capture_output=True)
    file = ROOT / (tmp_path / "asked").read_text().split()[-1]
    assert file.name == (f"requirements-{device}.txt" if device != "cpu" else "requirements.txt")
    wanted = set(file.read_text().splitlines())
    bound = re.search(r"^jax(>=.*)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE)[1]
    assert device == "cpu" or wanted == {"-r requirements.txt", f"jax[{device}]{bound}"}
    assert device == "cpu" or device in metadata("jax").get_all("Provides-Extra")


def test_make_names_the_devices(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").touch()
    done = subprocess.run(
        ["make", "install", "DEVICE=gpu", f"VENV={tmp_path}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "error: DEVICE is 'gpu'; allowed: cpu, cuda12, cuda13, tpu." in done.stderr
    assert DEVICES == ["cuda12", "cuda13", "tpu"]


def test_every_file_is_named_in_the_guide():
    text = (ROOT / "docs/guide/machines.md").read_text()
    assert {path.name for path in LAUNCH.iterdir()} - {"Dockerfile.dockerignore"} == {
        name.removeprefix("launch/") for name in re.findall(r"`(launch/[\w.]+)", text)
    }
