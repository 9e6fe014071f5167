"""Machines as their files describe them: what detection reads of each, shortened to the lines that matter.

No tests; `write` lays one out below a folder.
"""

from __future__ import annotations

from pathlib import Path

_ARMV8_0 = "fp asimd evtstrm crc32 cpuid"
_A76 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
_V2 = "fpu sse sse2 ssse3 cx16 sse4_1 sse4_2 popcnt lahf_lm"
_V3 = f"{_V2} avx avx2 fma bmi1 bmi2 f16c movbe abm"


def _arm(cores: int, features: str, tail: str = "") -> str:
    return "".join(f"processor\t: {core}\nFeatures\t: {features}\n\n" for core in range(cores)) + tail


def _x86(cores: int, model: str, flags: str) -> str:
    return "".join(f"processor\t: {core}\nmodel name\t: {model}\nflags\t\t: {flags}\n\n" for core in range(cores))


def _clocks(*khz: int) -> dict[str, str]:
    return {
        f"sys/devices/system/cpu/cpu{core}/cpufreq/cpuinfo_max_freq": f"{clock}\n" for core, clock in enumerate(khz)
    }


def _release(name: str) -> dict[str, str]:
    return {"etc/os-release": f'PRETTY_NAME="{name}"\n'}


_DEBIAN = _release("Debian GNU/Linux 12 (bookworm)")
_PI_5 = {
    "proc/cpuinfo": _arm(4, _A76, "Revision\t: d04170\nModel\t\t: Raspberry Pi 5 Model B Rev 1.0\n"),
    "proc/meminfo": "MemTotal:        8245600 kB\n",
    "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
    "dev/dri/renderD128": "",
    **_clocks(2400000, 2400000, 2400000, 2400000),
    **_DEBIAN,
}
_N100 = {
    "proc/cpuinfo": _x86(4, "Intel(R) N100", f"{_V3} avx_vnni"),
    "proc/meminfo": "MemTotal: 16151616 kB\n",
    "sys/class/dmi/id/product_name": "MINI S\n",
    "dev/dri/renderD128": "",
    **_clocks(3400000),
    **_DEBIAN,
}

# Name → (uname -m, files).
MACHINES: dict[str, tuple[str, dict[str, str]]] = {
    "pi-5": ("aarch64", _PI_5),
    "pi-5-hailo": ("aarch64", _PI_5 | {"dev/hailo0": ""}),
    "pi-500": ("aarch64", _PI_5 | {"proc/device-tree/model": "Raspberry Pi 500 Rev 1.0\0"}),
    "pi-4": (
        "aarch64",
        {
            "proc/cpuinfo": _arm(4, _ARMV8_0, "Model\t\t: Raspberry Pi 4 Model B Rev 1.4\n"),
            "proc/meminfo": "MemTotal:        1893140 kB\n",
            "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
            **_clocks(1800000),
            **_DEBIAN,
        },
    ),
    "pi-4-32": (
        "armv7l",
        {
            "proc/cpuinfo": _arm(4, "half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32"),
            "proc/meminfo": "MemTotal:        3884368 kB\n",
            "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
            **_release("Raspbian GNU/Linux 11 (bullseye)"),
        },
    ),
    "jetson-orin-nano": (
        "aarch64",
        {
            "proc/cpuinfo": _arm(6, f"{_A76} uscat ilrcpc flagm"),
            "proc/meminfo": "MemTotal:        7802324 kB\n",
            "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
            "dev/nvhost-gpu": "",
            **_clocks(1510400),
            **_release("Ubuntu 22.04.4 LTS"),
        },
    ),
    "vim3l": (
        "aarch64",
        {"proc/cpuinfo": _arm(4, _A76), "proc/device-tree/model": "Khadas VIM3L\0", **_DEBIAN},
    ),
    "phone": ("aarch64", {"proc/cpuinfo": _arm(8, f"{_A76} i8mm bf16"), "system/bin/app_process64": ""}),
    "old-phone": ("aarch64", {"proc/cpuinfo": _arm(8, _ARMV8_0), "system/bin/app_process64": ""}),
    "n100": ("x86_64", _N100),
    "n100-nuc": ("x86_64", _N100 | {"sys/class/dmi/id/product_name": "NUC11ATKC4\n"}),
    "core-ultra": (
        "x86_64",
        {
            "proc/cpuinfo": _x86(22, "Intel(R) Core(TM) Ultra 7 155H", f"{_V3} avx_vnni"),
            "dev/accel/accel0": "",
            **_DEBIAN,
        },
    ),
    "server": (
        "x86_64",
        {
            "proc/cpuinfo": _x86(
                2, "Some Xeon", f"{_V3} avx512f avx512bw avx512cd avx512dq avx512vl avx512_vnni amx_tile amx_int8"
            ),
            **_DEBIAN,
        },
    ),
    "haswell": ("x86_64", {"proc/cpuinfo": _x86(4, "Some Core", _V3), **_DEBIAN}),
    "half-avx": ("x86_64", {"proc/cpuinfo": _x86(4, "Some Pentium", f"{_V2} avx2"), **_DEBIAN}),
    "silent": ("x86_64", {}),
}


def write(root: Path, machine: str) -> str:
    """Lay the machine's files out below `root`; returns what `uname -m` says on it."""
    uname, files = MACHINES[machine]
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode())
    return uname
