"""Small packages made up for the tests: two variants with model files of awkward sizes."""

from __future__ import annotations

from pathlib import Path

from edgefleet.package.layout import write_package
from edgefleet.package.manifest import Golden, TensorSpec, VariantFiles, VariantSpec
from edgefleet_device_profiles.profile import Precision, Runtime

TENSOR = TensorSpec(name="x", dtype="float32", shape=(1, 4))


def content(size: int, seed: int = 0) -> bytes:
    """Bytes that repeat at no block boundary."""
    return bytes((place * 7 + place // 251 + seed) % 256 for place in range(size))


def spec(name: str = "small", runtime: Runtime = Runtime.ONNXRUNTIME, *architectures: str) -> VariantSpec:
    return VariantSpec(
        name=name,
        runtime=runtime,
        precision=Precision.INT8,
        runtime_version=">=1.0",
        model_file=f"{name}.bin",
        inputs=(TENSOR,),
        outputs=(TENSOR.model_copy(update={"name": "y"}),),
        golden=Golden(samples=1, tolerances={"y": 0.1}),
        architectures=architectures or ("amd64",),
    )


def variant(folder: Path, made: VariantSpec, *sizes: int) -> VariantFiles:
    """A variant with one model file per size; the first is the one that the runtime opens."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [made.model_file, *(f"{made.name}.{place}" for place in range(1, len(sizes)))]
    files = []
    for name, size in zip(names, sizes, strict=True):
        files.append(folder / name)
        files[-1].write_bytes(content(size, len(name)))
    golden = folder / f"{made.name}.npz"
    golden.write_bytes(content(100, 3))
    return VariantFiles(made, tuple(files), golden)


def two_variants(folder: Path) -> list[VariantFiles]:
    return [
        variant(folder, spec("small"), 61441, 10),
        variant(folder, spec("wide", Runtime.LITERT, "arm64", "amd64"), 200_000),
    ]


def write(folder: Path, variants: list[VariantFiles], version: str = "1.2.0") -> str:
    return write_package(folder, name="made", version=version, release=7, variants=variants)
