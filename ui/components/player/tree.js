// The tree of one step. On a wide page columns are depths and every leaf has a row of its own, so that no two labels
// can overlap; on a narrow one every guess has a row, indented by its depth, as files in folders.
const SVG = "http://www.w3.org/2000/svg";
const COLUMN = 125, BOX = 108, PAD = 8, CROWDED = 18, SMALLEST = 0.35, LARGEST = 3, READABLE = 0.83, INDENT = 22;
const tree = part(".ss-tree"), fit = part(".ss-fit");
const narrow = matchMedia("(max-width: 720px)");
let drafter = ""; // the name of the method
let svg = part(".ss-tree svg"); // a new one for each step: one that grew and moved would be a shift of the layout
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

// Where things go: x and y (the middle) of a node by its index, -1 the root, and the path of an edge.
function across(nodes) {
  const leaves = Math.max(...nodes.map((node) => node.row)) + 1;
  const [high, row] = leaves > CROWDED ? [18, 21] : [22, 28];
  const tops = nodes.filter((node) => node.parent < 0).map((node) => node.row);
  const place = (depth, at) => [PAD + depth * COLUMN, PAD + high / 2 + at * row];
  const at = [...nodes.map((node) => place(node.depth, node.row))];
  at[-1] = place(0, (tops[0] + tops.at(-1)) / 2);
  const edge = ([x0, y0], [x1, y1]) => `M${x0 + BOX},${y0} C${(x0 + BOX + x1) / 2},${y0} ${(x0 + BOX + x1) / 2},${y1} ${x1},${y1}`;
  return { at, high, edge };
}

function downwards(nodes) {
  const at = [], high = 24, row = 30;
  let next = 0;
  const put = (index, depth) => {
    at[index] = [PAD + depth * INDENT, PAD + high / 2 + row * next++];
    nodes.filter((node) => node.parent === index).sort((a, b) => a.rank - b.rank).forEach((node) => put(node.index, depth + 1));
  };
  put(-1, 0);
  const edge = ([x0, y0], [x1, y1]) => `M${x0 + INDENT / 2},${y0 + high / 2} V${y1} H${x1}`;
  return { at, high, edge };
}

function drawNode(group, [x, y], high, kind, depth, text, probability, index, copied = false) {
  const box = make("g", { class: `ss-node ${kind} ${depthClass(depth)}${copied ? " copied" : ""}`, transform: `translate(${x},${y})`, "data-node": index });
  box.append(make("rect", { width: BOX, height: high, rx: 5, y: -high / 2 }));
  box.append(make("text", { x: 7, y: 4 }, short(visible(text), probability === null ? 13 : 10)));
  if (probability !== null) {
    box.append(make("text", { x: BOX - 6, y: 4, class: "ss-prob" }, percent(probability)));
    for (const [name, value] of Object.entries({ role: "button", tabindex: -1, "aria-label": `${visible(text)}, ${copied ? "copied, " : ""}${SAID[kind]}` })) box.setAttribute(name, value);
  }
  group.append(box);
}

