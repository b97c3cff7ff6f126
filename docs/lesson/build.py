"""Build the lesson: a folder of static files in which the embedded model runs in the browser.

    python docs/lesson/build.py -o lesson
    python -m http.server -d lesson

Any file server will do. Needs the extra `export`, and `npm` for onnxruntime-web's package.
"""

import argparse
import gzip
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import nti
from nti.demo import sample_captions, sample_image
from nti.editing.edit_rows import EditRows
from nti.export.export import export
from nti.inversion.inversion import Inversion
from nti.model import StableDiffusion
from nti.networks.control import MapCollector
from nti.report.collect import levels
from nti.sampling.step import controlled_noise

PAGE = Path(__file__).parent / "page"
ASSETS = Path(str(resources.files("nti.report") / "assets"))
SHARED = ("draw.js", "style.css")
"""What the lesson has in common with the report of an inversion."""
RUNTIME = "onnxruntime-web@1.30.0"
RUNTIME_FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
FUNCTIONS = ("text", "decode", "noise", "controlled", "iteration")
SAMPLE, STEPS = "purple-circle", 20
MOST = 40e6
"""Bytes of all files."""


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument(
        "--runtime", type=Path, metavar="FOLDER",
        help=f"the folder `dist` of an unpacked {RUNTIME}; default: fetched by npm",
    )  # fmt: skip
    options = parser.parse_args()
    output: Path = options.output
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        parser.error(f"{output}: got something that exists, expected a new or an empty folder")
    if options.runtime is None and shutil.which("npm") is None:
        parser.error("npm: not found; install it, or name the unpacked package by --runtime")
    output.mkdir(parents=True, exist_ok=True)  # what cannot be written shows before the work
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        runtime = options.runtime or _fetched(work, parser.error)
        missing = [name for name in RUNTIME_FILES if not (runtime / name).is_file()]
        if missing:
            parser.error(f"{runtime}: got a folder without {missing[0]}, expected {RUNTIME}'s dist")
        site = work / "site"
        shutil.copytree(PAGE, site)
        for name in SHARED:
            shutil.copy(ASSETS / name, site / name)
        _copy_runtime(runtime, site / "ort")
        _write_model(site / "model", work / "export")
        size = sum(path.stat().st_size for path in site.rglob("*") if path.is_file())
        if size > MOST:
            parser.error(f"the lesson: got {size / 1e6:.1f} MB, expected at most {MOST / 1e6:.0f}")
        shutil.copytree(site, output, dirs_exist_ok=True)
    print(f"wrote {output} ({size / 1e6:.1f} MB)")


def _fetched(work: Path, fail: Callable[[str], Any]) -> Path:
    """Fetch the package of onnxruntime-web, and return its folder `dist`."""
    command = ["npm", "pack", RUNTIME, "--pack-destination", str(work)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        fail(f"npm pack {RUNTIME}: got no answer in 300 s; try again, or give --runtime")
    packed = list(work.glob("*.tgz"))
    if done.returncode or not packed:
        lines = done.stderr.strip().splitlines() or ["no package came"]
        fail(f"npm pack {RUNTIME}: {lines[-1]}; or give --runtime")
    with tarfile.open(packed[0]) as archive:
        if hasattr(tarfile, "data_filter"):  # Python 3.11.4 and newer
            archive.extraction_filter = tarfile.data_filter
        archive.extractall(work)
    return work / "package" / "dist"


def _copy_runtime(runtime: Path, target: Path) -> None:
    target.mkdir()
    for name in RUNTIME_FILES:
        data = (runtime / name).read_bytes()
        if name.endswith(".wasm"):
            _write_packed(target / name, data)
        else:
            (target / name).write_bytes(data)


def _write_packed(path: Path, data: bytes) -> None:
    """Write `path`.gz, the same bytes at every build."""
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(data, 9, mtime=0))


