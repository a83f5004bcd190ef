"""The page of findings: what is in the file, and what a browser without a network shows of it."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import data_of, draw_face, encode

from face_gender.audit.page import HEADINGS, write_page

with suppress(ImportError):  # without it, the fixture of the browser skips
    from playwright.sync_api import Page, expect

PAGE = 60
NAMES = ("path", "label", "issue", "score", "related", "suggestion", "looks_like")
NASTY = (
    'male/"><img src=x onerror=alert(1)>.jpg',
    "male/</script><script>document.title='x'</script>.jpg",
    "male/<!--<script>.jpg",
    "male/{{thumbnails}}&amp;&lt;.jpg",
    "male/\udcff\udc80.jpg",
    "male/two\nlines\u2028\r.jpg",
    "male/\u202egpj.exe",
    "male/лицо 'Ольги' \\ 🙂.jpg",
)
# The picture that a card is about, not those that it is like.
OWN_PATHS = "#cards > .card > .pictures > .picture:first-child .path"


def table(*rows: tuple[Any, ...]) -> pd.DataFrame:
    """Findings; what a row leaves out at its end is empty."""
    whole = [(*row, *[""] * (len(NAMES) - len(row))) for row in rows]
    return pd.DataFrame(whole, columns=list(NAMES), dtype=object)


def many() -> pd.DataFrame:
    """6,240 findings of four issues; their scores fall, repeat, and are not in order of path."""
    rows = []
    for i in range(3_000):
        label, other = ("male", "female") if i % 3 else ("female", "male")
        path = f"{label}/{(i * 7) % 3_000:04d}.jpg"
        rows.append((path, label, "label", 1 - i // 2 / 2_000, "", "look at it", other))
    for i in range(3_000):
        related = f"female/copies/{i}.jpg"
        rows.append((f"female/{i:04d}.png", "female", "near_duplicate", 0.97, related, "leave out"))
    rows += [(f"male/dark_{i}.jpg", "male", "dark", 0.5, "", "look at it") for i in range(180)]
    rows += [(f"male/{i}.broken", "male", "unreadable", 1.0) for i in range(60)]
    return table(*rows)


def thumbnails_of(findings: pd.DataFrame) -> dict[str, bytes]:
    """A drawn face for every path but the unreadable ones; of forty different."""
    faces = [encode(draw_face(label, seed)) for label in ("male", "female") for seed in range(20)]
    readable = findings[findings["issue"] != "unreadable"]
    paths = {*readable["path"], *"|".join(readable["related"]).split("|")} - {""}
    return {path: faces[i % len(faces)] for i, path in enumerate(sorted(paths))}


def shown_scores(findings: pd.DataFrame) -> pd.Series:
    """The scores as the page shows them; Series.round differs in the last digit here and there."""
    return findings["score"].map(lambda score: round(score, 3))


def stored(page: Path) -> list[bytes]:
    blocks = re.findall(rb'<script type="text/plain" id="t\d+">(.*?)</script>', page.read_bytes())
    return [base64.b64decode(block, validate=True) for block in blocks]


@pytest.fixture
def page(tmp_path: Path) -> Path:
    return tmp_path / "page.html"


# ---- The file


def test_all_findings_are_in_the_page(page: Path) -> None:
    findings = many()
    write_page(page, findings, thumbnails_of(findings), "Audit", [("pictures", "23,704")])
    data = data_of(page)
    got = {
        (data["paths"][path], label, issue["name"], score, suggestion, looks_like)
        for issue in data["issues"]
        for path, label, score, _, suggestion, looks_like in issue["findings"]
    }
    columns = ["path", "label", "issue", "score", "suggestion", "looks_like"]
    findings["score"] = shown_scores(findings)
    assert got == set(findings[columns].itertuples(index=False, name=None))
    assert data["summary"] == [["pictures", "23,704"]]
    assert "<title>Audit</title>" in page.read_text(encoding="utf-8")


def test_each_thumbnail_is_stored_once(page: Path) -> None:
    faces = [
        encode(draw_face("male", 0)),
        encode(draw_face("female", 1)),
        encode(draw_face("male", 2)),
    ]
    findings = table(
        ("a", "male", "dark", 0.9),
        ("a", "male", "blurred", 0.8),
        ("b", "male", "exact_duplicate", 1.0, "a"),
        ("c", "female", "near_duplicate_other_label", 1.0, "a|b"),
        ("d", "male", "unreadable", 1.0),
    )
    thumbnails = {"a": faces[0], "b": faces[0], "c": faces[1], "not in the findings": faces[2]}
    write_page(page, findings, thumbnails, "Audit")
    blocks = stored(page)
    assert sorted(blocks) == sorted(faces[:2])
    data = data_of(page)
    pictures = dict(zip(data["paths"], data["pictures"], strict=True))
    assert {path: blocks[i] for path, i in pictures.items() if i >= 0} == {
        path: thumbnails[path] for path in "abc"
    }
    assert pictures["d"] == -1


def test_names_cannot_break_the_page(page: Path) -> None:
    tidy, nasty = page.with_name("tidy.html"), page
    write_page(tidy, table(("a", "male", "dark", 0.5, "b", "c")), {}, "Audit", [("d", "e")])
    findings = table(*((name, "male", "dark", 0.5, name, name) for name in NASTY))
    for each in NASTY:
        write_page(nasty, findings, {}, each, [(each, each)])
        text = nasty.read_bytes().decode("utf-8")
        for tag in ("<script", "</script", "<!--", "<img", "<title"):
            assert text.count(tag) == tidy.read_text(encoding="utf-8").count(tag), tag
    write_page(tidy, table(), {}, "</title><b>\udcff&")
    title = "<title>&lt;/title&gt;&lt;b&gt;\\udcff&amp;</title>"
    assert title in tidy.read_text(encoding="utf-8")
    data = data_of(nasty)
    # json reads a pair of surrogates as one sign, as a browser does.
    assert data["paths"] == list(NASTY)
    assert [row[4] for row in data["issues"][0]["findings"]] == list(NASTY)


def test_the_page_needs_no_other_file(page: Path) -> None:
    findings = many()
    write_page(page, findings, thumbnails_of(findings), "Audit")
    text = page.read_text(encoding="utf-8").replace("http-equiv", "")
    program = re.sub(r'<script type="text/plain".*?</script>', "", text)
    assert "http" not in program
    assert "//" not in re.sub(r"^\s*//.*$", "", program, flags=re.M)
    assert not re.search(r"@import|url\(|innerHTML|<link(?! rel=\"icon\" href=\"data:,\")", program)
    assert "default-src 'none'; img-src data:;" in program


def test_equal_findings_give_equal_bytes(page: Path) -> None:
    findings = many()
    thumbnails = thumbnails_of(findings)
    write_page(page, findings, thumbnails, "Audit")
    first = page.read_bytes()
    # In which order the thumbnails were made must not show.
    write_page(page, findings, dict(reversed(thumbnails.items())), "Audit")
    assert page.read_bytes() == first


def test_a_page_is_replaced_whole_or_not_at_all(page: Path) -> None:
    page.write_text("the former page")
    with pytest.raises(TypeError):
        write_page(page, table(("a", "male", "dark", 0.5)), {"a": "not bytes"}, "Audit")  # type: ignore[dict-item]
    assert page.read_text() == "the former page"
    assert [path.name for path in page.parent.iterdir()] == ["page.html"]


@pytest.mark.parametrize(
    ("issue", "label", "known", "expected"),
    [
        ("exact_duplicate", "male", "", "male"),
        ("near_duplicate_other_label", "male", "", "female"),
        ("duplicate_other_label", "female", "", "male"),
        ("near_duplicate_other_label", "", "", ""),
        ("dark", "male", "", ""),
        ("duplicate_other_label", "male", "male", "male"),
    ],
)
def test_a_related_picture_has_its_label_or_the_one_that_the_issue_means(
    page: Path, issue: str, label: str, known: str, expected: str
) -> None:
    findings = table(("a", label, issue, 0.9, "b"), ("b", known, "tiny", 0.5))
    write_page(page, findings, {}, "Audit")
    assert data_of(page)["issues"][0]["findings"][0][3] == [[1, expected]]


# ---- In a browser

# Notes the largest number of cards that the document ever held.
COUNT_CARDS = """
window.mostCards = 0;
new MutationObserver(() => {
  window.mostCards = Math.max(window.mostCards, document.querySelectorAll(".card").length);
}).observe(document, {childList: true, subtree: true});
"""
CLIPBOARD = """Object.defineProperty(navigator, "clipboard", {
  value: {writeText: async (text) => { window.copied = text; }}
});"""


@pytest.fixture
def show(show: Callable[..., Page]) -> Callable[..., Page]:
    """Open a page that counts its cards."""
    return lambda path, address="", script="", **more: show(
        path, address, COUNT_CARDS + script, **more
    )


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    """The page of `many`, and its findings."""
    path = tmp_path_factory.mktemp("audit") / "page.html"
    findings = many()
    write_page(path, findings, thumbnails_of(findings), "Audit", [("pictures", "23,704")])
    return path, findings


def check(tab: Page, expected: pd.DataFrame, page: int = 1) -> None:
    """Check that just these findings, in their order, are what the page goes through."""
    paths = expected["path"].tolist()
    pages = max(1, -(-len(paths) // PAGE))
    expect(tab.locator("#place")).to_have_text(f"page {page} of {pages}")
    copies = "Copy 1 path" if len(paths) == 1 else f"Copy {len(paths):,} paths"
    expect(tab.locator("#copy")).to_have_text(copies)
    expect(tab.locator(OWN_PATHS)).to_have_text(paths[(page - 1) * PAGE : page * PAGE])
    assert tab.evaluate("mostCards") <= PAGE


def choose_tab(tab: Page, issue: str) -> None:
    tab.get_by_role("button", name=re.compile(rf"^{HEADINGS[issue][0]}\s*\d")).click()


def of_issue(findings: pd.DataFrame, issue: str) -> pd.DataFrame:
    return findings[findings["issue"] == issue]


def test_each_issue_has_a_tab_with_its_findings(
    show: Callable[..., Page], big: tuple[Path, pd.DataFrame]
) -> None:
    path, findings = big
    tab = show(path)
    assert tab.title() == "Audit"
    expect(tab.locator("#summary")).to_have_text("pictures23,704")
    assert tab.locator("#tabs button").all_text_contents() == [
        "Doubtful label3,000", "Same photo3,000", "Unreadable60", "Dark180",
    ]  # fmt: skip
    check(tab, of_issue(findings, "label"))
    for issue in ("near_duplicate", "unreadable", "dark", "label"):
        choose_tab(tab, issue)
        check(tab, of_issue(findings, issue))
        expect(tab.locator("#help")).to_have_text(HEADINGS[issue][1])
        expect(tab.locator("[aria-current]")).to_contain_text(HEADINGS[issue][0])


def test_cards_say_what_was_found(
    show: Callable[..., Page], big: tuple[Path, pd.DataFrame]
) -> None:
    tab = show(big[0])
    card = tab.locator(".card").first
    expect(card.locator(".label.female")).to_have_text("labelled female")
    expect(card.locator(".label.male")).to_have_text("looks like male")
    expect(card.locator(".foot")).to_have_text("look at itscore 1.000")
    choose_tab(tab, "near_duplicate")
    expect(card.locator(".path")).to_have_text(["female/0000.png", "female/copies/0.jpg"])
    expect(card.locator(".label")).to_have_text(["labelled female"] * 2)
    left, right = (card.locator("img").nth(i).bounding_box() for i in range(2))
    assert left and right and left["y"] == right["y"] and left["x"] < right["x"]


def test_thumbnails_are_decoded_and_unreadable_pictures_have_none(
    show: Callable[..., Page], big: tuple[Path, pd.DataFrame]
) -> None:
    tab = show(big[0])
    # Those below the window are loaded late: until then Chromium may not decode them.
    tab.evaluate("[...document.images].forEach((image) => { image.loading = 'eager'; })")
    decoded = "Promise.all([...document.images].map((image) => image.decode()))"
    widths = f"{decoded}.then(() => [...document.images].map((image) => image.naturalWidth))"
    assert tab.evaluate(widths) == [36] * PAGE
    choose_tab(tab, "unreadable")
    tab.locator(".absent").nth(59).wait_for()
    assert tab.locator(".card img").count() == 0


def test_the_filter_finds_words_in_any_case_in_paths_and_related_paths(
    show: Callable[..., Page], big: tuple[Path, pd.DataFrame]
) -> None:
    path, findings = big
    suspects, copies = of_issue(findings, "label"), of_issue(findings, "near_duplicate")
    tab = show(path)
    tab.locator("#filter").fill("LE/01")
    check(tab, suspects[suspects["path"].str.contains("le/01")])
    expect(tab.locator("#tabs")).to_contain_text("Unreadable0 of 60")
    choose_tab(tab, "near_duplicate")
    tab.locator("#filter").fill("copies/12")
    check(tab, copies[copies["related"].str.contains("copies/12")])
    tab.locator("#filter").fill("not there")
    check(tab, copies[:0])
    expect(tab.locator("#empty")).to_contain_text("Nothing found")
    tab.locator("#filter").fill("")
    check(tab, copies)
    expect(tab.locator("#empty")).to_be_hidden()


def test_label_score_and_order_choose_the_cards(
    show: Callable[..., Page], big: tuple[Path, pd.DataFrame]
) -> None:
    path, findings = big
    expected = of_issue(findings, "label")
    tab = show(path)
    tab.locator("#label").select_option("female")
    expected = expected[expected["label"] == "female"]
    check(tab, expected)
    tab.locator("#least").fill("0.75")
    expected = expected[shown_scores(expected) >= 0.75]
    assert 0 < len(expected) < 1_000
    check(tab, expected)
    expect(tab.locator("#least-shown")).to_have_text("0.75")
    tab.locator("#sort").select_option("path")
    check(tab, expected.sort_values("path"))
    tab.locator("#label").select_option("all")
    tab.locator("#least").fill("0")
    check(tab, of_issue(findings, "label").sort_values("path", kind="stable"))
    tab.locator("#sort").select_option("score")
    check(tab, of_issue(findings, "label"))


def test_pages_are_turned_by_mouse_and_keyboard(
    show: Callable[..., Page], big: tuple[Path, pd.DataFrame]
) -> None:
    path, findings = big
    expected = of_issue(findings, "label")
    tab = show(path)
    expect(tab.locator("#first")).to_be_disabled()
    expect(tab.locator("#previous")).to_be_disabled()
    tab.locator("#next").click()
    check(tab, expected, 2)
    tab.locator("#last").click()
    check(tab, expected, 50)
    expect(tab.locator("#next")).to_be_disabled()
    expect(tab.locator("#last")).to_be_disabled()
    tab.locator("#previous").click()
    check(tab, expected, 49)
    tab.locator("#first").click()
    check(tab, expected, 1)
    tab.locator("#next").click()
    choose_tab(tab, "dark")
    check(tab, of_issue(findings, "dark"), 1)
    choose_tab(tab, "label")
    tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowRight")
    check(tab, expected, 3)
    tab.keyboard.press("ArrowLeft")
    check(tab, expected, 2)
    # In a field, arrows move the cursor.
    tab.locator("#filter").press("ArrowRight")
    tab.locator("#least").focus()
    check(tab, expected, 2)
    tab.keyboard.press("ArrowRight")
    expect(tab.locator("#least-shown")).to_have_text("0.01")
    tab.locator("#tabs button").first.focus()
    tab.keyboard.press("Tab")
    tab.keyboard.press("Enter")
    check(tab, of_issue(findings, "near_duplicate"), 1)
    tab.keyboard.press("ArrowRight")
    check(tab, of_issue(findings, "near_duplicate"), 2)


def test_reloading_keeps_the_place(
    show: Callable[..., Page], big: tuple[Path, pd.DataFrame]
) -> None:
    path, findings = big
    expected = of_issue(findings, "label")
    expected = expected[
        expected["path"].str.contains("male/1")
        & (expected["label"] == "male")
        & (shown_scores(expected) >= 0.3)
    ].sort_values("path")
    tab = show(path, "#issue=dark")
    check(tab, of_issue(findings, "dark"))
    choose_tab(tab, "label")
    tab.locator("#filter").fill("male/1")
    tab.locator("#label").select_option("male")
    tab.locator("#least").fill("0.3")
    tab.locator("#sort").select_option("path")
    tab.keyboard.press("Escape")
    tab.locator("#next").click()
    check(tab, expected, 2)
    expect(tab).to_have_url(re.compile("page=2$"))
    tab.reload()
    check(tab, expected, 2)
    expect(tab.locator("#filter")).to_have_value("male/1")
    expect(tab.locator("#label")).to_have_value("male")
    expect(tab.locator("#least-shown")).to_have_text("0.30")
    tab.evaluate("location.hash = '#issue=dark&page=3'")
    check(tab, of_issue(findings, "dark"), 3)


def test_an_address_that_makes_no_sense_shows_the_start(
    show: Callable[..., Page], big: tuple[Path, pd.DataFrame]
) -> None:
    path, findings = big
    tab = show(path, "#issue=no&label=<b>&least=x&sort=__proto__&page=-7&%ff")
    check(tab, of_issue(findings, "label"))
    tab.evaluate("location.hash = '#issue=dark&page=1e99&least=-3'")
    check(tab, of_issue(findings, "dark"), 3)


def test_the_paths_that_are_shown_are_copied(
    show: Callable[..., Page], big: tuple[Path, pd.DataFrame]
) -> None:
    path, findings = big
    tab = show(path, "#issue=label&label=female", CLIPBOARD)
    tab.locator("#copy").click()
    expect(tab.locator("#told")).to_have_text("1,000 copied")
    expected = of_issue(findings, "label")
    expected = expected[expected["label"] == "female"]
    assert tab.evaluate("copied") == "".join(f"{name}\n" for name in expected["path"])


def test_paths_are_offered_where_copying_is_refused(
    show: Callable[..., Page], big: tuple[Path, pd.DataFrame]
) -> None:
    path, findings = big
    tab = show(path, "#issue=dark", "Object.defineProperty(navigator, 'clipboard', {});")
    tab.locator("#copy").click()
    expect(tab.locator("#manual")).to_be_visible()
    text = "".join(f"{name}\n" for name in of_issue(findings, "dark")["path"])
    expect(tab.locator("#manual-text")).to_have_value(text)
    assert tab.evaluate("getSelection().toString()") == text
    tab.keyboard.press("Escape")
    expect(tab.locator("#manual")).to_be_hidden()


def test_nasty_names_are_shown_as_text(show: Callable[..., Page], page: Path) -> None:
    findings = table(*((name, name, "dark", 0.5, name, name, name) for name in NASTY))
    write_page(page, findings, {}, NASTY[1], [(NASTY[0], NASTY[1])])
    tab = show(page, script=CLIPBOARD)
    assert tab.title() == NASTY[1]
    printable = [
        *NASTY[:4], r"male/\xff\x80.jpg", r"male/two\nlines\u2028\r.jpg", r"male/\u202egpj.exe",
        NASTY[7],
    ]  # fmt: skip
    assert tab.locator(OWN_PATHS).all_text_contents() == printable
    assert tab.locator(".suggestion").all_text_contents() == printable
    assert tab.locator("img").count() == 0
    tab.locator("#copy").click()
    expect(tab.locator("#told")).to_have_text("8 copied")
    copied = tab.evaluate("copied").split("\n")
    # What a clipboard can hold is copied as it is.
    held = r"male/two\nlines" + "\u2028" + r"\r.jpg"
    assert copied == [*printable[:5], held, NASTY[6], NASTY[7], ""]
    tab.locator("#filter").fill("ЛИЦО")
    expect(tab.locator(OWN_PATHS)).to_have_text([NASTY[7]])
    tab.locator("#filter").fill(r"\xff")
    expect(tab.locator(OWN_PATHS)).to_have_text([printable[4]])


def test_many_copies_unfold(show: Callable[..., Page], page: Path) -> None:
    related = "|".join(f"copy {i}" for i in range(30))
    write_page(page, table(("a", "male", "exact_duplicate", 1.0, related)), {}, "Audit")
    tab = show(page)
    expect(tab.locator(".path:visible")).to_have_text(["a", "copy 0", "copy 1", "copy 2"])
    tab.get_by_text("27 more").click()
    expect(tab.locator(".path:visible")).to_have_count(1 + 30)


def test_a_page_without_findings_says_so(show: Callable[..., Page], page: Path) -> None:
    write_page(page, table(), {}, "Audit")
    tab = show(page)
    expect(tab.locator("#empty")).to_have_text("Nothing found.")
    expect(tab.locator("#tools")).to_be_hidden()
    expect(tab.locator("#pager")).to_be_hidden()


@pytest.mark.parametrize("issue", ["label", "near_duplicate"])
def test_a_phone_shows_it_without_scrolling_sideways(
    show: Callable[..., Page], page: Path, issue: str
) -> None:
    rows = [("x" * 200, "male", issue, 0.9, "y" * 200, "z" * 200, "female")]
    others = [("a", "male", name, 0.5) for name in HEADINGS if name != issue]
    write_page(page, table(*rows, *others), {}, "t" * 200, [("s" * 200, "u" * 200)])
    tab = show(page, f"#issue={issue}", width=390)
    tab.locator(".card").wait_for()
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    box = tab.locator("[aria-current]").bounding_box()
    assert box and box["x"] >= 0 and box["x"] + box["width"] <= 390
