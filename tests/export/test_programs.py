"""Two programs without Python, on libtorch and on onnxruntime, do what Python does.

The embedded model is exported, the programs are built, a sample is inverted, sampled again and
edited. It takes minutes, most of them for the compiler.
"""

import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

import nti
from nti import Inversion, StableDiffusion
from nti.demo import sample_image
from nti.editing.plan import EditPlan
from nti.editing.plan_file import write_plan
from nti.export.check import differences
from nti.export.exported import load_exported
from nti.inversion.tensor_file import read_tensors, write_tensors

SOURCE, TARGET = "a red cross on wood", "a blue star on wood"
TARGETS = [TARGET, "a red cross on sand"]
STEPS = 10
BLEND = ["--blend", "cross:star", "--subtract", "wood:wood", "--blend-threshold", "0.6"]
CPP = Path(__file__).parents[2] / "examples" / "cpp"
PROGRAMS = {"nti-torch": "aoti", "nti-onnx": "onnx"}
LIBRARIES = "libpng-dev libssl-dev nlohmann-json3-dev"

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def nti_command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "nti", *map(str, arguments)]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the programs, an export for each, a plan and a picture."""
    folder = tmp_path_factory.mktemp("programs")
    torch_root = Path(torch.__file__).parent
    library = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"))
    configured = subprocess.run(
        ["cmake", "-S", CPP, "-B", folder / "build", f"-DTORCH_ROOT={torch_root}",
         f"-DONNXRUNTIME_LIBRARY={library}"],
        capture_output=True, text=True,
    ) if shutil.which("cmake") else None  # fmt: skip
    if configured is None or configured.returncode:
        why = f"the programs need cmake, a C++ compiler and {LIBRARIES}"
        if os.environ.get("CI"):
            pytest.fail(f"{why}: {configured and configured.stderr}")
        pytest.skip(why)
    with Image.open(sample_image("red-cross")) as image:
        image.convert("RGB").save(folder / "image.png")
    settings = ["--steps", STEPS, "--edits", len(TARGETS), "-q"]
    exports = [
        subprocess.Popen(
            nti_command("export", "--format", each, *settings, "-o", folder / each),
            env={**os.environ, "OMP_NUM_THREADS": "2"},  # what runs with others, all the same
        )
        for each in PROGRAMS.values()
    ]
    subprocess.run(["cmake", "--build", folder / "build"], check=True, capture_output=True)
    plans = {
        "plan": (SOURCE, STEPS, TARGETS),
        "other": ("a cat", STEPS, TARGETS),
        "long": (SOURCE, 50, TARGETS),
        "one": (SOURCE, STEPS, [TARGET]),
    }
    for name, (source, steps, targets) in plans.items():
        prompts = [word for each in targets for word in ("--prompt", each)]
        plan = ["plan", "--source", source, "--steps", steps, *prompts]
        blend = BLEND if name == "plan" else []
        subprocess.run(nti_command(*plan, *blend, "-o", folder / f"{name}.safetensors"), check=True)
    assert [each.wait() for each in exports] == [0, 0]
    return folder


@pytest.fixture(scope="module")
def run(work: Path) -> Run:
    def start(  # type: ignore[no-untyped-def]
        program: str, command: str, *files: object, folder: Path | None = None, **environment: str
    ):
        """Run a program with nothing in its environment, as it has to bring all that it needs."""
        folder = folder or work / PROGRAMS[program]
        arguments = [work / "build" / program, "--threads", "1", command, folder]
        return subprocess.run(
            [*map(str, arguments), *map(str, files)], env=environment, capture_output=True,
            text=True, cwd=work,
        )  # fmt: skip

    return start


@pytest.fixture(scope="module")
def own(embedded: StableDiffusion, work: Path) -> Inversion:
    """Python's inversion of the same picture."""
    return nti.invert(embedded, work / "image.png", SOURCE, steps=STEPS)


@pytest.fixture(scope="module", params=PROGRAMS)
def program(request: pytest.FixtureRequest, run: Run) -> str:
    """A program that has inverted the picture."""
    name: str = request.param
    made = run(name, "invert", "plan.safetensors", "image.png", f"{name}.nti.safetensors")
    assert made.returncode == 0, made.stderr
    return name


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), int)


def test_it_inverts_as_python_does(program: str, work: Path, own: Inversion) -> None:
    found = Inversion.load(work / f"{program}.nti.safetensors")
    assert torch.equal(found.losses.isnan(), own.losses.isnan())  # as many iterations
    assert (~own.losses.isnan()).sum() > STEPS
    assert (found.uncond - own.uncond).abs().max() < 5e-3
    assert (found.latents - own.latents).abs().max() < 1e-4
    assert (found.pivot - own.pivot).abs().max() < 1e-4
    assert found.placement == own.placement
    assert found.made is not None and own.made is not None
    assert found.made.image_sha256 == own.made.image_sha256


def test_python_goes_on_with_its_inversion(
    program: str, work: Path, embedded: StableDiffusion, own: Inversion
) -> None:
    """Its model is known again, and its digest and sizes are right."""
    found = Inversion.load(work / f"{program}.nti.safetensors")
    ours, theirs = (np.asarray(nti.reconstruct(embedded, x), int) for x in (own, found))
    assert abs(ours - theirs).max() <= 1


