// What is kept: the star marks the sample that is shown; the marks are the server's.

import { ask } from "./api.js";
import { $ } from "./dom.js";
import { blame } from "./run.js";
import { changed, onChange, state } from "./state.js";

const kept = new Map(); // job -> its samples that are kept

export const isKept = (job) => kept.has(job);
const shown = () => (state.job?.state === "done" && state.job.result.samples.length ? [state.job.id, state.chosen] : [null, 0]);

export async function buildKept() {
  $("star").addEventListener("click", toggle);
  onChange(draw);
  for (const { job, sample } of (await ask("GET", "/api/kept")).kept) note(job, sample, true);
}

export async function toggle() {
  const [job, sample] = shown();
  if (!job) return;
  const on = !kept.get(job)?.has(sample);
  try {
    await ask(on ? "PUT" : "DELETE", `/api/jobs/${job}/samples/${sample}/keep`);
    note(job, sample, on);
    changed("kept");
  } catch (error) {
    blame(error);
  }
}

function note(job, sample, on) {
  const samples = kept.get(job) || new Set();
  if (on) samples.add(sample);
  else samples.delete(sample);
  if (samples.size) kept.set(job, samples);
  else kept.delete(job);
}

function draw() {
  const [job, sample] = shown();
  $("star").hidden = !job;
  $("star").setAttribute("aria-pressed", String(Boolean(kept.get(job)?.has(sample))));
}
