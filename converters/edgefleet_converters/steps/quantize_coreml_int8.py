"""Step: the weights of a CoreML package to int8, symmetric and per channel; CoreML widens them when it loads the model.

Does not quantise activations; weights of fewer than 2,048 elements stay float16, as the library leaves them.
"""

from __future__ import annotations

import logging
import warnings

import coremltools
from coremltools.optimize import coreml as compression

from edgefleet_converters.artefact import Artefact
from edgefleet_converters.step import Context
from edgefleet_converters.steps.convert_coreml import package_of


def run(artefact: Artefact, context: Context) -> Artefact:
    """An .mlpackage folder in, another one out, with the same inputs and outputs."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    model = coremltools.models.MLModel(str(artefact.files[0]), skip_model_load=True)
    each = compression.OpLinearQuantizerConfig(mode="linear_symmetric", dtype="int8", granularity="per_channel")
    config = compression.OptimizationConfig(global_config=each)
    return package_of(compression.linear_quantize_weights(model, config), artefact, context.folder)