def test_it_samples_and_edits_as_python_does(
    program: str, run: Run, work: Path, embedded: StableDiffusion, own: Inversion
) -> None:
    own.save(work / "own.nti.safetensors")
    files = ("own.nti.safetensors", "plan.safetensors")
    for command in ("reconstruct", "edit"):
        done = run(program, command, *files, f"{program}-{command}.png")
        assert done.returncode == 0, done.stderr
    expected = np.asarray(nti.reconstruct(embedded, own), int)
    assert abs(pixels(work / f"{program}-reconstruct.png") - expected).max() <= 1
    edit = nti.edit(
        embedded, own, TARGETS, blend=("cross", "star"), subtract=("wood", "wood"),
        blend_threshold=0.6,
    )  # fmt: skip
    for number, image in enumerate(edit.images, start=1):
        found = pixels(work / f"{program}-edit-{number}.png")
        assert abs(found - np.asarray(image, int)).max() <= 1
    assert edit.masks is not None and 0.05 < edit.masks[-1].float().mean() < 0.95


def test_an_edit_without_blend_words_beside_one_with(
    program: str, run: Run, work: Path, embedded: StableDiffusion, own: Inversion
) -> None:
    """Each has its own region, and what has none changes everywhere."""
    blends: list[tuple[str, str] | None] = [("cross", "star"), None]
    settings = {"blend": blends, "blend_threshold": 0.6}
    plan = EditPlan.create(embedded.tokenizer, SOURCE, TARGETS, steps=STEPS, **settings)
    write_plan(work / "mixed.safetensors", plan, embedded.tokenizer)
    own.save(work / "own.nti.safetensors")
    files = ("own.nti.safetensors", "mixed.safetensors", f"{program}-mixed.png")
    done = run(program, "edit", *files)
    assert done.returncode == 0, done.stderr
    edit = nti.edit(embedded, own, TARGETS, **settings)
    everywhere = nti.edit(embedded, own, TARGETS)
    for number, image in enumerate(edit.images, start=1):
        found = pixels(work / f"{program}-mixed-{number}.png")
        assert abs(found - np.asarray(image, int)).max() <= 1
        moved = abs(found - np.asarray(everywhere.images[number - 1], int)).max()
        assert moved > 10 if number == 1 else moved <= 1


def test_packages_run_from_python_with_any_number_of_threads(
    work: Path, embedded: StableDiffusion
) -> None:
    exported = load_exported(work / "aoti")
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            assert [each for each in differences(embedded, exported) if not each.fits] == []
    finally:
        torch.set_num_threads(before)


def test_packages_take_inputs_in_any_order(work: Path) -> None:
    exported = load_exported(work / "aoti")
    g = torch.Generator().manual_seed(0)
    latent = torch.randn(exported.manifest.latent, generator=g)
    context = torch.randn(exported.manifest.context, generator=g)
    turned = (latent.to(memory_format=torch.channels_last), context.mT.contiguous().mT)
    t = torch.tensor(481)
    expected = exported("noise", latent, t, context)[0]
    assert torch.equal(exported("noise", turned[0], t, turned[1])[0], expected)


def test_numbers_are_read_as_python_writes_them(
    program: str, run: Run, work: Path, own: Inversion
) -> None:
    """The digest is over text, so each has to be written with the same digits."""
    g = torch.Generator().manual_seed(0)
    wide = torch.rand(300, generator=g, dtype=torch.float64) * 10 ** torch.randint(
        -12, 20, (300,), generator=g
    )
    edges = [0.0, -0.0, 1.0, 1e-4, 9.999e-5, 1e15, 1e16, 5e-324, 1.7976931348623157e308, 0.1]
    assert own.made is not None
    settings = {**own.made.settings, "numbers": [*wide.tolist(), *edges], "text": '\u00e9\n\x7f"'}
    made = dataclasses.replace(own.made, settings=settings)
    dataclasses.replace(own, made=made).save(work / "numbers.nti.safetensors")
    files = ("numbers.nti.safetensors", "plan.safetensors", f"{program}-numbers.png")
    done = run(program, "reconstruct", *files)
    assert done.returncode == 0, done.stderr


def test_the_program_is_as_short_as_the_page_says() -> None:
    sources = [*CPP.glob("*.h"), *CPP.glob("*.cpp")]
    lines = [
        line
        for path in sources
        if path.name != "onnx_runtime.cpp"
        for line in path.read_text().splitlines()
        if line.strip() and not line.strip().startswith(("//", "/*", "*"))
    ]
    assert 600 < len(lines) < 800


def test_there_is_no_python_in_the_process(program: str, run: Run) -> None:
    files = (f"{program}.nti.safetensors", "plan.safetensors", f"{program}-again.png")
    done = run(program, "reconstruct", *files, LD_DEBUG="files")
    assert done.returncode == 0 and "libc.so" in done.stderr
    assert re.search("libtorch_cpu|libonnxruntime", done.stderr)
    assert "libpython" not in done.stderr and "torch_python" not in done.stderr


