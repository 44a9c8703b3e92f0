// Small things of the page: elements without markup from strings, so that no text can ever become code.

export const $ = (id) => document.getElementById(id);

// el("p", {class: "faint", onclick: f, "data-x": 1}, "text", child)
export function el(tag, props = {}, ...children) {
  const svg = SVG_TAGS.has(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [key, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key in node && !svg && !key.includes("-") && key !== "list") node[key === "class" ? "className" : key] = value;
    else node.setAttribute(key === "className" ? "class" : key, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

const SVG_TAGS = new Set(["svg", "path", "circle", "rect", "line", "text", "g"]);

export function field(label, control) {
  return el("label", { class: "field" }, label, control);
}

export function select(options, value, props = {}) {
  const node = el("select", props, options.map((o) => el("option", { value: o, selected: o === value }, o)));
  return node;
}

// At most one call per frame, with the last arguments.
export function perFrame(action) {
  let args = null;
  return (...latest) => {
    if (args === null) requestAnimationFrame(() => { const now = args; args = null; action(...now); });
    args = latest;
  };
}

// What is at an address of ours or in a data URL, which the content policy lets nobody fetch.
export async function bytesOf(url) {
  if (!url.startsWith("data:")) return (await fetch(url)).arrayBuffer();
  return Uint8Array.from(atob(url.slice(url.indexOf(",") + 1)), (letter) => letter.charCodeAt(0)).buffer;
}

export function fileAsUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

// A link that saves a job as a moving picture.
export const filmLink = (id, props = {}) => el("a", { class: "quiet", href: `/api/jobs/${id}/film`, download: `unidiffuser-${id.slice(0, 8)}.gif`, "data-testid": "film-link", ...props }, "Save as GIF");

export const short = (text, length = 90) => (text.length > length ? `${text.slice(0, length - 1)}…` : text);
