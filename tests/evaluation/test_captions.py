"""Captioners: the grammar's captions, CLIP's choice among them, and CoCa's writing."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from nti.demo import sample_captions, sample_image
from nti.evaluation.captions import END, START, Chooser, Ranker, Writer, captioner_of
from nti.evaluation.clip import Clip, embedded_clip, load_clip
from nti.evaluation.grammar import Choice, Grammar
from scene import random_scene, render

GRAMMAR = Grammar(
    (("", "striped"), ("red", "orange"), ("cat", "dog")), (1, 2), 2, ("here", "there")
)


def write_clip(folder: Path, config: dict[str, Any], model: torch.nn.Module) -> Path:
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def coca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CoCa of random weights, in open_clip's folder."""
    torch.manual_seed(0)
    text = {"context_length": 76, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    vision = {
        "image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16,
        "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True,
    }  # fmt: skip
    config = {
        "embed_dim": 16, "vision_cfg": vision,
        "text_cfg": {**text, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {**text, "attn_pooler_heads": 2}, "custom_text": True,
    }  # fmt: skip
    made = open_clip.CoCa(**{k: v for k, v in config.items() if k != "custom_text"})
    for parameter in made.parameters():  # of one size, so that its choices differ
        torch.nn.init.normal_(parameter, std=0.5)
    whole = {"model_cfg": config, "preprocess_cfg": {"size": 32}}
    return write_clip(tmp_path_factory.mktemp("coca") / "coca", whole, made)


def test_a_grammar_has_each_caption_once() -> None:
    captions = [choice.caption() for choice in GRAMMAR.all()]
    assert len(set(captions)) == len(captions) == (8 + 8 * 2) * 2
    assert "a striped red cat and an orange dog there" in captions
    assert not any("red cat and a red" in caption for caption in captions)


def test_neighbours_differ_in_one_word() -> None:
    choice = Choice((("", "red", "cat"), ("striped", "orange", "dog")), "here")
    near = {c.caption() for c in GRAMMAR.neighbours(choice)} - {choice.caption()}
    assert near == {
        "a red cat and a striped orange dog there",
        "a striped red cat and a striped orange dog here",
        "a red cat and an orange dog here",
    }


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"phrase": 3},
        {"phrase": [["a"]], "distinct": [], "most": 1, "ends": []},
        {"phrase": [[""]], "distinct": [], "most": 1, "ends": ["x"]},
    ],
    ids=["nothing", "a-number", "no-end", "no-word"],
)
def test_a_grammar_that_is_none_is_refused(said: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="grammar:"):
        Grammar.of(said)


class Words:
    """A CLIP to which a text is its words, and a little their places; its picture is a text."""

    def __init__(self, shown: str) -> None:
        self.shown, self.asked = shown, 0

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        self.asked += len(texts)
        found = torch.zeros(len(texts), 512)
        for row, text in zip(found, texts, strict=True):
            for place, phrase in enumerate(text.split(" and ")):
                for word in phrase.split():
                    row[crc32(word.encode()) % 512] += 1
                    row[crc32(f"{word} {place}".encode()) % 512] += 0.3
        return torch.nn.functional.normalize(found, dim=-1)

    def images(self, pictures: object) -> torch.Tensor:
        return self.texts([self.shown])


def test_a_search_finds_the_best_caption_without_looking_at_all() -> None:
    slots = (("", "striped", "dotted"), tuple("abcdefgh"), tuple("klmnop"))
    grammar = Grammar(slots, (1, 2), 2, ("here", "there", "yonder"))
    shown = "a dotted b m and a striped e p yonder"
    clip = Words(shown)
    best = Chooser(clip, grammar).ranked(Image.new("RGB", (8, 8)), 3)  # type: ignore[arg-type]
    assert best[0].text == shown and best[0].score == pytest.approx(1, abs=1e-6)
    assert [c.score for c in best] == sorted((c.score for c in best), reverse=True)
    assert clip.asked < len(list(grammar.all())) / 10


