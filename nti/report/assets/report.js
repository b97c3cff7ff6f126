
// The report's page: everything it shows is in the element "data".

const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);

/** Make an element with attributes and children; text stays text. */
function made(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Unpack an array of bytes: a function of the places of its first axes -> the values of the last. */
function unpacked({ shape, data: packed }) {
  const bytes = Uint8Array.from(atob(packed), (c) => c.charCodeAt(0));
  const size = shape.at(-1);
  return (...places) => {
    const at = places.reduce((n, place, axis) => n * shape[axis] + place, 0);
    return bytes.subarray(at * size, (at + 1) * size);
  };
}

function pictures() {
  const [first] = Object.keys(data.pictures);
  const to = first === "photograph" ? "the photograph" : "the first picture";
  for (const [name, source] of Object.entries(data.pictures)) {
    const db = data.decibels[name];
    const how = db === undefined ? "" : `, ${db === null ? "equal to" : `${db.toFixed(1)} dB from`} ${to}`;
    $("pictures").append(
      made("figure", {}, made("img", { src: source, alt: data.labels[name] }), made("figcaption", {}, data.labels[name] + how)),
    );
  }
}

function curves() {
  const { apart, moved, losses, timesteps } = data;
  drawCurves(
    $("apart"),
    [
      { label: "plain DDIM", values: apart.ddim, dashed: true },
      { label: data.method, values: apart.inversion },
    ],
    { xLabel: "step", yLabel: "distance", count: timesteps.length + 1 },
  );
  const ends = losses.map((row) => row.filter((x) => x !== null).at(-1) ?? null);
  $("pivot").textContent = data.pivot;
  $("moved-from").textContent = data.moved_from;
  const learned = ends.some((x) => x !== null);
  for (const id of ["iterations", "loss-of"]) $(id).hidden = !learned;
  drawCurves($("ends"), [{ label: "last loss", values: ends }], {
    xLabel: "step", yLabel: "loss", count: timesteps.length, log: true,
  });
  drawCurves($("moved"), [{ label: "embedding", values: moved }], {
    xLabel: "step", yLabel: "moved", count: timesteps.length,
  });
  follow("losses-step", timesteps.length, (step) => {
    $("losses-t").value = timesteps[step];
    drawCurves($("losses"), [{ label: "loss", values: losses[step] }], {
      xLabel: "iteration", yLabel: "loss", count: losses[step].length, log: true,
    });
  });
}

/** Call `show` with a slider's value, now and whenever it changes. */
function follow(id, count, show) {
  const slider = $(id);
  slider.max = count - 1;
  const changed = () => {
    show(Number(slider.value));
    slider.setAttribute("aria-valuetext", `t = ${slider.previousElementSibling.value}`);
  };
  slider.addEventListener("input", changed);
  changed();
}

/** Rows of words, each with its map over a picture; returns what draws a frame. */
function wordRow(title, picture, tokens, maps, side) {
  const row = made("div", { class: "words-row" }, made("h3", {}, title));
  const strip = made("div", { class: "row" });
  const canvases = tokens.slice(1, -1).map((token) => {
    const canvas = made("canvas", { role: "img", "aria-label": `where “${token}” looks` });
    strip.append(
      made("figure", { class: "stack small" }, made("img", { src: picture, alt: "" }), canvas,
        made("figcaption", {}, token)),
    );
    return canvas;
  });
  row.append(strip);
  $("maps").append(row);
  const map = unpacked(maps);
  return (frame) => canvases.forEach((canvas, i) => drawHeat(canvas, map(frame, i), 255, side[1]));
}

function maps() {
  const rows = [wordRow(data.prompt, data.pictures.inversion, data.tokens, data.maps, data.side)];
  for (const edit of data.edits) {
    rows.push(wordRow(edit.prompt, edit.picture, edit.tokens, edit.maps, data.side));
  }
  $("maps-step").max = data.frames.length - 1;
  $("maps-step").value = Math.round(data.frames.length / 3);
  follow("maps-step", data.frames.length, (frame) => {
    $("maps-t").value = data.timesteps[data.frames[frame]];
    for (const draw of rows) draw(frame);
  });
}

/** Which source token gives each of an edit's tokens its attention. */
function alignment(edit) {
  const head = made("tr", {}, made("th", {}, ""), ...edit.tokens.map((t) => made("th", { scope: "col" }, t)));
  const body = data.tokens.map((name, row) =>
    made("tr", {}, made("th", { scope: "row" }, name),
      ...edit.tokens.map((_, column) => cell(edit.mapping[row][column]))),
  );
  body.push(
    made("tr", {}, made("th", { scope: "row" }, "its own"), ...edit.own.map((value) => cell(value))),
  );
  return made("div", { class: "scroll" },
    made("table", { class: "alignment" }, made("thead", {}, head), made("tbody", {}, ...body)));
}

const cell = (value) =>
  made("td", { "data-value": value, class: value ? "gives" : "" }, value ? String(Math.round(100 * value) / 100) : "");

function edits() {
  $("edits").hidden = data.edits.length === 0;
  data.edits.forEach((edit, number) => {
    const before = made("img", { src: data.pictures.inversion, alt: "before" });
    const after = made("img", { src: edit.picture, alt: "after", class: "over" });
    const slider = made("input", {
      type: "range", min: 0, max: 100, value: 50, id: `before-${number}`, "aria-label": `before and after: ${edit.prompt}`,
    });
    const clip = () => (after.style.clipPath = `inset(0 0 0 ${slider.value}%)`);
    slider.addEventListener("input", clip);
    clip();
    const row = made("div", { class: "row" },
      made("figure", { class: "stack wide" }, before, after,
        made("figcaption", {}, "before | after", slider)));
    if (edit.masks) {
      const mask = unpacked(edit.masks);
      const canvas = made("canvas", { role: "img", "aria-label": "where the edit may change" });
      const over = made("input", {
        type: "range", min: 0, max: data.frames.length - 1, value: data.frames.length - 1, id: `mask-${number}`,
        "aria-label": `timestep of the mask: ${edit.prompt}`,
      });
      const shown = made("output");
      const draw = () => {
        shown.value = `where it may change, t = ${data.timesteps[data.frames[over.value]]}`;
        drawHeat(canvas, mask(Number(over.value)), 2, data.mask_side[1]);
      };
      over.addEventListener("input", draw);
      draw();
      row.append(made("figure", { class: "stack" },
        made("img", { src: edit.picture, alt: "" }), canvas, made("figcaption", {}, shown, over)));
    }
    row.append(made("div", {}, made("p", {}, `alignment: ${edit.mode}`), alignment(edit)));
    $("edits").append(made("h3", {}, edit.prompt), row);
  });
}

$("prompt").textContent = data.prompt;
$("facts").textContent =
  `${data.model_name}, ${data.method}, ${data.timesteps.length} steps, w = ${data.guidance_scale}`;
$("cut").textContent = data.cut ? `${data.cut} tokens of the longest prompt are not shown.` : "";
pictures();
curves();
maps();
edits();
