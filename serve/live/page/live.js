// The page: one view of the server at a time, drawn when the browser is ready for it.

import { Chart } from "./charts.js";
import { colour, count, duration, make, say, set, short } from "./dom.js";
import { Pools } from "./pools.js";
import { Requests, inWords } from "./requests.js";
import { Stream } from "./stream.js";

const KEY = "distkv-api-key";
const MOST_POINTS = 300;

const byId = (id) => document.getElementById(id);
const state = { view: null, points: [], focus: null, isPaused: false, isAsked: false };

const pools = new Pools(byId("pools"), focusOn);
const requests = new Requests(byId("requests"), focusOn);
const median = { name: "median" };
const p99 = { name: "p99" };
const charts = [
  {
    title: "Generated tokens / s", least: 10, write: short,
    series: [{ name: "now", of: (point) => point.generated_tokens_per_s }],
  },
  {
    title: "Prompt tokens / s", least: 10, write: short,
    series: [{ name: "now", of: (point) => point.prompt_tokens_per_s }],
  },
  {
    title: "Sequences", least: 4, write: short,
    series: [
      { name: "running", of: (point) => point.num_running },
      { name: "waiting", of: (point) => point.num_waiting },
    ],
  },
  {
    title: "Time to first token", isLog: true, write: duration,
    series: [
      { ...median, of: (point) => point.first_token?.median_s ?? null },
      { ...p99, of: (point) => point.first_token?.p99_s ?? null },
    ],
  },
  {
    title: "Time between tokens", isLog: true, write: duration,
    series: [
      { ...median, of: (point) => point.gap?.median_s ?? null },
      { ...p99, of: (point) => point.gap?.p99_s ?? null },
    ],
  },
].map((chart) => new Chart(byId("charts"), chart));

const latency = (one) =>
  one === null ? ["–", "none in the last 10 s"]
    : [duration(one.median_s), `median, p99 ${duration(one.p99_s)}`];

const TILES = [
  ["KV blocks used", ({ instances }) => {
    const total = instances.reduce((sum, one) => sum + one.total, 0);
    const used = total - instances.reduce((sum, one) => sum + one.free, 0);
    return [`${Math.round((100 * used) / total)} %`, `${count(used)} of ${count(total)}`];
  }],
  ["Lent blocks", ({ instances, num_debts }) => [
    count(instances.reduce((sum, one) => sum + one.lent, 0)),
    `in ${count(num_debts)} ${num_debts === 1 ? "debt" : "debts"}`,
  ]],
  ["Generated", ({ now, totals }) => [
    `${short(now.generated_tokens_per_s)} /s`, `${short(totals.generated_tokens)} tokens so far`,
  ]],
  ["Prompts", ({ now, totals }) => [
    `${short(now.prompt_tokens_per_s)} /s`, `${short(totals.prompt_tokens)} tokens so far`,
  ]],
  ["First token", ({ now }) => latency(now.first_token)],
  ["Between tokens", ({ now }) => latency(now.gap)],
  ["Spanning steps", ({ totals }) => [
    totals.num_steps ? `${Math.round((100 * totals.num_spanning_steps) / totals.num_steps)} %` : "–",
    `of ${short(totals.num_steps)} steps`,
  ]],
  ["Preemptions", ({ totals }) => [
    short(totals.num_preemptions), `${short(totals.num_moved_blocks)} blocks moved`,
  ]],
].map(([name, of]) => {
  const value = make("dd", {}, "–");
  const detail = make("dd", { class: "detail" });
  byId("tiles").append(make("div", {}, make("dt", {}, name), value, detail));
  return { value, detail, of };
});

const stream = new Stream({
  interval: () => Number(byId("interval").value),
  key: () => sessionStorage.getItem(KEY),
  onView(view) {
    const last = state.points.at(-1)?.time ?? 0;
    // A new stream begins with what an old one has told.
    state.points.push(...view.history.filter((point) => point.time > last));
    state.points.splice(0, state.points.length - MOST_POINTS);
    state.view = view;
    requestDraw();
  },
  onState: showState,
  onRefused: askForKey,
});

let isDrawAsked = false;
function requestDraw() {
  if (isDrawAsked) return;
  isDrawAsked = true;
  requestAnimationFrame(() => {
    isDrawAsked = false;
    if (state.view !== null) show(state.view);
  });
}

function show(view) {
  say(byId("model"), view.model);
  document.title = `${view.model} · DistKV`;
  if (view.is_draining) showState("draining", "draining: no new requests");
  for (const { value, detail, of } of TILES) {
    const [text, more] = of(view);
    say(value, text);
    say(detail, more);
  }
  const group = pools.show(view);
  const size = view.block_size * group;
  const what = group === 1 ? "a cell is a block" : `a cell is ${count(group)} blocks`;
  say(byId("scale"), `${what}, ${count(size)} tokens · colour: request · arrow: lent to, in blocks`);
  requests.show(view.requests);
  const running = view.requests.filter((request) => request.activity === "running").length;
  const hidden = view.num_hidden ? `, ${count(view.num_hidden)} not listed` : "";
  say(byId("counts"), `${running} running, ${view.requests.length - running} waiting${hidden}`);
  byId("idle").hidden = view.requests.length > 0;
  for (const chart of charts) chart.show(state.points, view.time);
  showFocus();
}

function focusOn(number) {
  if (number === state.focus) return;
  state.focus = number;
  showFocus();
}

function showFocus() {
  const request = state.view?.requests.find((one) => one.number === state.focus) ?? null;
  const number = request?.number ?? null;
  pools.highlight(request);
  requests.highlight(number);
  const line = byId("focus");
  set(line, "class", request === null ? "focus" : `focus ${colour(number)}`);
  say(line, request === null ? "Point at a request, or go to it with Tab, to see where its KV is"
    : inWords(request));
}

function showState(name, text) {
  const shown = name === "live" && state.view?.is_draining ? "draining" : name;
  set(byId("status"), "data-state", shown);
  say(byId("status"), shown === "draining" ? "draining: no new requests" : text);
  document.body.classList.toggle("stale", name === "lost" || name === "closed");
}

function askForKey(why) {
  const hadKey = sessionStorage.getItem(KEY) !== null;
  sessionStorage.removeItem(KEY);
  byId("forget").hidden = true;
  showState("closed", "a key is needed");
  say(byId("ask-why"), hadKey || state.isAsked ? why : "This server shows itself to its admins only.");
  state.isAsked = true;
  if (!byId("ask").open) byId("ask").showModal();
  byId("key").focus();
}

function begin() {
  byId("forget").hidden = sessionStorage.getItem(KEY) === null;
  showState("connecting", "connecting");
  stream.start();
}

function pause(isPaused) {
  state.isPaused = isPaused;
  set(byId("pause"), "aria-pressed", isPaused);
  say(byId("pause"), isPaused ? "Go on" : "Pause");
  if (!isPaused) return begin();
  stream.stop();
  showState("paused", "paused");
}

byId("ask-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, byId("key").value.trim());
  byId("key").value = "";
  byId("ask").close();
  begin();
});
byId("forget").addEventListener("click", () => {
  stream.stop();
  sessionStorage.removeItem(KEY);
  location.reload();
});
byId("interval").addEventListener("change", () => state.isPaused || begin());
byId("pause").addEventListener("click", () => pause(!state.isPaused));
// Nobody looks at a hidden tab: the server need not draw for it.
document.addEventListener("visibilitychange", () => {
  if (state.isPaused || byId("ask").open) return;
  if (document.hidden) stream.stop();
  else begin();
});
new ResizeObserver(requestDraw).observe(byId("pools"));

showFocus();
begin();
