// Captions of the model's world, and whose attention each of an edit's words receives
// (`nti/editing/alignment.py` and `control_schedule.py` are the same in Python).

const BOS = 49406;
const EOT = 49407;
const LENGTH = 77;

/** A caption's tokens: words of the world's vocabulary, each of one token or two. */
export function tokenized(text, vocabulary) {
  const words = text.split(" ").map((word) => {
    if (!(word in vocabulary)) throw new Error(`${word}: got a word that this world does not have`);
    return { word, ids: vocabulary[word] };
  });
  let at = 1;
  for (const each of words) {
    each.tokens = each.ids.map(() => at++);
  }
  const ids = [BOS, ...words.flatMap((each) => each.ids)];
  while (ids.length < LENGTH) ids.push(EOT);
  return { text, words, ids, end: at };
}

export const empty = () => ({ text: "", words: [], ids: [BOS, ...Array(LENGTH - 1).fill(EOT)], end: 1 });

/**
 * How an edit's words receive the source's attention.
 * @param cells changes made by hand: {row, column, value}, of k where the row is null.
 */
export function aligned(caption, text, vocabulary, cells = []) {
  const [source, target] = [caption, text].map((each) => tokenized(each, vocabulary));
  const found = align(source, target);
  for (const { row, column, value } of cells) {
    if (row === null) found.own[column] = value;
    else found.mapping[row][column] = value;
  }
  return { source, target, ...found };
}

/** The mapping M (source tokens x the edit's) and k, where an edit's token has no source. */
export function align(source, target) {
  const mapping = Array.from({ length: LENGTH }, () => new Float64Array(LENGTH));
  const ours = source.words.map((each) => each.word);
  const theirs = target.words.map((each) => each.word);
  const stays = (word) => ours.some((old, i) => old === word && theirs[i] === word);
  const moved = theirs.some((word) => ours.includes(word) && !stays(word));
  const mode = ours.length === theirs.length && !moved ? "replace" : "refine";
  if (mode === "replace") {
    mapping[0][0] = 1;
    source.words.forEach((old, i) => {
      const to = target.words[i].tokens;
      old.tokens.forEach((row, r) => {
        if (to.length === old.tokens.length) mapping[row][to[r]] = 1;
        else for (const column of to) mapping[row][column] = 1 / to.length;
      });
    });
  } else {
    const until = (prompt) => prompt.ids.slice(0, prompt.end + 1);
    for (const [row, column] of globalAlignment(until(source), until(target))) {
      mapping[row][column] = 1;
    }
  }
  mapping[source.end][target.end] = 1;
  for (let i = Math.max(source.end, target.end) + 1; i < LENGTH; i++) mapping[i][i] = 1;
  const own = Float64Array.from({ length: LENGTH }, (_, column) =>
    mapping.every((row) => row[column] === 0) ? 1 : 0,
  );
  return { mode, mapping, own };
}

/** Positions of the tokens that both have in order: Needleman and Wunsch (1970), gaps are free. */
function globalAlignment(source, target) {
  const score = Array.from({ length: source.length + 1 }, () => new Int32Array(target.length + 1));
  source.forEach((old, i) =>
    target.forEach((now, j) => {
      const diagonal = score[i][j] + (old === now ? 1 : -1);
      score[i + 1][j + 1] = Math.max(score[i + 1][j], score[i][j + 1], diagonal);
    }),
  );
  const pairs = [];
  let [i, j] = [source.length, target.length];
  while (i && j) {
    if (score[i][j] === score[i][j - 1]) j--;
    else if (score[i][j] === score[i - 1][j]) i--;
    else pairs.push([--i, --j]);
  }
  return pairs;
}

/** One step's fold: A = M diag(c a), b = c a k + (1 - a), with the step's window a and factors c. */
export function fold({ mapping, own }, target, step, steps, settings) {
  const inside = step < Math.trunc(settings.cross * (steps + 1)) ? 1 : 0;
  const c = factors(target, settings.reweight);
  const mix = new Float32Array(LENGTH * LENGTH);
  const kept = new Float32Array(LENGTH);
  for (let column = 0; column < LENGTH; column++) {
    const weight = c[column] * inside;
    for (let row = 0; row < LENGTH; row++) mix[row * LENGTH + column] = weight * mapping[row][column];
    kept[column] = weight * own[column] + (1 - inside);
  }
  return { mix, kept };
}

function factors(target, reweight = {}) {
  const c = new Float64Array(LENGTH).fill(1);
  for (const each of target.words) {
    for (const token of each.tokens) c[token] = reweight[each.word] ?? 1;
  }
  return c;
}

/** Indicator columns of words, of source and edit: (2, 77, 2); the second column is not used. */
export function wordColumns(source, ours, target, theirs) {
  const columns = new Float32Array(2 * LENGTH * 2);
  [[source, ours], [target, theirs]].forEach(([prompt, word], row) => {
    for (const each of prompt.words) {
      if (each.word !== word) continue;
      for (const token of each.tokens) columns[(row * LENGTH + token) * 2] = 1;
    }
  });
  return columns;
}
