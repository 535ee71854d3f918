import numpy as np
import torch
from PIL import Image

from encoders.pictures.sheets import contact_sheet, display, heat


def test_a_contact_sheet_gives_every_picture_its_place():
    red, blue = Image.new("RGB", (50, 20), "red"), Image.new("RGB", (30, 40), "blue")
    sheet = contact_sheet([[red, blue], [blue]])
    assert sheet.size == (50 + 4 + 30, 40 + 4 + 40)
    assert (
        sheet.getpixel((49, 19)) == (255, 0, 0)
        and sheet.getpixel((54, 39)) == (0, 0, 255)
        and sheet.getpixel((0, 44)) == (0, 0, 255)
    )
    assert sheet.getpixel((51, 10)) == (255, 255, 255) and sheet.getpixel((54, 44)) == (255, 255, 255)
    captioned = np.asarray(contact_sheet([[red, blue]], ["one", "two"]))
    assert (
        captioned.shape == (60, 84, 3)
        and (captioned[:20, :40] == 0).any()
        and (captioned[:20, 54:] == 0).any()
    )


def test_heat_runs_from_dark_to_light():
    picture = np.asarray(heat(torch.tensor([[0.0, 1.0, 2.0, 3.0]]))).astype(int)
    assert (np.diff(picture.sum(-1)) > 0).all()
    assert np.asarray(heat(torch.full((2, 2), 5.0))).std() < 60  # a constant map is no error


def test_display_makes_three_channels_of_any():
    rgb = torch.rand(2, 3, 4, 4)
    assert torch.equal(display(rgb), rgb) and torch.equal(display(torch.cat([rgb, rgb], 1)), rgb)
    grey = display(rgb[:, :1])
    assert grey.shape == (2, 3, 4, 4) and torch.equal(grey[:, 2], rgb[:, 0])
    bands = display(rgb * 3000 - 50)
    assert bands.min() == 0 and bands.max() == 1
