"""Where a run comes from: what it began with, which settings changed on the way, the starts that it is made of."""

from typing import Any

from score_flow.runs import provenance
from score_flow.runs.places import Place
from score_flow.training import history


def origin(workdir: Place) -> dict[str, str]:
    """Say it for people: {"began with": ..., "training.batch_size": "128 until step 5000, 256 after", ...}."""
    starts = {f"start at step {line['step']}": _start(line) for line in provenance.starts(workdir)}
    return history.told(history.read(workdir)) | starts


def _start(line: dict[str, Any]) -> str:
    """Say one start; what is not known of it is left out."""
    commit = (
        f"commit {line['commit'][:12]}{' and changes' if line.get('changes') else ''}" if line.get("commit") else ""
    )
    version = f"score_flow {line['version']}" if line.get("version") else ""
    machine = f"on {line['host']}" if line.get("host") else ""
    parts = (line.get("time"), version, commit, machine, line.get("devices"), line.get("command"))
    return ", ".join(str(part) for part in parts if part)
