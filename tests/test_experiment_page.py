"""report.html: whole, safe, and with the numbers of table.csv."""

import csv
import re
from html.parser import HTMLParser

import pytest

from experiment import report
from experiment.page import SCRIPT, STYLE, make_page, sha256
from tests.test_experiment_report import LOSSES, comparison_of, study_of


class Reader(HTMLParser):
    """Collects the tables of a page, as rows of texts, and all attributes by (tag, name)."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.attributes, self.cell = [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.attributes += [(tag, name, value or "") for name, value in attributes]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.cell = ""

    def handle_data(self, data):
        if self.cell is not None:
            self.cell += data

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.tables[-1][-1].append(self.cell)
            self.cell = None


@pytest.fixture
def written(tmp_path):
    """(the text of report.html, the rows of table.csv) of a made-up comparison."""
    study = study_of(tmp_path, LOSSES)
    report.write(study, [comparison_of(study, LOSSES)], {}, ["a < b & c"], ["config.py", "--vary=mlp=gelu,bio"])
    with open(tmp_path / "table.csv") as file:
        return (tmp_path / "report.html").read_text(), list(csv.reader(file))


def test_the_last_table_is_table_csv(written):
    page, rows = written
    assert Reader(page).tables[-1] == rows


def test_the_first_table_has_its_numbers_too(written):
    page, (names, *rows) = written
    header, *shown = Reader(page).tables[0]
    for cells, row in zip(shown, rows, strict=True):
        cells, line = dict(zip(header, cells, strict=True)), dict(zip(names, row, strict=True))
        assert cells["arm"] == line["arm"] and cells["verdict"] == line["verdict"]
        assert cells["validation loss"] == f"{float(line['val_loss']):.4f} ± {float(line['val_sd']):.4f}"
        low_to_high = [f"{float(line[key]):+.4f}" for key in ("difference", "low", "high") if line[key]]
        assert re.findall(r"[-+][0-9.]+", cells["difference [95 % interval]"]) == low_to_high


def test_nothing_outside_the_page_is_named(written):
    page, _ = written
    linked = [
        (tag, value) for tag, name, value in Reader(page).attributes if name in ("src", "href", "srcset", "action")
    ]
    assert {tag for tag, _ in linked} == {"img"} and len(linked) == 2
    assert all(value.startswith("data:image/png;base64,") for _, value in linked)
    assert not re.search(r"https?:|url\(|@import|<link|<iframe", page)


def test_a_policy_forbids_requests_and_foreign_scripts(written):
    page, _ = written
    (policy,) = [value for tag, name, value in Reader(page).attributes if value.startswith("default-src")]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert f"'{sha256(SCRIPT)}'" in policy and f"<script>{SCRIPT}</script>" in page and page.count("<script") == 1
    assert f"'{sha256(STYLE)}'" in policy and f"<style>{STYLE}</style>" in page and "style=" not in page


def test_it_fits_a_phone_and_every_column_can_be_sorted(written):
    page, _ = written
    assert '<meta name="viewport" content="width=device-width' in page and "color-scheme: light dark" in page
    assert page.count("<th ") == page.count('<button type="button">') == sum(len(t[0]) for t in Reader(page).tables)


def test_markdown_is_shown_and_no_text_becomes_markup(tmp_path):
    markdown = "# a <b>\n\n- x: **y** (1 < 2)\n- z\n\n> **Note:** p & q.\n\n```\nls <\n\n# no heading\n```\n\nText.\n"
    page = make_page(markdown, {}, tmp_path)
    assert "<h1>a &lt;b&gt;</h1>" in page and "<li>x: <strong>y</strong> (1 &lt; 2)</li>\n<li>z</li>" in page
    assert "<blockquote><strong>Note:</strong> p &amp; q.</blockquote>" in page and "<p>Text.</p>" in page
    assert "<pre>ls &lt;\n\n# no heading</pre>" in page and "<title>a &lt;b&gt;</title>" in page
