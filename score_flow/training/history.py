"""What became of a run's settings: what it began with, and which of them were others from which step on.

Every checkpoint carries it, and the run's folder, as history.json, that of the state that training goes on from.
"""

from collections.abc import Iterable
from typing import Any

from score_flow.runs.files import json_at, write_json
from score_flow.runs.places import Place
from score_flow.runs.processes import is_main
from score_flow.training.accepting import Change

FILE = "history.json"
History = dict[str, Any]  # {"began": {...}, "changes": [{"step": 5000, "key": ..., "from": ..., "to": ...}, ...]}


def of_state(meta: dict[str, Any]) -> History:
    """Read the history in a checkpoint's metadata; imported weights are what their run began with."""
    imported = meta.get("imported")
    return dict(meta.get("history") or ({"began": imported | {"step": meta["step"]}} if imported else {}))


def with_changes(history: History, step: int, changes: Iterable[Change]) -> History:
    """Return the history of a run that goes on from a step with other settings."""
    new = [{"step": step, "key": change.key, "from": change.old, "to": change.new} for change in changes]
    return history | ({"changes": [*history.get("changes", ()), *new]} if new else {})


def write(workdir: Place, history: History) -> None:
    """Leave a history in a run's folder, where there is any."""
    if is_main() and history:
        write_json(workdir / FILE, history)


def read(workdir: Place) -> History:
    """Read what a run's folder says of it; {} without any."""
    return json_at(workdir / FILE) or {}


def told(history: History) -> dict[str, str]:
    """Say it for people: {"began with": ..., "training.batch_size": "128 until step 5000, 256 after"}."""
    lines = {"began with": began(history["began"])} if history.get("began") else {}
    for key in dict.fromkeys(change["key"] for change in history.get("changes", ())):
        of_key = [change for change in history["changes"] if change["key"] == key]
        until = "".join(f"{_shown(change['from'])} until step {change['step']}, " for change in of_key)
        lines[key] = f"{until}{_shown(of_key[-1]['to'])} after"
    return lines


def began(facts: dict[str, Any]) -> str:
    """Say with which weights a run began."""
    weights = facts.get("weights", " and ".join(facts.get("holds", ())))
    source = facts.get("source", facts.get("file", ""))
    digest = f"sha256 {facts['sha256'][:16]}" if "sha256" in facts else f"checkpoint {facts.get('checkpoint', '')}"
    project = f" ({facts['project']})" if "project" in facts else ""
    drawn = f"; drawn anew: {', '.join(facts['drawn'])}" if facts.get("drawn") else ""
    return f"{weights} of {source}{project} at step {facts['step']}, {digest}{drawn}"


def _shown(value: Any) -> str:
    return "(" + ", ".join(map(str, value)) + ")" if isinstance(value, list) else str(value)
