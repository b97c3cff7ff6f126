"""Metrics: what is alike is perfect, masks count, and published figures come back."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import Tensor, nn
from torchmetrics import MeanSquaredError
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure
from torchmetrics.multimodal import CLIPScore
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

from nti.evaluation.clip import Clip, load_clip
from nti.evaluation.metrics import COLUMNS, Case, Metrics
from nti.evaluation.weights import dino, lpips

SIDE, END = 64, 49407


def noise(seed: int, side: int = SIDE) -> Image.Image:
    coarse = torch.rand(side // 4, side // 4, 3, generator=torch.Generator().manual_seed(seed))
    pixels = bytes((coarse * 255).to(torch.uint8).flatten().tolist())
    small = Image.frombytes("RGB", (side // 4, side // 4), pixels)
    return small.resize((side, side), Image.Resampling.BICUBIC)


def middle(side: int = SIDE) -> Image.Image:
    mask = Image.new("L", (side, side))
    mask.paste(255, (side // 4, side // 4, side // 2, side // 2))
    return mask


def case(source: Image.Image, edited: Image.Image, mask: Image.Image | None) -> Case:
    return Case("x", "1", source, edited, mask, "a cat", "a dog")


@pytest.fixture(scope="module")
def squeeze(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "squeezenet1_1.pth"
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "dino_vitbase8_pretrain.pth"
    network = timm.create_model("vit_base_patch8_224", pretrained=False, num_classes=0)
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def metrics(squeeze: Path, vit: Path) -> Metrics:
    return Metrics(lpips=lpips(squeeze), dino=dino(vit), clip=load_clip(None))


def test_pictures_that_are_alike_are_perfect(metrics: Metrics) -> None:
    found = metrics(case(noise(0), noise(0), middle()))
    assert tuple(found) == COLUMNS and not metrics.missing
    assert found["structure_distance"] == 0
    assert found["mse_unedit_part"] == found["lpips_unedit_part"] == 0
    assert found["ssim_unedit_part"] == 1 and found["psnr_unedit_part"] == np.inf


@pytest.mark.parametrize("as_published", [False, True])
def test_what_changes_inside_the_mask_is_no_loss(as_published: bool, squeeze: Path) -> None:
    edited = Image.composite(noise(1), noise(0), middle())
    metrics = Metrics(lpips=lpips(squeeze), as_published=as_published)
    found = metrics(case(noise(0), edited, middle()))
    assert found["mse_unedit_part"] == found["lpips_unedit_part"] == 0
    assert found["ssim_unedit_part"] == pytest.approx(1)
    assert metrics(case(noise(0), edited, None))["mse_unedit_part"] > 0


def test_edited_pixels_do_not_count_as_kept_ones() -> None:
    """Published figures of what is kept rise with the mask, though every kept pixel is as wrong."""
    small, large = Image.new("L", (SIDE, SIDE)), Image.new("L", (SIDE, SIDE), 255)
    large.paste(0, (0, 0, SIDE, 16))
    source = Image.new("RGB", (SIDE, SIDE), (128, 128, 128))
    edited = Image.new("RGB", (SIDE, SIDE), (140, 140, 140))
    ours = [Metrics()(case(source, edited, m))["psnr_unedit_part"] for m in (small, large)]
    assert ours[0] == pytest.approx(ours[1]) == pytest.approx(20 * np.log10(255 / 12), abs=1e-4)
    theirs = [
        Metrics(as_published=True)(case(source, edited, m))["psnr_unedit_part"]
        for m in (small, large)
    ]
    assert theirs[0] == pytest.approx(ours[0])
    assert theirs[1] == pytest.approx(ours[0] + 10 * np.log10(SIDE / 16), abs=1e-4)


def test_nothing_to_measure_is_not_a_number(metrics: Metrics) -> None:
    found = metrics(case(noise(0), noise(1), Image.new("L", (SIDE, SIDE), 255)))
    assert np.isnan(found["psnr_unedit_part"]) and np.isnan(found["lpips_unedit_part"])
    found = metrics(case(noise(0), noise(1), None))
    assert np.isnan(found["clip_similarity_target_image_edit_part"])
    assert found["structure_distance"] > 0


def test_what_lacks_weights_is_left_out() -> None:
    metrics = Metrics()
    assert metrics.columns == ("psnr_unedit_part", "mse_unedit_part", "ssim_unedit_part")
    assert set(metrics.missing) == set(COLUMNS) - set(metrics.columns)
    assert tuple(metrics(case(noise(0), noise(1), None))) == metrics.columns


def test_pictures_of_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="got an edit of 32x32 pixels, expected 64x64"):
        Metrics()(case(noise(0), noise(0, 32), None))


def test_other_weights_are_refused(squeeze: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected the weights of DINO's ViT-B/8"):
        dino(squeeze)
    (tmp_path / "x.pth").write_bytes(b"nothing")
    for path, told in [(tmp_path / "x.pth", "no weights that can"), (tmp_path / "y", "no such")]:
        with pytest.raises(ValueError, match=told):
            lpips(path)


class Published:
    """The published evaluator's calculations, from its description, on the same networks."""

    def __init__(self, squeeze: Path, vit: Path) -> None:
        self.psnr, self.mse = PeakSignalNoiseRatio(data_range=1.0), MeanSquaredError()
        self.ssim = StructuralSimilarityIndexMeasure(data_range=1.0)
        self.dino = dino(vit)
        self.squeeze = squeeze

    def kept(self, source: Image.Image, edited: Image.Image, mask: Image.Image) -> dict[str, float]:
        outside = 1 - (np.asarray(mask) > 127).astype(np.float32)[..., None]
        a, b = (
            torch.from_numpy(np.asarray(x).astype(np.float32) / 255 * outside).permute(2, 0, 1)[
                None
            ]
            for x in (source, edited)
        )
        network = lpips(self.squeeze, spatial=False)
        return {
            "psnr_unedit_part": float(self.psnr(b, a)),
            "mse_unedit_part": float(self.mse(b.contiguous(), a.contiguous())),
            "ssim_unedit_part": float(self.ssim(b, a)),
            "lpips_unedit_part": float(network(b * 2 - 1, a * 2 - 1)),
        }

    def structure(self, source: Image.Image, edited: Image.Image) -> float:
        def similarity(picture: Image.Image) -> Tensor:
            values = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float()
            values = torchvision.transforms.Resize(224, max_size=480)(values)
            mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
            values = torchvision.transforms.Normalize(mean, std)(values)[None]
            x = self.dino.patch_embed(values)
            x = self.dino._pos_embed(x)
            for block in self.dino.blocks[:11]:
                x = block(x)
            block = self.dino.blocks[11]
            qkv = block.attn.qkv(block.norm1(x))[0]
            keys = qkv.reshape(len(qkv), 3, 12, 64).permute(1, 2, 0, 3)[1]
            joined = keys.transpose(0, 1).reshape(len(qkv), -1)
            norm = joined.norm(dim=1, keepdim=True)
            return (joined @ joined.T) / torch.clamp(norm @ norm.T, min=1e-8)

        with torch.no_grad():
            return float(F.mse_loss(similarity(edited), similarity(source)))


