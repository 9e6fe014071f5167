"""Data sets of the person's own, from files, folders of images or a function, and what is checked about them."""

from edgefleet_converters.data.checks import check_normalisation, overlap
from edgefleet_converters.data.sets import (
    FEWEST_CALIBRATION_SAMPLES,
    Evaluation,
    check_classes,
    count,
    is_one_hot,
    load_calibration,
    load_evaluation,
)

__all__ = [
    "FEWEST_CALIBRATION_SAMPLES",
    "Evaluation",
    "check_classes",
    "check_normalisation",
    "count",
    "is_one_hot",
    "load_calibration",
    "load_evaluation",
    "overlap",
]
