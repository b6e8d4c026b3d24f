"""
report.html: report.md as one page that holds its pictures and needs no network.

A Content-Security-Policy forbids every request, and every script and style but the two that are written here.
"""

import base64
import csv
import hashlib
import html
import io
import re
from pathlib import Path

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; }
h2 { font-size: 1.2rem; margin-top: 2.5rem; }
p, li, blockquote { max-width: 48rem; overflow-wrap: anywhere; }
blockquote { margin: 0.5rem 0; padding: 0.25rem 0.75rem; border-left: 0.3rem solid #e69f00; }
.wide { overflow-x: auto; margin: 1rem 0; }
figure { margin: 1rem 0; }
table { border-collapse: collapse; font-size: 0.875rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.6rem; text-align: left; white-space: nowrap; border-bottom: 1px solid #8886; }
th { vertical-align: bottom; white-space: normal; }
th button { all: unset; cursor: pointer; font-weight: bold; }
th button:focus-visible { outline: 2px solid; }
th[aria-sort="ascending"] button::after { content: " ▲"; }
th[aria-sort="descending"] button::after { content: " ▼"; }
td:first-child, th:first-child { position: sticky; left: 0; background: Canvas; }
img { max-width: 100%; height: auto; background: white; border-radius: 4px; }
pre { overflow-x: auto; padding: 0.75rem; background: #8882; border-radius: 4px; font-size: 0.8rem; }
"""
# A click on a column's head sorts its table by the number that each cell begins with, or by its text.
SCRIPT = """
const text = (row, column) => row.cells[column].textContent.trim();
const number = cell => parseFloat(cell.replace(/,/g, "").replace(/^[≤>] /, ""));
const compare = (a, b, sign) => {
  if (!a || !b) return !a - !b; // empty cells stay last
  const [x, y] = [number(a), number(b)];
  if (isNaN(x) && isNaN(y)) return sign * a.localeCompare(b);
  return isNaN(x) ? 1 : isNaN(y) ? -1 : sign * (x - y);
};
for (const head of document.querySelectorAll("th")) {
  head.firstChild.addEventListener("click", () => {
    const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    const body = head.closest("table").tBodies[0];
    const rows = [...body.rows];
    rows.sort((a, b) => compare(text(a, head.cellIndex), text(b, head.cellIndex), sign));
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    body.append(...rows);
  });
}
"""


def make_page(markdown: str, tables: dict[str, str], folder: Path) -> str:
    """
    The text of report.html.

    markdown: of report.md, whose pictures lie in `folder`. tables: file name of each table.csv -> its text, which the
    page shows whole.
    """
    blocks = [to_html(block, folder) for block in split_blocks(markdown)]
    for name, text in tables.items():
        header, *rows = csv.reader(io.StringIO(text))
        blocks += [f"<h2>All numbers ({html.escape(name)})</h2>", table(header, rows)]
    policy = f"default-src 'none'; img-src data:; style-src '{sha256(STYLE)}'; script-src '{sha256(SCRIPT)}'"
    title = html.escape(markdown.partition("\n")[0].removeprefix("# "))
    head = [
        '<meta charset="utf-8">',
        f"<meta http-equiv=\"Content-Security-Policy\" content=\"{policy}; base-uri 'none'; form-action 'none'\">",
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title>",
        f"<style>{STYLE}</style>",
    ]
    lines = ["<!doctype html>", '<html lang="en">', "<head>", *head, "</head>", "<body>", *blocks]
    return "\n".join([*lines, f"<script>{SCRIPT}</script>", "</body>", "</html>", ""])


def sha256(text: str) -> str:
    """What a Content-Security-Policy knows an inline script or style by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


# --- from markdown, as far as reports use it ---


def split_blocks(markdown: str) -> list[str]:
    """The blocks that stand between empty lines; a fenced one is whole, empty lines and all."""
    parts = re.split(r"(?ms)^(```\n.*?^```)$", markdown)
    blocks = []
    for i, part in enumerate(parts):
        blocks += [part] if i % 2 else [block for block in re.split(r"\n{2,}", part.strip()) if block]
    return blocks


def to_html(block: str, folder: Path) -> str:
    """One block: a heading, fenced text, a picture, a table, a list, notes or a paragraph."""
    lines = block.split("\n")
    if block.startswith("#"):
        level, _, text = block.partition(" ")
        return f"<h{len(level)}>{inline(text)}</h{len(level)}>"
    if block.startswith("```"):
        text = "\n".join(lines[1:-1])
        return f"<pre>{html.escape(text, quote=False)}</pre>"
    if picture := re.fullmatch(r"!\[(.*)\]\((.*)\)", block):
        data = base64.b64encode((folder / picture[2]).read_bytes()).decode()
        return f'<figure><img alt="{html.escape(picture[1])}" src="data:image/png;base64,{data}"></figure>'
    if block.startswith("| "):
        header, _, *rows = [line.strip("|").split("|") for line in lines]
        return table(header, rows)
    if block.startswith("- "):
        return "\n".join(["<ul>", *(f"<li>{inline(line[2:])}</li>" for line in lines), "</ul>"])
    if block.startswith("> "):
        return "\n".join(f"<blockquote>{inline(line[2:])}</blockquote>" for line in lines)
    return f"<p>{inline(block)}</p>"


def inline(text: str) -> str:
    """Text with its bold parts."""
    return re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", html.escape(text.strip(), quote=False))


def table(header: list[str], rows: list[list[str]]) -> str:
    """A table whose columns can be sorted."""
    heads = "".join(f'<th scope="col"><button type="button">{inline(cell)}</button></th>' for cell in header)
    body = ["".join(f"<td>{inline(cell)}</td>" for cell in row) for row in rows]
    lines = ['<div class="wide"><table>', f"<thead><tr>{heads}</tr></thead>", "<tbody>"]
    return "\n".join([*lines, *(f"<tr>{row}</tr>" for row in body), "</tbody>", "</table></div>"])
