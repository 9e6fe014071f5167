"""PyTorch models for the tests, each as a function that returns a module and an example of its inputs.

Seeded: the same weights on every call and in every process.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from edgefleet_demo import digits

TOKENS, WORDS = 16, 100


class Block(nn.Module):  # type: ignore[misc] # torch is not installed where types are checked
    """Two convolutions with normalisation and a residual sum."""

    def __init__(self, channels: int, filters: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, filters, 3, stride, 1, bias=False),
            nn.BatchNorm2d(filters),
            nn.ReLU(),
            nn.Conv2d(filters, filters, 3, 1, 1, bias=False),
            nn.BatchNorm2d(filters),
        )
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(channels, filters, 1, stride)

    def forward(self, x: Any) -> Any:
        return torch.relu(self.body(x) + self.shortcut(x))


class ResNet8(nn.Module):  # type: ignore[misc] # torch is not installed where types are checked
    """Three residual blocks."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.blocks = nn.Sequential(Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2))
        self.head = nn.Linear(64, 10)

    def forward(self, image: Any) -> Any:
        return self.head(self.blocks(self.stem(image)).mean((2, 3)))


class Transformer(nn.Module):  # type: ignore[misc] # torch is not installed where types are checked
    """Two encoder layers over tokens, with a mask and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 32)
        self.places = nn.Parameter(torch.randn(1, TOKENS, 32) / 10)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, activation="gelu", norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 5)

    def forward(self, tokens: Any, mask: Any) -> dict[str, Any]:
        states = self.layers(self.words(tokens) + self.places) * mask[..., None]
        return {"classes": self.head(states.mean(1)), "states": states}


def resnet() -> tuple[Any, Any]:
    """Still in training mode, as a module is before anybody thinks of it."""
    torch.manual_seed(0)
    return ResNet8(3), torch.randn(1, 3, 32, 32)


def transformer() -> tuple[Any, Any]:
    """With its inputs by name."""
    torch.manual_seed(0)
    example = {"tokens": torch.randint(0, WORDS, (1, TOKENS)), "mask": torch.ones(1, TOKENS)}
    return Transformer(), example


def digits_net() -> tuple[Any, Any]:
    """Trained on the digits for a moment."""
    torch.manual_seed(0)
    module, data = ResNet8(1), digits.load()
    x, y = torch.from_numpy(data.train_x), torch.from_numpy(data.train_y)
    optimizer = torch.optim.Adam(module.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x), y).backward()
        optimizer.step()
    return module, (x[:1],)


def depends_on_values() -> tuple[Any, Any]:
    """A module that no export can follow."""

    class Branches(nn.Module):  # type: ignore[misc] # torch is not installed where types are checked
        def forward(self, x: Any) -> Any:
            return x * 2 if x.sum() > 0 else x - 1

    return Branches(), torch.ones(1, 3)


def fails() -> None:
    raise RuntimeError("no weights here")


def gives_a_module() -> Any:
    return ResNet8(3)
