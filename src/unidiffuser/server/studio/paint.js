// Painting a hole into a picture: what is painted is to be made, the rest is kept.

import { el } from "./dom.js";

const SIDE = 256;
const BRUSH = 34;

export function painter(card, well, done) {
  const canvas = el("canvas", { class: "paint", width: SIDE, height: SIDE, hidden: true, tabindex: 0, role: "img", "aria-label": "Paint what is to be made; with the keys: arrows move, space paints", "data-testid": `paint-${card.name}` });
  const button = el("button", { class: "quiet", type: "button", "aria-pressed": "false", "data-testid": `hole-${card.name}`, title: "Paint what is to be made", onclick: () => toggle() }, "Paint a hole");
  const clear = el("button", { class: "quiet", type: "button", hidden: true, onclick: () => { wipe(); card.mask = null; done(); } }, "Clear");
  const context = canvas.getContext("2d");
  const at = { x: SIDE / 2, y: SIDE / 2 };
  let open = false;
  well.append(canvas);

  function toggle() {
    open = !open;
    done();
  }
  function wipe() {
    context.clearRect(0, 0, SIDE, SIDE);
  }
  function dab(x, y) {
    context.fillStyle = "#5b6cf0";
    context.beginPath();
    context.arc(x, y, BRUSH, 0, 2 * Math.PI);
    context.fill();
  }
  function finish() {
    card.mask = maskOf(context);
    if (card.mask) card.role = "given";
    done();
  }
  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * SIDE, ((event.clientY - box.top) / box.height) * SIDE];
  };
  canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); dab(...place(event)); });
  canvas.addEventListener("pointermove", (event) => { if (event.buttons) dab(...place(event)); });
  canvas.addEventListener("pointerup", finish);
  canvas.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: [-16, 0], ArrowRight: [16, 0], ArrowUp: [0, -16], ArrowDown: [0, 16] }[event.key];
    if (move) { at.x += move[0]; at.y += move[1]; }
    if (event.key === " ") { dab(at.x, at.y); finish(); }
    if (move || event.key === " ") { event.preventDefault(); event.stopPropagation(); }
  });
  return {
    button,
    clear,
    refresh() {
      if (!card.value) open = false;
      if (!card.mask && !open) wipe();
      canvas.hidden = !(open || card.mask) || !card.value || card.role === "ignored";
      button.hidden = !card.value;
      button.setAttribute("aria-pressed", String(open));
      clear.hidden = !card.mask;
    },
  };
}

// White where it was painted, black elsewhere; null if nothing was.
function maskOf(context) {
  const painted = context.getImageData(0, 0, SIDE, SIDE);
  const mask = new OffscreenCanvas(SIDE, SIDE);
  let any = false;
  for (let i = 0; i < painted.data.length; i += 4) {
    const on = painted.data[i + 3] > 127;
    any ||= on;
    painted.data.set([on ? 255 : 0, on ? 255 : 0, on ? 255 : 0, 255], i);
  }
  if (!any) return null;
  const plain = document.createElement("canvas");
  Object.assign(plain, { width: mask.width, height: mask.height });
  plain.getContext("2d").putImageData(painted, 0, 0);
  return plain.toDataURL("image/png");
}
