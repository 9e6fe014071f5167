"""A report with everything in it that a report can hold, for the tests that draw it."""

from __future__ import annotations

from edgefleet.package.manifest import Mark
from edgefleet_converters.choose import Candidate, Objective, choose
from edgefleet_converters.report.build import build_report
from edgefleet_converters.report.model import (
    AttemptFacts,
    DataFacts,
    LatencyFacts,
    LayerFacts,
    LimitFacts,
    PackageFacts,
    Report,
    ScoreFacts,
    SensitivityFacts,
    SourceFacts,
    VariantFacts,
)
from edgefleet_device_profiles import catalogue
from edgefleet_device_profiles.profile import Precision, Runtime

HOST = "Intel(R) Xeon(R) 2.9 GHz, 2 cores"
HOSTILE = "<script>alert('x')</script>|`&"
PROFILES = ("raspberry-pi-5", "intel-nuc", "android-phone")
# Runtime, precision, size, top-1, SQNR, agreement, latency, accepted.
ROWS: tuple[tuple[Runtime, Precision, int, float, float, float, float, bool], ...] = (
    (Runtime.LITERT, Precision.INT8, 3_610_000, 0.7152, 27.3, 0.958, 6.1, True),
    (Runtime.LITERT, Precision.INT8_DYNAMIC, 3_590_000, 0.4310, 7.9, 0.512, 9.8, False),
    (Runtime.LITERT, Precision.FP16, 7_020_000, 0.7188, 68.1, 0.999, 17.3, True),
    (Runtime.OPENVINO, Precision.INT8, 3_905_000, 0.7161, 29.8, 0.964, 2.6, True),
    (Runtime.OPENVINO, Precision.FP16, 7_110_000, 0.7188, 70.4, 0.999, 5.4, True),
    (Runtime.ONNXRUNTIME, Precision.INT8, 3_720_000, 0.7092, 24.9, 0.941, 5.0, True),
    (Runtime.ONNXRUNTIME, Precision.INT4_WEIGHTS, 2_240_000, 0.7031, 15.2, 0.886, 12.9, False),
    (Runtime.ONNXRUNTIME, Precision.FP32, 14_000_000, 0.7190, 140.0, 1.0, 7.7, True),
)


def full_report() -> Report:
    """Eight variants of a classifier, two of them refused, for three devices; one text in it is hostile."""
    profiles = [catalogue.load(name) for name in PROFILES]
    variants = [_variant(*row) for row in ROWS]
    candidates = [
        Candidate(
            variant.name,
            variant.runtime,
            variant.precision,
            PROFILES,
            variant.size_bytes or 0,
            None if variant.accepted else variant.reason,
            variant.score.loss if variant.score else None,
        )
        for variant in variants
    ]
    # Refused because the device's disk is too small for it, so to say.
    tight = profiles[1].model_copy(update={"budget": profiles[1].budget.model_copy(update={"size_mib": 8.0})})
    return build_report(
        package=PackageFacts(
            name="mobilenet", version="2.1.0", release=7, folder="build/mobilenet", digest=f"sha256:{'3f9c' * 16}"
        ),
        source=SourceFacts(
            origin="mobilenetv2.onnx",
            kind="onnx",
            digest=f"sha256:{'a1b2' * 16}",
            size_bytes=13_964_000,
            inputs=("input float32 [1, 3, 224, 224]",),
            outputs=("logits float32 [1, 1000]",),
            parameters=3_504_872,
            macs=300_774_272,
        ),
        data=(
            DataFacts(role="calibration", origin="calibration.npz", samples=300, digest=f"sha256:{'00ff' * 16}"),
            DataFacts(role="evaluation", origin=HOSTILE, samples=5000, digest=f"sha256:{'11ee' * 16}"),
        ),
        limits=LimitFacts(max_drop=0.01, min_sqnr_db=20.0, min_agreement=0.99),
        objective=Objective.LATENCY,
        profiles=profiles,
        variants=variants,
        decisions=choose(candidates, (profiles[0], tight, profiles[2]), Objective.LATENCY),
        refused=(
            ("android-phone", Runtime.LITERT, Precision.INT4_WEIGHTS, "4 bits are for the weights of matrix products"),
        ),
        sensitivity=_sensitivity(),
        notes=("only 300 of the 320 calibration samples could be read",),
        environment={"Python": "3.11.7", "ai-edge-litert": "2.3.0", "openvino": "2026.4.1", "onnxruntime": "1.31.1"},
    )


def _variant(
    runtime: Runtime,
    precision: Precision,
    size_bytes: int,
    top1: float,
    sqnr_db: float,
    agreement: float,
    latency_ms: float,
    accepted: bool,
) -> VariantFacts:
    unproven = runtime is Runtime.ONNXRUNTIME and precision is Precision.INT8
    drop = 0.7190 - top1
    mixed = runtime is Runtime.LITERT and precision is Precision.INT8
    attempts = (
        AttemptFacts(
            label="minmax",
            why="as the profiles want it",
            status="failed",
            reason="top-1 is 0.0310 below fp32",
            size_bytes=3_540_000,
        ),
        AttemptFacts(
            label="minmax-mixed2",
            why="two layers in float, 4.1 % of the MACs",
            status="passed",
            reason="top-1 drop 0.0038 within 0.01",
            size_bytes=size_bytes,
        ),
    )
    return VariantFacts(
        number=0,
        name=f"{runtime}-{precision}",
        runtime=runtime,
        precision=precision,
        reasons=("raspberry-pi-5: choice 1, fastest there",),
        size_bytes=size_bytes,
        score=ScoreFacts(
            metric="top1",
            value=top1,
            reference=0.7190,
            drop_upper=drop + 0.0041,
            samples=5000,
            runtime_version="2.3.0",
            agreement=agreement,
            sqnr_db=sqnr_db,
            worst_slice="logits, channel 412",
            peak_rss_bytes=141_000_000 + size_bytes * 3,
        ),
        latency=LatencyFacts(
            p50_ms=latency_ms, p90_ms=latency_ms * 1.08, runs=256, threads=1, measured_on=HOST, profile=None
        ),
        status="unproven" if unproven else "passed" if accepted else "failed",
        accepted=accepted,
        reason=f"top-1 drop {drop:.4f}, {'within' if accepted else 'more than the allowed'} 0.01",
        shipped=False,
        marks=(Mark.UNPROVEN,) if unproven else (),
        attempts=attempts if mixed else attempts[:1],
        float_layers=("features.0.conv", "classifier.1") if mixed else (),
    )


def _sensitivity() -> SensitivityFacts:
    found = (11.2, 17.5, 23.1, 28.4, 31.0, 34.9, 38.2, 44.0, None)
    layers = tuple(
        LayerFacts(
            tensor=f"/features/features.{place}/conv/conv.0/Conv_output_0",
            operator="Conv",
            sqnr_db=value,
            macs_share=0.02 + 0.01 * place,
            in_float=place < 2,
        )
        for place, value in enumerate(found)
    )
    hostile = layers[3].model_copy(update={"tensor": HOSTILE})
    return SensitivityFacts(layers=(*layers[:3], hostile, *layers[4:]), notes=("9 of 52 layers were tried",))


def renamed(report: Report, name: str) -> Report:
    """The same report of a package with another name."""
    return report.model_copy(update={"package": report.package.model_copy(update={"name": name})})
