"""scikit-learn intake: the ONNX form gives the estimator's own numbers, and no pickle is opened unasked."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import onnx
import onnxruntime
import pytest
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from skops import io as skops_io

from edgefleet.errors import InputError, UnsupportedError
from edgefleet_converters.artefact import Form
from edgefleet_converters.intake.sklearn_export import export
from edgefleet_converters.intake.sklearn_model import Exported, ExportJob, read_sklearn
from edgefleet_converters.intake.source import Source, SourceKind
from edgefleet_converters.tflite import lower

X, Y = load_iris(return_X_y=True)
NAMES = np.array(["setosa", "versicolor", "virginica"])


def read(path: Path, *, trust: bool = False) -> Source:
    return read_sklearn(str(path), path.parent, shapes={}, dims={}, trust=trust)


def saved(path: Path, estimator: Any) -> Path:
    skops_io.dump(estimator, path)
    return path


def export_here(path: Path, *, trust: bool = False) -> Exported:
    """The child's side in this process: for what is refused before anything is converted."""
    job = ExportJob(origin=str(path), model=path, output=path.with_suffix(".onnx"), trust=trust)
    return export(job.model_dump_json())


def outputs(source: Source) -> dict[str, Any]:
    """Every sample of iris, one at a time, through the ONNX form."""
    session = onnxruntime.InferenceSession(source.forms[Form.ONNX].files[0], providers=["CPUExecutionProvider"])
    names = [spec.name for spec in source.outputs]
    found = [session.run(names, {"x": row[np.newaxis]}) for row in X.astype(np.float32)]
    return {name: np.concatenate([row[place] for row in found]) for place, name in enumerate(names)}


def test_a_pipeline_gives_its_own_probabilities_and_lowers_to_tflite(tmp_path: Path) -> None:
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(X, Y)
    source = read(saved(tmp_path / "pipe.skops", pipeline))
    assert source.kind is SourceKind.SKLEARN
    assert [(spec.name, spec.shape, spec.dtype) for spec in source.inputs] == [("x", (1, 4), "float32")]
    assert [(spec.name, spec.shape, spec.dtype) for spec in source.outputs] == [
        ("probabilities", (1, 3), "float32"),
        ("label", (1,), "int64"),
    ]
    found = outputs(source)
    np.testing.assert_allclose(found["probabilities"], pipeline.predict_proba(X), atol=1e-5)
    np.testing.assert_array_equal(found["label"], pipeline.predict(X))
    assert source.labels == ()
    assert lower(onnx.load(source.forms[Form.ONNX].files[0])).content


def test_text_classes_become_the_labels(tmp_path: Path) -> None:
    classifier = LogisticRegression(max_iter=500).fit(X, NAMES[Y])
    source = read(saved(tmp_path / "names.skops", classifier))
    assert source.labels == tuple(NAMES)
    assert [spec.name for spec in source.outputs] == ["probabilities"]
    assert source.notes == ("the output 'label' is text and is left out: the labels are in the package",)
    np.testing.assert_allclose(outputs(source)["probabilities"], classifier.predict_proba(X), atol=1e-5)


def test_a_regressor(tmp_path: Path) -> None:
    ridge = Ridge().fit(X, Y)
    source = read(saved(tmp_path / "ridge.skops", ridge))
    assert [(spec.name, spec.shape) for spec in source.outputs] == [("variable", (1, 1))]
    np.testing.assert_allclose(outputs(source)["variable"][:, 0], ridge.predict(X), atol=1e-5)


def test_a_forest_runs_in_onnx_runtime_and_the_lowering_names_its_operator(tmp_path: Path) -> None:
    forest = RandomForestClassifier(5, random_state=0).fit(X, Y)
    joblib.dump(forest, tmp_path / "forest.joblib")
    source = read(tmp_path / "forest.joblib", trust=True)
    np.testing.assert_allclose(outputs(source)["probabilities"], forest.predict_proba(X), atol=1e-5)
    with pytest.raises(UnsupportedError, match=r"no TFLite form is known for ai\.onnx.ml\.TreeEnsembleClassifier"):
        lower(onnx.load(source.forms[Form.ONNX].files[0]))


class Attack:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("suffix", [".pkl", ".pickle", ".joblib"])
def test_a_pickle_is_not_opened_unasked(tmp_path: Path, suffix: str) -> None:
    path, mark = tmp_path / f"model{suffix}", tmp_path / "ran"
    path.write_bytes(pickle.dumps(Attack(mark)))
    with pytest.raises(InputError, match="which runs the code that it names when it is opened; save it with skops"):
        read(path)
    assert not mark.exists()
    with pytest.raises(InputError, match="NoneType is not a fitted estimator"):
        export_here(path, trust=True)
    assert mark.exists()


def test_types_that_skops_does_not_know_are_listed(tmp_path: Path) -> None:
    path = saved(tmp_path / "forest.skops", RandomForestRegressor(3).fit(X, Y))
    with pytest.raises(InputError, match=r"it holds objects of sklearn\.tree\._tree\.Tree, whose code would run"):
        export_here(path)
    assert not path.with_suffix(".onnx").exists()
    export_here(path, trust=True)
    assert onnx.load(path.with_suffix(".onnx")).graph.output[0].name == "variable"


def test_what_skl2onnx_cannot_express_is_said_in_one_line(tmp_path: Path) -> None:
    pipeline = make_pipeline(FunctionTransformer(np.log1p), LogisticRegression(max_iter=500)).fit(X, Y)
    path = saved(tmp_path / "log.skops", pipeline)
    with pytest.raises(UnsupportedError, match=r"skl2onnx cannot express Pipeline .*FunctionTransformer") as refused:
        export_here(path, trust=True)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04"])
def test_a_broken_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.skops").write_bytes(content)
    with pytest.raises(InputError, match="it cannot be opened"):
        export_here(tmp_path / "model.skops")


def test_an_estimator_that_was_not_fitted(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Ridge is not a fitted estimator"):
        export_here(saved(tmp_path / "ridge.skops", Ridge()))
