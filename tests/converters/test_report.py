"""The report: one model, the same figures in every form of it, nothing from outside taken for markup."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from converters.report_examples import HOST, HOSTILE, full_report, renamed
from edgefleet.errors import StorageError
from edgefleet_converters.report import figures
from edgefleet_converters.report.build import environment, finite
from edgefleet_converters.report.html import to_html
from edgefleet_converters.report.markdown import to_markdown
from edgefleet_converters.report.model import LatencyFacts, Report, ScoreFacts
from edgefleet_converters.report.plot import Axis, Level, Point, scatter, ticks
from edgefleet_converters.report.terminal import print_report
from edgefleet_converters.report.write import FILES, report_folder, write_report
from edgefleet_device_profiles.profile import Runtime

REPORT = full_report()
HTML = to_html(REPORT)
MARKDOWN = to_markdown(REPORT)
# Elements that HTML closes by itself.
VOID = frozenset({"meta", "br"})


class _Page(HTMLParser):
    """What stands in a page: elements, attributes, text; checks that all is closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.opened: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)
        assert self.opened == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.opened.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.opened.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def _terminal(report: Report, width: int = 80) -> str:
    stream = io.StringIO()
    print_report(report, Console(file=stream, width=width))
    return stream.getvalue()


def test_json_gives_the_report_back() -> None:
    assert Report.model_validate_json(FILES["report.json"](REPORT)) == REPORT


def test_json_never_holds_what_json_has_not() -> None:
    with pytest.raises(ValueError, match="finite"):
        ScoreFacts(metric="sqnr", value=float("inf"), reference=None, samples=1, runtime_version="1")
    assert finite(float("inf")) is None
    assert finite(float("nan")) is None
    assert finite(1.5) == 1.5
    assert finite(None) is None


def test_the_page_is_well_formed_and_needs_nothing_from_outside() -> None:
    page = _Page(HTML)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "form", "base"}
    for _, attributes in page.tags:
        assert not {"src", "href", "srcset", "data", "action"} & set(attributes)
        assert not any(name.startswith("on") for name in attributes)
    assert "url(" not in HTML
    assert "@import" not in HTML
    assert "http" not in HTML


@pytest.mark.parametrize("word", ["prefers-color-scheme:dark", "max-width:760px", "color-scheme:light dark"])
def test_the_page_knows_dark_and_narrow_screens(word: str) -> None:
    assert word in HTML


def test_text_from_outside_is_text() -> None:
    assert HOSTILE not in HTML
    assert any(HOSTILE in text for text in _Page(HTML).text)
    assert re.search(r"(?<!\\)[<|`&].*alert", MARKDOWN.split("- evaluation: ")[1].splitlines()[0]) is None
    assert r"\<script\>alert\('x'\)\</script\>\|\`\&" in MARKDOWN
    assert "[red]" in _terminal(renamed(REPORT, "[red]").model_copy(update={"package": _folder("[red]")}))


def _folder(name: str) -> object:
    return REPORT.package.model_copy(update={"folder": name})


@given(st.text(max_size=40))
def test_no_name_breaks_the_page_or_a_row_of_the_markdown(name: str) -> None:
    report = renamed(REPORT, name)
    page = _Page(to_html(report))
    assert len(page.tags) == len(_Page(HTML).tags)
    lines = to_markdown(report).splitlines()
    assert sum(line.startswith("|") for line in lines) == sum(line.startswith("|") for line in MARKDOWN.splitlines())


@pytest.mark.parametrize("form", [HTML, MARKDOWN, _terminal(REPORT, 400)], ids=["html", "markdown", "terminal"])
def test_every_form_tells_the_same(form: str) -> None:
    for variant in REPORT.variants:
        assert variant.name in form.replace("\\", "")
        assert variant.score is not None
        for figure in (
            figures.size(variant.size_bytes),
            figures.metric(variant.score.metric, variant.score.value),
            figures.loss(variant.score),
            figures.latency(variant.latency),
        ):
            assert figure in form
        if not variant.accepted:
            assert variant.reason in form
    for word in ("unproven", "4 bits are for the weights of matrix products", "says nothing about other devices"):
        assert word in form
    assert HOST in form.replace("\\", "")
    assert REPORT.package.digest in form


