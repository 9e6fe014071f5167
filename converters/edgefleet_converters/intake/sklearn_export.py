"""The child's side of scikit-learn intake: opens the file and writes ONNX with skl2onnx.

Imports its toolchain when it runs, so that a missing one is said in one line.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgefleet.errors import InputError, MissingExtraError, UnsupportedError
from edgefleet_converters.intake.sklearn_graph import simplify
from edgefleet_converters.intake.sklearn_model import Exported, ExportJob

TARGET_OPSETS = {"": 17, "ai.onnx.ml": 3}
"""What every runtime version that a profile may carry knows."""
INPUT = "x"
# Operators of ai.onnx.ml that skl2onnx can write as matrix products and the like, which TFLite and OpenVINO take.
_WITH_PLAIN_FORMS = {"LinearClassifier", "LinearRegressor", "Normalizer", "Scaler"}
_LONGEST = 200


def export(text: str) -> Exported:
    """Write the job's ONNX file; raises InputError, UnsupportedError or MissingExtraError."""
    job = ExportJob.model_validate_json(text)
    doing = f"reading the model {job.origin}"
    try:
        import skl2onnx  # noqa: F401, PLC0415 - see above
    except ModuleNotFoundError as error:
        raise MissingExtraError(doing, error.name or "skl2onnx", "convert-sklearn") from error
    estimator = _opened(job, doing)
    features = _features(estimator, doing)
    model = _converted(estimator, features, doing)
    texts = simplify(model)
    job.output.write_bytes(model.SerializeToString())
    notes = tuple(f"the output {name!r} is text and is left out: the labels are in the package" for name in texts)
    return Exported(labels=_labels(estimator), notes=notes)


def _converted(estimator: Any, features: int, doing: str) -> Any:
    """The ONNX model, in plain operators where skl2onnx has such a form; raises UnsupportedError."""
    import skl2onnx  # noqa: PLC0415 - see above
    from skl2onnx.common.data_types import FloatTensorType  # noqa: PLC0415 - see above

    # Only a classifier's probabilities can be a list of dicts, and not every classifier has the option.
    forms = [
        {"black_op": black, "options": options}
        for black in (_WITH_PLAIN_FORMS, None)
        for options in ({id(estimator): {"zipmap": False}}, None)
        if options is None or hasattr(estimator, "classes_")
    ]
    said = ""
    for form in forms:
        try:
            return skl2onnx.to_onnx(
                estimator, initial_types=[(INPUT, FloatTensorType([1, features]))], target_opset=TARGET_OPSETS, **form
            )
        except Exception as error:  # noqa: BLE001 - skl2onnx raises anything, and the last form's words are told
            said = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:_LONGEST]
    found = f"skl2onnx cannot express {type(estimator).__name__} ({said})"
    raise UnsupportedError(doing, found, "use estimators that skl2onnx knows, fitted on one array")


def _opened(job: ExportJob, doing: str) -> Any:
    """The estimator; only types that skops knows to be harmless, unless the person trusts the file."""
    try:
        return (_from_skops if job.model.suffix == ".skops" else _from_pickle)(job.model, job.trust, doing)
    except (InputError, MissingExtraError):
        raise
    except Exception as error:
        found = f"it cannot be opened ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
        raise InputError(doing, found, "save it again with the scikit-learn that is installed here") from error


def _from_skops(path: Path, trust: bool, doing: str) -> Any:
    try:
        from skops import io  # noqa: PLC0415 - pickles do not need it
    except ModuleNotFoundError as error:
        raise MissingExtraError(doing, error.name or "skops", "convert-sklearn") from error
    unknown = io.get_untrusted_types(file=path)
    if unknown and not trust:
        found = f"it holds objects of {', '.join(sorted(unknown))}, whose code would run"
        raise InputError(doing, found, "give --trust if you trust whoever made it")
    return io.load(path, trusted=unknown)


def _from_pickle(path: Path, trust: bool, doing: str) -> Any:
    if not trust:
        raise InputError(doing, "a pickle", "give --trust if you trust whoever made it")
    import joblib  # noqa: PLC0415 - comes with scikit-learn, and reads plain pickles too

    return joblib.load(path)


def _features(estimator: Any, doing: str) -> int:
    count = getattr(estimator, "n_features_in_", None)
    if not hasattr(estimator, "fit") or not isinstance(count, int):
        found = f"{type(estimator).__name__} is not a fitted estimator with a known number of features"
        raise InputError(doing, found, "fit it on an array of numbers and save it again")
    return count


def _labels(estimator: Any) -> tuple[str, ...]:
    """Names of the classes; none where they are numbered from 0."""
    classes = getattr(estimator, "classes_", None)
    if classes is None or getattr(classes, "ndim", 1) != 1:
        return ()
    names = tuple(map(str, classes))
    return () if names == tuple(map(str, range(len(names)))) else names