function drawTree(index) {
  const step = steps.method[index], nodes = step ? family(step) : [];
  const group = document.createElementNS(SVG, "g"), fresh = svg.cloneNode(false);
  fresh.append(group);
  svg.replaceWith(fresh);
  svg = fresh;
  tree.classList.toggle("ss-none", nodes.length === 0);
  part(".ss-tree-title").textContent = nodes.length ? `Draft of step ${index}` : "Draft";
  tree.dataset.empty = step ? emptyWords(index) : tree.dataset.first;
  if (!nodes.length) return;
  const { at, high, edge } = (narrow.matches ? downwards : across)(nodes);
  for (const node of nodes) group.append(make("path", { class: `ss-edge ${node.fate} ${depthClass(node.depth)}`, d: edge(at[node.parent], at[node.index]) }));
  drawNode(group, at[-1], high, "root", 0, rootText(index), null, -1);
  for (const node of nodes) drawNode(group, at[node.index], high, node.fate, node.depth, node.text, node.drafted, node.index, node.copied);
  extent = [Math.max(...at.map(([x]) => x)) + BOX + PAD, Math.max(at[-1][1], ...at.map(([, y]) => y)) + high / 2 + PAD];
  svg.setAttribute("viewBox", `0 0 ${extent[0]} ${extent[1]}`);
  const path = nodes.filter((node) => node.fate === "accepted");
  svg.setAttribute("aria-label", `${plural(nodes.length, "drafted token")} of step ${index}; accepted: ${path.map((node) => visible(node.text)).join(" ") || "none"}`);
  rove(group.querySelector(`[data-node="${path[0]?.index ?? 0}"]`));
  resize();
  const [x, y] = at[path.at(-1)?.index ?? -1];
  tree.scrollTop = ((y + at[-1][1]) / 2) * zoom - tree.clientHeight / 2;
  tree.scrollLeft = (x + BOX) * zoom + PAD - tree.clientWidth;
}

function emptyWords(index) {
  if (!index) return "Step 0 reads the prompt and writes the first token. Nothing was drafted before it.";
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
  if (!node) return "the newest word of the text: the draft continues from here";
  const model = node.target === null ? "" : ` · model's probability ${percent(node.target)}`;
  const place = node.siblings.length > 1 ? `, rank ${node.rank} of ${node.siblings.length}` : "";
  return `${quoted(node.text)}, ${SAID[node.fate]}\nstep ${index} · depth ${node.depth}${place} · ${node.copied ? "copied from the text before" : "drafted"} with ${percent(node.drafted)}${model}\n${why(step, node, nodes)}`;
}

// One of the nodes is reached by Tab; from there the arrows lead to its parent, its first child and its siblings.
function rove(node) {
  tree.querySelector('.ss-node[tabindex="0"]')?.setAttribute("tabindex", -1);
  node?.setAttribute("tabindex", 0);
}

function neighbour(node, nodes, key) {
  const children = nodes.filter((other) => other.parent === node.index).sort((a, b) => a.rank - b.rank);
  const beside = [...node.siblings].sort((a, b) => a.row - b.row), place = beside.indexOf(node);
  return { ArrowLeft: nodes[node.parent], ArrowRight: children[0], ArrowUp: beside[place - 1], ArrowDown: beside[place + 1] }[key];
}

function walkTree(event) {
  const from = event.target.closest?.(".ss-node[tabindex]"), nodes = from ? family(steps.method[cursor]) : [];
  if (!from) return;
  const node = nodes[from.dataset.node], chosen = event.key === "Enter" || event.key === " ";
  if (!chosen && !event.key.startsWith("Arrow")) return;
  event.preventDefault();
  event.stopPropagation();
  if (chosen) return done && choose(cursor, node.index, -1);
  const to = neighbour(node, nodes, event.key);
  if (!to) return;
  const target = tree.querySelector(`[data-node="${to.index}"]`);
  rove(target);
  target.focus();
}

tree.dataset.first = tree.dataset.empty;
part(".ss-in").addEventListener("click", () => setZoom("chosen", zoom * 1.25));
part(".ss-out").addEventListener("click", () => setZoom("chosen", zoom / 1.25));
fit.addEventListener("click", () => setZoom(mode === "fitted" ? "readable" : "fitted", zoom));
tree.addEventListener("keydown", walkTree);
tree.addEventListener("wheel", (event) => {
  if (!event.ctrlKey) return;
  event.preventDefault();
  setZoom("chosen", zoom * (event.deltaY < 0 ? 1.1 : 1 / 1.1));
}, { passive: false });
new ResizeObserver(() => extent[0] && resize()).observe(tree); // a tab that was hidden has no width until it is shown
narrow.addEventListener("change", () => element.isConnected && drawTree(cursor));
