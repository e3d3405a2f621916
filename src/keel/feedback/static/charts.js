// Charts of a run's metrics. The server thins the points; here they are drawn, read and zoomed into.

const POINTS = 600;
const HEIGHT = 190;
const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const form = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });
const say = (value) => (value == null ? "not finite" : form.format(value).replace("-", "−"));

const measure = document.createElement("canvas").getContext("2d");
const BESIDE = 12; // pixels between the labels of an axis and what is on either side

/** How wide an axis must be for its labels, in pixels. */
function room(labels, font) {
  measure.font = font;
  return Math.max(52, BESIDE + Math.ceil(Math.max(...labels.map((label) => measure.measureText(label ?? "").width), 0)));
}

/** Logs an error that a later try may mend. */
export const tell = (error) => console.info(`not refreshed: ${error.message}`);

/** The metrics of one stage of a run, as far as they were asked for. */
class Stage {
  constructor(run, stage) {
    this.address = `/api/watch/runs/${encodeURIComponent(run)}/stages/${encodeURIComponent(stage)}/series`;
    this.curves = new Map();
    this.generation = null;
    this.until = null;
  }

  async ask(keys, more) {
    const query = new URLSearchParams([...keys.map((key) => ["key", key]), ["points", POINTS], ...Object.entries(more)]);
    const answer = await fetch(`${this.address}?${query}`);
    if (!answer.ok) throw new Error(`${this.address}: ${answer.status}`);
    return answer.json();
  }

  async load(keys) {
    const found = await this.ask(keys, {});
    if (this.generation === null) [this.generation, this.until] = [found.generation, found.until];
    else if (this.generation !== found.generation) this.until = null; // what is here is void
    for (const { key, x, y } of found.series) this.curves.set(key, { x, y });
  }

  /** What has come since; all anew where there is so much that it wants thinning again. */
  async update() {
    const keys = [...this.curves.keys()];
    if (!keys.length) return;
    const long = keys.some((key) => this.curves.get(key).x.length > 2 * POINTS);
    const found = await this.ask(keys, long || this.until === null ? {} : { after: this.until, generation: this.generation });
    this.generation = found.generation;
    this.until = found.until;
    if (found.whole) for (const key of keys) this.curves.set(key, { x: [], y: [] });
    for (const { key, x, y } of found.series) {
      const curve = this.curves.get(key);
      const last = curve.x.at(-1) ?? -Infinity;
      const known = x.filter((at) => at <= last).length;
      curve.x.push(...x.slice(known));
      curve.y.push(...y.slice(known));
    }
  }

  async window(keys, low, high) {
    const found = await this.ask(keys, { low, high });
    return new Map(found.series.map(({ key, x, y }) => [key, { x, y }]));
  }
}

class Chart {
  constructor(figure, charts) {
    this.figure = figure;
    this.charts = charts;
    this.spec = JSON.parse(figure.querySelector("script").textContent);
    this.place = figure.querySelector(".plot");
    this.numbers = figure.querySelector(".numbers");
    this.lasts = [...figure.querySelectorAll("[data-last]")];
    this.plot = null;
    this.zoomed = null;
    this.numbers.addEventListener("toggle", () => this.tabulate());
  }

  stages() {
    return Map.groupBy(this.spec.lines, (line) => this.charts.stage(line.run, line.stage));
  }

  async load() {
    for (const [stage, lines] of this.stages()) {
      const missing = lines.map((line) => line.key).filter((key) => !stage.curves.has(key));
      if (missing.length) await stage.load(missing);
    }
    if (this.charts.range) await this.zoom(this.charts.range);
    else this.draw();
  }

  async zoom(range) {
    const zoomed = range && { range, curves: new Map() };
    this.zoomed = zoomed;
    for (const [stage, lines] of range ? this.stages() : []) {
      const curves = await stage.window(lines.map((line) => line.key), ...range);
      if (this.zoomed !== zoomed) return; // another window was asked for meanwhile
      zoomed.curves.set(stage, curves);
    }
    this.draw();
  }

  /** One column of x for all lines: what is missing there is no gap, what is null is one. */
  data() {
    const tables = this.spec.lines.map((line) => {
      const stage = this.charts.stage(line.run, line.stage);
      const { x, y } = (this.zoomed?.curves.get(stage) ?? stage.curves).get(line.key) ?? { x: [], y: [] };
      return [x, y];
    });
    return uPlot.join(tables);
  }

  draw() {
    if (this.zoomed && !this.zoomed.curves.size) return;
    const data = this.data();
    if (!this.plot) this.plot = new uPlot(this.options(), data, this.place);
    else this.plot.setData(data, !this.zoomed);
    if (this.zoomed) this.plot.setScale("x", { min: this.zoomed.range[0], max: this.zoomed.range[1] });
    this.say(null);
    this.place.setAttribute("aria-label", this.figure.querySelector("figcaption").innerText.replaceAll("\n", " "));
    this.tabulate();
  }

  /** Whether a place is in what is shown: a window holds a point beyond each end of it, for the lines to reach them. */
  inside(x) {
    const [low, high] = this.zoomed?.range ?? [-Infinity, Infinity];
    return x >= low && x <= high;
  }

  /** The values at a place of the cursor, else the last ones. */
  say(place) {
    this.spec.lines.forEach((line, number) => {
      const values = this.plot.data[number + 1];
      let at = place ?? this.plot.data[0].findLastIndex((x) => this.inside(x));
      if (at < 0) return;
      while (at > 0 && values[at] === undefined) at -= 1;
      if (values.length) this.lasts[number].textContent = say(values[at]);
    });
  }

