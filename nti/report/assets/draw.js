// Pictures, heat maps and curves.

/** Draw 3 x side x side floats in [-1, 1]. */
export function drawPicture(canvas, floats) {
  const side = Math.sqrt(floats.length / 3);
  const image = new ImageData(side, side);
  for (let k = 0; k < side * side; k++) {
    for (let c = 0; c < 3; c++) image.data[4 * k + c] = grey(floats[c * side * side + k]);
    image.data[4 * k + 3] = 255;
  }
  canvas.width = canvas.height = side;
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** A float in [-1, 1] as one of 256 levels, halves to the even one, as Python rounds. */
export function grey(value) {
  const level = (Math.min(1, Math.max(-1, value)) + 1) * 127.5;
  const below = Math.floor(level);
  const rest = level - below;
  return rest > 0.5 || (rest === 0.5 && below % 2) ? below + 1 : below;
}

/** Draw rows of `width` values from 0 (clear) to `most` (full) in the accent colour. */
export function drawHeat(canvas, values, most, width = Math.sqrt(values.length)) {
  const image = new ImageData(width, values.length / width);
  const [r, g, b] = accent();
  values.forEach((value, k) => {
    image.data.set([r, g, b, 230 * Math.min(1, value / most)], 4 * k);
  });
  canvas.width = width;
  canvas.height = values.length / width;
  canvas.getContext("2d").putImageData(image, 0, 0);
}

function accent() {
  const text = getComputedStyle(document.documentElement).getPropertyValue("--heat").trim();
  return text.split(" ").map(Number);
}

/**
 * Draw curves into an SVG.
 * @param lines [{label, values: [y or null], dashed}], all over 0, 1, 2, ...
 */
export function drawCurves(svg, lines, { xLabel, yLabel, count, log = false }) {
  const [width, height, left, bottom, top] = [320, 190, 46, 34, 24];
  const shown = lines.flatMap((line) => line.values).filter((y) => y !== null && (!log || y > 0));
  const scale = log ? Math.log10 : (y) => y;
  const most = Math.max(...(shown.length ? shown : [1]).map(scale));
  const least = log ? Math.min(...(shown.length ? shown : [0.1]).map(scale)) : 0;
  const span = most - least || 1;
  const x = (i) => left + ((width - left - 10) * i) / Math.max(1, count - 1);
  const y = (v) => height - bottom - ((height - bottom - top) * (scale(v) - least)) / span;
  const parts = [
    `<line x1="${left}" y1="${height - bottom}" x2="${width}" y2="${height - bottom}" class="axis"/>`,
    `<line x1="${left}" y1="${top}" x2="${left}" y2="${height - bottom}" class="axis"/>`,
    `<text x="${(left + width) / 2}" y="${height - 4}" text-anchor="middle">${xLabel}</text>`,
    `<text x="12" y="${height / 2}" text-anchor="middle" transform="rotate(-90 12 ${height / 2})">${yLabel}</text>`,
    `<text x="${left - 4}" y="${top + 8}" text-anchor="end">${short(log ? 10 ** most : most)}</text>`,
    `<text x="${left - 4}" y="${height - bottom}" text-anchor="end">${short(log ? 10 ** least : least)}</text>`,
  ];
  lines.forEach((line, n) => {
    const points = line.values
      .map((v, i) => (v === null || (log && v <= 0) ? null : `${x(i)},${y(v)}`))
      .filter(Boolean);
    const style = `class="curve c${n}" ${line.dashed ? 'stroke-dasharray="5 4"' : ""}`;
    parts.push(`<polyline points="${points.join(" ")}" ${style}/>`);
    if (points.length === 1) {
      const [px, py] = points[0].split(",");
      parts.push(`<circle cx="${px}" cy="${py}" r="3" class="dot c${n}"/>`);
    }
    const place = left + ((width - left) * n) / lines.length;
    parts.push(`<text x="${place}" y="12" class="key c${n}">${line.label}</text>`);
  });
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.innerHTML = parts.join("");
}

const short = (v) => (v === 0 ? "0" : Math.abs(v) < 0.01 ? v.toExponential(0) : v.toPrecision(2));

/** PSNR in dB of what two canvases show. */
export function psnr(one, other) {
  const [a, b] = [one, other].map(
    (c) => c.getContext("2d").getImageData(0, 0, c.width, c.height).data,
  );
  let sum = 0;
  for (let k = 0; k < a.length; k++) if (k % 4 !== 3) sum += (a[k] - b[k]) ** 2;
  const mean = sum / (0.75 * a.length);
  return mean ? 10 * Math.log10(255 ** 2 / mean) : Infinity;
}