def test_published_figures_come_back(squeeze: Path, vit: Path) -> None:
    source, edited, mask = noise(0), noise(1), middle()
    network = lpips(squeeze, spatial=False)
    metrics = Metrics(lpips=network, dino=dino(vit), as_published=True)
    ours, theirs = metrics(case(source, edited, mask)), Published(squeeze, vit)
    for name, value in theirs.kept(source, edited, mask).items():
        assert ours[name] == pytest.approx(value, rel=1e-4), name
    assert ours["structure_distance"] == pytest.approx(theirs.structure(source, edited), rel=1e-3)
    mended = Metrics(dino=dino(vit))(case(source, edited, mask))
    assert mended["structure_distance"] != pytest.approx(ours["structure_distance"], rel=0.05)


def their_clip() -> tuple[CLIPModel, Clip]:
    """One CLIP of random weights, as transformers has it and as open_clip has it."""
    import open_clip

    torch.manual_seed(0)
    tower = {
        "hidden_size": 32, "intermediate_size": 128, "num_attention_heads": 4,
        "num_hidden_layers": 2, "hidden_act": "gelu",
    }  # fmt: skip
    config = CLIPConfig(
        text_config={**tower, "eos_token_id": END},
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    theirs = CLIPModel(config).eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.2)
    ours = open_clip.CLIP(
        16, {"image_size": 32, "layers": 2, "width": 32, "head_width": 8, "patch_size": 8},
        {"width": 32, "heads": 4, "layers": 2},
    )  # fmt: skip
    state = theirs.state_dict()

    def blocks(there: str, here: str) -> dict[str, Tensor]:
        found = {}
        for i in range(2):
            a, b = f"{there}.encoder.layers.{i}", f"{here}.resblocks.{i}"
            for kind in ("weight", "bias"):
                parts = [state[f"{a}.self_attn.{n}_proj.{kind}"] for n in "qkv"]
                found[f"{b}.attn.in_proj_{kind}"] = torch.cat(parts)
                for mine, other in [
                    ("attn.out_proj", "self_attn.out_proj"), ("ln_1", "layer_norm1"),
                    ("ln_2", "layer_norm2"), ("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2"),
                ]:  # fmt: skip
                    found[f"{b}.{mine}.{kind}"] = state[f"{a}.{other}.{kind}"]
        return found

    plain = {
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
        "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
        "visual.ln_post.weight": "vision_model.post_layernorm.weight",
        "visual.ln_post.bias": "vision_model.post_layernorm.bias",
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "ln_final.weight": "text_model.final_layer_norm.weight",
        "ln_final.bias": "text_model.final_layer_norm.bias",
        "logit_scale": "logit_scale",
    }
    loaded = {mine: state[other] for mine, other in plain.items()}
    loaded["visual.proj"] = state["visual_projection.weight"].T
    loaded["text_projection"] = state["text_projection.weight"].T
    loaded |= blocks("vision_model", "visual.transformer") | blocks("text_model", "transformer")
    ours.load_state_dict(loaded)
    from open_clip.transform import PreprocessCfg, image_transform_v2

    preprocess = image_transform_v2(PreprocessCfg(size=32), is_train=False)
    return theirs, Clip(ours.eval(), preprocess, open_clip.get_tokenizer("ViT-B-32"), {})


