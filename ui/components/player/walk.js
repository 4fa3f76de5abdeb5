// The walk through a run: play both texts at the measured pace, pause, choose a step, a token or a guess. And the
// messages' entrance. What plays by itself pauses under the pointer, and stands still where less motion is asked for.
const speed = part(".ss-speed"), playButton = part(".ss-play"), tip = part(".ss-tip"), box = part(".ss-player");
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const LOOPS = 3, REST = 2500; // of the recording; milliseconds between two
const SHORTEST = 2500, LONGEST = 8000; // milliseconds that the recording is shown for at least, and a run at most
let run = null, done = false, follow = true, cursor = -1, timer = 0, ownPace = true;
let replay = null; // what plays: {moment, seen, byItself, loops}

const ends = (lane) => {
  let sum = 0;
  return steps[lane].map((step) => (sum += took(step)));
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

// ``whole``: the text is shown to its end, with the step marked in it; else as far as it was written after the step.
function show(index, { baseline, whole = false } = {}) {
  cursor = index;
  const times = { method: ends("method"), baseline: ends("baseline") };
  const meanwhile = done && !whole && index < last() ? countUntil(times.baseline, times.method[index]) : steps.baseline.length - 1;
  const upTo = { method: whole ? last() : index, baseline: baseline ?? meanwhile };
  for (const lane of ["baseline", "method"]) {
    if (done || !follow) markText(lane, upTo[lane], lane === "method" && done ? index : -1);
    count(lane, upTo[lane], times[lane]);
  }
  drawTree(index);
  drawPhases(index);
  markStrip(index);
  part(".ss-caption").textContent = caption(index);
  if (done && !replay) drawDetail(index);
  for (const control of [part(".ss-prev"), part(".ss-next")]) control.disabled = last() <= 0;
  playButton.disabled = !done || last() <= 0;
  part(".ss-where").textContent = index < 0 ? "–" : `step ${index} of ${last()}`;
  part(".ss-where").classList.toggle("ss-stepped", index >= 0);
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
  if (step !== cursor || timer) walk(step, true);
  for (const chosen of element.querySelectorAll(".ss-chosen")) chosen.classList.remove("ss-chosen");
  const at = node >= 0 ? steps.method[step].t.findIndex((one) => one[3] === node) : token;
  const found = [part(`.ss-node[data-node="${node}"]`), part(`.ss-detail tr[data-node="${node}"]`)];
  if (at >= 0) found.push(part(`.ss-method .ss-step[data-index="${step}"]`)?.children[at]);
  for (const one of found) one?.classList.add("ss-chosen");
  into(part(".ss-detail"), found[1]);
  reveal(found[0]);
  if (done) trigger("input", { index: step, node, token: at });
}

// ---- playing -----------------------------------------------------------------------------------------------------------

function play(byItself = false, loops = 1) {
  pause();
  const again = byItself || cursor >= last();
  replay = { moment: again ? 0 : ends("method")[cursor], seen: performance.now(), byItself, loops };
  if (again) show(0, { baseline: -1 });
  box.classList.add("ss-playing");
  setPlay(true);
  timer = setTimeout(tick, 0);
}

const duration = () => Math.max(...["method", "baseline"].map((lane) => ends(lane).at(-1) ?? 0));
const held = () => replay.byItself && (box.matches(":hover") || !box.offsetParent);

function tick() {
  const now = performance.now(), pace = Number(speed.value);
  if (!held()) replay.moment += (now - replay.seen) * pace;
  replay.seen = now;
  const method = ends("method"), baseline = ends("baseline"), { moment } = replay;
  const total = duration();
  const to = Math.max(countUntil(method, moment), 0), other = countUntil(baseline, moment);
  if (moment >= total) return finish();
  if (to !== cursor) show(to, { baseline: other });
  else markText("baseline", other), count("baseline", other, baseline);
  into(part(".ss-method"), part(".ss-method").children[to]);
  into(part(".ss-baseline"), part(".ss-baseline").children[Math.max(other, 0)]);
  const next = Math.min(...[method[to + 1], baseline[other + 1]].filter((end) => end !== undefined), total);
  timer = setTimeout(tick, held() ? 100 : Math.max(30, (next - moment) / pace));
}

function finish() {
  const { byItself, loops } = replay;
  pause();
  if (!byItself) show(last());
  else enter();
  if (byItself && loops > 1) timer = setTimeout(() => (box.matches(":hover") ? null : play(true, loops - 1)), REST);
  else trigger("select", { index: cursor, value: run });
}

function pause() {
  clearTimeout(timer);
  timer = 0;
  replay = null;
  box.classList.remove("ss-playing");
  setPlay(false);
}

function setPlay(playing) {
  playButton.textContent = playing ? "Pause" : "Play";
}

// The step that tells most: one that kept some guesses and rejected some.
function telling() {
  const count = (step, fate) => step.d.filter((node) => node[3] === fate).length;
  const worth = steps.method.map((step, i) => Math.min(count(step, "a"), 3) + Math.min(count(step, "r"), 2) - i / 100);
  return worth.indexOf(Math.max(...worth));
}

function enter() {
  show(telling(), { whole: true });
  into(part(".ss-method"), part(".ss-method").children[cursor]);
}

// The pace at which both texts are seen in a few seconds; the visitor's own choice stays.
function setPace(pace) {
  if (ownPace && speed.value !== "1") return;
  ownPace = false;
  speed.value = String(pace);
}

function replayRun() {
  setPace([1, 2, 4].find((pace) => duration() / pace <= LONGEST) ?? 8);
  play(true);
}

// ---- messages ----------------------------------------------------------------------------------------------------------

function reset(message) {
  pause();
  if (!ownPace) speed.value = "1"; // the recording's pace, not the visitor's
  ownPace = true;
  const first = run === null;
  run = message.run;
  follow = true;
  cursor = -1;
  for (const lane of ["method", "baseline"]) {
    steps[lane] = [];
    part(".ss-" + lane).replaceChildren();
  }
  strip.replaceChildren();
  part(".ss-aloud").textContent = "";
  part(".ss-detail").replaceChildren();
  part(".ss-more").classList.add("ss-none");
  if (!first) document.documentElement.classList.remove("ss-returning");
  const badge = part(".ss-badge");
  badge.textContent = local(message.note);
  badge.hidden = !message.note;
  if (!message.done) afterDrawing(() => trigger("play"));
  if (!first && !message.done) part(".ss-texts").scrollIntoView({ block: "nearest", behavior: calm.matches ? "auto" : "smooth" });
}

// A hidden page draws nothing.
function afterDrawing(call) {
  document.hidden ? call() : requestAnimationFrame(() => requestAnimationFrame(call));
}

function receive(text) {
  if (!text) return;
  const message = JSON.parse(text);
  if (message.run !== run) reset(message);
  const ended = message.done && !done;
  done = message.done;
  drafter = message.drafter;
  part(".ss-method-title").textContent = message.title;
  part(".ss-texts").classList.toggle("ss-alone", drafter === "standard");
  part(".ss-baseline").dataset.empty = done ? "Standard decoding was not run." : "Measured next: the same prompt, one token a pass.";
  for (const lane of ["method", "baseline"]) {
    const at = message.at[lane];
    if (at > steps[lane].length) continue; // something was missed: the last message brings everything
    if (at < steps[lane].length) part(".ss-" + lane).replaceChildren();
    steps[lane] = steps[lane].slice(0, at).concat(message[lane]);
    appendText(lane);
  }
  box.dataset.state = done ? "done" : "running";
  if (replay && !ended) return;
  if (ended) return end(message);
  if (!done && follow) return showNewest();
  show(follow || cursor >= steps.method.length ? last() : cursor);
}

// Of a run that goes on no text is later than the newest step: only what is new is drawn.
function showNewest() {
  if (cursor !== last() || last() < 0) show(last()); // a run that waits shows nothing of the one before
  else count("baseline", steps.baseline.length - 1, ends("baseline"));
}

function end(message) {
  const live = !message.note;
  if (live) part(".ss-aloud").textContent = `Finished. ${part(".ss-method").textContent}`;
  if (!follow) return show(Math.min(cursor, last()));
  if (last() < 1) return show(last());
  if (live && steps.baseline.length > 1 && !calm.matches && box.offsetParent) return replayRun();
  enter();
  if (live) trigger("select", { index: cursor, value: run });
}

// ---- pointer and keys --------------------------------------------------------------------------------------------------

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
  tip.style.left = tip.style.top = "";
  if (narrow.matches) return; // there it is a card at the bottom
  const place = at.getBoundingClientRect(), around = box.getBoundingClientRect();
  tip.style.left = Math.max(0, Math.min(place.left - around.left, around.width - tip.offsetWidth)) + "px";
  tip.style.top = place.bottom - around.top + 6 + "px";
}

