// The mathematics of ways, roles and spectra, without a page: node --test.
import assert from "node:assert/strict";
import { test } from "node:test";

const studio = new URL("../src/unidiffuser/server/studio/", import.meta.url);
const { branch, corner, curve, ends, falls } = await import(new URL("path.js", studio));
const { intent, jobOf } = await import(new URL("roles.js", studio));
const { spectrum, waveOf } = await import(new URL("spectrogram.js", studio));
const { put } = await import(new URL("grid.js", studio));
const { furthest, limit, mean } = await import(new URL("paths.js", studio));

const card = (name, media, role, more = {}) => ({ name, media, role, value: null, loose: 0, vary: 0, mask: null, ...more });
const cards = (image, text) => ({ image: card("image", "image", image.role || image, image), text: card("text", "text", text.role || text, text) });

test("a way falls or rests, whatever the control point, and its ends are exact", () => {
  for (let k = 0; k < 200; k += 1) {
    const points = curve([1, 1], [Math.random(), Math.random()], [0, 0], 1 + (k % 30));
    assert.ok(falls(points));
    assert.deepEqual([points[0], points.at(-1)], [[1, 1], [0, 0]]);
  }
});

test("corners go one after the other", () => {
  const points = corner([1, 1], [0, 0], 10, 0);
  assert.ok(falls(points));
  assert.deepEqual(points[5], [0, 1]);
  assert.deepEqual(corner([1, 1], [0, 0], 1, 0).at(-1), [0, 0]);
});

test("a branch goes the same way to where it leaves", () => {
  const whole = curve([1, 1], [0.5, 0.5], [0, 0], 20);
  const other = branch(whole, 8, [0.1, 0.4], [0, 0]);
  assert.deepEqual(other.slice(0, 9), whole.slice(0, 9));
  assert.equal(other.length, whole.length);
  assert.ok(falls(other));
  assert.notDeepEqual(other[12], whole[12]);
});

test("where a run starts and ends is only a matter of roles", () => {
  const at = ends(cards({ role: "sampled", vary: 0.6, value: "x" }, { role: "given", loose: 0.3 }), ["image", "text"]);
  assert.deepEqual(at, { start: [0.6, 0.3], end: [0, 0.3] });
  assert.deepEqual(ends(cards("ignored", "sampled"), ["image", "text"]), { start: [1, 1], end: [1, 0] });
});

test("the word follows the locks, for all nine settings", () => {
  const given = (value) => ({ role: "given", value });
  const word = (image, text) => intent(cards(image, text)).word;
  assert.equal(word("sampled", given("a")), "Imagine");
  assert.equal(word(given("a"), "sampled"), "Describe");
  assert.equal(word("sampled", "sampled"), "Dream both");
  assert.equal(word("sampled", "ignored"), "Imagine");
  assert.equal(word("ignored", "sampled"), "Write");
  assert.equal(word(given("a"), given("b")), "Score");
  assert.equal(word({ role: "given", value: "a", mask: "m" }, "ignored"), "Fill in");
  assert.equal(word({ role: "sampled", value: "a", vary: 0.5 }, "ignored"), "Vary");
  for (const [image, text] of [["ignored", "ignored"], ["given", "sampled"], ["ignored", given("a")]]) assert.ok(intent(cards(image, text)).why);
});

test("a job holds what is given, what is named and nothing else", () => {
  const job = jobOf(cards("sampled", { role: "given", value: "a red ___ circle", loose: 0.2 }), { n: 2, steps: null }, 7, "m");
  assert.deepEqual(job.names, ["image", "text"]);
  assert.deepEqual(job.looseness, {}); // of a sentence with holes only the holes are made
  assert.equal(job.n, 2);
  assert.ok(!("steps" in job));
});

test("a tone stands at its own frequency", () => {
  const samples = Float32Array.from({ length: 256 }, (_, k) => Math.sin((2 * Math.PI * 32 * k) / 256));
  const power = spectrum(samples, 0, 256);
  assert.equal(power.indexOf(Math.max(...power)), 32);
  assert.equal(waveOf(new ArrayBuffer(44 + 20)).length, 10);
});

test("the ways that lie furthest apart are found in their own errors", () => {
  const [a, b, c] = [mean([1, 2, 3]), mean([1, 2, 3, 2]), mean([10, 11, 12])];
  assert.equal(a.middle, 2);
  assert.ok(Math.abs(a.error - 1 / Math.sqrt(3)) < 1e-12);
  const most = furthest([a, b, c]);
  assert.deepEqual(most.ways.includes(2), true);
  assert.ok(most.far > 2 && furthest([a, b]).far === 0);
  for (const [freedom, t] of [[14, 2.718], [30, 2.536], [62, 2.459]]) assert.ok(Math.abs(limit(freedom) - t) < 0.02, `${limit(freedom)}`);
  assert.equal(mean([1]), null);
  assert.equal(furthest([a, null]), null);
});

test("what was chosen reaches the job, and nothing else does", () => {
  const settings = { n: 1, draws: 64, steps: null, label: 0, size: [64, 96], reuse: { every: 3, outer: 1 }, guidance_interval: [0.1, 0.9] };
  const job = jobOf(cards("sampled", { role: "given", value: "a red circle" }), settings, 7, "m");
  assert.deepEqual([job.label, job.size, job.reuse, job.guidance_interval], [0, [64, 96], { every: 3, outer: 1 }, [0.1, 0.9]]);
  assert.ok(!("steps" in job) && !("n" in job) && !("draws" in job));
});

test("a cell of the grid is the job with its two settings changed", () => {
  const job = () => ({ names: ["image"], given: { text: "a" }, looseness: {}, seed: 1 });
  assert.equal(put(job(), "seed", 4).seed, 4);
  assert.deepEqual(put(job(), "looseness of text", 0.3).looseness, { text: 0.3 });
  const near = put(job(), "start of image", 0.5, undefined, { image: "data:x" });
  assert.deepEqual([near.given, near.looseness], [{ text: "a", image: "data:x" }, { image: 0.5 }]);
  assert.deepEqual(put(job(), "reuse", 3).reuse, { every: 3, outer: 1 });
  assert.ok(!("reuse" in put({ ...job(), reuse: { every: 2 } }, "reuse", 0)));
  const ways = () => ({ together: null, "image first": { image: [1, 0] } });
  assert.deepEqual(put(job(), "path", "image first", ways).path, { image: [1, 0] });
  assert.ok(!("path" in put(job(), "path", "together", ways)));
  assert.throws(() => put(job(), "path", "sideways", ways), /together, image first/);
});
