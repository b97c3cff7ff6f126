import torch
from PIL import Image

from nti.contact_sheet import contact_sheet, heat_image

RED, BLUE = (255, 0, 0), (0, 0, 255)


def test_the_sheet_shows_every_image_and_grows_with_its_labels() -> None:
    red, blue = Image.new("RGB", (9, 9), RED), Image.new("RGB", (9, 9), BLUE)
    sheet = contact_sheet([[(red, "one"), (blue, "two")], [(blue, "three")]], cell=64)
    colours = [sheet.getpixel((10 + 32, 10 + 32)), sheet.getpixel((84 + 32, 10 + 32))]
    assert colours == [RED, BLUE]
    longer = contact_sheet([[(red, "many words that have to wrap in a cell")]], cell=64)
    assert longer.height > contact_sheet([[(red, "one")]], cell=64).height


def test_a_heat_map_is_white_at_its_peak_and_black_at_zero() -> None:
    image = heat_image(torch.tensor([[0.0, 2.0]]), 8)
    assert image.getpixel((0, 0)) == (0, 0, 0) and image.getpixel((7, 0)) == (255, 255, 255)