def test_candidates_are_ranked() -> None:
    candidates = ("a blue dog there", "a red cat here", "a red dog")
    ranker = Ranker(Words("a red cat here"), candidates)  # type: ignore[arg-type]
    found = ranker.ranked(Image.new("RGB", (8, 8)), 2)
    assert [caption.text for caption in found] == ["a red cat here", "a red dog"]


def test_the_small_clip_finds_the_samples_captions() -> None:
    captioner = captioner_of()
    for name, caption in sample_captions().items():
        with Image.open(sample_image(name)) as image:
            assert captioner([image]) == [caption]


def test_the_small_clip_finds_the_captions_of_scenes_that_it_has_not_seen() -> None:
    captioner = captioner_of()
    scenes = [random_scene(1_000_100 + number) for number in range(40)]
    found = captioner([Image.fromarray(render(scene)) for scene in scenes])
    right = sum(text == scene.caption() for text, scene in zip(found, scenes, strict=True))
    assert right >= 36


def test_the_small_clip_is_small_and_says_what_it_is() -> None:
    folder = embedded_clip()
    weights = load_file(folder / "open_clip_model.safetensors").values()
    assert all(values.dtype == torch.float16 for values in weights)
    assert sum(values.nbytes for values in weights) <= 4_000_000
    assert "held-out scenes" in (folder / "MODEL_CARD.md").read_text("utf-8")
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    assert type(model).__module__.startswith("open_clip")


def test_coca_writes_what_its_logits_say(coca: Path) -> None:
    """With one beam it takes the likeliest token each time, as a loop of its own finds."""
    clip = load_clip(coca)
    picture = Image.new("RGB", (32, 32), "red")
    tokens = [START]
    with torch.no_grad():
        pixels = clip.pixels([picture])
        while len(tokens) < 30 and tokens[-1] != END:
            logits = clip.model(pixels, torch.tensor([tokens]), output_labels=False)["logits"]
            logits = logits[0, -1]
            if len(tokens) < 5:
                logits[END] = -torch.inf
            tokens.append(int(logits.argmax()))
    expected = open_clip.decode(torch.tensor(tokens)).replace("<start_of_text>", "")
    expected = expected.split("<end_of_text>")[0].strip()
    (caption,) = Writer(clip, beams=1).ranked(picture, 1)
    assert expected and caption.text == expected


def test_more_beams_find_a_likelier_caption(coca: Path) -> None:
    clip = load_clip(coca)
    picture = Image.new("RGB", (32, 32), "blue")
    one, many = (Writer(clip, beams=n).ranked(picture, 1)[0].score for n in (1, 6))
    assert many > one
    assert isinstance(captioner_of(coca), Writer)


def test_what_is_no_model_is_refused(tmp_path: Path, coca: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"nothing")
    (tmp_path / "empty").mkdir()
    for path, name, told in [
        (tmp_path / "nowhere", None, "no such file"),
        (tmp_path / "empty", None, "no open_clip_config.json"),
        (tmp_path / "x.bin", None, "expected the name of one"),
        (tmp_path / "x.bin", "nonsense", "expected the name of one"),
        (tmp_path / "x.bin", "RN50", "not a model that open_clip can load"),
    ]:
        with pytest.raises(ValueError, match=told):
            load_clip(path, name)
    vision = {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16}
    config = {
        "embed_dim": 16, "vision_cfg": vision, "text_cfg": {"width": 16, "heads": 2, "layers": 1},
    }  # fmt: skip
    bare = write_clip(tmp_path / "bare", {"model_cfg": config}, open_clip.CLIP(**config))
    with pytest.raises(ValueError, match="nothing to choose among"):
        captioner_of(bare)
    assert isinstance(captioner_of(bare, candidates=["a", "b"]), Ranker)
    assert isinstance(load_clip(bare), Clip)
