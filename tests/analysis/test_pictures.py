from PIL import Image

from slide_mm.analysis import tile_pictures


def test_pictures_stand_row_by_row(tmp_path):
    colors = ["red", "lime", "blue"]
    paths = [tmp_path / f"{color}.png" for color in colors]
    for path, color in zip(paths, colors, strict=True):
        Image.new("RGB", (4, 2), color).save(path)
    tile_pictures(paths, tmp_path / "sheet.png", num_columns=2)
    sheet = Image.open(tmp_path / "sheet.png")
    assert sheet.size == (8, 4)
    corners = [sheet.getpixel(position) for position in ((0, 0), (4, 0), (0, 2), (4, 2))]
    assert corners == [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]
