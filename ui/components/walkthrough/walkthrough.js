// One step in four clicks, and the slider. Text from the model only ever goes into textContent.
const part = (name) => element.querySelector(name);
const STAGES = [
  ["Guess", "Beside the newest token, extra rows guess the tokens after it, one row for each token ahead. These are their likeliest answers, and how sure they are."],
  ["Grow a tree", "The guesses are joined to likely continuations: a tree that begins at the newest token. Several guesses for one place become branches."],
  ["Check in one pass", "All of them go through the model at once, each seeing only its own branch. In that one pass the model says for every place what it would have written itself."],
  ["Keep what is right", "From the top, guesses are kept as long as they are what the model would have written. At the first that is not, the model's own word is taken, and the rest is thrown away."],
];
let found = null, at = 0;
const visible = (text) => text.replaceAll("\n", "⏎").trim() || "␣";
const percent = (p) => `${Math.round(100 * p)} %`;

function tag(name, className, text) {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

const depthOf = (index) => (index < 0 ? 0 : 1 + depthOf(found.nodes[index][1]));
const childrenOf = (index) => found.nodes.map((node, i) => [node, i]).filter(([node]) => node[1] === index);

function word(text, kind, note) {
  const box = tag("span", `ss-word ${kind}`, visible(text));
  if (note) box.append(tag("small", "", note));
  return box;
}

function guesses() {
  const list = tag("ul", "ss-guesses");
  const deepest = Math.max(...found.nodes.map((_, i) => depthOf(i)));
  for (let depth = 1; depth <= deepest; depth++) {
    const seen = new Set(), row = tag("li"), words = tag("span", "ss-row");
    row.append(tag("span", "ss-words", `${depth} token${depth === 1 ? "" : "s"} ahead`), words);
    found.nodes.forEach(([text, , said], i) => {
      if (depthOf(i) !== depth || seen.has(text)) return;
      seen.add(text);
      words.append(word(text, "d" + Math.min(depth, 5), percent(said)));
    });
    list.append(row);
  }
  return list;
}

function branch(index, stage) {
  const list = tag("ul", "ss-branch");
  for (const [[text, , said, fate, target], i] of childrenOf(index)) {
    const item = tag("li"), depth = Math.min(depthOf(i), 5);
    const judged = { a: "✓ right", r: "✗ wrong", u: "not needed", p: "pruned" }[fate];
    const note = stage === 1 ? percent(said) : stage === 2 ? (target === null ? "not reached" : `model: ${percent(target)}`) : judged;
    const kind = stage < 2 || fate === "a" ? "d" + depth : "d0";
    item.append(word(text, `${kind} ${stage === 3 ? "fate-" + fate : ""}`, note), branch(i, stage));
    list.append(item);
  }
  return list;
}

function kept() {
  const row = tag("p", "ss-kept");
  const own = found.tokens.filter((token) => !token[1]).length;
  row.append(tag("strong", "", `${found.tokens.length} token${found.tokens.length === 1 ? "" : "s"} from one pass: `));
  for (const [text, depth] of found.tokens) row.append(word(text, "d" + Math.min(depth, 5), depth ? "guessed" : "the model's own"));
  row.append(tag("span", "ss-words", own ? " Standard decoding would have needed a pass for each." : " All were guessed."));
  return row;
}

function draw() {
  part(".ss-stages").replaceChildren(...STAGES.map(([name], i) => {
    const item = tag("li"), button = tag("button", "", `${i + 1}. ${name}`);
    button.type = "button";
    if (i === at) button.setAttribute("aria-current", "step");
    button.addEventListener("click", () => ((at = i), draw()));
    item.append(button);
    return item;
  }));
  part(".ss-told").textContent = found.told;
  part(".ss-so-far").replaceChildren(`…${found.before.slice(0, found.before.length - found.root.length)}`, tag("mark", "", found.root));
  const stage = tag("div");
  stage.append(tag("p", "", STAGES[at][1]), at === 0 ? guesses() : branch(-1, at));
  if (at === 3) stage.append(kept());
  part(".ss-scene").replaceChildren(stage);
  part(".ss-back").disabled = at === 0;
  part(".ss-next").textContent = at === STAGES.length - 1 ? "Start again" : "Next";
}

function weigh() {
  const right = Number(part(".ss-right").value) / 100, depth = Number(part(".ss-depth").value), cost = Number(part(".ss-dear").value);
  let tokens = 1;
  for (let n = 1; n <= depth; n++) tokens += right ** n;
  const times = tokens / cost, longest = Math.max(times, 1);
  part(".ss-rate").textContent = percent(right);
  part(".ss-ahead").textContent = `${depth} token${depth === 1 ? "" : "s"}`;
  part(".ss-cost").textContent = `${cost.toFixed(2)}×`;
  part(".ss-times").textContent = `${times.toFixed(1)}×`;
  part(".ss-one").style.width = `${100 / longest}%`;
  part(".ss-many").style.width = `${(100 * times) / longest}%`;
  const said = times > 1.05 ? `${times.toFixed(1)}× faster than` : times < 0.95 ? `${(1 / times).toFixed(1)}× slower than` : "as fast as";
  part(".ss-gain").textContent = `A pass yields ${tokens.toFixed(1)} tokens: ${said} standard decoding.`;
}

function receive(text) {
  if (!text) return;
  found = JSON.parse(text);
  at = 0;
  part(".ss-right").value = Math.round(100 * found.rate);
  part(".ss-depth").value = Math.min(found.depth, 8);
  part(".ss-dear").value = Math.min(found.cost, 4);
  draw();
  weigh();
}

part(".ss-back").addEventListener("click", () => ((at -= 1), draw()));
part(".ss-next").addEventListener("click", () => ((at = (at + 1) % STAGES.length), draw()));
for (const name of [".ss-right", ".ss-depth", ".ss-dear"]) part(name).addEventListener("input", weigh);
watch("value", () => receive(props.value));
receive(props.value);
