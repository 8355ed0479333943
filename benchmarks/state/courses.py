"""What a training reports."""

from dataclasses import dataclass, field


@dataclass
class Course:
    """The losses of a training on examples that it does not learn from."""

    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    """In nats an example, after each of the steps."""
    accuracy: float = float("nan")
    """The share of these examples that the trained model tells right."""

    def add(self, step: int, loss: float) -> None:
        self.steps.append(step)
        self.losses.append(loss)