REFUSED = {
    "another size": ("invert", "plan.safetensors", "small.png", "x", "got 64x64 pixels, expected"),
    "no picture": ("invert", "plan.safetensors", "plan.safetensors", "x", "plan.safetensors: "),
    "no plan": ("invert", "own.nti.safetensors", "image.png", "x", 'without "plan"'),
    "another prompt": ("edit", "own.nti.safetensors", "other.safetensors", "x.png", 'for "a cat"'),
    "other steps": ("edit", "own.nti.safetensors", "long.safetensors", "x.png", "in 50 steps"),
    "one bit": ("edit", "bit.nti.safetensors", "plan.safetensors", "x.png", "with its digest"),
    "other edits": ("edit", "own.nti.safetensors", "one.safetensors", "x.png", "got 1 edits in 10"),
    "half": ("edit", "half.nti.safetensors", "plan.safetensors", "x.png", "tensor of F16"),
    "rows": ("edit", "rows.nti.safetensors", "plan.safetensors", "x.png", "got 2 null embeddings"),
    "method": ("edit", "offsets.nti.safetensors", "plan.safetensors", "x.png", 'by "direct"'),
    "shape": ("edit", "shape.nti.safetensors", "plan.safetensors", "x.png", "latent: expected"),
    "its own plan": (
        "invert", "plan.safetensors", "image.png", "plan.safetensors", "is there and no inversion",
    ),
    "no folder": ("invert", "plan.safetensors", "image.png", "none/x", "none/x: cannot be written"),
    "nested": ("edit", "own.nti.safetensors", "nested.safetensors", "x.png", "deeper than 32"),
    "nested file": ("edit", "own.nti.safetensors", "header.safetensors", "x.png", "deeper than 32"),
    "no file": ("edit", "none", "plan.safetensors", "x.png", "none: cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(
    program: str, run: Run, work: Path, own: Inversion, case: str
) -> None:
    own.save(work / "own.nti.safetensors")
    Image.new("RGB", (64, 64)).save(work / "small.png")
    data = bytearray((work / "own.nti.safetensors").read_bytes())
    data[-1] ^= 1
    (work / "bit.nti.safetensors").write_bytes(data)
    own.save(work / "half.nti.safetensors", dtype=torch.float16)
    file = read_tensors(work / "own.nti.safetensors", "inversion")
    forged = {**file.tensors, "uncond": file.tensors["uncond"][:2]}
    write_tensors(work / "rows.nti.safetensors", "inversion", file.header, forged)
    narrow = {**file.tensors, "latents": file.tensors["latents"][..., :8].contiguous()}
    write_tensors(work / "shape.nti.safetensors", "inversion", file.header, narrow)
    write_nested(work / "nested.safetensors", work / "header.safetensors")
    other = {**file.header, "method": "direct"}
    write_tensors(work / "offsets.nti.safetensors", "inversion", other, file.tensors)
    command, *files, message = REFUSED[case]
    done = run(program, command, *files)
    assert done.returncode == 2 and message in done.stderr
    assert not (work / "x").exists() and not (work / "x.png").exists()


def write_nested(plan: Path, entries: Path, depth: int = 200_000) -> None:
    """Files whose plan, or whose own header, is nested deeper than a program's stack goes."""
    deep = f'{{"a": {"[" * depth}{"]" * depth}, "b": "}}"}}'
    for path, text in ((plan, json.dumps({"__metadata__": {"plan": deep}})), (entries, deep)):
        path.write_bytes(len(text).to_bytes(8, "little") + text.encode())


def test_a_graph_that_is_not_called_is_not_loaded(
    run: Run, work: Path, own: Inversion, tmp_path: Path
) -> None:
    """An edit does without the graphs of an inversion, which need gigabytes at full width."""
    own.save(work / "own.nti.safetensors")
    copy = tmp_path / "onnx"
    shutil.copytree(work / "onnx", copy)
    (copy / "iteration.onnx").write_bytes(b"no graph")
    manifest = json.loads((copy / "manifest.json").read_text())
    found = hashlib.sha256(b"no graph").hexdigest()
    manifest["files"]["iteration.onnx"] = {"sha256": found, "bytes": len(b"no graph")}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    done = run("nti-onnx", "edit", "own.nti.safetensors", "plan.safetensors", "y.png", folder=copy)
    assert done.returncode == 0, done.stderr
    files = ("plan.safetensors", "image.png", "y.nti.safetensors")
    done = run("nti-onnx", "invert", *files, folder=copy)
    assert done.returncode == 2 and "onnxruntime: " in done.stderr


def test_a_folder_that_has_changed_is_refused(program: str, run: Run, work: Path) -> None:
    weights = work / PROGRAMS[program] / "weights.safetensors"
    data = weights.read_bytes()
    try:
        weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        done = run(program, "edit", "own.nti.safetensors", "plan.safetensors", "x.png")
    finally:
        weights.write_bytes(data)
    assert done.returncode == 2 and "was changed since it was exported" in done.stderr
