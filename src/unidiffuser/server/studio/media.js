// How a raw value is shown and given, by media type. Each maker returns {node, show(value), busy(on), problem(text)};
// a value from the server is a sentence, numbers, or {type, url | data}; what is given goes to `give`.

import { bytesOf, el, fileAsUrl, short } from "./dom.js";
import { spectrogram } from "./spectrogram.js";

export const source = (value) => (value?.url ? value.url : value?.data ? `data:${value.type};base64,${value.data}` : value);

export async function asGiven(value) {
  if (!value || typeof value === "string" || Array.isArray(value)) return value;
  if (value.data) return source(value);
  const answer = await fetch(value.url);
  if (!answer.ok) throw new Error("that picture is no longer there");
  return fileAsUrl(await answer.blob());
}

function image(info, give) {
  const picture = el("img", { alt: "", hidden: true, draggable: true, "data-testid": `picture-${info.name}` });
  const noise = el("canvas", { width: 48, height: 48, hidden: true, "aria-hidden": "true" });
  const map = el("canvas", { class: "map", hidden: true, "aria-hidden": "true" });
  const empty = el("p", {}, "Drop, paste or choose a picture");
  const file = el("input", { type: "file", accept: "image/png,image/jpeg,image/webp", hidden: true, "aria-label": `Choose the ${info.name}`, "data-testid": `file-${info.name}` });
  const well = el("div", { class: "well" }, empty, picture, noise, map);
  const node = el("div", {}, well, file);
  file.addEventListener("change", async () => {
    if (file.files[0]) give(await fileAsUrl(file.files[0]));
    file.value = "";
  });
  let shown = null;
  return {
    node,
    well,
    choose: () => file.click(),
    show(value, alt = `the ${info.name}`) {
      picture.hidden = !value;
      empty.hidden = Boolean(value);
      noise.hidden = true;
      if (value !== shown) map.hidden = true; // a map belongs to one picture
      shown = value;
      if (value) Object.assign(picture, { src: source(value), alt });
    },
    busy(on, said) {
      empty.textContent = said || "Drop, paste or choose a picture";
      if (on) { drawNoise(noise); noise.hidden = false; picture.hidden = true; empty.hidden = true; }
    },
    map(rows) {
      drawMap(map, rows);
      map.hidden = false;
    },
  };
}

function drawNoise(canvas) {
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(canvas.width, canvas.height);
  for (let i = 0; i < pixels.data.length; i += 1) pixels.data[i] = i % 4 === 3 ? 255 : 90 + Math.random() * 110;
  context.putImageData(pixels, 0, 0);
}

// Bits a place: warm where the words explain, cool where they mislead.
function drawMap(canvas, rows) {
  Object.assign(canvas, { width: rows[0].length, height: rows.length });
  const context = canvas.getContext("2d");
  const most = Math.max(1e-9, ...rows.flat().map(Math.abs));
  const pixels = context.createImageData(canvas.width, canvas.height);
  rows.flat().forEach((bits, i) => {
    const colour = bits > 0 ? [205, 92, 8] : [24, 90, 188];
    colour.forEach((c, k) => { pixels.data[4 * i + k] = c; });
    pixels.data[4 * i + 3] = Math.round((170 * Math.abs(bits)) / most);
  });
  context.putImageData(pixels, 0, 0);
}

function text(info, give) {
  const area = el("textarea", { class: "sentence", spellcheck: false, placeholder: "Write a sentence", maxLength: 2000, "aria-label": `The ${info.name}`, "data-testid": `text-${info.name}` });
  const node = el("div", { class: "page" }, area);
  area.addEventListener("input", () => give(area.value));
  return {
    node,
    show(value) { if (area.value !== (value || "")) area.value = value || ""; },
    busy(on, said) { area.placeholder = said || "Write a sentence"; if (on) area.value = ""; },
    editable(on) { area.readOnly = !on; },
  };
}

function sound(info, give) {
  const player = el("audio", { controls: true, preload: "metadata", hidden: true, "aria-label": `The ${info.name}` });
  const canvas = el("canvas", { width: 640, height: 160, "aria-label": "spectrogram", role: "img" });
  const file = el("input", { type: "file", accept: "audio/wav,.wav", "aria-label": `Choose the ${info.name}`, "data-testid": `file-${info.name}` });
  file.addEventListener("change", async () => { if (file.files[0]) give(await fileAsUrl(file.files[0])); });
  let shown = null;
  async function load(value) {
    const data = await bytesOf(source(value));
    URL.revokeObjectURL(player.src);
    player.src = URL.createObjectURL(new Blob([data], { type: "audio/wav" }));
    spectrogram(canvas, data);
  }
  return {
    node: el("div", { class: "sound" }, canvas, player, file),
    choose: () => file.click(),
    show(value) {
      player.hidden = !value;
      if (value && value !== shown) load(value).catch(() => { player.hidden = true; });
      shown = value;
    },
    busy(on) { if (on) player.hidden = true; },
  };
}

function vector(info, give) {
  const plot = el("canvas", { class: "plot", width: 640, height: 160, role: "img", "aria-label": "plot of the numbers" });
  const area = el("textarea", { class: "words", rows: 3, "aria-label": `The ${info.name}: numbers with commas`, "data-testid": `numbers-${info.name}` });
  area.addEventListener("input", () => {
    const numbers = area.value.split(/[\s,]+/).filter(Boolean).map(Number);
    give(numbers.length && numbers.every(Number.isFinite) ? numbers : null);
    drawPlot(plot, numbers);
  });
  return {
    node: el("div", { class: "sound" }, plot, area),
    show(value) {
      if (Array.isArray(value) && document.activeElement !== area) area.value = value.map((x) => Number(x.toPrecision(6))).join(", ");
      drawPlot(plot, value || []);
    },
    busy() {},
  };
}

function drawPlot(canvas, numbers) {
  const context = canvas.getContext("2d");
  const style = getComputedStyle(document.documentElement);
  context.clearRect(0, 0, canvas.width, canvas.height);
  const good = numbers.filter(Number.isFinite);
  if (!good.length) return;
  const [low, high] = [Math.min(0, ...good), Math.max(0, ...good)];
  const y = (v) => canvas.height - 10 - ((v - low) / (high - low || 1)) * (canvas.height - 20);
  const width = canvas.width / good.length;
  context.fillStyle = style.getPropertyValue("--accent");
  good.forEach((v, k) => context.fillRect(k * width + 1, Math.min(y(v), y(0)), Math.max(1, width - 2), Math.max(1, Math.abs(y(v) - y(0)))));
}

export const MEDIA = { image, text, sound, vector };

// A small picture of any value, for strips, trays and grids.
export function thumbnail(value, media) {
  if (media === "image" && value) return el("img", { src: source(value), alt: "", loading: "lazy", decoding: "async" });
  if (media === "text") return el("span", {}, short(value || "…", 90));
  if (media === "sound") return el("span", {}, "♪ sound");
  if (Array.isArray(value)) return el("span", {}, short(value.map((x) => x.toPrecision(3)).join(", "), 60));
  return el("span", {}, "…");
}
