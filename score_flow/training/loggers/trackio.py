"""Trackio (https://huggingface.co/docs/trackio): runs in a folder of this machine, or in a Space."""

from pathlib import Path

from score_flow.training.loggers.base import About, Logger, refuse_missing


class Trackio(Logger):
    """A run of a project, found again by its name, of which the id is a part."""

    def __init__(self, project: str):
        self._project = project

    def start(self, about: About) -> None:
        import trackio

        self._trackio = trackio
        trackio.init(project=self._project, name=f"{about.name}-{about.id}", config=about.config, resume="allow")

    def log(self, step: int, row: dict[str, float]) -> None:
        self._trackio.log(row, step=step)

    def picture(self, step: int, name: str, file: Path) -> None:
        self._trackio.log({name: self._trackio.Image(str(file))}, step=step)

    def finish(self) -> None:
        self._trackio.finish()


def build(project: str = "score_flow") -> Logger:
    """Trackio: a run of `project`, on this machine or where its own settings (TRACKIO_SPACE_ID) say."""
    refuse_missing("trackio")
    return Trackio(project)
