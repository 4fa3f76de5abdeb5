// What every part of the player needs. The files of this folder run as one script, in the order that __init__.py gives.
// Messages are JSON texts, see ui/state/feed.py. Text from the model only ever goes into textContent.
const DEEPEST = 5;
const FATE = { a: "accepted", r: "rejected", u: "unreached", p: "pruned" };
const SAID = { accepted: "accepted", rejected: "rejected", unreached: "not checked", pruned: "pruned" };
const PHASES = ["draft", "draft_pass", "verify", "accept", "keep"];
const part = (name) => element.querySelector(name);
const steps = { method: [], baseline: [] };

const hex = (control) => "\\x" + control.charCodeAt(0).toString(16).padStart(2, "0");
const visible = (text) => text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replace(/^ /, "␣").replace(/[\u0000-\u001f\u007f]/g, hex) || "∅";
const percent = (p) => (p >= 0.995 ? "1.0" : p.toFixed(2).replace(/^0/, ""));
const quoted = (text) => `“${visible(text)}”`;
const depthClass = (depth) => "d" + Math.min(depth, DEEPEST);
const plural = (count, word, many = word + "s") => `${count} ${count === 1 ? word : many}`;

const wide = (letter) => (letter.codePointAt(0) >= 0x2e80 ? 2 : 1); // Chinese, Korean, emoji: two columns
const columns = (text) => [...text].reduce((sum, letter) => sum + wide(letter), 0);
function short(text, most) {
  const letters = [...text];
  let used = 0;
  const end = letters.findIndex((letter) => (used += wide(letter)) > most);
  return end < 0 ? text : letters.slice(0, end - 1).join("") + "…";
}

// Where a box can be scrolled further, its content fades out: see the style.
function fade(box) {
  const { scrollTop, scrollLeft } = box;
  const rest = { above: scrollTop, below: box.scrollHeight - box.clientHeight - scrollTop, left: scrollLeft, right: box.scrollWidth - box.clientWidth - scrollLeft };
  for (const [side, pixels] of Object.entries(rest)) box.style.setProperty("--" + side, pixels > 1 ? "16px" : "0px");
}

// A note's time in the visitor's time zone and language, as the list of runs shows it.
function local(note) {
  return note.replace(/(\d{4}-\d\d-\d\d) (\d\d:\d\d) UTC/, (_, day, time) => new Date(`${day}T${time}Z`).toLocaleString([], { dateStyle: "medium", timeStyle: "short" }));
}

function tag(name, className, text) {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

const copied = (step, node) => step.c?.includes(node) ?? false;

// A step's tree with what follows from it: depth, siblings in the order of their drafted probability, and rank.
function family(step) {
  const nodes = step.d.map(([text, parent, drafted, fate, target, row]) => ({ text, parent, drafted, fate: FATE[fate], target, row }));
  nodes.forEach((node, i) => {
    node.index = i;
    node.copied = copied(step, i);
    node.depth = node.parent < 0 ? 1 : nodes[node.parent].depth + 1;
    node.siblings = nodes.filter((other) => other.parent === node.parent).sort((a, b) => b.drafted - a.drafted);
  });
  for (const node of nodes) node.rank = node.siblings.indexOf(node) + 1;
  return nodes;
}

const reached = (node, nodes) => node.parent < 0 || nodes[node.parent].fate === "accepted";

// The model's own choice at the place where a node was drafted: [text, depth, probability, node], if it got there.
const choice = (step, node) => step.t[node.depth - 1];

function why(step, node, nodes) {
  if (node.fate === "accepted") return "the model chose it too";
  if (node.fate === "pruned") return "pruned inside the pass, before the model scored it";
  if (node.fate === "unreached") return unreached(node, nodes);
  const [text, , probability] = choice(step, node) ?? ["", 0, 0];
  return `the model chose ${quoted(text)}, to which it gives ${percent(probability)}`;
}

function unreached(node, nodes) {
  let first = node; // on the way down, the first that was not accepted
  while (first.parent >= 0 && nodes[first.parent].fate !== "accepted") first = nodes[first.parent];
  return first.fate === "unreached" ? "the text ended before it" : `its ${first.index === node.parent ? "parent" : "ancestor"} ${quoted(first.text)} was ${SAID[first.fate]}`;
}
