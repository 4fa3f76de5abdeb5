// The live view of a run and the walk back through its steps. Fed with JSON texts {run, seq, at, method, baseline, done}:
// `method` and `baseline` are the steps that are new since the last message, `at` how many came before them, so the
// last message (at = 0) repairs whatever was missed. Text from the model only ever goes into textContent.
const SVG = "http://www.w3.org/2000/svg";
const COLUMN = 125, ROW = 28, BOX = 108, HIGH = 22, PAD = 8, DEEPEST = 5;
const FATE = { a: "accepted", r: "rejected", u: "unreached", p: "pruned" };
const PHASES = ["draft", "verify", "accept", "keep"];
const part = (name) => element.querySelector(name);
const slider = part(".ss-walk input"), tree = part(".ss-tree"), svg = part(".ss-tree svg"), fit = part(".ss-fit");
let run = null, done = false, follow = true, cursor = -1;
const steps = { method: [], baseline: [] };

const make = (tag, attributes, text) => {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
};
const hex = (control) => "\\x" + control.charCodeAt(0).toString(16).padStart(2, "0");
const visible = (text) => text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replace(/^ /, "␣").replace(/[\u0000-\u001f\u007f]/g, hex) || "∅";
const wide = (letter) => (letter.codePointAt(0) >= 0x2e80 ? 2 : 1); // Chinese, Korean, emoji: two columns
function short(text, columns) {
  const letters = [...text];
  let used = 0;
  const end = letters.findIndex((letter) => (used += wide(letter)) > columns);
  return end < 0 ? text : letters.slice(0, end - 1).join("") + "…";
}
const percent = (p) => (p >= 0.995 ? "1.0" : p.toFixed(2).replace(/^0/, ""));

function tokenSpan([text, depth, probability]) {
  const span = document.createElement("span");
  span.className = "ss-tok d" + Math.min(depth, DEEPEST);
  span.textContent = text;
  const origin = depth ? `drafted at depth ${depth}, accepted` : "the model's own";
  span.title = `${visible(text)} · ${origin} · model's probability ${percent(probability)}`;
  return span;
}

function stepSpan(step, index) {
  const span = document.createElement("span");
  span.className = "ss-step";
  span.dataset.index = index;
  span.append(...step.t.map(tokenSpan));
  return span;
}

function appendText(lane) {
  const box = part(".ss-" + lane);
  const low = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
  while (box.children.length > steps[lane].length) box.lastChild.remove();
  for (let i = box.children.length; i < steps[lane].length; i++) box.append(stepSpan(steps[lane][i], i));
  if (low) box.scrollTop = box.scrollHeight;
}

function markText(to) {
  const box = part(".ss-method");
  for (const span of box.children) {
    const index = Number(span.dataset.index);
    span.hidden = index > to;
    span.classList.toggle("ss-now", index === to);
  }
  if (!follow) box.children[to]?.scrollIntoView({ block: "nearest" });
}

function rootText(index) {
  const texts = steps.method.slice(0, index).flatMap((step) => step.t.map(([text]) => text));
  return texts.length ? texts[texts.length - 1] : "prompt";
}

function drawNode(group, x, y, kind, depth, text, probability, hint) {
  const box = make("g", { class: `ss-node ${kind} d${Math.min(depth, DEEPEST)}`, transform: `translate(${x},${y})` });
  box.append(make("title", {}, hint));
  box.append(make("rect", { width: BOX, height: HIGH, rx: 5, y: -HIGH / 2 }));
  box.append(make("text", { x: 7, y: 4 }, short(visible(text), probability === null ? 13 : 10)));
  if (probability !== null) box.append(make("text", { x: BOX - 6, y: 4, class: "ss-prob" }, percent(probability)));
  group.append(box);
}

function drawEdge(group, x0, y0, x1, y1, kind, depth) {
  const middle = (x0 + x1) / 2;
  const path = `M${x0},${y0} C${middle},${y0} ${middle},${y1} ${x1},${y1}`;
  group.append(make("path", { class: `ss-edge ${kind} d${Math.min(depth, DEEPEST)}`, d: path }));
}

