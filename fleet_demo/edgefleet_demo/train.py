"""Trains the demo's digit classifier and writes it as one ONNX file: python -m edgefleet_demo.train.

It does not look at the held-out images before the file is written, and it picks no checkpoint: the number
of epochs is fixed, and the augmentation was chosen by 5-fold cross-validation inside the training part.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import itertools
import math
import sys
import warnings
from collections import OrderedDict
from pathlib import Path

from edgefleet.errors import EdgefleetError, InputError, MissingExtraError

try:
    import onnx
    import torch
    from torch import Tensor, nn
    from torch.nn import functional
    from torch.nn.utils import fusion

    from edgefleet_demo import digits
except ModuleNotFoundError as error:
    missing = MissingExtraError("train the demo's model", error.name or "torch", "train")
    if __name__ != "__main__":
        raise missing from error
    sys.stderr.write(f"{missing}\n")
    raise SystemExit(missing.exit_code) from error

SEED = 0
THREADS = 2
EPOCHS = 40
BATCH = 64
PEAK_LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.05
LABEL_SMOOTHING = 0.05
DROPOUT = 0.2
OPSET = 17
WIDTHS = (48, 96, 128)

# Augmentation: the largest change either way, drawn per image.
ROTATION_DEG = 15.0
SCALE = 0.15
SHIFT_PX = 1.0
NOISE_SIGMA = 0.1


class Residual(nn.Module):  # type: ignore[misc]  # torch is untyped here
    """relu(x + body(x)); body keeps the shape."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        """Float32 [n, c, h, w] to the same shape."""
        return functional.relu(x + self.body(x))


def chain(**steps: nn.Module) -> nn.Module:
    """The steps one after the other, under the names that the exported nodes and weights carry."""
    return nn.Sequential(OrderedDict(steps))


def convolution(inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Module:
    """A convolution with batch norm and no activation; odd kernels at stride 1 keep height and width."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return chain(conv=conv, norm=nn.BatchNorm2d(outputs))


def separable(inputs: int, outputs: int, *, stride: int = 1) -> nn.Module:
    """Depthwise 3x3, ReLU, pointwise 1x1; the caller adds the last activation."""
    return chain(
        depthwise=convolution(inputs, inputs, stride=stride, groups=inputs),
        relu=nn.ReLU(),
        pointwise=convolution(inputs, outputs, kernel=1),
    )


def plain(width: int) -> nn.Module:
    """Two full 3x3 convolutions with a ReLU between them."""
    return chain(first=convolution(width, width), relu=nn.ReLU(), second=convolution(width, width))


def network() -> nn.Module:
    """An untrained classifier, float32 [n, 1, 8, 8] to logits [n, 10]; about 0.25 million parameters."""
    low, middle, high = WIDTHS
    return chain(
        stem=convolution(1, low),
        stem_relu=nn.ReLU(),
        low=Residual(plain(low)),
        shrink=separable(low, middle, stride=2),
        shrink_relu=nn.ReLU(),
        middle=Residual(plain(middle)),
        widen=separable(middle, high),
        widen_relu=nn.ReLU(),
        high=Residual(separable(high, high)),
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        dropout=nn.Dropout(DROPOUT),
        classifier=nn.Linear(high, 10),
    )


def augment(images: Tensor, draw: torch.Generator) -> Tensor:
    """Each image turned, scaled, shifted and made noisy a little; float32 [n, 1, h, w] in 0..1 both ways."""
    count, width_px = images.shape[0], images.shape[-1]

    def either_way(limit: float) -> Tensor:
        return (torch.rand(count, generator=draw) * 2 - 1) * limit

    angle, scale = either_way(math.radians(ROTATION_DEG)), 1 + either_way(SCALE)
    cosine, sine = torch.cos(angle) * scale, torch.sin(angle) * scale
    # affine_grid measures in half image widths.
    right, down = either_way(SHIFT_PX * 2 / width_px), either_way(SHIFT_PX * 2 / width_px)
    rows = [torch.stack([cosine, -sine, right], 1), torch.stack([sine, cosine, down], 1)]
    grid = functional.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    moved = functional.grid_sample(images, grid, align_corners=False)
    noise = torch.randn(moved.shape, generator=draw) * NOISE_SIGMA
    return (moved + noise).clamp(0, 1)


def train(images: Tensor, labels: Tensor) -> nn.Module:
    """The classifier after a fixed number of epochs, in evaluation mode; the same bytes in, the same out."""
    torch.manual_seed(SEED)
    draw = torch.Generator().manual_seed(SEED)
    model = network()
    batches = len(images) // BATCH
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=EPOCHS * batches)
    for _ in range(EPOCHS):
        order = torch.randperm(len(images), generator=draw)
        for chosen in order[: batches * BATCH].split(BATCH):
            logits = model(augment(images[chosen], draw))
            loss = functional.cross_entropy(logits, labels[chosen], label_smoothing=LABEL_SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """The same function with every batch norm merged into the convolution before it; changes the model."""
    for parent in list(model.modules()):
        children = list(parent.named_children())
        for (name, first), (next_name, second) in itertools.pairwise(children):
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                setattr(parent, name, fusion.fuse_conv_bn_eval(first, second))
                setattr(parent, next_name, nn.Identity())
    return model


def export(model: nn.Module, path: Path) -> None:
    """Write an evaluation-mode model, batch 1: "image" [1, 1, 8, 8] to "logits" [1, 10]; one checked file."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # The exporter is deprecated, not broken, and torch is pinned; its successor records the
        # stack trace, and so the paths, of the machine in every node.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            fold_batch_norm(model),
            (torch.zeros(1, 1, 8, 8),),
            buffer,
            input_names=["image"],
            output_names=["logits"],
            opset_version=OPSET,
            dynamo=False,
        )
    exported = onnx.load_from_string(buffer.getvalue())
    exported.graph.name = "digits"
    for described in (exported, exported.graph, *exported.graph.node):
        described.ClearField("doc_string")
        described.ClearField("metadata_props")
    for node in exported.graph.node:
        node.name = node.name.strip("/")
    onnx.checker.check_model(exported, full_check=True)
    path.write_bytes(exported.SerializeToString(deterministic=True))


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Top-1 share of the images, 0..1, of a model in evaluation mode."""
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).double().mean())


def run(output: Path) -> None:
    """Train on the training part, write the file to output, then score it once on the held-out part."""
    if not output.parent.is_dir():
        raise InputError("write the demo's model", f"{output.parent} is not a folder", "make it first")
    torch.use_deterministic_algorithms(mode=True)
    # The order of a sum depends on the number of threads, and so do the file's last bits.
    torch.set_num_threads(THREADS)
    data = digits.load()
    model = train(torch.from_numpy(data.train_x), torch.from_numpy(data.train_y))
    export(model, output)
    score = accuracy(model, torch.from_numpy(data.heldout_x), torch.from_numpy(data.heldout_y))
    size, digest = output.stat().st_size, hashlib.sha256(output.read_bytes()).hexdigest()
    print(f"{output}: {size} bytes, sha256 {digest}")
    print(f"held-out top-1 {score:.2%} of {len(data.heldout_y)} images")


def main() -> int:
    """The command line; returns the exit status, with one line on standard error where it is not 0."""
    parser = argparse.ArgumentParser(
        prog="python -m edgefleet_demo.train", description="Train the demo's digit classifier again."
    )
    parser.add_argument("--output", type=Path, default=digits.model_path(), help="ONNX file to write")
    try:
        run(parser.parse_args().output)
    except EdgefleetError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
