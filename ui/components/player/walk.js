// The walk through a run: play at the measured pace, pause, step, choose a token or a node. And the messages' entrance.
const slider = part(".ss-slider"), speed = part(".ss-speed"), playButton = part(".ss-play"), tip = part(".ss-tip");
const box = part(".ss-player");
let run = null, done = false, follow = true, cursor = -1, timer = 0, slowed = false;

const ends = (lane) => {
  let sum = 0;
  return steps[lane].map((step) => (sum += step.s.reduce((total, ms) => total + ms, 0)));
};
const countUntil = (times, moment) => times.findLastIndex((end) => end <= moment + 0.001);
const last = () => steps.method.length - 1;

// Scroll inside a pane only: the page stays where it is.
function into(pane, child) {
  if (!child) return;
  const place = child.getBoundingClientRect(), around = pane.getBoundingClientRect();
  if (place.top < around.top) pane.scrollTop -= around.top - place.top + 8;
  if (place.bottom > around.bottom) pane.scrollTop += place.bottom - around.bottom + 8;
}

// live: the newest step of a run that goes on. Then no text is later than it, and nothing has to be marked.
function show(index, baseline, live = false) {
  cursor = index;
  if (!live) markText("method", index);
  if (!live) markText("baseline", baseline ?? (index < last() && done ? countUntil(ends("baseline"), ends("method")[index]) : steps.baseline.length));
  drawTree(index);
  drawPhases(index);
  part(".ss-caption").textContent = caption(index);
  if (done && !timer) drawDetail(index);
  slider.max = Math.max(last(), 0);
  slider.value = Math.max(index, 0);
  for (const control of [slider, part(".ss-prev"), part(".ss-next")]) control.disabled = last() <= 0;
  playButton.disabled = !done || last() <= 0;
  part(".ss-where").textContent = index < 0 ? "–" : `${index} of ${last()}`;
}

function walk(index, settled) {
  pause();
  const to = Math.min(Math.max(index, 0), last());
  follow = !done && to === last();
  show(to);
  into(part(".ss-method"), part(".ss-method").children[to]);
  if (settled && done) trigger("select", { index: to, value: run });
}

function choose(step, node, token) {
  if (step !== cursor) walk(step, true);
  for (const chosen of element.querySelectorAll(".ss-chosen")) chosen.classList.remove("ss-chosen");
  const at = node >= 0 ? steps.method[step].t.findIndex((one) => one[3] === node) : token;
  const found = [part(`.ss-node[data-node="${node}"]`), part(`.ss-detail tr[data-node="${node}"]`)];
  if (at >= 0) found.push(part(`.ss-method .ss-step[data-index="${step}"]`)?.children[at]);
  for (const one of found) one?.classList.add("ss-chosen");
  into(part(".ss-detail"), found[1]);
}

function play() {
  const method = ends("method"), baseline = ends("baseline");
  const total = Math.max(method.at(-1) ?? 0, baseline.at(-1) ?? 0);
  const again = cursor >= last();
  if (again) walk(0, false);
  const from = again ? 0 : method[cursor], began = performance.now(), pace = Number(speed.value);
  box.classList.add("ss-playing");
  part(".ss-detail").classList.add("ss-stale");
  setPlay(true);
  const tick = () => {
    const moment = from + (performance.now() - began) * pace;
    const to = Math.max(countUntil(method, moment), 0), other = countUntil(baseline, moment);
    if (moment >= total) return finish();
    if (to !== cursor) show(to, other);
    else markText("baseline", other);
    into(part(".ss-method"), part(".ss-method").children[to]);
    into(part(".ss-baseline"), part(".ss-baseline").children[other]);
    const next = Math.min(...[method[to + 1], baseline[other + 1]].filter((end) => end !== undefined), total);
    timer = setTimeout(tick, Math.max(30, (next - moment) / pace));
  };
  timer = setTimeout(tick, 0);
}

function finish() {
  pause();
  show(last());
  trigger("select", { index: cursor, value: run });
}

function pause() {
  clearTimeout(timer);
  timer = 0;
  box.classList.remove("ss-playing");
  part(".ss-detail").classList.remove("ss-stale");
  setPlay(false);
}

function setPlay(playing) {
  playButton.textContent = playing ? "Pause" : "Play";
}