def test_clip_similarity_is_torchmetrics() -> None:
    theirs, ours = their_clip()

    image = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32)

    class Model:
        """transformers' model, whose features torchmetrics expects as tensors."""

        config, device = theirs.config, theirs.device

        def get_image_features(self, pixels: Tensor) -> Tensor:
            return theirs.get_image_features(pixels).pooler_output

        def get_text_features(self, tokens: Tensor, seen: Tensor) -> Tensor:
            return theirs.get_text_features(tokens, seen).pooler_output

        def to(self, device: object) -> "Model":
            return self

    class Processor:
        """transformers' preprocessing of pictures, and open_clip's tokens of texts."""

        def __call__(self, **given: Any) -> dict[str, Tensor]:
            if "images" in given:
                return dict(image(images=given["images"], return_tensors="pt"))
            tokens = ours.tokenize(given["text"])
            seen = tokens != 0
            return {"input_ids": torch.where(seen, tokens, END), "attention_mask": seen.long()}

    score = CLIPScore(model_name_or_path=lambda: (Model(), Processor()))
    source, edited, mask = noise(0), noise(3), middle()
    black = np.uint8(np.asarray(edited) * (np.asarray(mask)[..., None] > 127))
    found = Metrics(clip=ours)(case(source, edited, mask))
    for name, picture, prompt in [
        ("clip_similarity_source_image", source, "a cat"),
        ("clip_similarity_target_image", edited, "a dog"),
        ("clip_similarity_target_image_edit_part", black, "a dog"),
    ]:
        pixels = torch.tensor(np.asarray(picture)).permute(2, 0, 1)
        assert found[name] == pytest.approx(float(score(pixels, prompt)), abs=0.05), name
