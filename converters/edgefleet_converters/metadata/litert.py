"""Facts as TFLite model metadata.

Does not know the format: `tflite.metadata` does.
"""

from __future__ import annotations

import math

from edgefleet import __version__
from edgefleet.package.manifest import Preprocessing
from edgefleet_converters.artefact import Artefact
from edgefleet_converters.metadata.facts import Facts
from edgefleet_converters.tflite.metadata import Description, Image, attach


def write(content: bytes, artefact: Artefact, facts: Facts) -> bytes:
    """A .tflite file with the facts in it; labels go to the first output that has one element for each of them.

    An image that the file takes with its channels first is not described: the format's readers know no such images.
    """
    layouts = {spec.name: spec.permutation or (0, 1, 2, 3) for spec in artefact.inputs}
    classes = [spec.name for spec in artefact.outputs if math.prod(spec.shape) == len(facts.labels)]
    description = Description(
        name=facts.name,
        text=f"made from sha256:{facts.source_digest}",
        author=f"edgefleet {__version__}",
        images={
            item.input: _image(item)
            for item in facts.preprocessing
            if "".join(item.layout[axis] for axis in layouts[item.input]) == "nhwc"
        },
        labels=facts.labels if classes else (),
        labelled_output=classes[0] if classes else "",
    )
    return attach(content, description)


def _image(item: Preprocessing) -> Image:
    """In levels: (p / scale - mean) / std is (p - mean · scale) / (std · scale); there is no word for blue first."""
    return Image(
        colour="unknown" if item.colour == "bgr" else item.colour,
        mean=tuple(mean * item.scale for mean in item.mean),
        std=tuple(std * item.scale for std in item.std),
    )
