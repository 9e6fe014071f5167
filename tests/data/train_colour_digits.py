"""Trains the colour digits' classifier and writes its ONNX file: python tests/data/train_colour_digits.py.

Needs the extra `train`. It picks no checkpoint by the held-out images: they are scored once, after the file is written.
"""

from __future__ import annotations

import io
import sys
import warnings
from pathlib import Path

import onnx
import torch
from torch import nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[1]))

from data import colour_digits
from edgefleet_demo.train import chain, convolution, fold_batch_norm, separable

SEED, EPOCHS, BATCH, THREADS = 0, 30, 64, 2
PEAK_LEARNING_RATE = 4e-3


def network() -> nn.Module:
    """Float32 [n, 3, 32, 32] to logits [n, 10]; about 20,000 parameters."""
    return chain(
        stem=convolution(3, 24, stride=2),
        stem_relu=nn.ReLU(),
        low=separable(24, 48, stride=2),
        low_relu=nn.ReLU(),
        high=convolution(48, 32),
        high_relu=nn.ReLU(),
        last=separable(32, 64, stride=2),
        last_relu=nn.ReLU(),
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        classifier=nn.Linear(64, 10),
    )


def train() -> nn.Module:
    """The classifier in evaluation mode after a fixed number of epochs."""
    torch.manual_seed(SEED)
    torch.set_num_threads(THREADS)
    draw = torch.Generator().manual_seed(SEED)
    images, labels = colour_digits.training()
    x, y = torch.from_numpy(colour_digits.normalised(images)), torch.from_numpy(labels)
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=0.05)
    batches = len(x) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=EPOCHS * batches)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(x), generator=draw)[: batches * BATCH].split(BATCH):
            # The negative of an image is the same digit in other colours.
            signs = torch.randint(0, 2, (len(chosen), 1, 1, 1), generator=draw) * 2 - 1
            loss = functional.cross_entropy(model(x[chosen] * signs), y[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def export(model: nn.Module, path: Path) -> None:
    """Write the model with a softmax behind it, batch 1; one checked file."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            nn.Sequential(fold_batch_norm(model), nn.Softmax(dim=1)),
            (torch.zeros(1, 3, 32, 32),),
            buffer,
            input_names=["image"],
            output_names=["scores"],
            opset_version=17,
            dynamo=False,
        )
    exported = onnx.load_from_string(buffer.getvalue())
    exported.graph.name = "colour-digits"
    for described in (exported, exported.graph, *exported.graph.node):
        described.ClearField("doc_string")
        described.ClearField("metadata_props")
    onnx.checker.check_model(exported, full_check=True)
    path.write_bytes(exported.SerializeToString(deterministic=True))


def main() -> None:
    """Train, write, score once."""
    model = train()
    export(model, colour_digits.MODEL)
    images, labels = colour_digits.held_out()
    with torch.no_grad():
        found = model(torch.from_numpy(colour_digits.normalised(images))).argmax(1).numpy()
    print(f"{colour_digits.MODEL.stat().st_size} bytes, held-out top-1 {(found == labels).mean():.2%}")


if __name__ == "__main__":
    main()