function reset(message) {
  pause();
  if (slowed) speed.value = "1"; // the recording's pace, not the visitor's
  slowed = false;
  const first = run === null;
  run = message.run;
  follow = true;
  cursor = -1;
  for (const lane of ["method", "baseline"]) {
    steps[lane] = [];
    part(".ss-" + lane).replaceChildren();
  }
  part(".ss-detail").hidden = true;
  const badge = part(".ss-badge");
  badge.textContent = message.note;
  badge.hidden = !message.note;
  if (!first && !message.done) comeIntoView();
}

function comeIntoView() {
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const block = box.offsetHeight > innerHeight - 120 ? "start" : "nearest";
  box.scrollIntoView({ block, behavior: calm ? "auto" : "smooth" });
}

function receive(text) {
  if (!text) return;
  const message = JSON.parse(text);
  if (message.run !== run) reset(message);
  const ended = message.done && !done;
  done = message.done;
  drafter = message.drafter;
  part(".ss-method-title").textContent = message.title; // whether it copies is known when it has begun
  for (const lane of ["method", "baseline"]) {
    const at = message.at[lane];
    if (at > steps[lane].length) continue; // something was missed: the last message brings everything
    if (at < steps[lane].length) part(".ss-" + lane).replaceChildren();
    steps[lane] = steps[lane].slice(0, at).concat(message[lane]);
    appendText(lane);
  }
  box.dataset.state = done ? "done" : "running";
  if (timer && !ended) return;
  show(follow || cursor >= steps.method.length ? last() : cursor, undefined, follow && !done);
}

// Where a recording, which nobody has watched yet, is best entered: a step that both accepted and rejected some.
function enterRecording() {
  const count = (step, fate) => step.d.filter((node) => node[3] === fate).length;
  const worth = steps.method.map((step, i) => Math.min(count(step, "a"), 3) + Math.min(count(step, "r"), 2) - i / 100);
  speed.value = "0.25";
  slowed = true;
  walk(worth.indexOf(Math.max(...worth)), false);
}

function hint(target) {
  const token = target.closest(".ss-method .ss-tok"), node = target.closest(".ss-node");
  if (token) return [token, tokenHint(Number(token.parentNode.dataset.index), Number(token.dataset.token))];
  if (node) return [node, nodeHint(cursor, Number(node.dataset.node))];
  return [null, ""];
}

function showTip(target) {
  const [at, words] = target.closest ? hint(target) : [null, ""];
  tip.hidden = !at;
  if (!at) return;
  tip.textContent = words;
  const place = at.getBoundingClientRect(), around = box.getBoundingClientRect();
  tip.style.left = Math.max(0, Math.min(place.left - around.left, around.width - tip.offsetWidth)) + "px";
  tip.style.top = place.bottom - around.top + 6 + "px";
}

function click(target) {
  const token = target.closest(".ss-method .ss-tok"), node = target.closest("[data-node]");
  if (!done || !(token || node)) return;
  if (node) return choose(cursor, Number(node.dataset.node), -1);
  const index = Number(token.parentNode.dataset.index), at = Number(token.dataset.token);
  if (index !== cursor) walk(index, true);
  choose(index, steps.method[index].t[at][3], at);
}

function arrows(event) {
  const typing = event.target.closest?.("input, textarea, select, [contenteditable='true'], [role='tab'], [role='grid'], table");
  if (typing || event.altKey || event.ctrlKey || event.metaKey || !box.offsetParent || last() <= 0) return;
  const pane = event.target.closest?.("[role='region']"); // one that is wider than its frame keeps its own arrows
  if (pane && pane.scrollWidth > pane.clientWidth) return;
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!by) return;
  event.preventDefault();
  walk(cursor + by, true);
}

slider.addEventListener("input", () => walk(Number(slider.value), false));
slider.addEventListener("change", () => walk(Number(slider.value), true));
part(".ss-prev").addEventListener("click", () => walk(cursor - 1, true));
part(".ss-next").addEventListener("click", () => walk(cursor + 1, true));
playButton.addEventListener("click", () => (timer ? walk(cursor, true) : play()));
speed.addEventListener("change", () => {
  slowed = false;
  if (timer) pause(), play();
});
box.addEventListener("click", (event) => click(event.target));
box.addEventListener("mouseover", (event) => showTip(event.target));
box.addEventListener("mouseleave", () => (tip.hidden = true));
const listener = (event) => (element.isConnected ? arrows(event) : document.removeEventListener("keydown", listener));
document.addEventListener("keydown", listener);
watch("value", () => receive(props.value));
show(-1);
receive(props.value);
if (part(".ss-badge").textContent.startsWith("Recording")) enterRecording();
