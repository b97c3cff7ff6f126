// What the page shows and does: one function a chapter.

import { compute } from "./computing.js";
import { drawCurves, drawHeat, drawPicture, psnr } from "./draw.js";
import { aligned } from "./prompts.js";

const $ = (id) => document.getElementById(id);
const state = { facts: null, curves: [], cells: [] };

/** Run a job; whoever started it hears of its progress, and everybody of trouble. */
async function run(job, given, tell) {
  $("trouble").hidden = true;
  try {
    return await compute(job, given, tell);
  } catch (error) {
    $("trouble").textContent = `${job}: ${error.message}`;
    $("trouble").hidden = false;
    return null;
  }
}

/** Show a slider's value beside it, and do something when it changes. */
function slider(id, shown, label, changed = () => {}) {
  const show = () => {
    $(shown).value = label(Number($(id).value));
    $(id).setAttribute("aria-valuetext", $(shown).value);
  };
  $(id).addEventListener("input", () => {
    show();
    changed();
  });
  show();
}

const timestep = (step) => state.facts.timesteps[step];
const percent = (share) => `${Math.round(100 * share)} %`;
const plain = (x) => String(x);

function compared(canvas, output) {
  $(output).value = `${psnr($(canvas), $("noise-source")).toFixed(1)} dB from the photograph`;
}

function noise() {
  let seed = 1;
  const show = async () => {
    const step = Number($("noise-step").value);
    $("noise-alpha").value = state.facts.alpha_bar[step].toFixed(3);
    const made = await run("noised", { step, seed });
    if (made) drawPicture($("noise-picture"), made.picture);
  };
  slider("noise-step", "noise-t", timestep, show);
  $("noise-seed").addEventListener("click", () => {
    seed++;
    show();
  });
  $("noise-steps").addEventListener("click", () =>
    run("sample", { w: 1, optimized: false }, ({ step, picture }) => {
      drawPicture($("noise-picture"), picture);
      $("noise-t").value = timestep(step);
      $("noise-alpha").value = state.facts.alpha_bar[step].toFixed(3);
    }),
  );
  return show();
}

function inversion() {
  slider("inversion-w", "inversion-w-shown", plain);
  const { steps } = state.facts;
  const draw = () =>
    drawCurves($("inversion-curve"), state.curves, { xLabel: "step", yLabel: "distance", count: steps });
  draw();
  $("inversion-go").addEventListener("click", async () => {
    const given = { w: Number($("inversion-w").value), optimized: $("inversion-optimized").checked };
    const label = `w = ${given.w}${given.optimized ? ", optimized ∅" : ""}`;
    const line = { label, values: [], dashed: given.optimized };
    state.curves = [line, ...state.curves.filter((each) => each.label !== label)].slice(0, 4);
    const made = await run("sample", given, ({ step, apart, picture }) => {
      line.values[step] = apart;
      drawPicture($("inversion-picture"), picture);
      $("inversion-progress").value = step + 1;
      draw();
    });
    if (!made) return;
    drawPicture($("inversion-picture"), made.picture);
    compared("inversion-picture", "inversion-psnr");
  });
  $("inversion-invert").addEventListener("click", () =>
    run("invert", {}, ({ step, picture }) => {
      drawPicture($("inversion-picture"), picture);
      $("inversion-psnr").value = `z at t = ${timestep(step)}`;
      $("inversion-progress").value = steps - step;
    }),
  );
}

function nullText() {
  $("null-w").value = state.facts.guidance_scale;
  slider("null-step", "null-t", timestep);
  slider("null-w", "null-w-shown", plain);
  slider("null-n", "null-n-shown", plain);
  const mark = (name) => {
    for (const line of $("algorithm").children) {
      const runs = line.dataset.line === name;
      line.classList.toggle("runs", runs);
      line.toggleAttribute("aria-current", runs);
    }
  };
  const losses = [];
  const draw = (most, threshold) =>
    drawCurves(
      $("null-curve"),
      [
        { label: "loss", values: [...losses] },
        { label: "threshold", values: Array(most).fill(threshold), dashed: true },
      ],
      { xLabel: "iteration", yLabel: "loss", count: most, log: true },
    );
  draw(10, state.facts.optimization.threshold[4]);
  const tell = (most) => (told) => {
    if (told.done) {
      mark("step");
      drawPicture($("null-picture"), told.picture);
      compared("null-picture", "null-psnr");
      $("null-progress").value = told.step + 1;
      return;
    }
    if (told.iteration === 0) losses.length = 0;
    losses[told.iteration] = told.loss;
    mark(told.loss < told.threshold ? "stop" : "iterate");
    $("null-t").value = timestep(told.step);
    drawHeat($("null-error"), told.error.slice(0, 256), 0.5);
    draw(most, told.threshold);
  };
  const given = () => ({ w: Number($("null-w").value), most: Number($("null-n").value) });
  $("null-go").addEventListener("click", async () => {
    const { w, most } = given();
    await run("optimize", { step: Number($("null-step").value), w, most }, tell(most));
    mark("");
  });
  $("null-all").addEventListener("click", async () => {
    const { w, most } = given();
    mark("start");
    const made = await run("optimizeAll", { w, most }, tell(most));
    mark("");
    if (!made) return;
    drawPicture($("null-picture"), made.picture);
    compared("null-picture", "null-psnr");
  });
}

