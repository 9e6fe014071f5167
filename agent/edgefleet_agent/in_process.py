"""A variant in the caller's own process: what `edgefleet_agent.load` opens.

Nothing of the agent runs here: no isolation from a runtime's crash, no telemetry, no lifecycle. For those, ask the
agent's local API.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgefleet.errors import InputError, IntegrityError
from edgefleet.package.digest import digest_of, digest_of_file
from edgefleet.package.layout import SETTINGS_FILE
from edgefleet.package.manifest import Manifest, TensorSpec, VariantSpec
from edgefleet_agent import slot_options
from edgefleet_agent.runtimes import Options
from edgefleet_agent.settings import RuntimeSettings
from edgefleet_agent.slots import MANIFEST_FILE, file_name, layers_to_pull
from edgefleet_agent.variant import Variant

CURRENT_LINK = "current"


class LoadedVariant:
    """A variant that is open."""

    def __init__(self, digest: str, spec: VariantSpec, variant: Variant) -> None:
        """Made by `load`."""
        self.digest = digest
        """Of its manifest: what telemetry and the local API call it too."""
        self.spec = spec
        self._variant = variant

    def infer(self, x: ArrayLike | Mapping[str, ArrayLike]) -> dict[str, NDArray[np.generic]]:
        """Run once: input name → array of the source model's shape and type; returns output name → array.

        The one input of a model may be given without its name. Raises InputError for what does not fit, and
        whatever the runtime raises.
        """
        given = x if isinstance(x, Mapping) else {self.spec.inputs[0].name: x}
        names = [tensor.name for tensor in self.spec.inputs]
        if sorted(given) != sorted(names):
            found = f"the inputs are {', '.join(given) or 'none'}"
            raise InputError(f"inferring with {self.spec.name}", found, f"give {', '.join(names)}")
        inputs = {tensor.name: self._fitting(np.asarray(given[tensor.name]), tensor) for tensor in self.spec.inputs}
        # The runtime's own memory is used again by the next inference.
        return {name: np.array(output) for name, output in self._variant.infer(inputs).items()}

    def _fitting(self, array: NDArray[np.generic], tensor: TensorSpec) -> NDArray[np.generic]:
        if str(array.dtype) != tensor.dtype or array.shape != tensor.shape:
            found = f"{tensor.name} is {array.dtype} {list(array.shape)}"
            raise InputError(f"inferring with {self.spec.name}", found, f"give {tensor.dtype} {list(tensor.shape)}")
        return np.ascontiguousarray(array)


def load(path: str | Path, runtime: RuntimeSettings | None = None) -> LoadedVariant:
    """Open the variant in `path`: the folder of one variant, or an agent's state folder, whose current one is meant.

    Its files are hashed first. Raises InputError (there is none), IntegrityError (a file does not match its digest),
    MissingExtraError, UnsupportedError, or whatever the runtime raises.
    """
    folder = Path(path)
    slot = folder / CURRENT_LINK if (folder / CURRENT_LINK).exists() else folder
    doing = f"opening the variant in {folder}"
    try:
        content = (slot / MANIFEST_FILE).read_bytes()
        layers = layers_to_pull(Manifest.model_validate_json(content))
        damaged = [file_name(one) for one in layers if digest_of_file(slot / file_name(one)) != one.digest]
        spec = VariantSpec.model_validate_json((slot / SETTINGS_FILE).read_bytes())
    except OSError as error:
        found = f"{Path(str(error.filename)).name}: {error.strerror}"
        raise InputError(doing, found, "name a state folder of an agent, or a variant's folder in it") from error
    except ValueError as error:
        found = f"it does not hold a variant ({str(error).splitlines()[0]})"
        raise InputError(doing, found, "name a state folder of an agent, or a variant's folder in it") from error
    if damaged or spec.model_file not in [file_name(one) for one in layers]:
        found = f"{(damaged or [spec.model_file])[0]} does not match its digest"
        raise IntegrityError(doing, found, "have the agent install it again")
    options = slot_options.applied(slot, runtime or RuntimeSettings()).model_dump()
    return LoadedVariant(digest_of(content), spec, Variant(slot, spec.model_dump(mode="json"), Options(**options)))
