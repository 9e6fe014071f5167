"""The child's side of scikit-learn intake: opens the file and writes ONNX with skl2onnx.

Imports its toolchain when it runs, so that a missing one is said in one line.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgefleet.errors import InputError, MissingExtraError, UnsupportedError
from edgefleet_converters.intake.sklearn_model import Exported, ExportJob

TARGET_OPSETS = {"": 17, "ai.onnx.ml": 3}
"""What every runtime version that a profile may carry knows."""
INPUT = "x"


def export(text: str) -> Exported:
    """Write the job's ONNX file; raises InputError, UnsupportedError or MissingExtraError."""
    job = ExportJob.model_validate_json(text)
    doing = f"reading the model {job.origin}"
    try:
        import skl2onnx  # noqa: PLC0415 - see above
        from skl2onnx.common.data_types import FloatTensorType  # noqa: PLC0415 - the same
    except ModuleNotFoundError as error:
        raise MissingExtraError(doing, error.name or "skl2onnx", "convert-sklearn") from error
    estimator = _opened(job, doing)
    features = _features(estimator, doing)
    options = {id(estimator): {"zipmap": False}} if hasattr(estimator, "classes_") else None
    try:
        model = skl2onnx.to_onnx(
            estimator, initial_types=[(INPUT, FloatTensorType([1, features]))], options=options,
            target_opset=TARGET_OPSETS,
        )  # fmt: skip
    except Exception as error:
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        found = f"skl2onnx cannot express {type(estimator).__name__} ({first})"
        raise UnsupportedError(doing, found, "use estimators that skl2onnx knows, fitted on one array") from error
    labels, notes = _classifier_outputs(model, estimator)
    job.output.write_bytes(model.SerializeToString())
    return Exported(labels=labels, notes=notes)


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


def _classifier_outputs(model: Any, estimator: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Put a classifier's probabilities first, and leave out labels that are text: no runtime here gives text out."""
    from onnx import TensorProto  # noqa: PLC0415 - see above

    classes = getattr(estimator, "classes_", None)
    if classes is None or getattr(classes, "ndim", 1) != 1:
        return (), ()
    outputs = sorted(model.graph.output, key=lambda item: item.type.tensor_type.elem_type != TensorProto.FLOAT)
    texts = [item.name for item in outputs if item.type.tensor_type.elem_type == TensorProto.STRING]
    del model.graph.output[:]
    model.graph.output.extend(item for item in outputs if item.name not in texts)
    labels = (
        () if [str(value) for value in classes] == [str(n) for n in range(len(classes))] else tuple(map(str, classes))
    )
    notes = tuple(f"the output {name!r} is text and is left out: the labels are in the package" for name in texts)
    return labels, notes
