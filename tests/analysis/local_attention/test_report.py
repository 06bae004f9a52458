import base64
import re

import torch
from matplotlib.figure import Figure

from slide_mm.analysis.local_attention.photographs import salient_points
from slide_mm.analysis.local_attention.report import render_html
from slide_mm.analysis.local_attention.section import Picture, Section


def test_report_needs_no_other_file():
    figure = Figure()
    figure.subplots().plot([1, 2], label="a < b")
    picture = Picture("curve", 'x "y" <z>', figure)
    section = Section("name", "a & b", "text <b>", {}, ["found"], ["h"], [["<cell>"]], [picture])
    png = picture.to_png()
    html = render_html("title", {"config": "a<b.py"}, [section], {"curve": png})
    sources = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert sources == ["#name", "data:image/png;base64," + base64.b64encode(png).decode()]
    for text in (
        "a &amp; b",
        "text &lt;b&gt;",
        "&lt;cell&gt;",
        "a&lt;b.py",
        'alt="x &quot;y&quot;',
    ):
        assert text in html
    assert "<script" not in html


def test_salient_points_are_where_the_image_changes():
    pixels = torch.full((200, 400, 3), 50, dtype=torch.uint8)
    pixels[100:110, 90:100] = 255
    pixels[60:64, 290:294] = 150
    pixels[:10] = 255  # Border.
    first, second = salient_points(pixels.numpy(), 2)
    assert max(abs(first[0] - 95), abs(first[1] - 105)) < 12
    assert max(abs(second[0] - 292), abs(second[1] - 62)) < 12
