"""The page that goes with an export: what the model takes and gives, and the lines of code that run it.

Text only: nothing is read and nothing is written here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from edgefleet.export.choosing import Kit
from edgefleet.package.manifest import Preprocessing, TensorSpec, VariantSpec


@dataclass(frozen=True, slots=True)
class Subject:
    """What a page is about."""

    title: str
    """Package and version."""
    digest: str
    """Of the variant's manifest."""
    spec: VariantSpec
    files: tuple[str, ...]
    checked: bool
    """Whether the variant was made for this processor."""
    described: bool
    """Whether the model file says itself what it takes and gives (TFLite metadata)."""
    arena_bytes: int
    """What a microcontroller's profile leaves for tensors."""


def file_shape(tensor: TensorSpec) -> tuple[int, ...]:
    """Shape of the file's own tensor; `shape` is the source model's."""
    return tensor.shape if tensor.permutation is None else tuple(tensor.shape[axis] for axis in tensor.permutation)


def page(kit: Kit, subject: Subject) -> str:
    """README.md of an export."""
    spec = subject.spec
    return "\n".join(
        [
            f"# {subject.title} ({spec.name})",
            "",
            f"Variant `{subject.digest}`; needs {spec.runtime} {spec.runtime_version}.",
            f"Files: {', '.join(f'`{name}`' for name in subject.files)}.",
            "",
            *(_tensor("Input", tensor) for tensor in spec.inputs),
            *(_picture(item) for item in spec.preprocessing),
            *(_tensor("Output", tensor) for tensor in spec.outputs),
            *(["- The file has TFLite metadata that says the same."] if subject.described else []),
            *([f"- Labels: {len(spec.labels)}, in `labels.txt` in the order of the output"] if spec.labels else []),
            "",
            *_CODE[kit](subject),
            "",
        ]
    )


def _tensor(role: str, tensor: TensorSpec) -> str:
    shape = " × ".join(map(str, file_shape(tensor)))
    stored = tensor.quantization
    if stored is None:
        return f"- {role} `{tensor.name}`: {tensor.dtype}, {shape}"
    shift = f"{'+' if stored.zero_point < 0 else '−'} {abs(stored.zero_point)}"
    how = f"real = (stored {shift}) × {stored.scale:.9g}"
    return f"- {role} `{tensor.name}`: {stored.dtype}, {shape}; {how}"


def _picture(item: Preprocessing) -> str:
    """One line for an image: `(pixel / scale - mean) / std`, channel by channel."""
    mean, std = (", ".join(f"{number:g}" for number in numbers) for numbers in (item.mean, item.std))
    size = f"{item.width} × {item.height} {item.colour}, {item.layout}, resized {item.method}"
    return f"  - `{item.input}` is an image, {size}; (pixel ÷ {item.scale:g} − [{mean}]) ÷ [{std}]"


def _elements(tensor: TensorSpec) -> int:
    return math.prod(file_shape(tensor))


def _kotlin(subject: Subject) -> list[str]:
    array = "ByteArray" if subject.spec.inputs[0].quantization else "FloatArray"
    word = "Int8" if subject.spec.inputs[0].quantization else "Float"
    labels = ['val labels = assets.open("labels.txt").bufferedReader().readLines()'] if subject.spec.labels else []
    return [
        "Copy `assets/` into `app/src/main/`, and add to `build.gradle.kts`:",
        "```kotlin",
        'android { androidResources { noCompress += "tflite" } }',
        'dependencies { implementation("com.google.ai.edge.litert:litert:2.1.0") }',
        "```",
        "```kotlin",
        "import com.google.ai.edge.litert.Accelerator",
        "import com.google.ai.edge.litert.CompiledModel",
        "val options = CompiledModel.Options(Accelerator.CPU)",
        f'val model = CompiledModel.create(assets, "{subject.spec.model_file}", options)',
        *labels,
        "val inputs = model.createInputBuffers()",
        "val outputs = model.createOutputBuffers()",
        f"inputs[0].write{word}({array}({_elements(subject.spec.inputs[0])}))  // your data",
        "model.run(inputs, outputs)",
        f"val result = outputs[0].read{word}()",
        "```",
    ]


def _swift(subject: Subject) -> list[str]:
    given, taken = subject.spec.inputs[0], subject.spec.outputs[0]
    shape = ", ".join(map(str, file_shape(given)))
    labels = [
        'let url = Bundle.main.url(forResource: "labels", withExtension: "txt")!',
        'let labels = try String(contentsOf: url, encoding: .utf8).split(separator: "\\n")',
    ]
    return [
        "Drag `model.mlpackage` into the app's target in Xcode, which compiles it:",
        "```swift",
        "import CoreML",
        'let place = Bundle.main.url(forResource: "model", withExtension: "mlmodelc")!',
        "let model = try await MLModel.load(contentsOf: place, configuration: MLModelConfiguration())",
        *(labels if subject.spec.labels else []),
        f"let input = try MLMultiArray(shape: [{shape}], dataType: .float32)  // fill in your data",
        f'let row = try MLDictionaryFeatureProvider(dictionary: ["{given.name}": input])',
        "let result = try await model.prediction(from: row)",
        f'let output = result.featureValue(for: "{taken.name}")!.multiArrayValue!',
        "```",
        "The file was converted, and not run on a device of Apple's: compare with your own samples first.",
    ]


def _c(subject: Subject) -> list[str]:
    operators = ["tflite::MicroMutableOpResolver<MODEL_OPERATOR_COUNT> resolver;  // see model_data.h"]
    arena, warning = "MODEL_ARENA_SIZE", []
    if not subject.checked:
        operators = ["tflite::MicroMutableOpResolver<32> resolver;  // register what the model needs"]
        arena = f"{subject.arena_bytes}"
        warning = ["Made for a device with a system: nobody has checked its operators and its arena for yours.", ""]
    return [
        *warning,
        "Add the two files to a firmware with LiteRT for Microcontrollers:",
        "```cpp",
        '#include "model_data.h"',
        f"alignas(16) static uint8_t arena[{arena}];",
        *operators,
        "tflite::MicroInterpreter interpreter(tflite::GetModel(model_data), resolver, arena, sizeof(arena));",
        "interpreter.AllocateTensors();",
        "// fill interpreter.input(0)->data",
        "interpreter.Invoke();",
        "// read interpreter.output(0)->data",
        "```",
    ]


_CODE: Mapping[Kit, Callable[[Subject], list[str]]] = MappingProxyType(
    {Kit.ANDROID: _kotlin, Kit.IOS: _swift, Kit.MICRO: _c}
)
