from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nti import Inversion, StableDiffusion, average_attention, invert
from nti.editing.alignment import token_positions
from nti.editing.edit_mask import EditMask
from nti.editing.local_blend import blend_mask
from nti.image import MaskLike

SQUARE = torch.zeros(64, 64, dtype=torch.bool)
SQUARE[10:20, 30:33] = True
SIDE = torch.zeros(64, 64, dtype=torch.bool)
SIDE[:, :32] = True


def made(
    model: StableDiffusion, inversion: Inversion, mask: MaskLike, threshold: float = 0.3
) -> EditMask:
    return EditMask.create(model, inversion, mask, threshold=threshold)


def picture(mask: torch.Tensor, mode: str = "L") -> Image.Image:
    return Image.fromarray(mask.numpy().astype("uint8") * 255).convert(mode)


def test_every_kind_of_mask_is_read_alike(
    model: StableDiffusion, inversion: Inversion, tmp_path: Path
) -> None:
    path = tmp_path / "m.png"
    picture(SQUARE).save(path)
    array = SQUARE.numpy()
    for mask in (
        path, str(path), picture(SQUARE, "1"), picture(SQUARE, "RGB"), array, array * np.uint8(255),
        array.astype("float32"), SQUARE, SQUARE.double(), SQUARE.int(), 0.5 + 0.4 * SQUARE - 0.1,
    ):  # fmt: skip
        assert torch.equal(made(model, inversion, mask).pixels, SQUARE), mask


def test_a_position_of_the_latent_is_edited_where_any_of_its_pixels_is(
    model: StableDiffusion, inversion: Inversion
) -> None:
    latent = made(model, inversion, SQUARE).latent
    assert latent.nonzero().tolist() == [[1, 3], [1, 4], [2, 3], [2, 4]]


def test_a_word_is_masked_where_it_attends_by_local_blends_rule(
    model: StableDiffusion, inversion: Inversion
) -> None:
    mask = made(model, inversion, "sitting next", threshold=0.6)
    tokens = list(token_positions(model.tokenizer.encode(inversion.prompt), "sitting next"))
    assert len(tokens) == 2
    maps = average_attention(model, inversion)[..., tokens].sum(dim=-1)
    expected = blend_mask(maps, (8, 8), pool=True, threshold=0.6)[0]
    assert torch.equal(mask.latent, expected) and 0 < expected.sum() < 64
    for (y, x), inside in np.ndenumerate(mask.pixels.numpy()):
        assert inside == expected[y // 8, x // 8]


def test_paste_takes_each_pixel_from_one_of_the_pictures(
    model: StableDiffusion, inversion: Inversion
) -> None:
    g = np.random.default_rng(0)
    edited, source = (g.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(2))
    mask = made(model, inversion, SQUARE)
    pasted = np.asarray(mask.paste(Image.fromarray(edited), Image.fromarray(source)))
    assert np.array_equal(pasted, np.where(SQUARE.numpy()[..., None], edited, source))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.zeros(64, 64), "mask: got an empty one, expected a part of the picture: make it"),
        (torch.ones(64, 64), "mask: got one that covers everything, .* or edit with sdedit"),
        (SIDE[:32], r"mask: got a tensor \(32, 64\) of torch.bool, expected .*: 64 x 64"),
        (picture(SIDE[:32]), "mask: got 64x32 pixels, expected 64x64"),
        (SIDE[None, None, None], r"mask: got a tensor \(1, 1, 1, 64, 64\)"),
        (SIDE * 255, r"mask: got values from 0 to 255, expected \[0, 1\]"),
        (SIDE * torch.nan, "mask: got values from nan to nan"),
        (3, "mask: got 3, expected a path"),
        (Path("missing.png"), "mask: missing.png: no such file"),
        ("dog", "mask: got 'dog', expected a file that is there, or a word of .*: 'a', 'cat', "),
    ],
    ids=["empty", "all", "size", "picture-size", "shape", "range", "nan", "kind", "file", "word"],
)
def test_what_is_no_mask_says_what_was_expected(
    model: StableDiffusion, inversion: Inversion, mask: MaskLike, message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        made(model, inversion, mask)


def test_a_word_that_attends_everywhere_asks_for_another(
    model: StableDiffusion, inversion: Inversion
) -> None:
    with pytest.raises(ValueError, match="covers everything, .*: choose another word"):
        made(model, inversion, "cat", threshold=0.0)


def test_a_word_needs_a_trajectory(model: StableDiffusion, image: torch.Tensor) -> None:
    encoded = invert(model, image, "a cat", steps=2, method="autoencoder")
    with pytest.raises(ValueError, match=r"mask: got the word 'cat' .* give a picture of the mask"):
        made(model, encoded, "cat")
