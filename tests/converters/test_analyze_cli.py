"""`edgefleet analyze` as a person runs it: tables, JSON, what does not fit, and bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper

from converters.convert_runs import model, two_inputs
from converters.onnx_models import build, weights
from edgefleet.errors import EdgefleetError, InputError
from edgefleet_converters.analyze_cli import PRECISIONS, app
from edgefleet_demo import digits
from edgefleet_device_profiles import catalogue
from edgefleet_device_profiles.profile import Budget, Peak, Precision, Profile

NAMED = ("raspberry-pi-5", "intel-nuc", "generic-x86-64")
BOARD = ["--profile", "raspberry-pi-5"]


@pytest.fixture(name="boards", autouse=True)
def _boards(monkeypatch: pytest.MonkeyPatch) -> dict[str, Profile]:
    """The catalogue with round figures; a test may change them."""
    changed = {
        "peak": Peak(fp32_gops=100.0, int8_gops=400.0, bandwidth_gb_s=10.0),
        "budget": Budget(),
    }
    found = {name: catalogue.load(name).model_copy(update=changed) for name in NAMED}
    load = catalogue.load
    monkeypatch.setattr(catalogue, "load", lambda name: found.get(name) or load(name))
    return found


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(item) for item in arguments])


def document(*arguments: str | Path) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def saved(folder: Path, source: onnx.ModelProto) -> Path:
    path = folder / "model.onnx"
    onnx.save(source, path)
    return path


def refusal(*arguments: str | Path) -> str:
    result = run(*arguments)
    assert isinstance(result.exception, EdgefleetError), result.output
    assert result.exception.exit_code == 2
    text = str(result.exception)
    assert "\n" not in text
    return text


def test_the_precisions_are_those_of_the_profiles() -> None:
    assert set(PRECISIONS) == set(Precision)


def test_one_profile_shows_every_layer_and_what_holds() -> None:
    result = run(digits.model_path(), *BOARD)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["raspberry-pi-5,", "int8"]
    assert lines[1].split() == ["layer", "operator", "MACs", "params", "bytes", "ops/B", "ms", "bound"]
    layers = document(digits.model_path(), *BOARD)["layers"]
    assert len(lines) == 3 + len(layers) + 4
    assert f"{len(layers)} layers, 5.91 M MACs, 246 k parameters" in lines[-4]
    assert lines[-3].startswith("profile  raspberry-pi-5, int8: at best ")
    assert "KiB at its peak (weights" in lines[-2]
    assert lines[-1].startswith("fits     memory: needs 0.2")
    assert all(len(line) <= 80 for line in lines[:-4])


def test_only_the_slowest_layers() -> None:
    result = run(digits.model_path(), *BOARD, "--top", "2", "--precision", "fp32")
    times = [float(line.split()[-2]) for line in result.stdout.splitlines()[3:5]]
    found = document(digits.model_path(), *BOARD, "--precision", "fp32")["profiles"][0]["layers"]
    slowest = sorted((layer["ms"] for layer in found), reverse=True)[:2]
    assert times == pytest.approx(slowest, rel=0.01)
    assert result.stdout.splitlines()[5].startswith("model ")


def test_several_profiles_have_a_line_each() -> None:
    result = run(digits.model_path(), *BOARD, "--profile", "intel-nuc", *BOARD)
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["model", "profile", lines[2], "raspberry-pi-5", "intel-nuc"]
    assert [line.split()[-1] for line in lines[3:]] == ["yes", "yes"]


def test_json_adds_up() -> None:
    found = document(digits.model_path(), *BOARD, "--profile", "intel-nuc", "--precision", "fp32")
    assert [entry["profile"] for entry in found["profiles"]] == ["raspberry-pi-5", "intel-nuc"]
    assert found["macs"] == sum(layer["macs"] for layer in found["layers"]) == 5_908_992
    for entry in found["profiles"]:
        assert entry["precision"] == "fp32"
        assert entry["ms"] == pytest.approx(sum(layer["ms"] for layer in entry["layers"]))
        assert entry["memory_bytes"] == entry["size_bytes"] + entry["activation_bytes"]
        assert len(entry["layers"]) == len(found["layers"])
        assert entry["fit"]["ok"] is True
    assert found["profiles"][0]["size_bytes"] == 4 * found["parameters"]
    small = document(digits.model_path(), *BOARD, "--precision", "int8")["profiles"][0]
    assert small["activation_bytes"] * 4 == found["profiles"][0]["activation_bytes"]


def test_a_profile_without_peaks_still_counts(boards: dict[str, Profile]) -> None:
    boards["raspberry-pi-5"] = boards["raspberry-pi-5"].model_copy(update={"peak": None})
    result = run(digits.model_path(), *BOARD)
    assert result.exit_code == 0, result.output
    assert "no latency: the profile states no peak" in result.stdout
    found = document(digits.model_path(), *BOARD)["profiles"][0]
    assert (found["ms"], found["reason"]) == (None, "the profile states no peak")


def test_what_does_not_fit_ends_with_status_1_and_names_the_limit(boards: dict[str, Profile]) -> None:
    tight = boards["intel-nuc"].model_copy(update={"budget": Budget(size_mib=0.5)})
    boards["intel-nuc"] = tight
    result = run(digits.model_path(), *BOARD, "--profile", "intel-nuc", "--precision", "fp32")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1] == (
        "does not fit intel-nuc in fp32: size budget: needs 0.9375 MiB, has 0.5 MiB"
    )
    alone = run(digits.model_path(), "--profile", "intel-nuc", "--precision", "fp32")
    assert (alone.exit_code, alone.stdout.splitlines()[-1]) == (1, result.stdout.splitlines()[-1])
    assert "fits  " not in alone.stdout
    written = run(digits.model_path(), "--profile", "intel-nuc", "--precision", "fp32", "--json")
    assert written.exit_code == 1
    assert json.loads(written.stdout)["profiles"][0]["fit"]["limit"] == "size budget"
    assert run(digits.model_path(), "--profile", "intel-nuc", "--precision", "int8").exit_code == 0


def test_the_command_itself_hands_the_status_on(tmp_path: Path) -> None:
    """8,192 MiB of activations; no board has that, and nothing of the size is ever made."""
    path = saved(tmp_path, build([helper.make_node("Relu", ["x"], ["y"])], (1, 1 << 30), outputs=("y",)))
    command = [sys.executable, "-m", "edgefleet.cli", "analyze", str(path), *BOARD, "--precision", "fp32"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    assert "does not fit raspberry-pi-5 in fp32: memory: needs 8192 MiB, has " in done.stdout


def test_symbolic_shapes_are_given_or_named(tmp_path: Path) -> None:
    path = saved(tmp_path, two_inputs())
    assert "free sizes: seq of input 'ids' axis 1" in refusal(path, *BOARD)
    short = document(path, *BOARD, "--dim", "seq=4")
    long = document(path, *BOARD, "--shape", "ids=1,8", "--shape", "mask=1,8,8")
    assert (short["macs"], long["macs"]) == (4 * 8 * 5, 8 * 8 * 5)
    assert "the symbolic first axis 'batch' becomes 1" in run(path, *BOARD, "--dim", "seq=4").stderr


def test_a_long_name_with_brackets_is_shown_as_it_is(tmp_path: Path) -> None:
    node = helper.make_node("Relu", ["x"], ["y"], name="model/a/very/long/name/[/layers.0]")
    result = run(saved(tmp_path, build([node], (4,))), *BOARD)
    assert result.exit_code == 0, result.exception
    assert result.stdout.splitlines()[3].split()[0] == "…me/[/layers.0]"


def test_what_could_not_be_counted_stands_in_the_output(tmp_path: Path) -> None:
    path = saved(tmp_path, build([helper.make_node("Det", ["x"], ["y"])], (3, 4, 4)))
    assert "note     not counted, but for the bytes they read and write: Det" in run(path, *BOARD).stdout.splitlines()


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (["--profile", "raspberry-pi-6"], "there is no 'raspberry-pi-6'; choose from: "),
        ([*BOARD, "--dim", "seq"], "it is not NAME=VALUE"),
        ([*BOARD, "--shape", "x=0"], "is not a size"),
        ([*BOARD, "--shape", "z=1"], "the model has no such input"),
    ],
)
def test_a_bad_option_is_one_line(extra: list[str], said: str) -> None:
    assert said in refusal(digits.model_path(), *extra)


def test_a_bad_file_is_one_line(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "none.onnx", *BOARD)
    (tmp_path / "text.onnx").write_text("hello")
    assert "not an ONNX model" in refusal(tmp_path / "text.onnx", *BOARD)


def test_a_profile_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFLEET_PROFILES", str(tmp_path))
    (tmp_path / "own.toml").write_text('id = "own"\nextends = "raspberry-pi-5"\n[budget]\nmemory_mib = 0.1\n')
    result = run(digits.model_path(), "--profile", "own")
    assert result.exit_code == 1
    assert "does not fit own in int8: memory budget: needs 0.24" in result.stdout
    (tmp_path / "own.toml").write_text('id = "own"\nextends = "raspberry-pi-5"\n[budget]\nmemory_mib = -1\n')
    said = refusal(digits.model_path(), "--profile", "own")
    assert "own.toml is not a valid device profile: budget.memory_mib" in said


def test_every_profile_of_the_catalogue_has_a_verdict() -> None:
    names = [name for name in catalogue.names() if name not in NAMED]
    found = run(digits.model_path(), *(word for name in names for word in ("--profile", name)), "--json")
    verdicts = {entry["profile"]: entry for entry in json.loads(found.stdout)["profiles"]}
    assert list(verdicts) == names
    # 240 kB of int8 weights in flash, and an arena of 9 kB.
    micro = verdicts["esp32-s3"]
    assert (micro["precision"], micro["fit"]["ok"]) == ("int8", True)
    assert micro["activation_bytes"] == 9_216
    assert verdicts["raspberry-pi-zero-2-w"]["ms"] < micro["ms"]


def test_a_model_without_inputs_or_products(tmp_path: Path) -> None:
    constant = helper.make_node("RandomNormal", [], ["y"], shape=[2, 3], dtype=TensorProto.FLOAT)
    found = document(saved(tmp_path, model([constant], {})), *BOARD, "--precision", "fp32")
    assert (found["macs"], found["parameters"]) == (0, 0)
    assert found["profiles"][0]["activation_bytes"] == 24


def test_weights_that_lie_outside_the_folder_are_refused(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    source = build([helper.make_node("MatMul", ["x", "w"], ["y"])], (1, 256), {"w": weights(256, 256)})
    path = inner / "model.onnx"
    onnx.save(source, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    content = path.read_bytes().replace(b"w.bin", b"../wb")
    np.zeros(256 * 256, np.float32).tofile(tmp_path / "wb")
    path.write_bytes(content)
    with pytest.raises(InputError, match="outside the model's folder"):
        CliRunner().invoke(app, [str(path), *BOARD], catch_exceptions=False)
