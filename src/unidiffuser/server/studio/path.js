// The mathematics of ways on the timestep plane. No page is needed: node --test runs this file's tests.

// Where a run starts and ends: sampled from where it begins down to the model's end, given rests, ignored rests at 1.
export function ends(cards, names, { begin = 1, end = 0 } = {}) {
  const at = (name, start) => {
    const card = cards[name];
    if (card.role === "ignored") return 1;
    if (card.role === "given") return card.loose || 0;
    return start ? (card.vary || begin) : end;
  };
  return { start: names.map((n) => at(n, true)), end: names.map((n) => at(n, false)) };
}

// steps + 1 points of the quadratic curve from start over the control point to end. With a control point in the
// box between them both coordinates fall or rest all the way.
export function curve(start, control, end, steps) {
  const points = [];
  for (let k = 0; k <= steps; k += 1) {
    const u = k / steps;
    points.push(start.map((s, i) => round((1 - u) ** 2 * s + 2 * u * (1 - u) * control[i] + u * u * end[i])));
  }
  points[0] = [...start];
  points[steps] = [...end];
  return points.map((point, k) => point.map((t, i) => (k ? Math.min(t, points[k - 1][i]) : t)));
}

// One coordinate after the other, `first` going first.
export function corner(start, end, steps, first) {
  const other = 1 - first;
  const half = Math.max(1, Math.floor(steps / 2));
  const points = [];
  for (let k = 0; k <= steps; k += 1) {
    const u = Math.min(1, k / half);
    const v = steps > half ? Math.max(0, (k - half) / (steps - half)) : 1;
    const point = [];
    point[first] = round(start[first] + (end[first] - start[first]) * u);
    point[other] = round(start[other] + (end[other] - start[other]) * v);
    points.push(point);
  }
  points[0] = [...start];
  points[steps] = [...end];
  return points;
}

// A finished run up to node k, and from there a new way to its end.
export function branch(points, k, control, end) {
  const head = points.slice(0, k + 1);
  const rest = curve(points[k], control, end, points.length - 1 - k);
  return [...head, ...rest.slice(1)];
}

export const clampTo = (point, start, end) => point.map((t, i) => Math.min(Math.max(t, Math.min(start[i], end[i])), Math.max(start[i], end[i])));

export const falls = (points) => points.every((p, k) => k === 0 || p.every((t, i) => t <= points[k - 1][i] + 1e-12));

const round = (t) => Math.round(t * 1e6) / 1e6;
