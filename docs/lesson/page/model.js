// The exported functions of the embedded model, run by onnxruntime in WebAssembly.

import * as ort from "./ort/ort.wasm.min.mjs";
import { tensorsOf, unpacked, weightsFile } from "./weights.js";

const here = new URL(".", import.meta.url);
const at = (name) => new URL(`model/${name}`, here).href;

export class Model {
  /** Load what all functions share; a function's graph is loaded when it is first called. */
  static async load(tell) {
    const answer = await fetch(at("lesson.json"));
    if (!answer.ok) throw new Error(`lesson.json: got ${answer.status}, expected the file: build anew`);
    const facts = await answer.json();
    const [header, halves, wasm, inversion] = await Promise.all([
      unpacked(at("weights.header.gz"), tell),
      unpacked(at("weights.f16.gz"), tell),
      unpacked(new URL("ort/ort-wasm-simd-threaded.wasm.gz", here).href, tell),
      unpacked(at("inversion.nti.safetensors.gz"), tell),
    ]);
    ort.env.wasm.numThreads = 1; // more need headers that a plain file server does not send
    ort.env.wasm.wasmBinary = wasm.buffer;
    ort.env.wasm.wasmPaths = { mjs: new URL("ort/ort-wasm-simd-threaded.mjs", here).href };
    const weights = weightsFile(header, new Uint16Array(halves.buffer));
    return new Model(facts, weights, tensorsOf(inversion));
  }

  constructor(facts, weights, inversion) {
    Object.assign(this, { facts, weights, inversion, sessions: {} });
  }

  /** Call a function by its name with its inputs in order; return its outputs, each as floats. */
  async run(name, ...inputs) {
    const { inputs: ports, outputs } = this.facts.functions[name];
    if (inputs.length !== ports.length) {
      throw new Error(`${name}: got ${inputs.length} inputs, expected ${ports.length}`);
    }
    const feeds = {};
    ports.forEach((port, i) => {
      const data = ARRAYS[port.dtype](inputs[i]);
      feeds[port.name] = new ort.Tensor(port.dtype, data, port.shape);
    });
    this.sessions[name] ??= this.session(name);
    const made = await (await this.sessions[name]).run(feeds);
    return outputs.map((port) => made[port.name].data);
  }

  async session(name) {
    const graph = await unpacked(at(`${name}.onnx.gz`));
    return ort.InferenceSession.create(graph, {
      executionProviders: ["wasm"],
      externalData: [{ path: "weights.safetensors", data: this.weights }],
    });
  }
}

const list = (value) => (typeof value === "object" ? value : [value]);
const ARRAYS = {
  float32: (value) => (value instanceof Float32Array ? value : Float32Array.from(list(value))),
  int64: (value) => BigInt64Array.from(list(value), BigInt),
  bool: (value) => Uint8Array.from(list(value), Number),
};