function click(target) {
  const token = target.closest(".ss-method .ss-tok"), node = target.closest("[data-node]");
  if (!done || !(token || node)) return;
  if (node) return choose(cursor, Number(node.dataset.node), -1);
  const index = Number(token.parentNode.dataset.index), at = Number(token.dataset.token);
  choose(index, steps.method[index].t[at][3], at);
}

// From the text the arrows lead from token to token.
function walkTokens(event) {
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key], token = event.target.closest(".ss-tok");
  if (token && (event.key === "Enter" || event.key === " ")) event.preventDefault(), click(token);
  if (!by) return;
  event.preventDefault();
  event.stopPropagation();
  const all = [...part(".ss-method").querySelectorAll(".ss-tok")];
  const to = token ? all[all.indexOf(token) + by] : part(`.ss-method .ss-step[data-index="${Math.max(cursor, 0)}"] .ss-tok`);
  to?.focus();
}

function arrows(event) {
  const typing = event.target.closest?.("input, textarea, select, [contenteditable='true'], [role='tab'], [role='grid'], [role='region'], table");
  if (typing || event.altKey || event.ctrlKey || event.metaKey || !box.offsetParent || last() <= 0) return;
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  const own = event.target === strip ? { ArrowDown: cursor - 1, ArrowUp: cursor + 1, Home: 0, End: last(), PageUp: cursor + 10, PageDown: cursor - 10 }[event.key] : undefined;
  if (!by && own === undefined) return;
  event.preventDefault();
  walk(by ? cursor + by : own, true);
}

