"""Detection on recorded trees: what the files say, and never an exception for what they do not."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from edgefleet_device_profiles import catalogue, detect
from edgefleet_device_profiles.detect import MachineFacts, installed_runtimes, mismatch
from edgefleet_device_profiles.profile import Runtime

PI_CPUINFO = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd asimddp
CPU part\t: 0xd0b

processor\t: 1
BogoMIPS\t: 108.00

processor\t: 2
processor\t: 3

Revision\t: d04170
Serial\t\t: 100000000badcafe
Model\t\t: Raspberry Pi 5 Model B Rev 1.0
"""
PC_CPUINFO = "".join(
    f"processor\t: {core}\nmodel name\t: Intel(R) N100 @ 3.4: GHz\nmodel\t\t: 190\nflags\t\t: sse4_2 avx2\n\n"
    for core in range(4)
)


def tree(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


@pytest.fixture(name="machine")
def _machine(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """`uname -m` of the recorded machine."""
    said = ["aarch64"]
    monkeypatch.setattr(platform, "machine", lambda: said[0])
    return said


@pytest.fixture(name="pi")
def _pi(tmp_path: Path) -> Path:
    return tree(
        tmp_path,
        {
            "proc/cpuinfo": PI_CPUINFO,
            "proc/meminfo": "MemTotal:        8245600 kB\nMemFree:  100 kB\n",
            "proc/device-tree/model": b"Raspberry Pi 5 Model B Rev 1.0\0",
            "proc/device-tree/serial-number": b"ffff\0",
            "etc/os-release": 'NAME="Debian"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nVERSION_ID="12"\n',
        },
    )


@pytest.mark.usefixtures("machine")
def test_a_raspberry_pi(pi: Path) -> None:
    found = detect.detect(pi)
    assert (found.architecture, found.cores, found.memory_mib) == ("arm64", 4, 8052)
    assert found.cpu_model == found.board == "Raspberry Pi 5 Model B Rev 1.0"
    assert found.serial == "100000000badcafe"
    assert found.os == "Debian GNU/Linux 12 (bookworm)"
    assert mismatch(catalogue.load("raspberry-pi-5"), found) is None


def test_a_container_without_the_link_in_proc_still_knows_its_board(tmp_path: Path) -> None:
    base = "sys/firmware/devicetree/base"
    found = detect.detect(tree(tmp_path, {f"{base}/model": b"Rockchip 1\0", f"{base}/serial-number": b"77\0"}))
    assert (found.board, found.serial) == ("Rockchip 1", "77")


def test_a_pc(tmp_path: Path, machine: list[str]) -> None:
    machine[0] = "x86_64"
    tree(
        tmp_path,
        {
            "proc/cpuinfo": PC_CPUINFO,
            "proc/meminfo": "MemTotal: 16000000 kB\n",
            "sys/class/dmi/id/product_name": "NUC12WSKi5\n",
            "etc/os-release": "PRETTY_NAME='Alpine'\n",
        },
    )
    found = detect.detect(tmp_path)
    assert (found.architecture, found.cores, found.memory_mib) == ("amd64", 4, 15625)
    assert found.cpu_model == "Intel(R) N100 @ 3.4: GHz"
    assert (found.board, found.serial) == ("NUC12WSKi5", None)
    assert mismatch(catalogue.load("intel-nuc"), found) is None


def test_the_device_trees_serial_counts_where_cpuinfo_has_none(pi: Path) -> None:
    (pi / "proc/cpuinfo").write_text("processor : 0\n")
    found = detect.detect(pi)
    assert (found.serial, found.cpu_model, found.cores) == ("ffff", "unknown", 1)


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"proc/cpuinfo": b"", "proc/meminfo": b"", "etc/os-release": b"", "proc/device-tree/model": b"\0"},
        {"proc/cpuinfo": b"\xff\xfe\0:::\n:\n", "proc/meminfo": b"MemTotal:\n", "etc/os-release": b"PRETTY_NAME"},
        {"proc/cpuinfo/x": b"", "proc/meminfo/x": b"", "etc/os-release/x": b"", "proc/device-tree/model/x": b""},
    ],
)
def test_a_machine_that_says_nothing(tmp_path: Path, files: dict[str, str | bytes]) -> None:
    found = detect.detect(tree(tmp_path, files))
    assert (found.cores, found.memory_mib, found.board, found.serial) == (1, 0, None, None)
    assert found.os == "unknown"


