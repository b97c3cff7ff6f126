// The page's side of `worker.js`: ask for a job, hear of its progress, get its result.

const worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
const waiting = new Map();
let last = 0;

worker.onmessage = ({ data: { id, progress, result, error, ended } }) => {
  const job = waiting.get(id);
  if (progress) return job.tell(progress);
  waiting.delete(id);
  if (error) job.fail(new Error(error));
  else job.settle(ended ? null : result);
};
worker.onerror = (event) => {
  for (const job of waiting.values()) job.fail(new Error(event.message || "the worker did not start"));
  waiting.clear();
};

/** Resolves to the job's result, or to null where a newer job ended it. */
export function compute(job, given = {}, tell = () => {}) {
  const id = ++last;
  return new Promise((settle, fail) => {
    waiting.set(id, { settle, fail, tell });
    worker.postMessage({ id, job, given });
  });
}
