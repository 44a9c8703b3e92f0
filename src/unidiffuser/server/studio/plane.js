// The timestep plane: t of one modality across, t of another up. A run is a way to its end, the marker runs along it.

import { $, el, perFrame, select } from "./dom.js";
import { branch, clampTo, corner, curve, ends } from "./path.js";
import { source } from "./media.js";
import { changed, state } from "./state.js";

const SIZE = 220;
const KINDS = { together: "Together", first: "", second: "", drawn: "Drawn" };
let axes = [];
let marker, way, handle, trail, weak, note, chips;
let visited = []; // {t: [x, y], values} of the run that is shown

export function buildPlane() {
  const names = Object.keys(state.cards);
  axes = names.slice(0, 2);
  if (axes.length < 2) axes = [names[0], names[0]];
  const media = (name) => state.cards[name].media;
  const pick = axes.slice().sort((a, b) => (media(a) === "image" ? -1 : media(b) === "image" ? 1 : 0));
  axes = pick;
  way = el("path", { class: "way" });
  weak = el("circle", { class: "weak", r: 5, visibility: "hidden" });
  marker = el("circle", { class: "marker", r: 6.5 });
  trail = el("g", {});
  handle = el("circle", { class: "handle", r: 8, tabindex: 0, role: "slider", "aria-label": "Bend the path; arrow keys move it", "aria-valuemin": 0, "aria-valuemax": 1, "aria-valuenow": 0.5, "data-testid": "plane-handle" });
  const lines = [0.25, 0.5, 0.75].flatMap((t) => [el("line", { class: "grid", x1: X(t), x2: X(t), y1: Y(0), y2: Y(1) }), el("line", { class: "grid", x1: X(0), x2: X(1), y1: Y(t), y2: Y(t) })]);
  const svg = el("svg", { class: "planesvg", viewBox: `0 0 ${SIZE} ${SIZE}`, role: "group", "aria-label": `Timestep of the ${axes[0]} across, of the ${axes[1]} up` },
    ...lines, el("rect", { class: "grid", x: X(0), y: Y(1), width: X(1) - X(0), height: Y(0) - Y(1) }),
    el("text", { x: X(0) + 9, y: Y(0) + 14 }, "finished"), el("text", { x: X(1), y: Y(1) - 5, "text-anchor": "end" }, "pure noise"),
    el("text", { x: X(1), y: Y(0) + 13, "text-anchor": "end" }, `t ${axes[0]} →`), el("text", { x: X(0), y: Y(1) - 5 }, `t ${axes[1]} ↑`),
    trail, way, weak, handle, marker);
  note = el("div", { class: "planenote", "aria-live": "polite" });
  chips = el("div", { class: "chips", role: "group", "aria-label": "The path" });
  handle.addEventListener("pointerdown", (event) => { handle.setPointerCapture(event.pointerId); event.preventDefault(); });
  const drag = perFrame((x, y) => bend([x, y]));
  handle.addEventListener("pointermove", (event) => {
    if (!event.buttons) return;
    const box = svg.getBoundingClientRect();
    drag(T(((event.clientX - box.left) / box.width) * SIZE), 1 - T(((event.clientY - box.top) / box.height) * SIZE));
  });
  handle.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: [-0.05, 0], ArrowRight: [0.05, 0], ArrowUp: [0, 0.05], ArrowDown: [0, -0.05] }[event.key];
    if (!move) return;
    event.preventDefault();
    event.stopPropagation();
    bend(control().map((t, i) => t + move[i]));
  });
  $("plane").replaceChildren(svg, chips, note, choosers(names));
  drawPlane();
}

// Which two modalities the plane shows, if there are more.
function choosers(names) {
  if (names.length < 3) return "";
  return el("div", { class: "chips" }, [0, 1].map((i) => select(names, axes[i], { "aria-label": i ? "up" : "across", onchange: (event) => { axes[i] = event.target.value; drawPlane(); } })));
}

const X = (t) => 14 + t * (SIZE - 28);
const Y = (t) => SIZE - 22 - t * (SIZE - 40);
const T = (x) => (x - 14) / (SIZE - 28);

const span = () => ends(state.cards, axes, state.model.settings);
const both = () => axes[0] !== axes[1] && axes.every((name) => state.cards[name].role === "sampled");
const steps = () => state.settings.steps || state.model.settings.steps;

function control() {
  const { start, end } = span();
  const from = state.path.prefix ? state.path.prefix.at(-1) : start;
  return state.path.control ? clampTo(state.path.control, from, end) : from.map((s, i) => (s + end[i]) / 2);
}

function bend(point) {
  const { start, end } = span();
  const from = state.path.prefix ? state.path.prefix.at(-1) : start;
  state.path.control = clampTo(point, from, end);
  state.path.kind = "drawn";
  changed("path");
}

// The points of the way that the next run takes; null if it is the plain one.
function points() {
  const { start, end } = span();
  const { kind, prefix } = state.path;
  if (prefix) return branch([...prefix, ...Array(steps() + 1 - prefix.length).fill(end)], prefix.length - 1, control(), end);
  if (!both() && kind !== "drawn") return null;
  if (kind === "first") return corner(start, end, steps(), 0);
  if (kind === "second") return corner(start, end, steps(), 1);
  return kind === "drawn" ? curve(start, control(), end, steps()) : null;
}

