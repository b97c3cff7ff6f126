"""`nti run`, `nti evaluate` and `nti caption` from the command line."""

import csv
import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from manifest import write_manifest as write_scenes
from nti import Inversion
from nti.cli import main
from nti.cli.run import SOME_FAILED
from nti.datasets.manifest import read_manifest
from nti.demo import sample_captions, sample_image
from sample import FEW
from world import write_manifest, write_pie_bench, write_rows

FAST = [*FEW, "--set", "inner_steps=1"]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three scenes."""
    folder = tmp_path_factory.mktemp("run")
    manifest = write_manifest(folder, 3)
    assert main(["run", str(manifest), "-o", str(folder / "out"), *FAST, "-q"]) == 0
    return folder / "out"


def test_a_run_says_how_it_ended(
    ran: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    manifest = str(ran.parent / "manifest.csv")
    assert main(["run", manifest, "-o", str(ran), *FAST]) == 0
    assert "3 done, 0 failed; 0 made now" in capsys.readouterr().out
    (tmp_path / "broken.png").write_bytes(b"nothing")
    rows = [{"image": str(sample_image("purple-circle")), "prompt": "a purple circle on snow"}]
    rows += [{"image": "broken.png", "prompt": "a red star on sand"}]
    broken = write_rows(tmp_path / "m.csv", rows)
    options = ["-o", str(tmp_path / "out"), *FEW, "--method", "ddim"]
    assert main(["run", str(broken), *options]) == SOME_FAILED
    assert "1 done, 1 failed; 2 made now" in capsys.readouterr().out
    with (tmp_path / "out/summary.csv").open(newline="") as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["done", "failed"]


def test_events_say_how_far_a_run_is(
    ran: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    manifest = str(ran.parent / "manifest.csv")
    options = [
        "-o",
        str(tmp_path / "out"),
        *FEW,
        "--method",
        "autoencoder",
        "--set",
        "editor=sdedit",
    ]
    assert main(["run", manifest, *options, "--json", "--batch", "1"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    last = [event for event in events if event["event"] == "progress"][-1]
    assert (last["done"], last["total"], last["failed"]) == (3, 3, 0)
    assert last["per_minute"] > 0 and last["seconds_left"] == 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--set", "nonsense=1"], "--set: got 'nonsense=1', expected NAME=VALUE with one of"),
        (["--set", "steps"], "--set: got 'steps'"),
        (["--set", "steps=3", "--steps", "3"], "--set: got steps twice"),
        (["--method", "nonsense"], "method: got 'nonsense'"),
        (["--set", "inner_steps=0"], "inner_steps: got 0"),
        (["--workers", "2"], "got no --ray"),
        (["--ray", "127.0.0.1:1"], "nothing answers"),
        (["--batch", "0"], "batch: got 0"),
        (["--store", "int8"], "--store: got 'int8'"),
        (["--candidates", "nowhere.txt"], None),
    ],
)  # fmt: skip
def test_wrong_options_are_told_in_a_line(
    options: list[str], told: str | None, ran: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    command = ["run", str(ran.parent / "manifest.csv"), "-o", str(tmp_path / "o"), *options]
    if told is None:  # every image has a caption: nobody reads the candidates
        assert main([*command, *FEW, "--method", "autoencoder", "--editor", "sdedit"]) == 0
        return
    assert main(command) == 2
    assert told in capsys.readouterr().err.splitlines()[-1]


def test_strict_refuses_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = write_rows(tmp_path / "m.csv", [{"image": "nowhere.png", "prompt": "p"}])
    assert main(["run", str(manifest), "-o", str(tmp_path / "o"), "--strict"]) == 2
    assert "m.csv: row 1: image: got" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "o").exists()


def test_a_run_is_measured(ran: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(ran)]) == 0
    heard = capsys.readouterr()
    assert "structure_distance, lpips_unedit_part: not measured" in heard.err
    assert "| colour | 3 |" in heard.out and "| all | 3 |" in heard.out
    with (ran / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file_id"] for row in rows] == [f"scene-{1_000_500 + n}" for n in range(3)]
    psnr = [float(row["null-text+p2p|psnr_unedit_part"]) for row in rows]
    clip = [float(row["null-text+p2p|clip_similarity_source_image"]) for row in rows]
    assert all(10 < value < 60 for value in psnr) and all(0 < value <= 100 for value in clip)
    assert (ran / "metrics.md").read_text().startswith("| type | edits |")


def test_what_is_not_installed_is_told_before_anything_is_measured(
    ran: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics.functional", None)
    assert main(["evaluate", str(ran)]) == 2
    assert "pip install 'nti[evaluate]'" in capsys.readouterr().err.splitlines()[-1]
    monkeypatch.setitem(sys.modules, "ray", None)
    manifest = str(ran.parent / "manifest.csv")
    assert main(["run", manifest, "-o", str(ran), "--ray", "local"]) == 2
    assert "pip install 'nti[cluster]'" in capsys.readouterr().err.splitlines()[-1]


def test_pictures_in_pie_benchs_layout_are_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pie = write_pie_bench(tmp_path / "pie", 2)
    out = tmp_path / "output" / "mine"
    assert main(["run", str(pie), "-o", str(out), *FAST]) == 0
    assert main(["evaluate", str(out), "--pie-bench", str(pie), "--as-published"]) == 0
    with (out / "metrics.csv").open(newline="") as file:
        first = next(csv.DictReader(file))
    assert first["file_id"] == "000000000000"
    assert float(first["mine|psnr_unedit_part"]) > 10
    # A strip of four, as the authors write it: the part on the right is the edit.
    (path, *_) = sorted(out.rglob("annotation_images/**/*.jpg"))
    with Image.open(path) as edit:
        strip = Image.new("RGB", (2048, 512), "red")
        strip.paste(edit, (1536, 0))
    strip.save(path, quality=100, subsampling=0)
    assert main(["evaluate", str(out), "--pie-bench", str(pie), "--as-published"]) == 0
    with (out / "metrics.csv").open(newline="") as file:
        again = next(csv.DictReader(file))
    assert float(again["mine|psnr_unedit_part"]) == pytest.approx(
        float(first["mine|psnr_unedit_part"]), abs=0.1
    )
    path.write_bytes(b"nothing")  # one that cannot be read does not take the others along
    assert main(["evaluate", str(out), "--pie-bench", str(pie)]) == 0
    assert "000000000000: not measured" in capsys.readouterr().err
    with (out / "metrics.csv").open(newline="") as file:
        assert [row["mine|mse_unedit_part"] == "nan" for row in csv.DictReader(file)] == [
            True,
            False,
        ]
    assert (
        main(["evaluate", str(tmp_path / "nowhere")]) == 2 and not (tmp_path / "nowhere").exists()
    )
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "pie"), "--pie-bench", str(out)]) == 2
    assert main(["evaluate", str(pie)]) == 2
    assert "got no run.json" in capsys.readouterr().err.splitlines()[-1]


def test_twenty_scenes_go_from_a_manifest_to_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the committed rows of 200, in small."""
    manifest, out = write_scenes(tmp_path / "world", 20), tmp_path / "out"
    settings = [*FEW, "--method", "null-text-fast"]
    assert main(["run", str(manifest), "-o", str(out), *settings, "-q"]) == 0
    assert main(["evaluate", str(out)]) == 0
    table = capsys.readouterr().out
    for kind in ("background", "colour", "pattern", "shape"):
        assert f"| {kind} | 5 |" in table
    with (out / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    key = "null-text-fast+p2p|"
    kept = [float(row[f"{key}psnr_unedit_part"]) for row in rows]
    like = [float(row[f"{key}clip_similarity_source_image"]) for row in rows]
    assert len(rows) == 20 and sum(kept) / 20 > 18 and sum(like) / 20 > 90


def test_captions_are_printed_and_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = [str(sample_image(name)) for name in sample_captions()]
    out = tmp_path / "captions.csv"
    assert main(["caption", *images, "-o", str(out)]) == 0
    printed = capsys.readouterr().out.splitlines()
    expected = list(sample_captions().values())
    assert printed[: len(images)] == [f"{i}: {c}" for i, c in zip(images, expected, strict=True)]
    with out.open(newline="") as file:
        assert [row["prompt"] for row in csv.DictReader(file)] == expected
    assert main(["caption", images[0], "--top", "3"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert main(["caption", *images, "-o", str(out)]) == 0  # its own result
    (tmp_path / "broken.png").write_bytes(b"nothing")
    twice = [images[0], images[0], str(tmp_path / "broken.png")]
    assert main(["caption", *twice, "-o", str(out)]) == SOME_FAILED
    assert [item.id for item in read_manifest(out).items] == ["purple-circle", "purple-circle-2"]
    (tmp_path / "x.csv").write_text("mine")
    assert main(["caption", *images, "-o", str(tmp_path / "x.csv")]) == 2


def test_candidates_are_chosen_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "candidates.txt"
    path.write_text("a red star on sand\na purple circle on snow\n\na blue heart at night\n")
    image = str(sample_image("purple-circle"))
    assert main(["caption", image, "--candidates", str(path)]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"{image}: a purple circle on snow"
    path.write_text("\n")
    assert main(["caption", image, "--candidates", str(path)]) == 2
    assert "expected a caption in it" in capsys.readouterr().err


def test_an_image_is_inverted_without_a_prompt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.nti.safetensors"
    image = str(sample_image("purple-circle"))
    assert main(["invert", image, *FEW, "--method", "ddim", "-o", str(out)]) == 0
    assert "caption: a purple circle on snow" in capsys.readouterr().out
    assert Inversion.load(out).prompt == "a purple circle on snow"


def test_a_run_without_captions_is_captioned(tmp_path: Path) -> None:
    for name in ("purple-circle", "circle-and-star"):
        with Image.open(sample_image(name)) as image:
            image.save(tmp_path / f"{name}.png")
    out = tmp_path.parent / f"{tmp_path.name}-out"
    assert main(["run", str(tmp_path), "-o", str(out), *FEW, "--method", "ddim"]) == 0
    with (out / "summary.csv").open(newline="") as file:
        found = {row["id"]: row["prompt"] for row in csv.DictReader(file)}
    assert found == {name: sample_captions()[name] for name in found} and len(found) == 2
