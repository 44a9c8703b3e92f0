// One run of the cards: submit, follow, show what settles out of the noise, show the end. A reload takes it up again.

import * as api from "./api.js";
import { $, el, filmLink } from "./dom.js";
import { clearProblems, complain, preview, refresh, setBusy, showMap } from "./cards.js";
import { MEDIA, asGiven, thumbnail } from "./media.js";
import { badges } from "./badges.js";
import { pathOfJob, planeEnd, planePreview, planeStart, planeStep } from "./plane.js";
import { intent, jobOf } from "./roles.js";
import { addToFilm, updateFilm } from "./film.js";
import { changed, newSeed, state } from "./state.js";

let stop = null;
let submitting = false;
let seen = 0; // previews of the run that is shown

export async function go() {
  if (submitting || state.running || intent(state.cards).why || !state.status?.ready) return;
  submitting = true;
  clearProblems();
  say("");
  try {
    if (!state.keep) state.seed = state.fresh ? state.seed : newSeed();
    state.fresh = false;
    const job = jobOf(state.cards, state.settings, state.seed, state.model.name, pathOfJob());
    for (const [name, value] of Object.entries(job.given)) job.given[name] = await asGiven(value);
    const made = await api.submit(job, crypto.randomUUID?.());
    addToFilm(made);
    watch(made);
  } catch (error) {
    blame(error);
  } finally {
    submitting = false;
    changed("run");
  }
}

export async function cancel() {
  if (state.running) await api.cancel(state.running).catch(() => {});
}

// Follow a job that is not over yet.
export function watch(made) {
  stop?.();
  Object.assign(state, { running: made.id, job: made, chosen: 0 });
  history.replaceState(null, "", `#job=${made.id}`);
  document.body.dataset.state = made.state;
  setBusy(true);
  if (made.verb === "score") setBusy(false);
  planeStart();
  seen = 0;
  $("settling").replaceChildren();
  $("tray").hidden = true;
  progress(0);
  stop = api.follow(made.id, (name, data) => {
    document.body.dataset.state = name === "step" || name === "preview" || name === "link" ? "running" : name;
    if (name === "queued") hint(data.ahead ? `Waiting: ${data.ahead} before it` : "Waiting for its turn");
    if (name === "running") hint("");
    if (name === "step") {
      progress(data.done / data.total);
      if (data.timesteps) planeStep(data.done, data.timesteps);
    }
    if (name === "preview") {
      seen += 1;
      preview(data.samples[0]);
      planePreview(data.step, data.samples[0]);
      tray(data.samples.map((values) => ({ values })), false);
    }
    if (api.OVER.includes(name)) over(data);
  });
  changed("run");
}

function over(done) {
  const mine = state.running === done.id;
  stop = null;
  Object.assign(state, { running: null, job: done });
  if (mine) setBusy(false);
  progress(done.state === "done" ? 1 : 0);
  updateFilm(done);
  show(done);
  if (done.state === "done" && seen > 1) $("settling").replaceChildren(filmLink(done.id, { title: "How it settled out of noise" }));
  changed("run");
  setTimeout(() => { if (!state.running) progress(0); }, 900);
}

// Show a job that is over.
export function show(job) {
  $("settling").replaceChildren();
  Object.assign(state, { job, chosen: 0 });
  document.body.dataset.state = job.state;
  history.replaceState(null, "", `#job=${job.id}`);
  say("");
  if (job.state === "interrupted" || job.state === "failed" || job.state === "expired") {
    say(el("p", { class: "problem" }, job.error || `This job is ${job.state}.`), el("button", { class: "plain", type: "button", "data-testid": "retry", onclick: async () => {
      const made = await api.retry(job.id);
      addToFilm(made);
      watch(made);
    } }, "Try again"));
  } else if (job.state === "cancelled") hint("Cancelled");
  if (job.state !== "done") { planeEnd(); refresh(); return; }
  if (job.verb === "score") scored(job.result);
  else choose(0);
  planeEnd();
}

export function choose(k) {
  const samples = state.job?.result?.samples || [];
  if (!samples.length) return;
  state.chosen = (k + samples.length) % samples.length;
  const sample = samples[state.chosen];
  for (const [name, value] of Object.entries(sample.values)) {
    const card = state.cards[name];
    if (card && (card.role !== "given" || state.job.job.names.includes(name))) Object.assign(card, { value, mask: null });
  }
  say(badges(sample.truth));
  tray(samples.length > 1 ? samples : [], true);
  changed("chosen");
}

function tray(samples, pick) {
  $("tray").hidden = samples.length < 2;
  $("tray").replaceChildren(...(samples.length < 2 ? [] : samples.map((sample, k) => {
    const [name, value] = Object.entries(sample.values).find(([n]) => state.cards[n]?.media === "image") || Object.entries(sample.values)[0];
    return el("button", { class: "thumb", type: "button", "aria-label": `Sample ${k + 1}`, "aria-pressed": String(pick && k === state.chosen), disabled: !pick, onclick: () => choose(k) }, thumbnail(value, state.cards[name]?.media));
  })));
}

function scored(result) {
  const sign = result.bits >= 0 ? "" : "−";
  say(el("p", { class: "bits", "data-testid": "bits" }, `${sign}${Math.abs(result.bits).toFixed(0)} ± ${result.error.toFixed(0)} bits`),
    el("p", { class: "faint" }, `the ${result.about} tells about the ${result.of}. It is this model's belief, not the truth.`), badges(result.truth));
  const [first] = Object.values(result.maps);
  if (MEDIA[state.cards[result.of]?.media] === MEDIA.image && Array.isArray(first?.[0])) showMap(result.of, first);
}

function progress(share) {
  const percent = Math.round(100 * share);
  $("bar").style.transform = `scaleX(${share})`;
  $("line").setAttribute("aria-valuenow", String(percent));
}

export const hint = (text) => { $("hint").textContent = text; };
export const say = (...nodes) => $("said").replaceChildren(...nodes.filter(Boolean));

// An error stands at the control that caused it, if one did.
export function blame(error) {
  const named = Object.keys(state.cards).find((name) => error.message.includes(`'${name}'`) || error.param?.includes(name));
  const worded = /word|sentence|text|character/.test(error.message) ? Object.values(state.cards).find((card) => card.media === "text")?.name : null;
  const name = named || (error.status === 422 ? worded : null);
  if (name) complain(name, error.message);
  else say(el("p", { class: "problem", "data-testid": "problem" }, error.message));
}
