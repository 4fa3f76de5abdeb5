// Measured runs raced on screen from their recorded times. The value is JSON text, see __init__.py beside this file.
// Text from the model only ever goes into textContent. Nothing moves once the race is over.
const TICK = 40, LONGEST = 8000; // milliseconds: between two looks, and that a race takes unless the visitor chose the pace
const part = (name) => element.querySelector(name);
const WAITS = { waiting: "waiting", measured: "measuring", over: "" };
let lanes = [], timer = 0, shown = "", run = null, chosen = false;

const plural = (count, one, many = one + "s") => `${count} ${count === 1 ? one : many}`;

function tag(name, className, text) {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function laneView(lane) {
  const view = tag("section", "ss-lane ss-lane-" + lane.colour);
  const head = tag("div", "ss-lane-head"), facts = tag("span", "ss-lane-facts");
  head.append(tag("h2", "", lane.label), facts);
  const track = tag("div", "ss-track"), fill = tag("span", "ss-fill");
  track.append(fill);
  const text = tag("div", "ss-text");
  text.tabIndex = 0;
  text.setAttribute("role", "region");
  text.setAttribute("aria-label", "Text of " + lane.label);
  text.dir = "auto";
  const verdict = tag("p", "ss-lane-verdict ss-" + (lane.tone ?? "plain"), lane.words ?? "");
  view.append(head, track, text, verdict);
  text.addEventListener("scroll", () => fade({ text }), { passive: true });
  new ResizeObserver(() => fade({ text })).observe(text);
  return { ...lane, view, facts, fill, text, verdict, at: 0, tokens: 0 };
}

function tokenSpan([text, depth], lane) {
  const span = tag("span", "ss-tok d" + Math.min(depth, 5), text);
  if (lane.tokens === lane.differs) {
    span.classList.add("ss-diff");
    span.title = "The first token that differs from standard decoding";
  }
  lane.tokens += 1;
  return span;
}

// Where a text can be scrolled further, it fades out: see the style.
function fade({ text }) {
  const rest = { above: text.scrollTop, below: text.scrollHeight - text.clientHeight - text.scrollTop };
  for (const [side, pixels] of Object.entries(rest)) text.style.setProperty("--" + side, pixels > 1 ? "16px" : "0px");
}

function advance(lane, moment) {
  const low = lane.text.scrollHeight - lane.text.scrollTop - lane.text.clientHeight < 40;
  while (lane.at < lane.steps.length && lane.steps[lane.at][0] <= moment) {
    const step = tag("span", "ss-step");
    step.append(...lane.steps[lane.at][1].map((token) => tokenSpan(token, lane)));
    lane.text.append(step);
    lane.at += 1;
  }
  if (low) lane.text.scrollTop = lane.text.scrollHeight;
  fade(lane);
  const over = lane.at >= lane.steps.length, seconds = Math.min(moment, lane.total) / 1000;
  lane.fill.style.width = lane.count ? (100 * lane.tokens) / lane.count + "%" : 0;
  const place = over && lane.place ? ` · ${lane.place}` : "";
  lane.facts.textContent = `${seconds.toFixed(1)} s · ${plural(lane.tokens, "token")} · ${plural(lane.at, "pass", "passes")}${place}`;
  lane.view.classList.toggle("ss-over", over);
  lane.verdict.hidden = !over;
  return over;
}

function restart() {
  for (const lane of lanes) {
    lane.at = lane.tokens = 0;
    lane.text.replaceChildren();
  }
}

function draw(moment) {
  const over = lanes.map((lane) => advance(lane, moment)).every(Boolean);
  const longest = Math.max(...lanes.map((lane) => lane.total));
  part(".ss-clock").textContent = `${(Math.min(moment, longest) / 1000).toFixed(1)} s`;
  return over;
}

function race() {
  stop();
  restart();
  const began = performance.now(), pace = Number(part(".ss-speed").value);
  part(".ss-skip").disabled = false;
  element.querySelector(".ss-race").dataset.state = "racing";
  const tick = () => (draw((performance.now() - began) * pace) ? stop() : (timer = setTimeout(tick, TICK)));
  tick();
}

function stop() {
  clearTimeout(timer);
  part(".ss-skip").disabled = true;
  element.querySelector(".ss-race").dataset.state = "over";
}

function finish() {
  stop();
  draw(Infinity);
}

function receive(value, fresh) {
  if (!value || value === shown) return;
  shown = value;
  const message = JSON.parse(value);
  message.done ? raced(message, fresh) : measured(message);
}

// While the methods are measured, one after the other, each is seen writing.
function measured(message) {
  stop();
  if (message.run !== run) {
    run = message.run;
    lanes = message.lanes.map((lane) => laneView({ ...lane, steps: [] }));
    part(".ss-lanes").replaceChildren(...lanes.map((lane) => lane.view));
    part(".ss-clock").textContent = "";
    part(".ss-lanes").scrollIntoView({ block: "nearest", behavior: calm() ? "auto" : "smooth" });
  }
  part(".ss-again").disabled = true;
  element.querySelector(".ss-race").dataset.state = "measuring";
  message.lanes.forEach(({ at, steps, state }, place) => {
    const lane = lanes[place];
    if (at === lane.steps.length) lane.steps.push(...steps);
    lane.total = lane.steps.at(-1)?.[0] ?? 0;
    advance(lane, Infinity);
    if (!lane.at) lane.facts.textContent = WAITS[state];
    lane.view.classList.toggle("ss-over", state === "over");
    lane.view.classList.toggle("ss-measured", state === "measured");
  });
}

function raced(message, fresh) {
  lanes = message.lanes.map(laneView);
  part(".ss-lanes").replaceChildren(...lanes.map((lane) => lane.view));
  part(".ss-again").disabled = !lanes.length;
  if (!lanes.length) return stop();
  if (fresh) part(".ss-walk").scrollIntoView({ block: "nearest", behavior: calm() ? "auto" : "smooth" });
  const longest = Math.max(...lanes.map((lane) => lane.total));
  if (!chosen) part(".ss-speed").value = String([1, 2, 4].find((pace) => longest / pace <= LONGEST) ?? 8);
  calm() ? finish() : race();
}

const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

part(".ss-again").addEventListener("click", race);
part(".ss-skip").addEventListener("click", finish);
part(".ss-speed").addEventListener("change", () => (chosen = true) && lanes.length && race());
watch("value", () => receive(props.value, true));
receive(props.value, false);
