"""A small transformer, in PyTorch on the CPU, learns to continue English text.

It predicts each character from those before it. It has two layers of causal attention and of a
network of one hidden layer, each after a norm.
Radford et al., "Language models are unsupervised multitask learners", 2019, section 2.3.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR

from benchmarks.state.courses import Course
from benchmarks.state.topics import texts
from benchmarks.state.ways import Way

WIDTH, LAYERS, HEADS, CONTEXT = 96, 2, 4, 64
BATCH_SIZE, RATE, WARM_UP = 16, 1e-2, 40
LENGTH, EVERY = 400, 40
"""Steps."""
TESTED = 256
"""Rows of the test text."""


class Layer(nn.Module):  # type: ignore[misc]  # Any, as mypy has no torch
    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.attended = nn.Linear(WIDTH, 3 * WIDTH)
        self.joined = nn.Linear(WIDTH, WIDTH)
        self.network = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.joined(self.attention(self.norms[0](x)))
        return x + self.network(self.norms[1](x))

    def attention(self, x: Tensor) -> Tensor:
        heads = self.attended(x).unflatten(-1, (3, HEADS, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return seen.transpose(1, 2).flatten(-2)


class Model(nn.Module):  # type: ignore[misc]
    """From rows of characters to the logits of the character after each of them."""

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.characters = nn.Embedding(characters, WIDTH)
        self.positions = nn.Embedding(CONTEXT, WIDTH)
        self.layers = nn.Sequential(*(Layer() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH)
        self.logits = nn.Linear(WIDTH, characters)

    def forward(self, x: Tensor) -> Tensor:
        embedded = self.characters(x) + self.positions.weight
        return self.logits(self.norm(self.layers(embedded)))


def told(model: Model, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits of all characters of the rows after the first, and these characters."""
    return model(rows[:, :-1]).flatten(0, 1).float(), rows[:, 1:].flatten()


def run(way: Way, seed: int, steps: int) -> Course:
    """Train, and look at the test text now and then. The rate rises at first, then falls to 0."""
    learned, tested = texts()
    alphabet = {character: i for i, character in enumerate(sorted(set(learned + tested)))}
    codes, codes_test = (torch.tensor([alphabet[c] for c in part]) for part in (learned, tested))
    rows_test = codes_test[: TESTED * (CONTEXT + 1)].unflatten(0, (TESTED, CONTEXT + 1))
    torch.manual_seed(seed)
    model = Model(len(alphabet)).to(torch.bfloat16 if way.bfloat16 else torch.float32)
    optimizer = way.optimizer(model.parameters(), RATE, seed)

    def share(step: int) -> float:
        return min((step + 1) / WARM_UP, (steps - step) / max(steps - WARM_UP, 1), 1.0)

    schedule = LambdaLR(optimizer, share)
    course = Course()
    for step in range(1, steps + 1):
        begins = torch.randint(len(codes) - CONTEXT, (BATCH_SIZE, 1))
        optimizer.zero_grad()
        logits, truth = told(model, codes[begins + torch.arange(CONTEXT + 1)])
        functional.cross_entropy(logits, truth).backward()
        optimizer.step()
        schedule.step()
        if step % EVERY == 0 or step == steps:
            with torch.no_grad():
                logits, truth = told(model, rows_test)
            loss = functional.cross_entropy(logits, truth)
            is_right = logits.argmax(dim=1) == truth
            course.add(step, loss=loss.item(), accuracy=is_right.double().mean().item())
    return course
