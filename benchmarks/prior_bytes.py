"""What a deployment costs in bytes: on the device that measures, on the next one of its kind, and over a metered link.

`python benchmarks/prior_bytes.py [--models NAME ...]`: a Markdown table on stdout, everything in
build/prior_bytes.json. A real fleet on this machine: mosquitto with certificates, the server with its hub, and agents,
one after the other. The package has the files of `selection_regret`, with as many golden samples as packaging writes.
Bytes are those of the messages that the broker sent to a device from the deployment to its end (payload and topic, by
the broker's log): blocks of the variant, and replies, which are everything else that is pulled (trusted metadata,
index, manifest, block digests, the prior). The variant is what its layers sum up to, as the package's index says. Exit
status 1 where the device with the prior is above the limit.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgefleet import selection
from edgefleet.package.layout import Package, write_package
from edgefleet.package.manifest import Golden, VariantFiles
from edgefleet.protocol.decisions import DECISION_EVENT
from edgefleet.server import control, publishing
from edgefleet.server.store import Store
from edgefleet.trust.keys import KeyFolder
from edgefleet_agent.benchmark import Entrant
from edgefleet_agent.runtimes import Options
from edgefleet_agent.variant import Variant
from edgefleet_converters.golden import GOLDEN_SAMPLES
from edgefleet_demo import scene
from edgefleet_demo.processes import EDGEFLEET, ProcessGroup
from selection_regret import MODELS, entrants
from transport_fleet import Fleet, wait

_OUTPUT = Path(__file__).resolve().parent.parent / "build" / "prior_bytes.json"
_SENT = re.compile(r"Sending PUBLISH to (\S+) \(d\d, q\d, r\d, m\d+, '([^']+)', \.\.\. \((\d+) bytes\)\)")
LIMIT = 1.05
PROFILE = "generic-x86-64"
PATIENCE_S = 400.0
MEASURED = "threads = [1]\nfinal_s = 1.0\n"
DEVICES = {"measuring": MEASURED, "with a prior": MEASURED, "metered": MEASURED + 'metered = true\nprior = "never"\n'}


@dataclass(frozen=True, slots=True)
class Pulled:
    """What one deployment brought to one device, in bytes."""

    model: str
    device: str
    chosen: str
    variant_bytes: int
    model_bytes: int
    blocks_bytes: int
    replies_bytes: int
    other_bytes: int
    """Desired state and acknowledgements: they come with or without a pull."""

    @property
    def ratio(self) -> float:
        """Pulled over the chosen variant."""
        return (self.blocks_bytes + self.replies_bytes) / self.variant_bytes


class LoggedFleet(Fleet):
    """Its broker says in its log what it sends to whom."""

    def _write_configuration(self) -> None:
        super()._write_configuration()
        with self._configuration.open("a", encoding="utf-8") as file:
            file.write("log_type debug\n")

    @property
    def log(self) -> Path:
        """The broker's log."""
        return self.folder / "logs" / "broker.log"


def package_of(model: str, work: Path) -> Package:
    """Every file of a model as a variant with golden inputs and outputs."""
    files = [_files(one, work) for one in entrants(model, work) if one.candidate.threads == 1]
    write_package(work / "package", name="priced", version="1.0.0", release=1, variants=files)
    return Package(work / "package")


def _files(entrant: Entrant, work: Path) -> VariantFiles:
    generator = np.random.default_rng(1)
    spec = entrant.spec.model_copy(
        update={"golden": Golden(samples=GOLDEN_SAMPLES, tolerances=dict.fromkeys(_names(entrant), 0.1))}
    )
    variant = Variant(entrant.slot, spec.model_dump(mode="json"), Options())
    inputs = {one.name: generator.normal(size=(GOLDEN_SAMPLES, *one.shape)).astype(one.dtype) for one in spec.inputs}
    outputs = [variant.infer({name: array[place] for name, array in inputs.items()}) for place in range(GOLDEN_SAMPLES)]
    arrays: dict[str, Any] = {f"input:{name}": array for name, array in inputs.items()}
    arrays |= {f"output:{name}": np.stack([one[name] for one in outputs]) for name in _names(entrant)}
    golden = work / f"{spec.name}.golden.npz"
    np.savez(golden, allow_pickle=False, **arrays)
    models = tuple(path for path in sorted(entrant.slot.iterdir()) if path.name != "golden.npz")
    return VariantFiles(spec, models, golden)