// modality -> timesteps, for the job.
export function pathOfJob() {
  const found = points();
  if (!found) return undefined;
  const moving = axes.filter((name) => state.cards[name].role === "sampled");
  return Object.fromEntries(moving.map((name) => [name, found.map((point) => point[axes.indexOf(name)])]));
}

export function drawPlane() {
  const { start, end } = span();
  const shown = points() || [start, end];
  way.setAttribute("d", shown.map((p, k) => `${k ? "L" : "M"}${X(p[0])} ${Y(p[1])}`).join(""));
  const movable = both() || Boolean(state.path.prefix);
  handle.setAttribute("visibility", movable && start.some((s, i) => s !== end[i]) ? "visible" : "hidden");
  handle.setAttribute("tabindex", movable ? 0 : -1);
  const c = control();
  handle.setAttribute("cx", X(c[0]));
  handle.setAttribute("cy", Y(c[1]));
  handle.setAttribute("aria-valuenow", c[0].toFixed(2));
  handle.setAttribute("aria-valuetext", `${axes[0]} ${c[0].toFixed(2)}, ${axes[1]} ${c[1].toFixed(2)}`);
  if (!state.running) moveTo(visited.length ? visited.at(-1).t : start);
  drawChips();
  trail.replaceChildren(...visited.map(dot));
}

function drawChips() {
  const label = { ...KINDS, first: `${axes[0]} first`, second: `${axes[1]} first` };
  chips.replaceChildren(...(both() ? Object.keys(KINDS) : []).map((kind) => el("button", { type: "button", "aria-pressed": String(state.path.kind === kind && !state.path.prefix), "data-testid": `path-${kind}`, onclick: () => {
    Object.assign(state.path, { kind, prefix: null });
    changed("path");
  } }, label[kind])));
  if (state.path.prefix) chips.append(el("button", { type: "button", "aria-pressed": "true", "data-testid": "unbranch", onclick: () => { state.path.prefix = null; changed("path"); } }, `branching at step ${state.path.prefix.length - 1} ✕`));
}

function dot(visit, k) {
  const place = el("circle", { class: "trail", r: 4, cx: X(visit.t[0]), cy: Y(visit.t[1]), tabindex: k % 5 ? -1 : 0, role: "button", "aria-label": `step ${visit.step}`, "data-testid": "trail" });
  place.addEventListener("mouseenter", () => peek(visit));
  place.addEventListener("focus", () => peek(visit));
  place.addEventListener("click", () => branchAt(k));
  place.addEventListener("keydown", (event) => { if (event.key === "Enter") branchAt(k); });
  return place;
}

// What the sample looked like there.
function peek(visit) {
  const values = visit.values || {};
  const pictures = Object.entries(values).map(([name, value]) => (state.cards[name]?.media === "image" ? el("img", { src: source(value), alt: `at step ${visit.step}` }) : el("span", {}, typeof value === "string" ? value : "")));
  note.replaceChildren(el("div", { class: "peek" }, pictures), el("span", {}, `step ${visit.step}: ${axes[0]} ${visit.t[0].toFixed(2)}, ${axes[1]} ${visit.t[1].toFixed(2)}. Click to branch from here.`));
}

function branchAt(k) {
  if (state.running || k >= visited.length - 1) return;
  const { start } = span();
  state.path.prefix = [start, ...visited.slice(0, k + 1).map((visit) => visit.t)];
  state.path.control = null;
  state.keep = true;
  note.textContent = "The next run goes the same way to here, then where you bend the path: drag the handle.";
  changed("path");
}

const moveTo = ([x, y]) => {
  marker.setAttribute("cx", X(x));
  marker.setAttribute("cy", Y(y));
};

export function planeStart() {
  visited = [];
  note.textContent = "";
  moveTo(span().start);
  drawPlane();
}

// One step: where it is, and where the weak branch of guidance looks.
export function planeStep(step, timesteps) {
  const t = axes.map((name) => timesteps[name] ?? 1);
  visited.push({ step, t, values: null });
  moveTo(t);
  trail.append(dot(visited.at(-1), visited.length - 1));
  const sampled = axes.findIndex((name) => state.cards[name].role === "sampled");
  const scale = state.settings.guidance ?? scaleOf(state.model.settings.guidance.scale);
  weak.setAttribute("visibility", scale > 0 && sampled >= 0 ? "visible" : "hidden");
  weak.setAttribute("cx", X(sampled === 0 ? t[0] : 1));
  weak.setAttribute("cy", Y(sampled === 0 ? 1 : t[1]));
}

const scaleOf = (scale) => (typeof scale === "number" ? scale : Math.max(0, ...Object.values(scale)));

export function planePreview(step, values) {
  const visit = visited.find((one) => one.step === step);
  if (visit) visit.values = values;
}

export function planeEnd() {
  weak.setAttribute("visibility", "hidden");
  drawPlane();
}
