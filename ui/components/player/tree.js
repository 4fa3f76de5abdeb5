// The draft tree of one step: columns are depths, every leaf has a row of its own, so that no two labels can overlap.
const SVG = "http://www.w3.org/2000/svg";
const COLUMN = 125, BOX = 108, PAD = 8, CROWDED = 18, SMALLEST = 0.35, LARGEST = 3, READABLE = 0.83;
const tree = part(".ss-tree"), svg = part(".ss-tree svg"), fit = part(".ss-fit");
let drafter = ""; // the name of the method
let zoom = 1, mode = "readable", extent = [0, 0]; // mode: readable (fit, but never small), fitted, chosen

const make = (name, attributes, text) => {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
};

function rootText(index) {
  for (let i = index - 1; i >= 0; i--) if (steps.method[i].t.length) return steps.method[i].t.at(-1)[0];
  return "prompt";
}

function drawNode(group, x, y, high, kind, depth, text, probability, index) {
  const box = make("g", { class: `ss-node ${kind} ${depthClass(depth)}`, transform: `translate(${x},${y})`, "data-node": index });
  box.append(make("rect", { width: BOX, height: high, rx: 5, y: -high / 2 }));
  box.append(make("text", { x: 7, y: 4 }, short(visible(text), probability === null ? 13 : 10)));
  if (probability !== null) box.append(make("text", { x: BOX - 6, y: 4, class: "ss-prob" }, percent(probability)));
  group.append(box);
}

function drawEdge(group, x0, y0, x1, y1, kind, depth) {
  const middle = (x0 + x1) / 2;
  const path = `M${x0},${y0} C${middle},${y0} ${middle},${y1} ${x1},${y1}`;
  group.append(make("path", { class: `ss-edge ${kind} ${depthClass(depth)}`, d: path }));
}

function drawTree(index) {
  const step = steps.method[index], nodes = step ? family(step) : [];
  const group = document.createElementNS(SVG, "g");
  svg.querySelector("g").replaceWith(group);
  tree.classList.toggle("ss-none", nodes.length === 0);
  part(".ss-tree-title").textContent = nodes.length ? `Draft tree of step ${index}` : "Draft tree";
  tree.dataset.empty = step ? emptyWords(index) : tree.dataset.first;
  if (!nodes.length) return;
  const leaves = Math.max(...nodes.map((node) => node.row)) + 1;
  const [high, row] = leaves > CROWDED ? [18, 21] : [22, 28];
  const tops = nodes.filter((node) => node.parent < 0).map((node) => node.row);
  const rootRow = (tops[0] + tops.at(-1)) / 2;
  const x = (depth) => PAD + depth * COLUMN, y = (at) => PAD + high / 2 + at * row;
  for (const node of nodes) {
    const from = node.parent < 0 ? rootRow : nodes[node.parent].row;
    drawEdge(group, x(node.depth - 1) + BOX, y(from), x(node.depth), y(node.row), node.fate, node.depth);
  }
  drawNode(group, x(0), y(rootRow), high, "root", 0, rootText(index), null, -1);
  for (const node of nodes) drawNode(group, x(node.depth), y(node.row), high, node.fate, node.depth, node.text, node.drafted, node.index);
  extent = [x(Math.max(...nodes.map((node) => node.depth))) + BOX + PAD, y(leaves - 1) + high / 2 + PAD];
  svg.setAttribute("viewBox", `0 0 ${extent[0]} ${extent[1]}`);
  const path = nodes.filter((node) => node.fate === "accepted");
  svg.querySelector("title").textContent = `Draft tree of step ${index}`;
  svg.querySelector("desc").textContent = `${plural(nodes.length, "drafted node")}; accepted: ${path.map((node) => visible(node.text)).join(" ") || "none"}`;
  resize();
  const end = path.at(-1);
  tree.scrollTop = y(((end?.row ?? rootRow) + rootRow) / 2) * zoom - tree.clientHeight / 2;
  tree.scrollLeft = (x(end?.depth ?? 0) + BOX) * zoom + PAD - tree.clientWidth;
}

function emptyWords(index) {
  if (!index) return "Step 0 is the prompt pass: the model reads the prompt and writes the first token. Nothing was drafted before it.";
  if (drafter === "standard") return "Standard decoding drafts nothing: each step is one pass of the model and one token.";
  if (steps.method[index].e) return "Only one token was left to write, so nothing was drafted for this last step: the model wrote that token by itself.";
  return "Nothing was drafted for this step: the model wrote one token by itself.";
}

function resize() {
  const [width, height] = extent;
  const whole = Math.min((tree.clientWidth - 2) / width, (tree.clientHeight - 2) / height, 1.3);
  if (mode === "fitted") zoom = Math.max(SMALLEST, whole);
  if (mode === "readable") zoom = Math.max(READABLE, whole);
  svg.setAttribute("width", width * zoom);
  svg.setAttribute("height", height * zoom);
}

function setZoom(how, value) {
  const middle = [(tree.scrollLeft + tree.clientWidth / 2) / zoom, (tree.scrollTop + tree.clientHeight / 2) / zoom];
  mode = how;
  zoom = Math.min(LARGEST, Math.max(SMALLEST, value));
  fit.textContent = mode === "fitted" ? "Readable" : "Fit";
  resize();
  tree.scrollLeft = middle[0] * zoom - tree.clientWidth / 2;
  tree.scrollTop = middle[1] * zoom - tree.clientHeight / 2;
}

function nodeHint(index, at) {
  const step = steps.method[index], nodes = family(step), node = nodes[at];
  if (!node) return "the newest committed token: the tree continues from here";
  const model = node.target === null ? "" : ` · model's probability ${percent(node.target)}`;
  const place = node.siblings.length > 1 ? `, rank ${node.rank} of ${node.siblings.length}` : "";
  return `${quoted(node.text)}, ${node.fate === "unreached" ? "not reached" : node.fate}\nstep ${index} · depth ${node.depth}${place} · drafted with ${percent(node.drafted)}${model}\n${why(step, node, nodes)}`;
}

tree.dataset.first = tree.dataset.empty;
part(".ss-in").addEventListener("click", () => setZoom("chosen", zoom * 1.25));
part(".ss-out").addEventListener("click", () => setZoom("chosen", zoom / 1.25));
fit.addEventListener("click", () => setZoom(mode === "fitted" ? "readable" : "fitted", zoom));
tree.addEventListener("wheel", (event) => {
  if (!event.ctrlKey) return;
  event.preventDefault();
  setZoom("chosen", zoom * (event.deltaY < 0 ? 1.1 : 1 / 1.1));
}, { passive: false });
new ResizeObserver(() => extent[0] && resize()).observe(tree); // a tab that was hidden has no width until it is shown
