// Small curves over the last minutes, with axes and units.

import { draw, make, say, set } from "./dom.js";

const HEIGHT = 112;
const LEFT = 46;
const RIGHT = 8;
const TOP = 8;
const BOTTOM = 18;
const SPANS_S = [60, 120, 300];
const GAP_S = 3.5;
const MOST_TICKS = 6;

export class Chart {
  /**
   * @param title of the figure
   * @param series [{name, of(point) → number or null}], the first one filled
   * @param write number → text, for axis and legend
   * @param least where a linear axis ends at least
   * @param isLog whether the axis has powers of ten
   */
  constructor(place, { title, series, write, least = 0, isLog = false }) {
    this.series = series;
    this.write = write;
    this.least = least;
    this.isLog = isLog;
    this.legend = series.map(() => make("b"));
    const names = series.map(({ name }, index) =>
      make("span", { class: `series s${index}` }, `${name} `, this.legend[index]));
    this.ticks = Array.from({ length: MOST_TICKS }, () => ({
      line: draw("line", { class: "grid", x1: LEFT }),
      text: draw("text", { x: LEFT - 6, "text-anchor": "end", class: "tick" }),
    }));
    this.begin = draw("text", { x: LEFT, y: HEIGHT - 4, class: "tick" });
    this.end = draw("text", { y: HEIGHT - 4, "text-anchor": "end", class: "tick" }, "now");
    this.area = draw("path", { class: "area" });
    this.lines = series.map((_, index) => draw("path", { class: `line s${index}` }));
    this.svg = draw("svg", { role: "img", height: HEIGHT },
      ...this.ticks.flatMap(({ line, text }) => [line, text]),
      this.begin, this.end, this.area, ...[...this.lines].reverse());
    this.title = title;
    place.append(make("figure", { class: "panel" },
      make("figcaption", {}, make("h2", {}, title), make("p", {}, ...names)),
      make("div", {}, this.svg)));
  }

  /** Draw points, the newest last; `now` is the end of the time axis. */
  show(points, now) {
    const width = Math.max(160, Math.floor(this.svg.parentElement.clientWidth));
    set(this.svg, "width", width);
    const age = points.length ? now - points[0].time : 0;
    const span = SPANS_S.find((one) => one >= age) ?? SPANS_S.at(-1);
    const shown = points.filter((point) => point.time >= now - span);
    const values = this.series.flatMap(({ of }) => shown.map(of)).filter((one) => one !== null);
    const scale = this.isLog ? logScale(values) : linearScale(this.least, values);
    const right = width - RIGHT;
    const x = (time) => LEFT + (1 - (now - time) / span) * (right - LEFT);
    const y = (value) => HEIGHT - BOTTOM - scale.part(value) * (HEIGHT - BOTTOM - TOP);
    this.ticks.forEach(({ line, text }, index) => {
      const value = scale.ticks[index];
      const visibility = value === undefined ? "hidden" : "visible";
      set(line, "visibility", visibility);
      set(text, "visibility", visibility);
      if (value === undefined) return;
      set(line, "x2", right);
      set(line, "y1", y(value));
      set(line, "y2", y(value));
      set(text, "y", y(value) + 3.5);
      say(text, this.write(value));
    });
    say(this.begin, `${span / 60} min ago`);
    set(this.end, "x", right);
    this.series.forEach(({ of }, index) => {
      const runs = runsOf(shown, of);
      const path = runs.map((run) => `M${run.map((p) => at(x(p.time), y(of(p)))).join("L")}`);
      set(this.lines[index], "d", path.join(""));
      if (index === 0 && !this.isLog) {
        const filled = runs.map((run, number) =>
          `${path[number]}L${at(x(run.at(-1).time), y(0))}L${at(x(run[0].time), y(0))}Z`);
        set(this.area, "d", filled.join(""));
      }
      const last = points.length ? of(points.at(-1)) : null;
      say(this.legend[index], last === null ? "–" : this.write(last));
    });
    const words = this.series.map(({ name }, index) => `${name} ${this.legend[index].textContent}`);
    set(this.svg, "aria-label", `${this.title}: ${words.join(", ")}`);
  }
}

const at = (x, y) => `${x.toFixed(1)} ${y.toFixed(1)}`;

/** Cut points where nothing was measured, so that a line shows no more than was seen. */
function runsOf(points, of) {
  const runs = [];
  let before = null;
  for (const point of points) {
    if (of(point) === null) {
      before = null;
      continue;
    }
    if (before === null || point.time - before.time > GAP_S) runs.push([]);
    runs.at(-1).push(point);
    before = point;
  }
  return runs;
}

/** Make an axis from 0. */
function linearScale(least, values) {
  const top = niceAbove(Math.max(least, ...values));
  return { ticks: [0, top / 2, top], part: (value) => value / top };
}

/** Make an axis of whole powers of ten around the values, at least one of them. */
function logScale(values) {
  const powers = values.filter((value) => value > 0).map(Math.log10);
  const low = powers.length ? Math.floor(Math.min(...powers)) : -2;
  const high = Math.max(low + 1, powers.length ? Math.ceil(Math.max(...powers)) : 0);
  const step = Math.ceil((high - low + 1) / MOST_TICKS);
  const ticks = [];
  for (let power = low; power <= high; power += step) ticks.push(10 ** power);
  return { ticks, part: (value) => (Math.log10(Math.max(value, 10 ** low)) - low) / (high - low) };
}

/** Round up to 1, 2, 4 or 6 times a power of ten: halves are whole too. */
function niceAbove(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return power * ([1, 2, 4, 6, 10].find((step) => step * power >= value * 0.999) ?? 10);
}
