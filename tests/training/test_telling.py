"""Services that are told of a run: fakes with the signatures of their packages; what they raise harms nothing."""

import json
import sys
import types

import pytest

from main import main
from score_flow.config import registries
from score_flow.runs.progress import read_lines
from score_flow.training.loggers.base import Logger
from tests.discover import builds
from tests.launch import TINY
from tests.training.fragile import fit, fragile


class Service(types.ModuleType):
    """What both packages offer, by their documentation; everything that they are told, in order."""

    def __init__(self, name, raises=()):
        super().__init__(name)
        self.calls, self.raises = [], raises
        self.__spec__ = types.SimpleNamespace(name=name)
        self.Image = lambda value, caption=None: ("image", value)

    def _called(self, call, **arguments):
        self.calls.append((call, arguments))
        if call in self.raises:
            raise ConnectionError("no network\nat all")


class Wandb(Service):
    def init(
        self, entity=None, project=None, dir=None, id=None, name=None, config=None, resume=None, allow_val_change=None
    ):
        arguments = {"project": project, "id": id, "name": name, "config": config, "resume": resume, "dir": dir}
        self._called("init", **arguments)
        return types.SimpleNamespace(log=self._log, finish=lambda: self._called("finish"))

    def _log(self, data, step=None):
        self._called("log", data=data, step=step)


class Trackio(Service):
    def init(self, project, name=None, space_id=None, dataset_id=None, config=None, resume="never"):
        self._called("init", project=project, name=name, config=config, resume=resume)

    def log(self, metrics, step=None):
        self._called("log", data=metrics, step=step)

    def finish(self):
        self._called("finish")


SERVICES = {"wandb": Wandb, "trackio": Trackio}


@pytest.fixture
def service(request, monkeypatch):
    """The package of a name, as if it were installed; what of it raises."""
    name, *raises = request.param
    made = SERVICES[name](name, raises)
    monkeypatch.setitem(sys.modules, name, made)
    return made


run = pytest.fixture(fragile, scope="module")
QUICK = ("training.n_iters=6", "training.log_freq=2", "training.eval_freq=3", "training.snapshot_sampling=True")


@pytest.mark.parametrize(
    "service", [("wandb",), pytest.param(("trackio",), marks=pytest.mark.slow)], indirect=True, ids=str
)
def test_it_gets_the_config_every_row_and_every_sheet_and_goes_on_with_the_same_run(run, tmp_path, service):
    def snapshot(step, params):
        (file := tmp_path / f"{step}.png").write_bytes(b"a picture")
        return file

    flags = (*QUICK, f"training.logger.name={service.__name__}", "training.logger.project=digits")
    fit(run, tmp_path, *flags, snapshot=snapshot)
    fit(run, tmp_path, *flags, "training.n_iters=8", snapshot=snapshot)
    inits = [arguments for call, arguments in service.calls if call == "init"]
    assert [call for call, _ in service.calls].count("finish") == 2 and service.calls[-1][0] == "finish"
    assert len(inits) == 2 and {init["project"] for init in inits} == {"digits"}
    assert {init["resume"] for init in inits} == {"allow"} and inits[0]["config"]["network"]["width"] == 32
    identity = "id" if service.__name__ == "wandb" else "name"
    assert inits[0][identity] == inits[1][identity]
    assert json.loads((tmp_path / "logger.json").read_text())["id"] in inits[0][identity]
    told = [arguments for call, arguments in service.calls if call == "log"]
    rows = [{"step": each["step"]} | each["data"] for each in told if "samples" not in each["data"]]
    assert rows == read_lines(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [2, 3, 4, 6, 6, 8]
    sheets = [each for each in told if "samples" in each["data"]]
    assert sheets == [{"step": n, "data": {"samples": ("image", str(tmp_path / f"{n}.png"))}} for n in (6, 8)]


FAILURES = ("wandb", "init"), pytest.param(("trackio", "log", "finish"), marks=pytest.mark.slow)


@pytest.mark.parametrize("service", FAILURES, indirect=True, ids=str)
def test_a_failure_is_said_once_and_training_goes_on(run, tmp_path, capsys, service):
    fit(run, tmp_path, *QUICK, f"training.logger.name={service.__name__}")
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    reason = f"{service.__name__} cannot be told of this run (ConnectionError: no network)"
    assert said == [f"warning: {reason}: training goes on, and metrics.jsonl has every row."]
    assert [row["step"] for row in read_lines(tmp_path / "metrics.jsonl")] == [2, 3, 4, 6, 6]
    assert [call for call, _ in service.calls].count("init") == 1


@pytest.mark.parametrize("name", SERVICES)
def test_one_that_is_not_installed_is_refused_in_one_line_and_changes_nothing(tmp_path, monkeypatch, capsys, name):
    monkeypatch.setitem(sys.modules, name, None)  # as if it were not there
    flags = (f"--config.training.logger.name={name}", f"--workdir={tmp_path / 'run'}", "--mode=train")
    assert main([*TINY, *flags]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line == f"error: config.training.logger (name = {name}): {MISSING.format(name)}"
    assert not (tmp_path / "run").exists()


MISSING = "{0} is not installed: pip install {0}, or training.logger.name = none."


LOGGERS = builds(registries.LOGGERS)


def test_no_package_is_imported_before_it_is_asked_for():
    assert {"none", *SERVICES} <= {*LOGGERS} and LOGGERS["none"]() is None
    assert not {*SERVICES} & {*sys.modules}


@pytest.mark.parametrize("name", LOGGERS)
def test_each_is_a_logger_without_arguments(monkeypatch, name):
    if name in SERVICES:
        monkeypatch.setitem(sys.modules, name, SERVICES[name](name))
    logger = LOGGERS[name]()
    methods = [method for method in vars(Logger) if not method.startswith("_")]
    assert set(methods) == {"start", "log", "picture", "finish"}
    assert logger is None or all(callable(getattr(logger, method)) for method in methods)
