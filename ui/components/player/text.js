// The two texts: one span per token in one span per step.
function tokenSpan([text, depth], index) {
  const span = tag("span", "ss-tok " + depthClass(depth));
  span.dataset.token = index;
  span.append(...text.split(/(\n)/).map((piece) => (piece === "\n" ? tag("span", "ss-newline", piece) : piece))); // marked by the style: the text stays as it is
  return span;
}

function stepSpan(step, index) {
  const span = tag("span", "ss-step");
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

function markText(lane, to) {
  for (const span of part(".ss-" + lane).children) {
    const index = Number(span.dataset.index);
    span.classList.toggle("ss-later", index > to);
    span.classList.toggle("ss-now", lane === "method" && index === to);
  }
}

function tokenHint(index, at) {
  const step = steps.method[index], [text, depth, probability] = step.t[at];
  const origin = depth ? `drafted at depth ${depth}, accepted` : "chosen by the model";
  const nodes = family(step);
  const drafted = nodes.filter((node) => node.depth === at + 1 && reached(node, nodes)).sort((a, b) => a.rank - b.rank);
  const others = drafted.filter((node) => node.fate !== "accepted").map((node) => `${quoted(node.text)} ${percent(node.drafted)}`);
  const lines = [`${quoted(text)}, ${origin}`, `step ${index} · model's probability ${percent(probability)}`];
  if (others.length) lines.push(`also drafted here: ${others.slice(0, 6).join("  ")}${others.length > 6 ? " …" : ""}`);
  return lines.join("\n");
}