function attention() {
  const { tokens, levels } = state.facts.attention;
  let token = Math.min(2, tokens.length - 1);
  const show = () => {
    const map = levels[$("attention-level").value][Number($("attention-step").value)][token];
    drawHeat($("attention-map"), map, 255);
    $("attention-label").value = `“${tokens[token]}”`;
    [...$("attention-words").children].forEach((button, i) =>
      button.setAttribute("aria-pressed", String(i === token)),
    );
  };
  tokens.forEach((text, i) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = text;
    const choose = () => {
      token = i;
      show();
    };
    for (const event of ["click", "focus", "pointerenter"]) button.addEventListener(event, choose);
    $("attention-words").append(button);
  });
  slider("attention-step", "attention-t", timestep, show);
  $("attention-level").addEventListener("change", show);
  show();
}

const CHOICES = {
  pattern: ["", "striped", "dotted", "checkered"],
  colour: ["red", "orange", "yellow", "green", "turquoise", "blue", "purple", "pink"],
  shape: ["circle", "square", "triangle", "star", "heart", "cross"],
  background: ["on snow", "on sand", "on grass", "on wood", "in the sky", "at night"],
};

function edit() {
  const [, , colour, shape, background] = state.facts.caption.match(/^(an?) (\w+) (\w+) (.+)$/);
  const before = { pattern: "", colour, shape, background };
  $("edit-caption").textContent = `“${state.facts.caption}”`;
  $("edit-w").value = state.facts.guidance_scale;
  slider("edit-w", "edit-w-shown", plain);
  slider("edit-cross", "edit-cross-shown", percent);
  slider("edit-self", "edit-self-shown", percent);
  slider("edit-factor", "edit-factor-shown", plain);
  const selects = {};
  for (const [name, words] of Object.entries(CHOICES)) {
    const select = document.createElement("select");
    select.setAttribute("aria-label", name);
    select.append(...words.map((word) => new Option(word || "plain", word)));
    select.value = before[name];
    select.addEventListener("change", chosen);
    selects[name] = select;
    $("edit-words").append(select);
  }
  const parts = () => Object.fromEntries(Object.entries(selects).map(([k, v]) => [k, v.value]));

  function text() {
    const { pattern, colour, shape, background } = parts();
    const phrase = [pattern, colour, shape].filter(Boolean).join(" ");
    return `${/^[aeiou]/.test(phrase) ? "an" : "a"} ${phrase} ${background}`;
  }

  function chosen() {
    const words = text().split(" ");
    const word = $("edit-word").value;
    $("edit-word").replaceChildren(...words.map((each) => new Option(each)));
    $("edit-word").value = words.includes(word) ? word : words.at(-3);
    $("edit-text").value = `“${text()}”`;
    state.cells = [];
    foldTable();
  }

  async function computeEdit() {
    const settings = {
      text: text(),
      cross: Number($("edit-cross").value),
      self: Number($("edit-self").value),
      w: Number($("edit-w").value),
      reweight: { [$("edit-word").value]: Number($("edit-factor").value) },
      blend: $("edit-blend").checked ? [before.shape, parts().shape] : null,
      cells: state.cells,
    };
    const started = performance.now();
    const made = await run("edit", settings, ({ step, picture, mask }) => {
      $("edit-progress").value = step + 1;
      if (picture) for (const id of ["edit-picture", "fold-picture"]) drawPicture($(id), picture);
      drawHeat($("edit-mask"), mask ? Array.from(mask, (m) => (m ? 0 : 0.6)) : Array(256).fill(0), 1);
    });
    if (!made) return null;
    for (const id of ["edit-picture", "fold-picture"]) drawPicture($(id), made.picture);
    drawHeat($("edit-mask"), Array(256).fill(0), 1);
    const seconds = ((performance.now() - started) / 1000).toFixed(1);
    $("edit-text").value = `“${settings.text}”, ${seconds} s`;
    return made;
  }

  function foldTable() {
    const { caption, vocabulary } = state.facts;
    drawTable(aligned(caption, text(), vocabulary, state.cells), foldTable);
  }

  for (const button of document.querySelectorAll("[data-edit]")) {
    button.addEventListener("click", () => {
      const wanted = { ...before, cross: 0.8, self: 0.5, ...JSON.parse(button.dataset.edit) };
      for (const [name, select] of Object.entries(selects)) select.value = wanted[name];
      for (const name of ["cross", "self"]) {
        $(`edit-${name}`).value = wanted[name];
        $(`edit-${name}-shown`).value = percent(wanted[name]);
      }
      $("edit-factor").value = 1;
      $("edit-factor-shown").value = "1";
      chosen();
      computeEdit();
    });
  }
  $("edit-go").addEventListener("click", computeEdit);
  $("fold-go").addEventListener("click", computeEdit);
  $("fold-reset").addEventListener("click", () => {
    state.cells = [];
    foldTable();
  });
  chosen();
  window.lesson = { compute: (job, given) => run(job, given) }; // for the page's test
}

