"""Weights & Biases (https://docs.wandb.ai)."""

from pathlib import Path

from score_flow.training.loggers.base import About, Logger, refuse_missing


class Wandb(Logger):
    """A run of a project; rows of steps that the service already has, of before a fall back, it drops itself."""

    def __init__(self, project: str, entity: str):
        self._project, self._entity = project, entity

    def start(self, about: About) -> None:
        import wandb

        self._image = wandb.Image
        self._run = wandb.init(
            project=self._project, entity=self._entity or None, name=about.name, id=about.id, resume="allow",
            config=about.config, allow_val_change=True, dir=str(about.folder),
        )  # fmt: skip

    def log(self, step: int, row: dict[str, float]) -> None:
        self._run.log(row, step=step)

    def picture(self, step: int, name: str, file: Path) -> None:
        self._run.log({name: self._image(str(file))}, step=step)

    def finish(self) -> None:
        self._run.finish()


def build(project: str = "score_flow", entity: str = "") -> Logger:
    """Weights & Biases: a run of `project`, of the person logged in or of the team `entity`."""
    refuse_missing("wandb")
    return Wandb(project, entity)
