// The model's files as a page can fetch them: compressed, and the weights in half precision.

/** Fetch a gzipped file and unpack it; `tell(bytes)` hears of every part that arrives. */
export async function unpacked(url, tell = () => {}) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${url}: got ${answer.status}, expected the file beside the page`);
  const counted = new TransformStream({
    transform(part, out) {
      tell(part.byteLength);
      out.enqueue(part);
    },
  });
  const stream = answer.body.pipeThrough(counted).pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** IEEE half precision -> float32, by a table of all 65,536 halves. */
export function widened(halves) {
  const table = new Float32Array(65536);
  for (let bits = 0; bits < 65536; bits++) {
    const sign = bits & 0x8000 ? -1 : 1;
    const exponent = (bits >> 10) & 31;
    const fraction = bits & 1023;
    if (exponent === 0) table[bits] = sign * fraction * 2 ** -24;
    else if (exponent === 31) table[bits] = fraction ? NaN : sign * Infinity;
    else table[bits] = sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
  }
  return Float32Array.from(halves, (bits) => table[bits]);
}

/** The weights' file as it was exported: its header, then every tensor in float32. */
export function weightsFile(header, halves) {
  const floats = widened(halves);
  const file = new Uint8Array(header.byteLength + floats.byteLength);
  file.set(header);
  file.set(new Uint8Array(floats.buffer), header.byteLength);
  return file;
}

/** Read a safetensors file of float32 tensors: a name -> {shape, data}. */
export function tensorsOf(bytes) {
  const length = Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + length)));
  const found = {};
  for (const [name, entry] of Object.entries(header)) {
    if (entry.dtype !== "F32") continue;
    const [from, to] = entry.data_offsets.map((x) => 8 + length + x);
    found[name] = { shape: entry.shape, data: new Float32Array(bytes.slice(from, to).buffer) };
  }
  return found;
}