@pytest.mark.parametrize("form", [HTML, MARKDOWN], ids=["html", "markdown"])
def test_the_written_forms_tell_decisions_ladder_layers_and_versions(form: str) -> None:
    plain = form.replace("\\", "")
    for words in (
        "size 13.35 MiB is over the limit of 8 MiB",
        "the float variant to fall back to",
        "two layers in float, 4.1 % of the MACs",
        "classifier.1",
        "/features/features.0/conv/conv.0/Conv_output_0",
        "11.2 dB",
        "9 of 52 layers were tried",
        "only 300 of the 320 calibration samples could be read",
        "openvino 2026.4.1",
        "5000 samples",
    ):
        assert words in plain, words
    assert re.search(r"in float", plain)


def test_the_terminals_table_fits_80_columns() -> None:
    table = _terminal(REPORT).split("\nrefused ")[0].splitlines()
    assert max(len(line) for line in table) <= 80
    assert sum("…" in line for line in table) == 0
    # Two lines of head, one per variant: no name of this length is broken.
    assert len(table) == 2 + len(REPORT.variants)


def test_a_variant_that_could_not_be_made_has_dashes() -> None:
    broken = REPORT.variants[0].model_copy(
        update={"size_bytes": None, "score": None, "latency": None, "accepted": False, "shipped": False}
    )
    report = REPORT.model_copy(update={"variants": (broken,), "sensitivity": None})
    row = next(line for line in to_markdown(report).splitlines() if line.startswith("| 1 "))
    assert row == "| 1 | litert-int8 |" + " – |" * 9 + " refused |"
    page = _Page(to_html(report))
    # No plot of nothing.
    assert "plot" not in {attributes.get("class") for _, attributes in page.tags}
    assert "–" in _terminal(report)


def test_only_numbered_variants_that_a_profile_keeps_ship() -> None:
    assert [variant.number for variant in REPORT.variants] == list(range(1, 9))
    assert [variant.name for variant in REPORT.variants if not variant.shipped] == [
        "litert-int8-dynamic",
        "onnxruntime-int4-weights",
    ]


def test_files_lie_beside_the_package_and_are_replaced(tmp_path: Path) -> None:
    package = tmp_path / "digits"
    folder = write_report(REPORT, package)
    assert folder == report_folder(package) == tmp_path / "digits.report"
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "report.json", "report.md"]
    assert not package.exists()
    write_report(renamed(REPORT, "another"), package)
    assert all("another" in path.read_text(encoding="utf-8") for path in folder.iterdir())


def test_a_report_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "digits.report").touch()
    with pytest.raises(StorageError, match=r"writing the report .*digits\.report"):
        write_report(REPORT, tmp_path / "digits")


def _point(number: int, x: float, y: float, *, filled: bool = True, front: bool = False) -> Point:
    return Point(number, Runtime.LITERT, x, y, f"variant {number}", filled=filled, front=front)


_AXIS = Axis("size", lambda value: f"{value:g}")
_PLACE = re.compile(r'transform="translate\(([-\d.]+) ([-\d.]+)\)')


def _places(drawn: str) -> list[tuple[float, float]]:
    return [(float(found[1]), float(found[2])) for found in _PLACE.finditer(drawn)]


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_better_is_always_higher_and_larger_is_always_to_the_right(higher_is_better: bool) -> None:
    points = [_point(1, 1.0, 0.70), _point(2, 2.0, 0.72)]
    drawn = scatter(points, _AXIS, _AXIS, [Level(0.71, "gate", "limit")], higher_is_better=higher_is_better)
    (left, first), (right, second) = _places(drawn)
    assert left < right
    assert (second < first) is higher_is_better


