// A step in words: what it yielded, where its time went, and every drafted token with both probabilities, its rank and why it was rejected.
function caption(index) {
  const step = steps.method[index];
  if (!step) return "";
  if (!index) return "Step 0 reads the prompt and writes the first token.";
  const accepted = step.d.filter((node) => node[3] === "a").length;
  const copies = step.c?.length ? `, ${step.c.length === step.d.length ? "all" : step.c.length} copied from the text before` : "";
  const draft = step.d.length ? `${plural(step.d.length, "token")} drafted${copies}, ${accepted} accepted. ` : "Nothing was drafted. ";
  const own = !step.d.length ? "The model's own token" : step.t.at(-1)?.[1] ? "The text ends there, so the model adds none of its own" : "Plus the model's own token";
  return `Step ${index}: ${draft}${own}: ${plural(step.t.length, "token")} in one pass, ${took(step).toFixed(0)} ms.`;
}

const took = (step) => step.s.reduce((sum, ms) => sum + ms, 0);

function drawPhases(index) {
  const step = steps.method[index];
  const bars = (step?.s ?? []).map((ms, i) => {
    const bar = tag("span", "ss-phase-" + PHASES[i]);
    bar.style.flexGrow = ms;
    return bar;
  });
  part(".ss-phases").replaceChildren(...bars);
  const rows = step && `${plural(step.r, "row")}${step.sr ? ` + ${plural(step.sr, "stream row")}` : ""} computed`;
  part(".ss-times").textContent = step ? `${PHASES.map((name, i) => `${name.replace("_", " ")} ${step.s[i].toFixed(1)}`).join(" · ")} ms · ${rows}` : "";
}

function detailRow(step, node, nodes) {
  const row = tag("tr", node.fate);
  row.dataset.node = node.index;
  const token = tag("th");
  token.scope = "row";
  token.append(tag("code", "", visible(node.text)));
  const cells = [node.copied ? "copied" : "guessed", node.depth, `${node.rank} of ${node.siblings.length}`, percent(node.drafted), node.target === null ? "–" : percent(node.target)];
  row.append(token, ...cells.map((value) => tag("td", "ss-number", value)), tag("td", "", `${SAID[node.fate]}: ${why(step, node, nodes)}`));
  return row;
}

function drawDetail(index) {
  const step = steps.method[index], box = part(".ss-detail");
  const nodes = step ? family(step) : [];
  part(".ss-more").classList.toggle("ss-none", !nodes.length);
  if (!nodes.length) return box.replaceChildren();
  const table = tag("table"), head = tag("tr"), body = tag("tbody");
  for (const name of ["drafted token", "origin", "tokens ahead", "rank", "drafted with", "model gives", "what became of it"]) {
    const cell = tag("th", "", name);
    cell.scope = "col";
    head.append(cell);
  }
  const order = [...nodes].sort((a, b) => reached(b, nodes) - reached(a, nodes) || a.depth - b.depth || a.parent - b.parent || a.rank - b.rank);
  body.append(...order.map((node) => detailRow(step, node, nodes)));
  const own = step.t.findLast(([, depth]) => !depth);
  const chosen = own ? ` Chosen by the model in this step: ${quoted(own[0])} (${percent(own[2])}).` : "";
  const title = tag("caption", "", `All ${plural(nodes.length, "drafted token")} of step ${index}, continuing ${quoted(rootText(index))}.${chosen}`);
  const headRow = tag("thead");
  headRow.append(head);
  table.append(title, headRow, body);
  box.replaceChildren(table);
}
