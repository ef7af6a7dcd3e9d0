"""The demo's report: complete, escaped, and nothing from outside."""

from __future__ import annotations

import html.parser
import itertools
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from pydantic import ValidationError

from report import write_report
from report_charts import Curve, line_chart, number, ticks, two_bars

HOSTILE = "<script>alert('x')</script> & \"quotes\""


def _data(**changes: Any) -> dict[str, Any]:
    data = {
        "title": "A run",
        "summary": "What was done.",
        "generated_at": "2026-01-02T03:04:05+00:00",
        "steps": [{"step": n, "loss": 5 - n / 10, "epsilon": n / 4} for n in range(1, 21)],
        "events": [{"step": 10, "label": "trainer killed", "detail": "Went on after 3.1 s."}],
        "heldout": {"before": 5.0, "after": 4.0, "conversations": 130, "tokens": 2100},
        "privacy": {
            "epsilon": 5.0,
            "delta": 1e-4,
            "max_epsilon": 8.0,
            "unit": "one conversation",
            "noise_multiplier": 2.0,
            "clip_norm": 1.0,
            "max_participations": 12,
            "domain": "corpus-1",
        },
        "samples": [{"prompt": HOSTILE, "before": HOSTILE, "after": ""}],
        "encrypted": {
            "answers": [
                {
                    "prompt": HOSTILE,
                    "plain": HOSTILE,
                    "private": HOSTILE,
                    "tokens": 24,
                    "same_tokens": n > 0,
                    "exact": n > 1,
                }
                for n in range(4)
            ],
            "policy": "HE_REQUIRED",
            "extraction": HOSTILE,
            "opening_s": 5.5,
            "plain_ms_per_token": 9.0,
            "private_ms_per_token": 21.0,
            "attestations": 4,
            "sites": 16,
            "evaluated": 1600,
            "metered": 130,
            "digest": HOSTILE,
        },
        "facts": [["model", HOSTILE]],
        "timings": [["training", 62.5], ["evaluation", 4.0]],
        "notes": [HOSTILE],
    }
    return {**data, **changes}


@pytest.fixture
def page(tmp_path: Path) -> str:
    return write_report(_data(), tmp_path / "out" / "report.html").read_text(encoding="utf-8")


class _Tags(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "line", "circle", "rect", "polyline"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_self_contained(page: str) -> None:
    tags = _Tags()
    tags.feed(page)
    assert tags.open == []
    assert {tag for tag, _ in tags.seen} & {"script", "link", "img", "iframe", "object"} == set()
    attributes = {name for _, attrs in tags.seen for name in attrs}
    assert attributes & {"src", "href", "onclick", "onload"} == set()
    assert not re.search(r"https?://|url\(|@import", page)
    assert "default-src 'none'" in page


def test_what_others_wrote_is_escaped(page: str) -> None:
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 4 + 3 * 4 + 2


def test_the_page_says_what_was_measured(page: str) -> None:
    for text in (
        "max_epsilon = 8",
        "trainer killed",
        "Went on after 3.1 s.",
        "corpus-1",
        "1 min 02 s",
        "(nothing)",
    ):
        assert text in page, text
    assert "5 nats, perplexity 148.4" in page
    assert "4 nats, perplexity 54.6" in page
    assert "&minus;63%" in page or "\u221263%" in page
    assert page.count("<tr>") >= 20 + 6 + 2


def test_every_drawing_has_a_name_and_a_description(page: str) -> None:
    drawings = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(drawings) == 3
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    for drawing in drawings:
        root = ElementTree.fromstring(drawing)
        assert root.get("role") == "img"
        named = {child.get("id") for child in root if child.tag in ("title", "desc")}
        assert set((root.get("aria-labelledby") or "").split()) == named
        assert all((child.text or "").strip() for child in root if child.tag in ("title", "desc"))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"steps": []}, "steps"),
        ({"unknown": 1}, "unknown"),
        (
            {"heldout": {"before": float("nan"), "after": 1.0, "conversations": 1, "tokens": 1}},
            "heldout.before",
        ),
        ({"steps": [{"step": 1, "loss": 1.0}]}, "steps.0.epsilon"),
    ],
)
def test_wrong_input_is_refused_by_name(changes: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError) as caught:
        write_report(_data(**changes), tmp_path / "report.html")
    assert named in [".".join(map(str, error["loc"])) for error in caught.value.errors()]
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (4.1, 5.77), (0, 8.0), (-3, 12), (1e-6, 3e-6), (0, 123456), (2, 2)]
)
def test_ticks_cover_the_range_with_few_round_values(low: float, high: float) -> None:
    got = ticks(low, high)
    assert got[0] <= low
    assert got[-1] >= high
    assert 2 <= len(got) <= 9
    gaps = {round((b - a) / (got[1] - got[0]), 6) for a, b in itertools.pairwise(got)}
    assert gaps == {1.0}


def test_points_lie_where_the_axis_says() -> None:
    drawing = line_chart(Curve("k", "t", "d", [0, 5, 10], [0.0, 5.0, 10.0], "v", 1, from_zero=True))
    (points,) = re.findall(r'points="([^"]+)"', drawing)
    (x0, y0), (x1, y1), (x2, y2) = (map(float, point.split(",")) for point in points.split())
    assert x1 == pytest.approx((x0 + x2) / 2)
    assert y1 == pytest.approx((y0 + y2) / 2)
    assert y2 < y0


@pytest.mark.parametrize(
    "last", [[5.29, 5.28, 5.25, 5.21], [7.2, 7.3, 8.0, 8.0], [5.0, 9.0, 5.0, 9.0], [9.0, 5.0, 9.0, 5.0]]
)
def test_the_last_value_is_written_beside_the_curve_and_not_on_it(last: list[float]) -> None:
    values = [6.0] * 10 + last
    drawing = line_chart(Curve("k", "t", "d", list(range(1, 15)), values, "v", 1))
    (points,) = re.findall(r'points="([^"]+)"', drawing)
    at = [tuple(map(float, point.split(","))) for point in points.split()]
    ((right, base),) = re.findall(r'class="value halo" x="([\d.]+)" y="([\d.]+)"', drawing)
    covered = [y for x, y in at if x >= float(right) - 40]
    assert len(covered) == 2
    assert float(base) < min(covered) - 4 or float(base) - 12 > max(covered) + 4


def test_bars_start_at_zero_and_keep_their_ratio() -> None:
    drawing = two_bars("k", "t", [("before", 5.0, ""), ("after", 4.0, "")])
    widths = [
        float(width) for width in re.findall(r'class="bar b\d" x="0" y="\d+" width="([\d.]+)"', drawing)
    ]
    assert widths[1] / widths[0] == pytest.approx(0.8)
    with pytest.raises(ValueError, match="finite"):
        two_bars("k", "t", [("before", float("inf"), "")])


@pytest.mark.parametrize(
    ("value", "said"), [(0, "0"), (7.92, "7.92"), (12345.6, "12,346"), (0.0001, "0.0001")]
)
def test_numbers_are_short(value: float, said: str) -> None:
    assert number(value) == said


def test_encrypted_answers_are_counted_as_they_were_measured_and_may_be_missing(
    page: str, tmp_path: Path
) -> None:
    assert "<td>2 of 4, 96 tokens</td>" in page
    assert "<td>3 of 4</td>" in page
    assert "1,600 at 16 sites" in page
    without = write_report(_data(encrypted=None), tmp_path / "report.html").read_text(encoding="utf-8")
    assert "held by somebody else" in page
    assert "held by somebody else" not in without
