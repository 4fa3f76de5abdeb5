// The tree of one step. On a wide page columns are depths and every leaf has a row of its own, so that no two labels
// can overlap; columns are as wide as their words, and what is deeper than the pane is wide goes on in a band below, as a
// long line of text does. On a narrow page every guess has a row, indented by its depth, as files in folders.
const SVG = "http://www.w3.org/2000/svg";
const BOX = 118, PAD = 8, CROWDED = 18, SMALLEST = 0.35, LARGEST = 3, READABLE = 0.83, ROOMY = 0.92, INDENT = 22, LEAST = 10;
const LETTER = 7.3, DIGIT = 6.1, GAP = 14, TURN = 16; // widths of letters, between two columns, and beside a band's beginning
const tree = part(".ss-tree"), fit = part(".ss-fit");
const narrow = matchMedia("(max-width: 720px)");
let drafter = ""; // the name of the method
let svg = part(".ss-tree svg"); // a new one for each step: one that grew and moved would be a shift of the layout
let zoom = 1, mode = "readable", extent = [0, 0], drawnFor = 0; // mode: readable (fit, but never small), fitted, chosen

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

// What a box holds: a mark if the token was rejected, its text, and its drafted probability (the root has none).
function boxed(text, longest, probability, kind) {
  const words = short(visible(text), longest), mark = kind === "rejected" ? 12 : 0;
  const figure = probability === null ? "" : percent(probability);
  return { words, mark, figure, width: 14 + mark + columns(words) * LETTER + (figure ? 7 + figure.length * DIGIT : 0) };
}

// Where things go: x, y (the middle) and width of a node by its index, -1 the root, and the path of an edge.
function across(nodes, boxes) {
  const deepest = Math.max(...nodes.map((node) => node.depth)), leaves = Math.max(...nodes.map((node) => node.row)) + 1;
  const [high, row] = leaves > CROWDED ? [18, 21] : [22, 28];
  const depthOf = (index) => nodes[index]?.depth ?? 0;
  const below = (index) => nodes.filter((node) => node.parent === index).sort((a, b) => a.row - b.row).map((node) => node.index);
  const wide = [boxes[-1].width, ...Array(deepest).fill(0)];
  for (const node of nodes) wide[node.depth] = Math.max(wide[node.depth], boxes[node.index].width);
  const room = (Math.max(tree.clientWidth, 300) - 2) / ROOMY, left = [], bands = [];
  let x = Infinity;
  wide.forEach((width, depth) => {
    if (x + width + PAD > room) bands.push([]), (x = PAD + (depth ? TURN : 0));
    bands.at(-1).push(depth);
    left[depth] = x;
    x += width + GAP;
  });
  const at = [], tops = [];
  let next = 0, top = 0;
  const put = (index, last) => {
    const children = depthOf(index) < last ? below(index).map((child) => put(child, last)) : [];
    const y = children.length ? (children[0] + children.at(-1)) / 2 : top + high / 2 + row * next++;
    at[index] = [left[depthOf(index)], y, wide[depthOf(index)]];
    return y;
  };
  for (const band of bands) {
    top = tops.length ? top + row * next + TURN : PAD;
    next = 0;
    for (const depth of band) tops[depth] = top;
    const first = band[0] ? nodes.filter((node) => node.depth === band[0]).sort((a, b) => a.row - b.row).map((node) => node.index) : [-1];
    for (const index of first) put(index, band.at(-1));
  }
  const parents = [...new Set(nodes.filter((node) => tops[node.depth] !== tops[node.depth - 1]).map((node) => node.parent))];
  const edge = (parent, child) => {
    const [x0, y0, width] = at[parent], [x1, y1] = at[child], from = x0 + width, middle = (from + x1) / 2;
    if (!parents.includes(parent)) return `M${from},${y0} C${middle},${y0} ${middle},${y1} ${x1},${y1}`;
    const aside = 3 * (parents.indexOf(parent) % 3), turn = tops[depthOf(child)] - TURN / 2 - aside;
    return `M${from},${y0} h${3 + aside} V${turn} H${PAD + aside} V${y1} H${x1}`; // round to the next band
  };
  return { at, high, edge };
}