/** A's rows and b, each cell a button. */
function drawTable({ source, target, mapping, own, mode }, again) {
  const names = (prompt) => [
    "start", ...prompt.words.flatMap((each) => each.tokens.map(() => each.word)), "end",
  ];
  const [rows, columns] = [names(source), names(target)];
  $("fold-mode").value = mode === "replace" ? "word for word" : "words that both share, in order";
  const cell = (row, column, value) => {
    const button = document.createElement("button");
    const hand = state.cells.some((each) => each.row === row && each.column === column);
    button.type = "button";
    button.textContent = value === 0.5 ? "½" : String(Math.round(value * 100) / 100);
    button.dataset.value = value;
    button.classList.toggle("by-hand", hand);
    button.setAttribute(
      "aria-label",
      `${row === null ? "own attention" : rows[row]} to ${columns[column]}: ${value}`,
    );
    button.addEventListener("click", () => {
      const next = { 0: 0.5, 0.5: 1 }[value] ?? 0;
      const others = state.cells.filter((each) => each.row !== row || each.column !== column);
      state.cells = [...others, { row, column, value: next }];
      again();
      $("fold-table").querySelector(`[data-place="${row},${column}"]`)?.focus();
    });
    button.dataset.place = `${row},${column}`;
    const td = document.createElement("td");
    td.append(button);
    return td;
  };
  const head = (text, scope) => {
    const th = document.createElement("th");
    th.textContent = text;
    th.scope = scope;
    return th;
  };
  const line = (...cells) => {
    const tr = document.createElement("tr");
    tr.append(...cells);
    return tr;
  };
  const top = document.createElement("thead");
  top.append(line(head("A", "col"), ...columns.map((name) => head(name, "col"))));
  const body = document.createElement("tbody");
  rows.forEach((name, row) =>
    body.append(line(head(name, "row"), ...columns.map((_, c) => cell(row, c, mapping[row][c])))),
  );
  body.append(line(head("b: its own", "row"), ...columns.map((_, c) => cell(null, c, own[c]))));
  $("fold-table").replaceChildren(top, body);
}

async function begin() {
  const made = await run("load", {}, ({ bytes }) => {
    $("loading").lastElementChild.textContent = `loading the model … ${(bytes / 1e6).toFixed(0)} MB`;
  });
  $("loading").hidden = true;
  if (!made) return;
  state.facts = made.facts;
  const source = new Image();
  source.src = new URL("model/source.png", import.meta.url).href;
  await source.decode();
  for (const id of ["noise-source", "attention-picture", "edit-source"]) {
    $(id).getContext("2d").drawImage(source, 0, 0);
  }
  for (const id of ["inversion-picture", "null-picture", "edit-picture", "fold-picture"]) {
    drawPicture($(id), made.picture);
  }
  for (const output of document.querySelectorAll(".model-w")) output.value = made.facts.guidance_scale;
  for (const range of document.querySelectorAll("input[max='19']")) range.max = made.facts.steps - 1;
  for (const bar of document.querySelectorAll("progress[max='20']")) bar.max = made.facts.steps;
  const { nti, torch, "onnxruntime-web": runtime } = made.facts.versions;
  $("versions").textContent = `nti ${nti}, exported with torch ${torch}, run by onnxruntime-web ${runtime}.`;
  inversion();
  nullText();
  attention();
  edit();
  await noise();
  document.body.dataset.ready = "yes";
}

begin().catch((error) => {
  $("trouble").textContent = String(error.message ?? error);
  $("trouble").hidden = false;
});