function drag(event) {
  if (last() <= 0 || !(event.buttons & 1)) return;
  const bars = [...strip.children], at = bars.findLastIndex((one) => one.getBoundingClientRect().left <= event.clientX);
  walk(Math.max(at, 0), false);
}

strip.addEventListener("pointerdown", (event) => (strip.setPointerCapture(event.pointerId), drag(event)));
strip.addEventListener("pointermove", drag);
strip.addEventListener("pointerup", () => walk(cursor, true));
part(".ss-prev").addEventListener("click", () => walk(cursor - 1, true));
part(".ss-next").addEventListener("click", () => walk(cursor + 1, true));
playButton.addEventListener("click", () => (replay ? walk(cursor, true) : play()));
speed.addEventListener("change", () => (ownPace = true));
part(".ss-method").addEventListener("keydown", walkTokens);
for (const pane of element.querySelectorAll(".ss-text")) {
  pane.addEventListener("scroll", () => fade(pane), { passive: true });
  new ResizeObserver(() => fade(pane)).observe(pane);
}
box.addEventListener("click", (event) => click(event.target));
for (const event of ["mouseover", "focusin"]) box.addEventListener(event, ({ target }) => showTip(target));
for (const event of ["mouseleave", "focusout"]) box.addEventListener(event, () => (tip.hidden = true));
const listener = (event) => (element.isConnected ? arrows(event) : document.removeEventListener("keydown", listener));
document.addEventListener("keydown", listener);
watch("value", () => receive(props.value));
show(-1);
receive(props.value);
if (part(".ss-badge").textContent.startsWith("Recording") && !calm.matches) {
  setPace([0.5, 0.25].find((pace) => duration() / pace >= SHORTEST) ?? 0.125);
  play(true, LOOPS);
}
