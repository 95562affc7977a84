"""No service."""


def build() -> None:
    """Nobody is told: metrics.jsonl, tensorboard/ and samples/ have it all."""
