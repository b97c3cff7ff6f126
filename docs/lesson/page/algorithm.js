// DDIM, null-text optimization and Prompt-to-Prompt, over the exported functions. Steps are counted
// as sampling goes: step 0 starts at noise. `nti/inversion` and `nti/editing` are the same in Python.

import { aligned, empty, fold, tokenized, wordColumns } from "./prompts.js";

const CHANNELS = 4;

export class Algorithm {
  /**
   * @param model of `model.js`.
   * @param breathe called before each call of the network, so that a newer request can be heard.
   */
  constructor(model, breathe) {
    Object.assign(this, { model, breathe });
    this.facts = model.facts;
    this.steps = model.facts.steps;
    this.states = new Map();
  }

  prompt(text) {
    return text ? tokenized(text, this.facts.vocabulary) : empty();
  }

  /** The text encoder's states (77 x C) of a caption. */
  async context(text) {
    if (!this.states.has(text)) {
      const [states] = await this.model.run("text", this.prompt(text).ids);
      this.states.set(text, states);
    }
    return this.states.get(text);
  }

  async noise(latent, step, context) {
    await this.breathe();
    return (await this.model.run("noise", latent, this.facts.timesteps[step], context))[0];
  }

  /** The picture of a latent: 3 x side x side in [-1, 1]. */
  async decoded(latent) {
    await this.breathe();
    return (await this.model.run("decode", latent))[0];
  }

  /** z' = of_latent z + of_eps eps; `way` is `sample` or `invert`. */
  moved(way, step, latent, eps) {
    const { of_latent: a, of_eps: b } = this.facts.schedule[way];
    return latent.map((z, k) => a[step] * z + b[step] * eps[k]);
  }

  /** What the network takes the clean latent to be, from z at a step: (z - sqrt(1 - a) eps) / sqrt(a). */
  clean(step, latent, eps) {
    const a = this.facts.alpha_bar[step];
    return latent.map((z, k) => (z - Math.sqrt(1 - a) * eps[k]) / Math.sqrt(a));
  }

  static guided(uncond, cond, w) {
    return uncond.map((u, k) => u + w * (cond[k] - u));
  }

  /** The embedding that was optimized for a step, from the file; or psi(""). */
  async uncond(step, optimized) {
    if (!optimized) return this.context("");
    const { data, shape } = this.model.inversion.uncond;
    const size = shape[1] * shape[2];
    return data.slice(step * size, (step + 1) * size);
  }

  latentOf(name, step) {
    const { data, shape } = this.model.inversion[name];
    const size = data.length / shape[0];
    return data.slice(step * size, (step + 1) * size);
  }

  /** Sampling from the pivot's noise: yields the latent and the clean latent that it predicts. */
  async *sample(w, optimized) {
    const cond = await this.context(this.facts.caption);
    let latent = this.latentOf("pivot", 0);
    for (let i = 0; i < this.steps; i++) {
      const eps = Algorithm.guided(
        await this.noise(latent, i, await this.uncond(i, optimized)),
        await this.noise(latent, i, cond),
        w,
      );
      const clean = this.clean(i, latent, eps);
      latent = this.moved("sample", i, latent, eps);
      yield { step: i, latent, clean };
    }
  }

  /** DDIM inversion at w = 1: from the photograph's latent to noise. */
  async *invert() {
    const cond = await this.context(this.facts.caption);
    let latent = this.latentOf("pivot", this.steps);
    for (let i = this.steps - 1; i >= 0; i--) {
      latent = this.moved("invert", i, latent, await this.noise(latent, i, cond));
      yield { step: i, latent };
    }
  }

