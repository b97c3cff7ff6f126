"""A plan on disk is what an edit hands to the controlled step."""

from pathlib import Path

import pytest
import torch

from nti import Inversion, StableDiffusion
from nti.cli import main
from nti.editing.plan import EditPlan
from nti.editing.plan_file import KEY, write_plan
from nti.inversion.tensor_file import read_tensors
from nti.networks.tokenizer import Tokenizer

SOURCE = "a cat sitting next to a mirror"
PROMPTS = ["a dog sitting next to a mirror", "a small cat sitting next to a mirror"]


def test_it_holds_every_step_of_the_plan(tmp_path: Path) -> None:
    tokenizer = Tokenizer()
    plan = EditPlan.create(
        tokenizer, SOURCE, PROMPTS, steps=10, cross_replace=0.6, self_replace=[0.5, (0.1, 0.3)],
        blend=[("cat", "dog"), None], subtract=[None, "mirror"], reweight={"small": 2.0},
        blend_start=0.3, blend_threshold=0.4,
    )  # fmt: skip
    write_plan(tmp_path / "p.safetensors", plan, tokenizer)
    file = read_tensors(tmp_path / "p.safetensors", KEY)
    assert plan.blend is not None
    for i in range(10):
        control = plan.controls.control(i, 5, plan.blend.words)
        assert control.fold is not None and control.self_rows is not None
        assert torch.equal(file.tensors["source_mix"][i], control.fold.source_mix.float())
        assert torch.equal(file.tensors["own_mix"][i], control.fold.own_mix.float())
        assert torch.equal(file.tensors["source_rows"], control.fold.source_rows)
        assert torch.equal(file.tensors["self_rows"][i], control.self_rows)
    assert torch.equal(file.tensors["words"], plan.blend.words.float())
    assert file.tensors["blends"].tolist() == [1, 0]
    assert file.tensors["subtracts"].tolist() == [0, 1]
    assert torch.equal(file.tensors["tokens"], tokenizer([SOURCE, *PROMPTS]))
    assert torch.equal(file.tensors["null_tokens"], tokenizer([""]))
    assert file.header == {
        "format": "nti-plan-1", "source": SOURCE, "prompts": PROMPTS,
        "modes": ["replace", "refine"], "steps": 10, "edits": 2, "blend_start": 0.3,
        "blend_threshold": 0.4, "blend_from": 3,
    }  # fmt: skip
    assert file.verified


def test_without_blend_no_step_blends(tmp_path: Path) -> None:
    tokenizer = Tokenizer()
    plan = EditPlan.create(tokenizer, SOURCE, PROMPTS[0], steps=4)
    write_plan(tmp_path / "p.safetensors", plan, tokenizer)
    file = read_tensors(tmp_path / "p.safetensors", KEY)
    assert file.header["blend_from"] == 4 and file.header["blend_threshold"] is None
    assert not file.tensors["words"].any() and file.tensors["words"].shape == (2, 77, 2)


def test_the_command_takes_an_inversion_or_a_prompt(
    model: StableDiffusion, inversion: Inversion, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved, first, second = (str(tmp_path / f"{name}.safetensors") for name in "abc")
    inversion.save(saved)
    edit = ["--prompt", PROMPTS[0], "--blend", "cat:dog"]
    assert main(["plan", saved, *edit, "-o", first]) == 0
    assert "replace: a dog sitting next to a mirror" in capsys.readouterr().out
    assert main(["plan", "--source", SOURCE, "--steps", "10", *edit, "-o", second]) == 0
    assert Path(first).read_bytes() == Path(second).read_bytes()
    assert main(["plan", *edit, "-o", first]) == 2
    assert "--source: got neither, expected it or an INVERSION" in capsys.readouterr().err
    assert main(["plan", saved, "--source", SOURCE, *edit, "-o", first]) == 2
    assert "--source: got both" in capsys.readouterr().err
    assert main(["plan", saved, "--steps", "5", *edit, "-o", first]) == 2
    assert "--steps: got 5, expected 10" in capsys.readouterr().err
    assert main(["plan", saved, *edit, "-o", saved]) == 2
    assert "which this command reads" in capsys.readouterr().err


def test_a_factor_that_float32_cannot_hold_is_refused(tmp_path: Path) -> None:
    tokenizer = Tokenizer()
    plan = EditPlan.create(tokenizer, SOURCE, PROMPTS[0], steps=4, reweight={"dog": 1e300})
    with pytest.raises(ValueError, match="reweight: got a factor of 1e.300, expected at most"):
        write_plan(tmp_path / "p.safetensors", plan, tokenizer)
    assert not (tmp_path / "p.safetensors").exists()