def _names(entrant: Entrant) -> list[str]:
    return [one.name for one in entrant.spec.outputs]


def settings_of(fleet: Fleet, store: Store, name: str, package: Package, selected: str) -> Path:
    """An enrolled device's settings file."""
    home = fleet.folder / "agents" / name
    shutil.copytree(fleet.enroll(store, name), home / "identity")
    shape = package.spec(package.manifest(package.index.manifests[0].digest)).inputs[0].shape
    source = home / "inputs.npz"
    np.savez(source, x=np.zeros((4, *shape[1:]), np.float32))
    return scene.write_settings(
        home, scene.DemoDevice(name, PROFILE), source, rate_per_s=5.0, probation_s=1.0, selection=selected
    )


def deployed(fleet: LoggedFleet, store: Store, name: str, package: Package) -> tuple[str, str]:
    """Deploy to one device until it is committed: (the variant's digest, what the broker logged meanwhile)."""
    keys = KeyFolder(fleet.keys)
    version = publishing.publish(fleet.data, package, keys.signer("release"), time.time())
    begins = fleet.log.stat().st_size
    operator = keys.signer("operator-default")
    _, generations = control.deploy(store, fleet.data, version, name, operator, time.time())
    wait(lambda: store.outcome(name, generations[name]), f"the outcome of {name}", PATIENCE_S)
    outcome = store.outcome(name, generations[name])
    row = store.device(name)
    if outcome is None or row is None or row.digest is None or str(outcome[0]) != "committed":
        raise SystemExit(f"{name}: {outcome}")
    with fleet.log.open("rb") as file:
        file.seek(begins)
        return row.digest, file.read().decode(errors="replace")


def counted(log: str, device: str) -> dict[str, int]:
    """Bytes that the broker sent to a device, by kind of topic."""
    found = {"b": 0, "reply": 0, "other": 0}
    for sent_to, topic, size in _SENT.findall(log):
        if sent_to == device:
            kind = topic.split(f"/d/{device}/", 1)[-1].split("/", 1)[0]
            found[kind if kind in found else "other"] += int(size) + len(topic)
    return found


def measured(model: str) -> list[Pulled]:
    """One model on every device."""
    found = []
    with tempfile.TemporaryDirectory() as work, ProcessGroup(Path(work) / "fleet" / "logs") as group:
        package = package_of(model, Path(work))
        fleet = LoggedFleet(Path(work) / "fleet", group, "127.0.0.1", tls=True)
        store = fleet.open()
        offered = {one.digest: one for one in selection.candidates(package.index)}
        for number, (device, selected) in enumerate(DEVICES.items()):
            name = f"device-{number}"
            settings = settings_of(fleet, store, name, package, selected)
            agent = group.start(name, [*EDGEFLEET, "agent", "run", "--config", str(settings)])
            wait(lambda name=name: store.device(name), f"{name}'s hello")
            digest, log = deployed(fleet, store, name, package)
            if device == "measuring":
                wait(lambda name=name: DECISION_EVENT in dict(store.events(name)), "the decision in the store")
            agent.kill()
            sent, chosen = counted(log, name), offered[digest]
            model_bytes = next(layer.size for layer in package.manifest(digest).layers)
            found.append(
                Pulled(
                    model, device, chosen.name, chosen.size_bytes, model_bytes, sent["b"], sent["reply"], sent["other"]
                )
            )
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Deploy, count, print and store."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    options = parser.parse_args(arguments)
    results: list[Pulled] = []
    print("| model | device | chosen | variant | its model file | blocks | replies | pulled / variant | limit |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for model in options.models:
        for one in measured(model):
            results.append(one)
            limit = f"{LIMIT}" if one.device == "with a prior" else "-"
            sizes = one.variant_bytes, one.model_bytes, one.blocks_bytes, one.replies_bytes
            cells = [one.model, one.device, one.chosen, *(f"{size:,}" for size in sizes), f"{one.ratio:.3f}", limit]
            print(f"| {' | '.join(cells)} |", flush=True)
    _OUTPUT.parent.mkdir(exist_ok=True)
    _OUTPUT.write_text(json.dumps([asdict(one) for one in results], indent=1), encoding="utf-8")
    return int(any(one.ratio > LIMIT for one in results if one.device == "with a prior"))


if __name__ == "__main__":
    sys.exit(main())