  /**
   * One timestep of Algorithm 1: yields after every iteration, with the line of Algorithm 1 that ran.
   * @param from {latent, uncond}: z-bar of the step, and the embedding to start from.
   */
  async *optimized(step, from, w, most) {
    const cond = await this.context(this.facts.caption);
    const { learning_rate, threshold } = this.facts.optimization;
    const target = this.latentOf("pivot", step + 1);
    const epsCond = await this.noise(from.latent, step, cond);
    let uncond = from.uncond;
    let mean = new Float32Array(uncond.length);
    let square = new Float32Array(uncond.length);
    let count = new Float32Array(1);
    const { of_latent: a, of_eps: b } = this.facts.schedule.sample;
    for (let j = 0; j < most; j++) {
      await this.breathe();
      const made = await this.model.run(
        "iteration", uncond, mean, square, count, true, from.latent, this.facts.timesteps[step],
        epsCond, target, a[step], b[step], w, learning_rate[step],
      );
      [uncond, mean, square, count] = made;
      const loss = made[4][0];
      yield { step, iteration: j, loss, threshold: threshold[step], uncond, reached: made[5] };
      if (loss < threshold[step]) break;
    }
    const eps = Algorithm.guided(await this.noise(from.latent, step, uncond), epsCond, w);
    yield {
      step,
      done: true,
      uncond,
      latent: this.moved("sample", step, from.latent, eps),
      clean: this.clean(step, from.latent, eps),
    };
  }

  /**
   * Prompt-to-Prompt: yields after every step the edit's latent, the clean latent that it predicts,
   * and the blend's mask.
   * @param settings {text, cross, self, reweight, blend: [word, word] or null, w, cells}.
   */
  async *edit(settings) {
    const { caption, vocabulary } = this.facts;
    const { source, target, mapping, own } = aligned(
      caption, settings.text, vocabulary, settings.cells,
    );
    const conds = [await this.context(source.text), await this.context(target.text)];
    const words = wordColumns(source, settings.blend?.[0], target, settings.blend?.[1]);
    const { start, threshold } = this.facts.blend;
    const injected = Math.trunc(settings.self * this.steps);
    let latent = this.latentOf("latents", 0);
    let maps = null;
    for (let i = 0; i < this.steps; i++) {
      await this.breathe();
      const visited = this.latentOf("latents", i);
      const { mix, kept } = fold({ mapping, own }, target, i, this.steps, settings);
      // Rows: the edit's unconditional one, the source's conditional one, the edit's.
      const [eps, seen] = await this.model.run(
        "controlled", joined([latent, visited, latent]), this.facts.timesteps[i],
        joined([await this.uncond(i, true), ...conds]), mix, kept, 1, [0, 1, i < injected ? 1 : 2],
        words,
      );
      const size = latent.length;
      const guided = Algorithm.guided(eps.slice(0, size), eps.slice(2 * size), settings.w);
      const clean = this.clean(i, latent, guided);
      latent = this.moved("sample", i, latent, guided);
      let mask = null;
      if (settings.blend) {
        maps = maps ? maps.map((x, k) => x + seen[k]) : Float32Array.from(seen);
        if (i >= Math.trunc(start * this.steps)) {
          mask = this.blendMask(maps, threshold);
          const source = this.latentOf("latents", i + 1);
          latent = latent.map((z, k) => (mask[k % mask.length] ? z : source[k]));
        }
      }
      yield { step: i, latent, clean, mask };
    }
  }

  /** Where the words' summed maps of source or edit are above a share of their maximum. */
  blendMask(maps, threshold) {
    const side = Math.sqrt(this.latentOf("pivot", 0).length / CHANNELS);
    const coarse = Math.sqrt(maps.length / 4); // two rows of two columns
    const mask = new Uint8Array(side * side);
    for (const row of [0, 1]) {
      const map = pooled(maps.subarray(row * 2 * coarse ** 2, (row * 2 + 1) * coarse ** 2), coarse);
      const least = threshold * Math.max(...map);
      for (let y = 0; y < side; y++)
        for (let x = 0; x < side; x++) {
          const from = Math.floor((y * coarse) / side) * coarse + Math.floor((x * coarse) / side);
          if (map[from] > least) mask[y * side + x] = 1;
        }
    }
    return mask;
  }
}

/** The largest of each 3 x 3 neighbourhood. */
function pooled(map, side) {
  return map.map((_, k) => {
    const [y, x] = [Math.floor(k / side), k % side];
    let most = -Infinity;
    for (let i = Math.max(0, y - 1); i <= Math.min(side - 1, y + 1); i++)
      for (let j = Math.max(0, x - 1); j <= Math.min(side - 1, x + 1); j++)
        most = Math.max(most, map[i * side + j]);
    return most;
  });
}

function joined(parts) {
  const all = new Float32Array(parts.reduce((n, part) => n + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}
