// Measured runs raced on screen from their recorded times. The value is JSON text, see ui/race/__init__.py.
// Text from the model only ever goes into textContent. Nothing moves once the race is over.
const TICK = 40; // milliseconds
const part = (name) => element.querySelector(name);
let lanes = [], timer = 0, shown = "";

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
  const verdict = tag("p", "ss-lane-verdict ss-" + lane.tone, lane.words);
  view.append(head, track, text, verdict);
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

function advance(lane, moment) {
  const low = lane.text.scrollHeight - lane.text.scrollTop - lane.text.clientHeight < 40;
  while (lane.at < lane.steps.length && lane.steps[lane.at][0] <= moment) {
    for (const token of lane.steps[lane.at][1]) lane.text.append(tokenSpan(token, lane));
    lane.at += 1;
  }
  if (low) lane.text.scrollTop = lane.text.scrollHeight;
  const over = lane.at >= lane.steps.length, seconds = Math.min(moment, lane.total) / 1000;
  lane.fill.style.width = (100 * lane.tokens) / lane.count + "%";
  const place = over ? ` · ${lane.place}` : "";
  lane.facts.textContent = `${seconds.toFixed(2)} s · ${plural(lane.tokens, "token")} · ${plural(lane.at, "pass", "passes")}${place}`;
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
  lanes = JSON.parse(value).lanes.map(laneView);
  part(".ss-lanes").replaceChildren(...lanes.map((lane) => lane.view));
  part(".ss-again").disabled = !lanes.length;
  part(".ss-caption").hidden = lanes.length > 0;
  if (!lanes.length) return stop();
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  if (fresh) part(".ss-walk").scrollIntoView({ block: "start", behavior: calm ? "auto" : "smooth" });
  calm ? finish() : race();
}

part(".ss-again").addEventListener("click", race);
part(".ss-skip").addEventListener("click", finish);
part(".ss-speed").addEventListener("change", () => lanes.length && race());
watch("value", () => receive(props.value, true));
receive(props.value, false);
