// History as a film strip: newest first, it comes from the server, so it survives whatever happens to the page.
// Only a few pages of it are in the document at a time, however long it is and however far one goes.

import * as api from "./api.js";
import { $, el } from "./dom.js";
import { isKept } from "./kept.js";
import { source, thumbnail } from "./media.js";
import { state } from "./state.js";

const PAGE = 40;
const PAGES = 6;
const FRESH = 100; // so many new jobs on the first page, and it is loaded anew
const EMPTY = "What you make appears here, and stays.";

const shots = new Map(); // id -> {job, node}, of what is in the document
let open = () => {};
let pages = []; // [[node, ...], ...] in the document, newest first
let first = 0; // which page of the history pages[0] is
let cursors = [null]; // page k is what is older than cursors[k]; the first is the newest
let fresh = 0; // jobs that were made since the first page's end was noted
let complete = false;
let loading = false;
let found = null; // nodes that a search found and that stand in place of the pages
let turned = 0; // how often pages came or went
let picked = 0;
let stale = false; // to be loaded anew once what is loading has come

export function buildFilm(onOpen) {
  open = onOpen;
  $("film").addEventListener("scroll", () => {
    const { scrollLeft, clientWidth, scrollWidth } = $("film");
    if (scrollLeft + clientWidth > scrollWidth - 400) turn(older);
    else if (scrollLeft < 400 && first > 0) turn(newer);
  }, { passive: true });
  return turn(older);
}

async function turn(way) {
  if (loading || found) return;
  loading = true;
  try {
    await way();
  } catch {
    // the server is away: the banner says so, and the next scroll asks again
  } finally {
    loading = false;
    if (stale && !found) anew();
    turned += 1;
    $("film").dataset.turned = turned;
  }
}

async function older() {
  const index = first + pages.length;
  if (complete) return;
  const nodes = await load(index);
  pages.push(nodes);
  if (!found) $("film").append(...nodes);
  if (!shots.size) $("film").replaceChildren(el("p", { class: "empty" }, EMPTY));
  if (pages.length > PAGES) keepPlace(() => { drop(pages.shift()); first += 1; });
}

async function newer() {
  const nodes = await load(first - 1);
  first -= 1;
  pages.unshift(nodes);
  if (!found) keepPlace(() => $("film").prepend(...nodes));
  if (pages.length > PAGES) { drop(pages.pop()); complete = false; }
}

// What is added or taken away on the left moves nothing that is seen.
function keepPlace(change) {
  const film = $("film");
  const [at, before] = [film.scrollLeft, film.scrollWidth];
  change();
  film.scrollLeft = at + film.scrollWidth - before;
}

async function load(index) {
  const limit = index ? PAGE : Math.min(200, PAGE + fresh);
  const { jobs } = await api.history(cursors[index], limit);
  const end = first + pages.length;
  if (index === end) complete = jobs.length < limit;
  if (jobs.length && cursors.length === index + 1) cursors.push(jobs.at(-1).created);
  const here = new Set(pages.flat());
  return jobs.map(nodeOf).filter((node) => !here.has(node));
}

const nodeOf = (job) => shots.get(job.id)?.node || shot(job);

function drop(nodes) {
  for (const node of nodes.filter((one) => !found?.includes(one))) {
    shots.delete(node.firstChild.dataset.id);
    node.remove();
  }
}

// Back to the newest.
function anew() {
  stale = loading || Boolean(found);
  if (stale) return;
  for (const nodes of pages) drop(nodes);
  pages = [];
  first = 0;
  cursors = [null];
  fresh = 0;
  complete = false;
  $("film").scrollLeft = 0;
  turn(older);
}

// What a search found, the best first; null: the history again, as it was.
export function showFound(jobs) {
  if (!jobs && !found) return;
  const before = found || [];
  found = jobs && jobs.map(nodeOf);
  const stay = new Set([...pages.flat(), ...(found || [])]);
  drop(before.filter((node) => !stay.has(node)));
  const nodes = found || pages.flat();
  $("film").replaceChildren(...(nodes.length || found ? nodes : [el("p", { class: "empty" }, EMPTY)]));
  if (!found && stale) anew();
}

function shot(job) {
  const node = el("div", { role: "listitem" }, el("button", { class: "shot", type: "button", "data-testid": "shot", "data-id": job.id, onclick: () => pick(job.id) }));
  shots.set(job.id, { job, node });
  draw(job);
  return node;
}

// The history holds no given files, so a job that is opened is fetched whole; of quick clicks the last one counts.
async function pick(id) {
  picked += 1;
  const mine = picked;
  const job = await api.job(id).catch(() => null);
  if (job && mine === picked) open(job);
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
  fresh += 1;
  if (first > 0 || fresh > FRESH || !pages.length) { anew(); return; }
  const node = shot(job);
  pages[0].unshift(node);
  if (!found) { // else it stands where it belongs when the search is over
    $("film").querySelector(".empty")?.remove();
    $("film").prepend(node);
  }
}

export function updateFilm(job) {
  if (!shots.has(job.id)) return;
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
  pick(next);
  shots.get(next).node.firstChild.scrollIntoView({ block: "nearest", inline: "nearest" });
}
