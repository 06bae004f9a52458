"""The report as one HTML file."""

import base64
from collections.abc import Mapping, Sequence
from html import escape

from slide_mm.analysis.local_attention.section import Section

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2em auto; padding: 0 1em;
       color: #222; background: #fff; }
table { border-collapse: collapse; font-size: 14px; }
th, td { border: 1px solid #ccc; padding: 3px 8px; text-align: left; vertical-align: top; }
div.wide { overflow-x: auto; }
figure { margin: 1.5em 0; }
img { max-width: 100%; }
figcaption { color: #555; }
"""


def render_html(
    title: str,
    facts: Mapping[str, str],
    sections: Sequence[Section],
    pictures: Mapping[str, bytes],
) -> str:
    """Lay the report out; pictures are part of the file, which needs nothing else.

    Args:
        title: Headline.
        facts: What was looked at, and where, by name.
        sections: Sections in their order.
        pictures: PNG by name, for all pictures of the sections.
    """
    links = "".join(f'<li><a href="#{x.name}">{escape(x.title)}</a></li>' for x in sections)
    body = "".join(_render_section(section, pictures) for section in sections)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>"
        f"<h1>{escape(title)}</h1>\n{_render_table((), [*facts.items()])}<ul>{links}</ul>\n"
        f"{body}</body></html>\n"
    )


def _render_section(section: Section, pictures: Mapping[str, bytes]) -> str:
    findings = "".join(f"<li>{escape(finding)}</li>" for finding in section.findings)
    figures = ""
    for picture in section.pictures:
        data = base64.b64encode(pictures[picture.name]).decode("ascii")
        text = escape(picture.caption, quote=True)
        figures += f'<figure><img alt="{text}" src="data:image/png;base64,{data}">'
        figures += f"<figcaption>{text}</figcaption></figure>\n"
    return (
        f'<h2 id="{section.name}">{escape(section.title)}</h2>\n<p>{escape(section.text)}</p>\n'
        f"<ul>{findings}</ul>\n{_render_table(section.header, section.lines)}{figures}"
    )


def _render_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>\n" for line in lines
    )
    return f'<div class="wide"><table><tr>{head}</tr>\n{rows}</table></div>\n'
