// History as a film strip: newest first, it comes from the server, so it survives whatever happens to the page.

import * as api from "./api.js";
import { $, el } from "./dom.js";
import { isKept } from "./kept.js";
import { source, thumbnail } from "./media.js";
import { state } from "./state.js";

const shots = new Map(); // id -> {job, node}
let open = () => {};
let oldest = null;
let loading = false;
let complete = false;
let found = false; // whether the strip shows what a search found
const EMPTY = "What you make appears here, and stays.";

export function buildFilm(onOpen) {
  open = onOpen;
  $("film").addEventListener("scroll", () => { if (nearEnd()) loadMore(); }, { passive: true });
  return loadMore();
}

const nearEnd = () => $("film").scrollLeft + $("film").clientWidth > $("film").scrollWidth - 400;

async function loadMore() {
  if (loading || complete || found) return;
  loading = true;
  try {
    const { jobs } = await api.history(oldest);
    complete = jobs.length < 40;
    const nodes = jobs.map((job) => { oldest = job.created; return shots.get(job.id)?.node || shot(job); });
    if (!found) $("film").append(...nodes);
    if (!shots.size) $("film").replaceChildren(el("p", { class: "empty" }, EMPTY));
  } finally {
    loading = false;
  }
}

// What a search found, the best first; null: everything that was read of the history, the newest first.
export function showFound(jobs) {
  if (!jobs && !found) return;
  found = Boolean(jobs);
  const read = [...shots.values()].filter(({ job }) => job.created >= (oldest ?? 0)).sort((a, b) => b.job.created - a.job.created);
  const nodes = jobs ? jobs.map((job) => shots.get(job.id)?.node || shot(job)) : read.map(({ node }) => node);
  $("film").replaceChildren(...(nodes.length || found ? nodes : [el("p", { class: "empty" }, EMPTY)]));
}

function shot(job) {
  const node = el("div", { role: "listitem" }, el("button", { class: "shot", type: "button", "data-testid": "shot", "data-id": job.id, onclick: () => open(shots.get(job.id).job) }));
  shots.set(job.id, { job, node });
  draw(job);
  return node;
}

function draw(job) {
  const button = shots.get(job.id).node.firstChild;
  const [name, value] = face(job);
  const media = name ? mediaOf(name) : "text";
  button.replaceChildren(name ? thumbnail(value, media) : el("span", {}, job.verb === "score" && job.result ? `${job.result.bits.toFixed(0)} bits` : job.state));
  button.dataset.state = job.state;
  label(job, button);
  button.setAttribute("aria-current", String(state.job?.id === job.id));
  button.draggable = Boolean(name && media === "image");
  button.ondragstart = (event) => { if (name) event.dataTransfer.setData("application/x-unidiffuser", JSON.stringify({ name, url: source(value) })); };
}

// What stands for a job: its first picture, or else whatever it made first.
function face(job) {
  const values = Object.entries(job.result?.samples?.[0]?.values || {});
  const made = values.filter(([name]) => job.job.names.includes(name));
  return made.find(([name]) => mediaOf(name) === "image") || made[0] || values[0] || [null, null];
}

const mediaOf = (name) => state.model.modalities.find((m) => m.name === name)?.media_type || "text";

export function addToFilm(job) {
  if (shots.has(job.id)) return;
  const node = shot(job);
  if (found) return; // it stands where it belongs when the search is over
  $("film").querySelector(".empty")?.remove();
  $("film").prepend(node);
}

export function updateFilm(job) {
  if (!shots.has(job.id)) addToFilm(job);
  shots.get(job.id).job = job;
  draw(job);
}

export function mark() {
  for (const { job, node } of shots.values()) {
    node.firstChild.setAttribute("aria-current", String(state.job?.id === job.id));
    if (node.firstChild.dataset.kept !== String(isKept(job.id))) label(job, node.firstChild);
  }
}

function label(job, button) {
  button.dataset.kept = isKept(job.id);
  button.setAttribute("aria-label", `${job.verb}, ${job.state}${isKept(job.id) ? ", kept" : ""}, ${new Date(1000 * job.created).toLocaleString()}`);
}

// One to the left (newer) or right (older) of what is shown.
export function step(by) {
  const ids = [...$("film").querySelectorAll(".shot")].map((node) => node.dataset.id);
  const next = ids[Math.max(0, Math.min(ids.length - 1, ids.indexOf(state.job?.id) + by))];
  if (!next || next === state.job?.id) return;
  open(shots.get(next).job);
  shots.get(next).node.firstChild.scrollIntoView({ block: "nearest", inline: "nearest" });
}