def _write_model(target: Path, work: Path) -> None:
    """Export the functions, and what of the lesson is computed beforehand."""
    model = nti.load_model(device="cpu")
    caption = sample_captions()[SAMPLE]
    print("inverting the sample ...", file=sys.stderr)
    inversion = nti.invert(model, sample_image(SAMPLE), caption, steps=STEPS)
    print("exporting the functions ...", file=sys.stderr)
    manifest = export(model, work, steps=STEPS, formats=("onnx",), only=FUNCTIONS)
    target.mkdir()
    inversion.save(work / "inversion.nti.safetensors")
    _write_packed(
        target / "inversion.nti.safetensors", (work / "inversion.nti.safetensors").read_bytes()
    )
    shutil.copy(sample_image(SAMPLE), target / "source.png")
    vocabulary, words = _vocabulary(model)
    _write_weights(work / "weights.safetensors", target, vocabulary)
    for name in FUNCTIONS:
        _write_packed(target / f"{name}.onnx", (work / f"{name}.onnx").read_bytes())
    facts = json.loads((work / "manifest.json").read_text("utf-8"))
    schedule = model.schedule(STEPS)
    lesson = {
        "caption": caption,
        "steps": STEPS,
        "guidance_scale": model.config.guidance_scale,
        "timesteps": facts["schedule"].pop("timesteps"),
        "schedule": facts["schedule"],
        "alpha_bar": schedule.alpha_bar.tolist(),
        "optimization": facts["optimization"],
        "blend": facts["blend"],
        "vocabulary": words,
        "functions": {
            name: {"inputs": facts["functions"][name]["inputs"],
                   "outputs": facts["functions"][name]["outputs"]}
            for name in FUNCTIONS
        },
        "attention": _attention(model, inversion),
        "versions": manifest.versions | {"onnxruntime-web": RUNTIME.rpartition("@")[2]},
    }  # fmt: skip
    (target / "lesson.json").write_text(json.dumps(lesson), "utf-8")


def _vocabulary(model: StableDiffusion) -> tuple[set[int], dict[str, list[int]]]:
    """Return the ids that the world's captions use, and those of each word."""
    assert model.config.vocabulary is not None
    words = {}
    for word in model.config.vocabulary:
        prompt = model.tokenizer.encode(word)
        words[word] = list(prompt.ids[1 : prompt.end])
    ids = {i for each in words.values() for i in each} | set(model.tokenizer.encode("").ids)
    return ids, words


def _write_weights(path: Path, target: Path, used: set[int]) -> None:
    """Write the header and the tensors in half precision, in which the model was stored.

    Rows of the token embedding that no caption uses are zero, and cost nothing packed.
    """
    data = path.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    floats = torch.frombuffer(bytearray(data[begin:]), dtype=torch.float32)
    header = json.loads(data[8:begin])
    for name, entry in header.items():
        if name.endswith("token_embedding.weight"):
            first, last = (offset // 4 for offset in entry["data_offsets"])
            rows = floats[first:last].view(entry["shape"])
            unused = torch.ones(len(rows), dtype=torch.bool)
            unused[list(used)] = False
            rows[unused] = 0.0
        elif name.startswith("fingerprint."):  # no function reads them
            first, last = (offset // 4 for offset in entry["data_offsets"])
            floats[first:last] = 0.0
    halves = floats.half()
    if not torch.equal(halves.float(), floats):
        raise RuntimeError("weights: got values that half precision does not hold exactly")
    _write_packed(target / "weights.header", data[:begin])
    _write_packed(target / "weights.f16", halves.numpy().tobytes())


@torch.no_grad()
def _attention(model: StableDiffusion, inversion: Inversion) -> dict[str, Any]:
    """Return where each token of the caption attends at each step, at two levels, as 0 to 255."""
    rows = EditRows.create(model, inversion, inversion.prompt)
    prompt = model.tokenizer.encode(inversion.prompt)
    maps: dict[int, list[Tensor]] = {0: [], 1: []}
    for i in range(rows.schedule.steps):
        hook = MapCollector(frozenset({"cross"}), frozenset(maps), frozenset({"down", "up"}))
        latent = rows.visited[i : i + 1]
        t = rows.schedule.timestep(i, latent)
        controlled_noise(model.unet, latent, t, rows.cond[i, :1], None, hook)
        for level, steps in maps.items():
            seen = [each.probabilities for each in hook.maps if each.site.level == level]
            steps.append(torch.stack(seen).mean(dim=(0, 1, 2)))
    found = {str(level): levels(torch.stack(each), prompt).tolist() for level, each in maps.items()}
    return {"tokens": list(prompt.pieces), "levels": found}


if __name__ == "__main__":
    main()