function downwards(nodes) {
  const at = [], high = 24, row = 30;
  const deepest = Math.max(...nodes.map((node) => node.depth));
  const indent = Math.max(LEAST, Math.min(INDENT, ((Math.max(tree.clientWidth, 300) - 2) / ROOMY - BOX - 2 * PAD) / deepest));
  let next = 0;
  const put = (index, depth) => {
    at[index] = [PAD + depth * indent, PAD + high / 2 + row * next++, BOX];
    nodes.filter((node) => node.parent === index).sort((a, b) => a.rank - b.rank).forEach((node) => put(node.index, depth + 1));
  };
  put(-1, 0);
  const edge = (parent, child) => `M${at[parent][0] + indent / 2},${at[parent][1] + high / 2} V${at[child][1]} H${at[child][0]}`;
  return { at, high, edge };
}

function drawNode(group, [x, y, width], high, kind, depth, text, box, index, copied = false) {
  const one = make("g", { class: `ss-node ${kind} ${depthClass(depth)}${copied ? " copied" : ""}`, transform: `translate(${x},${y})`, "data-node": index });
  one.append(make("rect", { width, height: high, rx: 5, y: -high / 2 }));
  if (box.mark) one.append(make("path", { class: "ss-cross", d: "M7,-3.5 l7,7 m0,-7 l-7,7" }));
  one.append(make("text", { x: 7 + box.mark, y: 4 }, box.words));
  if (box.figure) {
    one.append(make("text", { x: width - 6, y: 4, class: "ss-prob" }, box.figure));
    for (const [name, value] of Object.entries({ role: "button", tabindex: -1, "aria-label": `${visible(text)}, ${copied ? "copied, " : ""}${SAID[kind]}` })) one.setAttribute(name, value);
  }
  group.append(one);
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
  drawnFor = tree.clientWidth;
  const boxes = nodes.map((node) => boxed(node.text, 9, node.drafted, node.fate));
  boxes[-1] = boxed(rootText(index), 12, null, "root");
  const { at, high, edge } = (narrow.matches ? downwards : across)(nodes, boxes);
  for (const node of nodes) group.append(make("path", { class: `ss-edge ${node.fate} ${depthClass(node.depth)}`, d: edge(node.parent, node.index) }));
  drawNode(group, at[-1], high, "root", 0, rootText(index), boxes[-1], -1);
  for (const node of nodes) drawNode(group, at[node.index], high, node.fate, node.depth, node.text, boxes[node.index], node.index, node.copied);
  const all = [at[-1], ...at];
  extent = [Math.max(...all.map(([x, , width]) => x + width)) + PAD + 4, Math.max(...all.map(([, y]) => y)) + high / 2 + PAD];
  svg.setAttribute("viewBox", `0 0 ${extent[0]} ${extent[1]}`);
  const path = nodes.filter((node) => node.fate === "accepted");
  svg.setAttribute("aria-label", `${plural(nodes.length, "drafted token")} of step ${index}; accepted: ${path.map((node) => visible(node.text)).join(" ") || "none"}`);
  rove(group.querySelector(`[data-node="${path[0]?.index ?? 0}"]`));
  resize();
  tree.scrollTop = at[-1][1] * zoom - tree.clientHeight / 2; // it begins at the root
  tree.scrollLeft = 0;
  fade(tree);
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

// Scroll to a node that is out of sight.
function reveal(node) {
  if (!node) return;
  const place = node.getBoundingClientRect(), around = tree.getBoundingClientRect();
  if (place.left < around.left || place.right > around.right) tree.scrollLeft += place.left + place.width / 2 - around.left - around.width / 2;
  if (place.top < around.top || place.bottom > around.bottom) tree.scrollTop += place.top + place.height / 2 - around.top - around.height / 2;
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
  return `${quoted(node.text)}, ${SAID[node.fate]}\nstep ${index} · ${plural(node.depth, "token")} ahead${place} · ${node.copied ? "copied from the text before" : "drafted"} with ${percent(node.drafted)}${model}\n${why(step, node, nodes)}`;
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
// A tab that was hidden has no width until it is shown.
new ResizeObserver(() => {
  if (!extent[0] || !tree.clientWidth) return;
  if (tree.clientWidth !== drawnFor && element.isConnected) drawTree(cursor);
  resize();
  fade(tree);
}).observe(tree);
tree.addEventListener("scroll", () => fade(tree), { passive: true });
narrow.addEventListener("change", () => element.isConnected && drawTree(cursor));
