// The two texts: one span per token in one frame per step. And the strip: one bar per step, as high as the tokens it yielded.
const strip = part(".ss-strip");

function tokenSpan([text, depth], index) {
  const span = tag("span", "ss-tok " + depthClass(depth));
  span.dataset.token = index;
  span.tabIndex = -1;
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
  fade(box);
  if (lane === "method") appendBars();
}

function bar(step, index) {
  const one = tag("i");
  one.dataset.index = index;
  const count = Math.max(step.t.length, 1), share = 100 / count;
  const colours = step.t.map(([, depth], i) => `var(--ss-d${Math.min(depth, DEEPEST)}) ${i * share}% ${(i + 1) * share}%`);
  one.style.background = `linear-gradient(to top, ${colours.join(",") || "transparent"})`;
  one.dataset.count = step.t.length;
  return one;
}

// Bars are as wide as fits; where more come than fit they are all made anew, narrower: none ever moves.
function appendBars() {
  const count = steps.method.length, width = [60, 44, 30, 22, 14, 9, 6, 4, 2].find((wide) => count * (wide + 2) < strip.clientWidth - 4) ?? 1;
  const most = Math.max(3, ...steps.method.map((step) => step.t.length));
  if (strip.style.getPropertyValue("--wide") !== width + "px" || Number(strip.dataset.most) !== most || strip.children.length > count) strip.replaceChildren();
  strip.style.setProperty("--wide", width + "px");
  strip.dataset.most = most;
  for (let i = strip.children.length; i < count; i++) strip.append(bar(steps.method[i], i));
  for (const one of strip.children) one.style.height = (100 * one.dataset.count) / most + "%";
  strip.classList.toggle("ss-many", width < 4);
}

function markStrip(index) {
  strip.querySelector(".ss-here")?.classList.remove("ss-here");
  strip.children[index]?.classList.add("ss-here");
  const tokens = steps.method[index]?.t.length ?? 0;
  const values = { valuemax: Math.max(last(), 0), valuenow: Math.max(index, 0), valuetext: `step ${Math.max(index, 0)} of ${Math.max(last(), 0)}: ${plural(tokens, "token")}`, disabled: last() <= 0 };
  for (const [name, value] of Object.entries(values)) strip.setAttribute("aria-" + name, value);
}

// ``to``: the last step that is shown as written; the rest of the text is faint. ``now``: the step that is looked at.
function markText(lane, to, now = -1) {
  for (const span of part(".ss-" + lane).children) {
    const index = Number(span.dataset.index);
    span.classList.toggle("ss-later", index > to);
    span.classList.toggle("ss-now", index === now);
  }
}

function count(lane, to, ends) {
  const passes = Math.min(to + 1, steps[lane].length);
  const words = passes > 0 ? `${plural(passes, "pass", "passes")}, ${(ends[passes - 1] / 1000).toFixed(1)} s` : "";
  part(`.ss-lane-box:has(.ss-${lane}) .ss-count`).textContent = words;
}

function tokenHint(index, at) {
  const step = steps.method[index], [text, depth, probability, from] = step.t[at];
  const origin = depth ? `${copied(step, from) ? "copied from the text before" : "drafted"} ${plural(depth, "token")} ahead, accepted` : "chosen by the model";
  const nodes = family(step);
  const drafted = nodes.filter((node) => node.depth === at + 1 && reached(node, nodes)).sort((a, b) => a.rank - b.rank);
  const others = drafted.filter((node) => node.fate !== "accepted").map((node) => `${quoted(node.text)} ${percent(node.drafted)}`);
  const lines = [`${quoted(text)}, ${origin}`, `step ${index} · model's probability ${percent(probability)}`];
  if (others.length) lines.push(`also drafted here: ${others.slice(0, 6).join("  ")}${others.length > 6 ? " …" : ""}`);
  return lines.join("\n");
}
