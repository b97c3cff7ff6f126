// Computes beside the page, so that the page never waits. One job runs at a time; a newer one ends it.

import { Algorithm } from "./algorithm.js";
import { Model } from "./model.js";

class Ended extends Error {}

let algorithm;
let newest = 0;

/** Let messages in, and end a job that a newer one has replaced. */
function breathing(id) {
  return async () => {
    await new Promise((go) => setTimeout(go));
    if (id !== newest) throw new Ended();
  };
}

const JOBS = {
  async load(_, tell) {
    let bytes = 0;
    const model = await Model.load((more) => tell({ bytes: (bytes += more) }));
    algorithm = new Algorithm(model, async () => {});
    const clean = algorithm.latentOf("pivot", model.facts.steps);
    return { facts: model.facts, picture: await algorithm.decoded(clean) };
  },

  /** z_t of the photograph under random noise, as a picture. */
  async noised({ step, seed }) {
    const { alpha_bar: a, steps } = algorithm.facts;
    const clean = algorithm.latentOf("pivot", steps);
    const noise = gaussian(seed, clean.length);
    const latent = clean.map((z, k) => Math.sqrt(a[step]) * z + Math.sqrt(1 - a[step]) * noise[k]);
    return { picture: await algorithm.decoded(latent) };
  },

  async invert(_, tell) {
    const last = { latent: null };
    for await (const { step, latent } of algorithm.invert()) {
      tell({ step, norm: rms(latent), picture: await algorithm.decoded(latent) });
      last.latent = latent;
    }
    return { noise: last.latent };
  },

  async sample({ w, optimized }, tell) {
    let picture;
    for await (const { step, latent, clean } of algorithm.sample(w, optimized)) {
      const apart = distance(latent, algorithm.latentOf("pivot", step + 1));
      const isLast = step === algorithm.steps - 1;
      picture = await algorithm.decoded(isLast ? latent : clean);
      tell({ step, apart, picture });
    }
    return { picture };
  },

  async optimize({ step, w, most }, tell) {
    const uncond = await algorithm.uncond(Math.max(0, step - 1), step > 0);
    const from = { latent: algorithm.latentOf("latents", step), uncond };
    await optimizedStep(step, from, w, most, tell);
    return {};
  },

  /** All of Algorithm 1, from psi(""). */
  async optimizeAll({ w, most }, tell) {
    let from = { latent: algorithm.latentOf("pivot", 0), uncond: await algorithm.uncond(0, false) };
    for (let step = 0; step < algorithm.steps; step++) {
      from = await optimizedStep(step, from, w, most, tell);
    }
    return { picture: await algorithm.decoded(from.latent) };
  },

  async edit(settings, tell) {
    let last;
    for await (last of algorithm.edit(settings)) {
      const picture = last.step % 4 === 3 ? await algorithm.decoded(last.clean) : null;
      tell({ step: last.step, picture, mask: last.mask });
    }
    return { picture: await algorithm.decoded(last.latent), latent: last.latent, mask: last.mask };
  },
};

async function optimizedStep(step, from, w, most, tell) {
  const target = algorithm.latentOf("pivot", step + 1);
  let last;
  for await (last of algorithm.optimized(step, from, w, most)) {
    if (last.done) break;
    const error = last.reached.map((z, k) => Math.abs(z - target[k]));
    tell({ ...last, error, uncond: null, reached: null });
  }
  const apart = distance(last.latent, target);
  tell({ step, done: true, apart, picture: await algorithm.decoded(last.clean) });
  return last;
}

const rms = (x) => Math.sqrt(x.reduce((sum, z) => sum + z * z, 0) / x.length);
const distance = (x, y) => rms(x.map((z, k) => z - y[k]));

/** Normal numbers of a seed: mulberry32, and Box and Muller's transform. */
function gaussian(seed, count) {
  let state = seed >>> 0;
  const uniform = () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  return Float32Array.from({ length: count }, () => {
    const radius = Math.sqrt(-2 * Math.log(1 - uniform()));
    return radius * Math.cos(2 * Math.PI * uniform());
  });
}

let running = Promise.resolve();

onmessage = ({ data: { id, job, given } }) => {
  newest = id;
  running = running.then(async () => {
    if (id !== newest) return postMessage({ id, ended: true });
    if (algorithm) algorithm.breathe = breathing(id);
    try {
      const result = await JOBS[job](given, (progress) => postMessage({ id, progress }));
      postMessage({ id, result });
    } catch (error) {
      if (error instanceof Ended) postMessage({ id, ended: true });
      else postMessage({ id, error: String(error.message ?? error) });
    }
  });
};
