/* What the page draws by itself: curves of runs, parallel coordinates, one run. No library: an SVG. */

const SVG = "http://www.w3.org/2000/svg";
const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a68a6", "#999999"];
const W = Math.max(340, Math.min(720, innerWidth - 32)), H = 380, LEFT = 62, RIGHT = 14, TOP = 12, BOTTOM = 40;

function node(name, attributes = {}, content = "") {
  const isSvg = ["svg", "g", "path", "line", "text", "rect", "circle"].includes(name);
  const made = isSvg ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (content !== "") made.textContent = content;
  return made;
}

function choiceOf(label, options, onChange) {
  const outside = node("label", {}, `${label} `), select = node("select");
  options.forEach((option, i) => select.append(node("option", { value: i }, option)));
  select.addEventListener("change", () => onChange(Number(select.value)));
  outside.append(select);
  return outside;
}

/* Blue to yellow, for numbers; t from 0 to 1. */
const gradual = (t) => `hsl(${255 - 205 * t} 75% ${38 + 12 * t}%)`;

/* A colour for each run by the value of a key, and what the legend shows: [colour, words]. */
function coloursBy(values) {
  const different = [...new Set(values)].sort((a, b) =>
    typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
  const areNumbers = different.every((value) => typeof value === "number" || value === null);
  const of = new Map(different.map((value, i) => [value, areNumbers && different.length > 2
    ? gradual(different.length > 1 ? i / (different.length - 1) : 0) : COLOURS[i % COLOURS.length]]));
  return { of, legend: different.map((value) => [of.get(value), value === null ? "null" : short(value)]) };
}

const short = (x) => (typeof x !== "number" ? String(x) : Math.abs(x) >= 1e5 || (x !== 0 && Math.abs(x) < 1e-4)
  ? x.toExponential(2) : String(Number(x.toPrecision(4))));

/* Four to seven round numbers from low to high. */
function ticks(low, high) {
  const span = high - low || 1, rough = span / 5, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const found = [];
  for (let t = Math.ceil(low / step) * step; t <= high + step * 1e-9; t += step) found.push(Number(t.toPrecision(12)));
  return found;
}

/* The range of most values: a run that has diverged does not flatten the others. */
function extent(values) {
  const sorted = values.filter((y) => y !== null).sort((a, b) => a - b);
  if (!sorted.length) return [0, 1];
  const at = (q) => sorted[Math.round(q * (sorted.length - 1))];
  const [low, high, spread] = [at(0.02), at(0.98), at(0.9) - at(0.1)];
  const ends = [Math.max(sorted[0], low - spread), Math.min(sorted.at(-1), high + spread)];
  const margin = (ends[1] - ends[0]) * 0.04 || Math.abs(ends[0]) * 0.05 || 1;
  return [ends[0] - margin, ends[1] + margin];
}

function chart(place, data, names, openRun) {
  const { metrics, keys, lines } = data;
  if (!metrics.length || !lines.length) return;
  let metric = 0, key = 0, zoom = null;
  const controls = node("p", { class: "controls" }), svg = node("svg", { viewBox: `0 0 ${W} ${H}`, role: "img" });
  const legend = node("p", { class: "legend" }), caption = node("p", { class: "quiet caption" });
  const hidden = new Set();
  controls.append(choiceOf("curves of", metrics, (i) => { metric = i; zoom = null; draw(); }));
  if (keys.length) controls.append(choiceOf("colour", keys, (i) => { key = i; hidden.clear(); draw(); }));
  place.append(controls, svg, legend, caption);
  const hint = "Touch a line for its values, drag to zoom, double-click for all of it; a click opens the run.";

  function draw() {
    const { of, legend: entries } = coloursBy(lines.map((line) => (keys.length ? line[1][key] : 0)));
    const shown = lines.filter((line) => !hidden.has(keys.length ? line[1][key] : 0)).reverse();  // the best on top
    const longest = Math.max(1, ...shown.map((line) => line[2][metric].length));
    const whole = { x: [1, Math.max(longest, 2)], y: extent(shown.flatMap((line) => line[2][metric])) };
    const { x, y } = zoom ?? whole;
    const px = (e) => LEFT + ((e - x[0]) / (x[1] - x[0])) * (W - LEFT - RIGHT);
    const py = (v) => H - BOTTOM - ((v - y[0]) / (y[1] - y[0])) * (H - TOP - BOTTOM);
    svg.replaceChildren();
    for (const t of ticks(...y)) {
      svg.append(node("line", { x1: LEFT, x2: W - RIGHT, y1: py(t), y2: py(t), class: "grid" }));
      svg.append(node("text", { x: LEFT - 6, y: py(t) + 4, "text-anchor": "end" }, short(t)));
    }
    for (const t of ticks(...x).filter(Number.isInteger))
      svg.append(node("text", { x: px(t), y: H - BOTTOM + 18, "text-anchor": "middle" }, t));
    svg.append(node("text", { x: (LEFT + W) / 2, y: H - 4, "text-anchor": "middle" }, "epoch"));
    const id = `clip${Math.random().toString(36).slice(2)}`;
    const clip = document.createElementNS(SVG, "clipPath"), inside = node("g", { "clip-path": `url(#${id})` });
    clip.id = id;
    clip.append(node("rect", { x: LEFT, y: TOP, width: W - LEFT - RIGHT, height: H - TOP - BOTTOM }));
    svg.append(clip, inside);
    const points = [];
    shown.forEach((line) => {
      let path = "", isOn = false;
      line[2][metric].forEach((v, i) => {
        if (v !== null) {
          path += `${isOn ? "L" : "M"}${px(i + 1).toFixed(1)} ${py(v).toFixed(1)}`;
          points.push([px(i + 1), py(v), line, i, v]);
        }
        isOn = v !== null;
      });
      if (path) inside.append(node("path", { d: path, stroke: of.get(keys.length ? line[1][key] : 0), class: "curve" }));
      if (line[2][metric].length === 1 && path)
        inside.append(node("circle", { cx: points.at(-1)[0], cy: points.at(-1)[1], r: 3, fill: of.get(keys.length ? line[1][key] : 0) }));
    });
    const mark = node("circle", { r: 4, class: "mark", visibility: "hidden" });
    svg.append(mark);
    caption.textContent = hint;
    legend.replaceChildren(...(keys.length ? entries : []).map(([colour, words], i) => {
      const value = [...of.keys()][i], button = node("button", { type: "button" }, words);
      button.style.borderColor = colour;
      button.classList.toggle("off", hidden.has(value));
      button.addEventListener("click", () => { hidden.has(value) ? hidden.delete(value) : hidden.add(value); draw(); });
      return button;
    }));

    let from = null, box = null, near = null;
    const at = (event) => {
      const frame = svg.getBoundingClientRect();
      return [((event.clientX - frame.left) / frame.width) * W, ((event.clientY - frame.top) / frame.height) * H];
    };
    svg.onpointerdown = (event) => { from = at(event); };
    svg.onpointermove = (event) => {
      const [a, b] = at(event);
      if (from && Math.hypot(a - from[0], b - from[1]) > 8) {
        box ??= svg.appendChild(node("rect", { class: "zoom" }));
        for (const [n, v] of Object.entries({ x: Math.min(a, from[0]), y: Math.min(b, from[1]),
          width: Math.abs(a - from[0]), height: Math.abs(b - from[1]) })) box.setAttribute(n, v);
        return;
      }
      near = null;
      let least = 400;
      for (const point of points) {
        const away = (point[0] - a) ** 2 + (point[1] - b) ** 2;
        if (away < least) [least, near] = [away, point];
      }
      mark.setAttribute("visibility", near ? "visible" : "hidden");
      if (near) {
        mark.setAttribute("cx", near[0]); mark.setAttribute("cy", near[1]);
        const values = keys.map((k, i) => `${k}=${near[2][1][i] === null ? "null" : short(near[2][1][i])}`);
        caption.textContent = `${names[near[2][0]]}, epoch ${near[3] + 1}: ${short(near[4])}  (${values.join(" ")})`;
      }
    };
    svg.onpointerup = (event) => {
      const [a, b] = at(event);
      if (box) {
        const ex = (p) => x[0] + ((p - LEFT) / (W - LEFT - RIGHT)) * (x[1] - x[0]);
        const ey = (p) => y[0] + ((H - BOTTOM - p) / (H - TOP - BOTTOM)) * (y[1] - y[0]);
        zoom = { x: [ex(Math.min(a, from[0])), ex(Math.max(a, from[0]))], y: [ey(Math.max(b, from[1])), ey(Math.min(b, from[1]))] };
        from = box = null;
        draw();
        return;
      }
      from = null;
      if (near && openRun) openRun(near[2][0]);
    };
    svg.onpointerleave = () => { from = null; box?.remove(); box = null; };
    svg.ondblclick = () => { zoom = null; draw(); };
  }
  draw();
}

/* A line a run through an axis a key, the metric last: what the good runs have in common. */
function parallel(place, data, names, openRun) {
  const { metrics, keys, lines } = data;
  if (keys.length < 3 || !metrics.length) return;
  const ends = lines.map((line) => line[2][0].filter((v) => v !== null).at(-1) ?? null);
  const axes = [...keys, metrics[0]], columns = axes.map((_, i) => lines.map((line, n) => (i < keys.length ? line[1][i] : ends[n])));
  const svg = node("svg", { viewBox: `0 0 ${W} ${H}`, role: "img" }), caption = node("p", { class: "quiet caption" });
  place.append(node("h2", {}, "What the good runs have in common"), svg, caption);
  caption.textContent = `A line a run, the colour is ${metrics[0]} at the end. Touch a line to see which run it is.`;
  const ax = (i) => LEFT + (i / (axes.length - 1)) * (W - LEFT - RIGHT - 40);
  const labels = [];
  const heights = columns.map((values, i) => {
    const different = [...new Set(values)].sort((a, b) => (a === null) - (b === null) || (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b))));
    const isScale = i === keys.length;
    const [low, high] = extent(values.filter((v) => typeof v === "number"));
    const y = (v) => {
      const t = isScale ? (Math.min(Math.max(v, low), high) - low) / (high - low) : different.indexOf(v) / Math.max(1, different.length - 1);
      return H - BOTTOM - t * (H - TOP - BOTTOM - 12);
    };
    svg.append(node("line", { x1: ax(i), x2: ax(i), y1: TOP + 12, y2: H - BOTTOM, class: "axis" }));
    svg.append(node("text", { x: ax(i), y: H - 12 - 14 * (i % 2), "text-anchor": "middle" }, axes[i]));
    const marks = isScale ? ticks(low, high) : different.length <= 12 ? different : [different[0], different.at(-1)];
    for (const v of marks) labels.push(node("text", { x: ax(i) + 5, y: y(v) + 4, class: "value" }, v === null ? "null" : short(v)));
    return y;
  });
  const [low, high] = extent(ends.filter((v) => v !== null));
  [...lines.keys()].reverse().forEach((n) => {  // the best on top
    const line = lines[n];
    if (ends[n] === null) return;
    const d = columns.map((values, i) => `${i ? "L" : "M"}${ax(i).toFixed(1)} ${heights[i](values[n]).toFixed(1)}`).join("");
    const path = node("path", { d, class: "curve", stroke: gradual(Math.min(1, Math.max(0, (ends[n] - low) / (high - low)))) });
    path.addEventListener("pointerenter", () => { caption.textContent = `${names[line[0]]}: ${keys.map((k, i) => `${k}=${line[1][i] === null ? "null" : short(line[1][i])}`).join(" ")}, ${metrics[0]} ${short(ends[n])}`; });
    path.addEventListener("click", () => openRun(line[0]));
    svg.append(path);
  });
  svg.append(...labels);
}
