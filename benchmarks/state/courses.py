"""What an experiment reports."""

from dataclasses import dataclass, field


@dataclass
class Course:
    """What was seen after some of the steps of one run."""

    steps: list[int] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=dict)
    """By what was seen: a value for each of the steps."""

    def add(self, step: int, **values: float) -> None:
        self.steps.append(step)
        for name, value in values.items():
            self.values.setdefault(name, []).append(value)