def test_what_is_far_below_stands_at_the_edge_with_an_arrow() -> None:
    points = [_point(1, 1.0, 0.72), _point(2, 2.0, 0.71), _point(3, 3.0, 0.10, filled=False)]
    drawn = scatter(points, _AXIS, _AXIS, [], higher_is_better=True)
    heights = [height for _, height in _places(drawn)]
    assert heights[2] == max(heights)
    assert heights[1] - heights[0] > 100
    assert ">3↓</text>" in drawn


_NUMBERS = st.floats(-1e6, 1e6).filter(lambda value: value == 0 or abs(value) > 1e-6)


@given(
    st.lists(st.tuples(st.floats(0, 1e10), _NUMBERS, st.booleans(), st.booleans()), min_size=1, max_size=12),
    st.lists(_NUMBERS, max_size=2),
    st.booleans(),
)
@example([(5e-324, 0.0, False, False)], [], False)
@example([(1e-308, 1.0, True, True), (1e-300, 2.0, True, False)], [1.5], True)
def test_any_values_are_drawn_inside_the_plot(
    values: list[tuple[float, float, bool, bool]], levels: list[float], higher_is_better: bool
) -> None:
    points = [_point(place, x, y, filled=filled, front=front) for place, (x, y, filled, front) in enumerate(values)]
    lines = [Level(level, "level", "limit") for level in levels]
    drawn = scatter(points, _AXIS, _AXIS, lines, higher_is_better=higher_is_better)
    places = _places(drawn)
    assert len(places) == len(points)
    assert all(0 <= left <= 480 and 0 <= top <= 330 for left, top in places)
    assert "nan" not in drawn


@given(st.floats(-1e9, 1e9), st.floats(1e-3, 1e9))
def test_ticks_are_few_round_and_inside(low: float, width: float) -> None:
    found = ticks(low, low + width)
    assert 1 <= len(found) <= 7
    slack = width * 1e-6 + abs(low) * 1e-9
    assert all(low - slack <= value <= low + width + slack for value in found)


FIGURES = (
    (figures.size(999), "999 B"),
    (figures.size(3_610_000), "3.61 MB"),
    (figures.size(14_000_000), "14.0 MB"),
    (figures.size(None), "–"),
    (figures.metric("top1", 0.71523), "71.52%"),
    (figures.metric("sqnr", 27.31), "27.3 dB"),
    (figures.metric("rmse", 0.0123456), "0.01235"),
    (figures.count(300_774_272), "301 M"),
    (figures.count(12), "12"),
    (figures.tick("top1", 0.715), "71.5%"),
    (figures.latency(LatencyFacts(p50_ms=0.0207, runs=64, threads=1, measured_on="x")), "20.7 µs"),
    (figures.latency(LatencyFacts(p50_ms=6.1, runs=64, threads=1, measured_on="x")), "6.10 ms"),
)


@pytest.mark.parametrize(("found", "expected"), FIGURES)
def test_figures_read_as_people_write_them(found: str, expected: str) -> None:
    assert found == expected


@pytest.mark.parametrize(
    ("metric", "higher", "value", "text"),
    [
        ("top1", True, 0.71, "-1.00 pt"),
        ("top1", True, 0.73, "+1.00 pt"),
        ("top1", True, 0.72, "+0.00 pt"),
        ("rmse", False, 0.75, "-0.03"),
        ("rmse", False, 0.70, "+0.02"),
    ],
)
def test_a_loss_reads_as_a_change_whichever_way_is_better(metric: str, higher: bool, value: float, text: str) -> None:
    score = ScoreFacts(
        metric=metric, higher_is_better=higher, value=value, reference=0.72, samples=100, runtime_version="1"
    )
    assert figures.loss(score) == text


def test_the_environment_holds_python_and_every_tool() -> None:
    found = environment([{"onnx": "1.0"}, {"numpy": "2.0", "onnx": "1.0"}])
    assert list(found)[:2] == ["Python", "system"]
    assert list(found)[2:] == ["numpy", "onnx"]