@pytest.mark.parametrize(("said", "wanted"), [("armv7l", "arm"), ("armv6l", "arm"), ("riscv64", "riscv64")])
@pytest.mark.usefixtures("pi")
def test_architectures_have_their_oci_names(tmp_path: Path, machine: list[str], said: str, wanted: str) -> None:
    machine[0] = said
    assert detect.detect(tmp_path).architecture == wanted


# Runtimes ---------------------------------------------------------------------------------------------


def test_runtimes_come_from_package_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"tflite-runtime": "2.14.0", "onnxruntime": "1.22.0"}

    def version(name: str) -> str:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    # TensorFlow's count: as "2.14.0" it would pass for newer than LiteRT 2.3.
    assert installed_runtimes() == {Runtime.LITERT: "0.2.14.0", Runtime.ONNXRUNTIME: "1.22.0"}
    old = Version(installed_runtimes()[Runtime.LITERT])
    assert [old in SpecifierSet(text) for text in (">=0.2.3", ">=0.2.14", ">=0.2.17", ">=2.1")] == [
        True,
        True,
        False,
        False,
    ]
    installed["ai-edge-litert"] = "2.3.0"
    assert installed_runtimes()[Runtime.LITERT] == "2.3.0"
    installed.clear()
    assert installed_runtimes() == {}


def test_detection_imports_no_runtime() -> None:
    code = "import sys; from edgefleet_device_profiles import detect; detect.detect(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"onnxruntime", "openvino", "ai_edge_litert", "numpy"}.isdisjoint(done.stdout.split())


# Is it the profile's board? ---------------------------------------------------------------------------


def facts(architecture: str, board: str | None) -> MachineFacts:
    return MachineFacts(
        architecture=architecture, cpu_model="x", cores=1, memory_mib=1, board=board, os="x", python="3.11", runtimes={}
    )


@pytest.mark.parametrize(
    ("profile", "architecture", "board", "reason"),
    [
        ("raspberry-pi-5", "arm64", "Raspberry Pi 5 Model B Rev 1.0", None),
        ("raspberry-pi-5", "arm64", "Raspberry Pi 4 Model B Rev 1.4", "the board says Raspberry Pi 4 Model B Rev 1.4"),
        ("raspberry-pi-5", "arm64", "Raspberry Pi 500 Rev 1.0", "the board says Raspberry Pi 500 Rev 1.0"),
        ("raspberry-pi-5", "arm64", None, "the board says nothing, the profile's says Raspberry Pi 5"),
        ("raspberry-pi-5", "arm64", "A Raspberry Pi 5", "the board says A Raspberry Pi 5"),
        ("raspberry-pi-5", "amd64", "Raspberry Pi 5", "the processor is amd64, the profile's is arm64"),
        ("intel-nuc", "amd64", "NUC12WSKi5", None),
        ("intel-nuc", "amd64", "OptiPlex", "the board says OptiPlex, the profile's says NUC"),
        ("generic-x86-64", "amd64", "OptiPlex", None),
        ("generic-x86-64", "amd64", None, None),
        ("generic-x86-64", "arm64", None, "the processor is arm64, the profile's is amd64"),
    ],
)
def test_a_mismatch_says_what_differs(profile: str, architecture: str, board: str | None, reason: str | None) -> None:
    found = mismatch(catalogue.load(profile), facts(architecture, board))
    if reason is None:
        assert found is None
    else:
        assert found is not None
        assert found.startswith(reason)