  options() {
    const [ink, line] = [style("--muted"), style("--line")];
    const axis = { stroke: ink, grid: { stroke: line, width: 1 }, ticks: { show: false }, font: "12px system-ui, sans-serif" };
    const level = this.spec.level?.[1];
    return {
      width: this.place.clientWidth,
      height: HEIGHT,
      legend: { show: false },
      cursor: { sync: { key: "watch" }, drag: { x: true, y: false, setScale: false }, points: { size: 7 } },
      scales: {
        x: { time: false },
        y: { range: (_, low, high) => this.range(low, high, level) },
      },
      axes: [
        { ...axis, size: 30, space: 60 },
        { ...axis, size: (_, labels) => room(labels ?? [], axis.font), space: 34, values: (_, ticks) => ticks.map((tick) => say(tick)) },
      ],
      series: [{}, ...this.spec.lines.map((one) => this.series(style(`--line-${one.number % 8}`)))],
      hooks: {
        draw: [(plot) => level === undefined || this.across(plot, level)],
        setCursor: [(plot) => this.say(plot.cursor.idx ?? null)],
        setSelect: [(plot) => this.select(plot)],
        ready: [({ over }) => {
          over.addEventListener("mousedown", () => (this.charts.held = this));
          over.addEventListener("dblclick", () => this.charts.zoom(null));
        }],
      },
    };
  }

  series(colour) {
    return { stroke: colour, width: 1.5, points: { size: 4, fill: colour } };
  }

  range(low, high, level) {
    if (low == null) return [level ?? 0, (level ?? 0) + 1];
    return uPlot.rangeNum(Math.min(low, level ?? low), Math.max(high, level ?? high), 0.08, true);
  }

  across(plot, level) {
    const { ctx, bbox } = plot;
    const y = Math.round(plot.valToPos(level, "y", true));
    ctx.save();
    ctx.strokeStyle = style("--warn");
    ctx.setLineDash([6, 5]);
    ctx.beginPath();
    ctx.moveTo(bbox.left, y);
    ctx.lineTo(bbox.left + bbox.width, y);
    ctx.stroke();
    ctx.restore();
  }

  select(plot) {
    const { left, width } = plot.select;
    if (width < 4) return;
    plot.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
    if (this.charts.held !== this) return; // the others' selection only follows that of the one under the pointer
    this.charts.zoom([plot.posToVal(left, "x"), plot.posToVal(left + width, "x")]);
  }

  /** The points as numbers, newest first, where they were asked for. */
  tabulate() {
    if (!this.numbers.open || !this.plot) return;
    const [xs, ...columns] = this.plot.data;
    const table = document.createElement("table");
    const add = (kind, cells) => {
      const row = table.insertRow();
      for (const cell of cells) row.append(Object.assign(document.createElement(kind), { textContent: cell, className: "number" }));
    };
    add("th", [this.spec.lines[0].stage === "ppo" ? "iteration" : "step", ...this.spec.lines.map((line) => line.label)]);
    for (let at = xs.length - 1; at >= 0; at -= 1) {
      if (!this.inside(xs[at])) continue;
      add("td", [say(xs[at]), ...columns.map((column) => (column[at] === undefined ? "" : say(column[at])))]);
    }
    this.numbers.querySelector(".scroll").replaceChildren(table);
  }

  resize() {
    this.plot?.setSize({ width: this.place.clientWidth, height: HEIGHT });
  }

  redraw() {
    this.plot?.destroy();
    this.plot = null;
    this.draw();
  }
}

/** All charts of the page: drawn when they come into sight, and together zoomed. */
export class Charts {
  constructor() {
    this.known = new Map();
    this.stagesByName = new Map();
    this.held = null; // the chart on which the pointer was pressed last
    this.range = null; // what all of them are zoomed to
    this.whole = Object.assign(document.createElement("button"), { type: "button", className: "whole", hidden: true, textContent: "Whole range" });
    this.whole.addEventListener("click", () => this.zoom(null));
    document.querySelector("[data-live]").prepend(this.whole);
    this.sight = new IntersectionObserver((seen) => seen.forEach((one) => one.isIntersecting && this.show(one.target)), { rootMargin: "200px" });
    this.sizes = new ResizeObserver((seen) => seen.forEach((one) => this.known.get(one.target.parentElement)?.resize()));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.drawn().forEach((chart) => chart.redraw()));
  }

  stage(run, stage) {
    const name = `${run} ${stage}`;
    if (!this.stagesByName.has(name)) this.stagesByName.set(name, new Stage(run, stage));
    return this.stagesByName.get(name);
  }

  drawn() {
    return [...this.known.values()].filter((chart) => chart.plot);
  }

  find() {
    for (const [figure, chart] of this.known) {
      if (figure.isConnected) continue;
      chart.plot?.destroy();
      this.known.delete(figure);
    }
    for (const figure of document.querySelectorAll("figure.chart")) {
      if (this.known.has(figure)) continue;
      this.known.set(figure, new Chart(figure, this));
      this.sight.observe(figure);
      this.sizes.observe(figure.querySelector(".plot"));
    }
  }

  show(figure) {
    this.sight.unobserve(figure);
    this.known.get(figure)?.load().catch(tell);
  }

  async update() {
    await Promise.all([...this.stagesByName.values()].map((stage) => stage.update()));
    this.drawn().forEach((chart) => chart.zoomed || chart.draw());
  }

  async zoom(range) {
    this.range = range;
    if (!range && document.activeElement === this.whole) document.querySelector("main").focus({ preventScroll: true });
    this.whole.hidden = !range;
    await Promise.all(this.drawn().map((chart) => chart.zoom(range))).catch(tell);
  }
}