function drawTree(index) {
  const nodes = steps.method[index]?.d ?? [];
  const group = document.createElementNS(SVG, "g");
  svg.querySelector("g").replaceWith(group);
  tree.classList.toggle("ss-none", nodes.length === 0);
  part(".ss-tree-title").firstChild.textContent = nodes.length ? `Draft tree of step ${index} ` : "Draft tree ";
  if (!nodes.length) return;
  const depth = [], row = nodes.map((node) => node[5]);
  nodes.forEach(([, parent], i) => (depth[i] = parent < 0 ? 1 : depth[parent] + 1));
  const tops = row.filter((_, i) => depth[i] === 1);
  const rootRow = (tops[0] + tops[tops.length - 1]) / 2;
  const x = (d) => PAD + d * COLUMN, y = (r) => PAD + HIGH / 2 + r * ROW;
  nodes.forEach(([, parent, , fate], i) =>
    drawEdge(group, x(depth[i] - 1) + BOX, y(parent < 0 ? rootRow : row[parent]), x(depth[i]), y(row[i]), FATE[fate], depth[i]));
  drawNode(group, x(0), y(rootRow), "root", 0, rootText(index), null, "newest committed token");
  nodes.forEach(([text, , drafted, fate, target], i) => {
    const model = target === null ? "" : ` · model's probability ${percent(target)}`;
    const hint = `${visible(text)} · depth ${depth[i]} · ${FATE[fate]} · drafted with probability ${percent(drafted)}${model}`;
    drawNode(group, x(depth[i]), y(row[i]), FATE[fate], depth[i], text, drafted, hint);
  });
  const width = x(Math.max(...depth)) + BOX + PAD, height = y(Math.max(...row, rootRow)) + HIGH / 2 + PAD;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("width", width);
  svg.setAttribute("height", height);
  const path = nodes.filter((node) => node[3] === "a").map(([text]) => visible(text));
  svg.querySelector("desc").textContent = `${nodes.length} drafted nodes; accepted: ${path.join(" ") || "none"}`;
  tree.scrollTop = y(rootRow) - tree.clientHeight / 2;
}

function caption(index) {
  const step = steps.method[index];
  if (!step) return "When a run has ended, the slider walks back through its steps.";
  const total = step.s.reduce((sum, ms) => sum + ms, 0);
  const times = PHASES.map((name, i) => `${name} ${step.s[i].toFixed(1)}`).join(" · ");
  const rows = `${step.r} rows${step.sr ? ` + ${step.sr} stream rows` : ""}`;
  const accepted = step.d.filter((node) => node[3] === "a").length;
  const drafted = step.d.length ? `${step.d.length} nodes drafted, ${accepted} accepted; ` : "";
  const what = index === 0 ? "the prompt pass; " : drafted;
  const count = `${step.t.length} token${step.t.length === 1 ? "" : "s"}`;
  return `Step ${index}: ${what}${count} in ${total.toFixed(1)} ms (${times} ms; ${rows})`;
}

function drawPhases(index) {
  const seconds = steps.method[index]?.s ?? [];
  const bars = seconds.map((ms, i) => {
    const bar = document.createElement("span");
    bar.className = "ss-phase-" + PHASES[i];
    bar.style.flexGrow = ms;
    return bar;
  });
  part(".ss-phases").replaceChildren(...bars);
}

function show(index) {
  markText(index);
  cursor = index;
  drawTree(index);
  drawPhases(index);
  part(".ss-caption").textContent = caption(index);
  const last = Math.max(steps.method.length - 1, 0);
  slider.max = last;
  slider.value = Math.max(index, 0);
  slider.disabled = part(".ss-prev").disabled = part(".ss-next").disabled = last === 0;
  part(".ss-where").textContent = index < 0 ? "–" : `${index} of ${last}`;
}

function walk(index, settled) {
  const last = steps.method.length - 1;
  const to = Math.min(Math.max(index, 0), last);
  follow = !done && to === last;
  show(to);
  if (settled && done) trigger("select", { index: to, value: run });
}

function reset(message) {
  run = message.run;
  follow = true;
  cursor = -1;
  steps.method = [];
  steps.baseline = [];
  for (const lane of ["method", "baseline"]) part(".ss-" + lane).replaceChildren();
  part(".ss-method-title").textContent = message.title;
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const box = part(".ss-player");
  const block = box.offsetHeight > innerHeight - 120 ? "start" : "nearest";
  box.scrollIntoView({ block, behavior: calm ? "auto" : "smooth" });
}

function receive(text) {
  if (!text) return;
  const message = JSON.parse(text);
  if (message.run !== run) reset(message);
  done = message.done;
  for (const lane of ["method", "baseline"]) {
    const at = message.at[lane];
    if (at > steps[lane].length) continue; // something was missed: the last message brings everything
    if (at < steps[lane].length) part(".ss-" + lane).replaceChildren();
    steps[lane] = steps[lane].slice(0, at).concat(message[lane]);
    appendText(lane);
  }
  element.querySelector(".ss-player").dataset.state = done ? "done" : "running";
  if (follow || cursor >= steps.method.length) show(steps.method.length - 1);
  else show(cursor);
}

slider.addEventListener("input", () => walk(Number(slider.value), false));
slider.addEventListener("change", () => walk(Number(slider.value), true));
part(".ss-prev").addEventListener("click", () => walk(cursor - 1, true));
part(".ss-next").addEventListener("click", () => walk(cursor + 1, true));
fit.addEventListener("click", () => fit.setAttribute("aria-pressed", tree.classList.toggle("ss-fitted")));
watch("value", () => receive(props.value));
show(-1);
receive(props.value);
