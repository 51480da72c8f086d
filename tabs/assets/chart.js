"use strict";
/* A small chart in SVG. Lines over steps: hover and arrow keys show the values, log scale, markers for saved files. Or columns and
   spots, each with its words. Drawn only when its data change. */
(() => {
  const atelier = window.atelier, {h} = atelier;
  const MARGIN = {left: 58, right: 14, top: 22, bottom: 26};

  /** Round steps between two numbers, at most `most` of them. */
  const ticks = (low, high, most) => {
    if (!(high > low)) return [low];
    const rough = (high - low) / most, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough);
    const found = [];
    for (let value = Math.ceil(low / step - 1e-9) * step; value <= high + step * 1e-6; value += step) found.push(Math.abs(value) < step * 1e-9 ? 0 : value);
    return found;
  };
  const logTicks = (low, high) => {
    const found = [], decades = Math.log10(high) - Math.log10(low), each = Math.max(1, Math.ceil(decades / 8));
    for (let power = Math.floor(Math.log10(low) / each) * each; power <= Math.ceil(Math.log10(high)); power += each)
      for (const n of decades > 4 ? [1] : [1, 2, 5]) { const value = n * 10 ** power; if (value >= low * 0.999 && value <= high * 1.001) found.push(value); }
    return found.length >= 2 ? found : ticks(low, high, 4);
  };

  /** As few figures as tell the levels of one axis apart. */
  const levelWords = (levels, tiny) => {
    for (let figures = 2; ; figures += 1) {
      const words = levels.map((value) => tiny && value ? Number(value.toPrecision(figures)).toExponential().replace("e+", "e") : figures === 2 ? atelier.number(value) : String(+value.toPrecision(figures + 2)));
      if (figures > 12 || new Set(words).size === words.length) return words;
    }
  };

  atelier.Chart = class {
    /* lines: [{name, values, kind}] at the common steps: [..], or with steps of their own; markers: [step..], total: last step;
       points: lines with steps of their own and a dot at each. Instead of steps, from 0 to right and top: spots [[x, y, radius, words]..],
       columns [[x, width, y, words, whether beyond]..], marks: numbers below the chart with a line, limit: the one that counts */
    constructor(holder, {label, log = false}, data = null) {
      Object.assign(this, {holder, label, log, data, at: null});
      this.svg = h("svg", {class: "plot", role: "img", tabindex: data ? null : "0", "aria-label": label});
      this.tip = h("div", {class: "chart-tip", hidden: true, role: "status"});
      holder.replaceChildren(this.svg, this.tip);
      this.svg.addEventListener("pointermove", (event) => this.point(event));
      this.svg.addEventListener("pointerleave", () => this.unpoint());
      this.svg.addEventListener("blur", () => this.unpoint());
      this.svg.addEventListener("keydown", (event) => this.walk(event));
      new ResizeObserver(() => this.draw()).observe(holder);
    }
    set(data) { this.data = data; this.draw(); }
    /** A box switches to a log scale, which each browser remembers. */
    follow(box) {
      this.log = box.checked = atelier.recall("atelier-log") === "1";
      box.addEventListener("change", () => { this.log = box.checked; atelier.remember("atelier-log", this.log ? "1" : "0"); this.draw(); });
    }

    frame() {
      const width = Math.max(160, this.holder.clientWidth), height = Math.max(100, this.holder.clientHeight);
      const {steps, lines, total, top} = this.data, points = this.data.points || [];
      const all = [...lines, ...points].flatMap((line) => line.values).filter((value) => value !== null && (!this.log || value > 0));
      const left = top ? 0 : Math.min(steps[0], 1, ...points.flatMap((line) => line.steps)), right = top ? this.data.right : Math.max(steps[steps.length - 1], total || 0, left + 1);
      let low = Math.min(...all), high = Math.max(...all);
      if (!all.length) { low = this.log ? 0.1 : 0; high = 1; }
      if (top) { low = 0; high = top; }
      else if (low === high) { const pad = Math.abs(low) * 0.1 || 1; low = low === 0 ? 0 : low - pad; high += pad; }
      else if (!this.log) { const pad = (high - low) * 0.06; low = low >= 0 ? Math.max(0, low - pad) : low - pad; high += pad; }
      const scale = this.log ? Math.log10 : (value) => value;
      const x = (step) => MARGIN.left + (step - left) / (right - left) * (width - MARGIN.left - MARGIN.right);
      const y = (value) => height - MARGIN.bottom - (scale(value) - scale(low)) / (scale(high) - scale(low)) * (height - MARGIN.top - MARGIN.bottom);
      return {width, height, left, right, low, high, x, y};
    }

    draw() {
      const {data, svg} = this;
      if (!this.holder.clientWidth) return;
      if (!data || !(data.top || data.steps.length)) { svg.replaceChildren(h("text", {x: 16, y: 28, class: "chart-none"}, "No data yet.")); return; }
      const frame = (this.now = this.frame()), {width, height, x, y} = frame;
      svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
      const parts = [];
      const levels = (this.log ? logTicks(frame.low, frame.high) : ticks(frame.low, frame.high, 5)).filter((value) => !data.top || Number.isInteger(value));
      const tiny = levels.every((value) => Math.abs(value) < 0.01);  // one way of writing on one axis
      const words = levelWords(levels, tiny);
      for (const value of levels) {
        parts.push(h("line", {class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(value), y2: y(value)}));
        parts.push(h("text", {class: "tick", x: MARGIN.left - 8, y: y(value) + 4, "text-anchor": "end"}, words[levels.indexOf(value)]));
      }
      /* The names stand in the margins, where no line goes. */
      parts.push(h("text", {class: "axis-name", x: MARGIN.left - 8, y: height - 8, "text-anchor": "end"}, data.across || "step"));
      parts.push(h("text", {class: "axis-name", x: 2, y: 11}, data.up || this.label.toLowerCase()));
      for (const step of ticks(frame.left === 1 ? 0 : frame.left, frame.right, Math.max(4, Math.floor(width / 75)))) {
        if (step < frame.left || Math.abs(step - Math.round(step)) > 1e-6) continue;  // there is no half step
        if ((data.marks || []).some((mark) => Math.abs(mark - step) <= frame.right / 14)) continue;
        parts.push(h("text", {class: "tick", x: x(step), y: height - 8, "text-anchor": "middle"}, String(Math.round(step))));
      }
      const markers = [...new Set(data.markers)].filter((step) => step >= frame.left && step <= frame.right).sort((a, b) => a - b);
      const sparse = markers.every((step, n) => !n || x(step) - x(markers[n - 1]) >= 12);  // lines nearer than that hide the values
      for (const step of markers) {
        if (sparse) parts.push(h("line", {class: "marker", x1: x(step), x2: x(step), y1: MARGIN.top, y2: height - MARGIN.bottom}));
        parts.push(h("path", {class: "marker-head", d: `M${x(step) - 4} ${MARGIN.top} h8 l-4 6 z`}));
      }
      for (const [from, wide, value, words, beyond] of data.columns || [])
        parts.push(h("rect", {class: beyond ? "column cut" : "column", x: x(from) + 0.5, y: y(value), width: Math.max(1, x(from + wide) - x(from) - 1), height: y(0) - y(value)}, h("title", {}, words)));
      for (const mark of data.marks || []) {
        const kind = mark === data.limit ? "mark limit" : "mark";
        parts.push(h("line", {class: kind, x1: x(mark), x2: x(mark), y1: MARGIN.top, y2: y(0)}), h("text", {class: `tick ${kind}`, x: x(mark), y: height - 8, "text-anchor": "middle"}, String(mark)));
      }
      for (const line of data.lines) parts.push(h("path", {class: `line ${line.kind}`, d: this.path(line.values, line.steps)}));
      for (const line of data.points || []) {
        parts.push(h("path", {class: `line ${line.kind}`, d: this.path(line.values, line.steps)}));
        line.values.forEach((value, n) => { if (value !== null && !(this.log && value <= 0)) parts.push(h("circle", {class: `dot ${line.kind}`, cx: x(line.steps[n]), cy: y(value), r: 3}, h("title", {}, `${line.name}, step ${line.steps[n]}: ${atelier.number(value)}`))); });
      }
      for (const [across, up, radius, words] of data.spots || []) parts.push(h("circle", {class: "spot", cx: x(across), cy: y(up), r: radius}, h("title", {}, words)));
      this.cursor = h("g", {class: "cursor"});
      svg.replaceChildren(...parts, this.cursor);
      if (data.top) return;
      const last = data.steps.length - 1;
      svg.setAttribute("aria-label", `${this.label}, step ${data.steps[last]}: ` + data.lines.map((line) => `${line.name} ${atelier.number(line.values[this.place(line, last)])}`).join(", "));
      if (this.at !== null) this.mark(Math.min(this.at, last));
    }

    /** Where a line stands at the n-th common step: one with steps of its own at its latest until then, -1 before its first. */
    place(line, n) { return line.steps ? line.steps.filter((step) => step <= this.data.steps[n]).length - 1 : n; }

    path(values, steps = this.data.steps) {
      const {x, y} = this.now;
      let path = "", pen = false;
      values.forEach((value, n) => {
        if (value === null || (this.log && value <= 0)) { pen = false; return; }
        path += `${pen ? "L" : "M"}${x(steps[n]).toFixed(1)} ${y(value).toFixed(1)}`;
        pen = true;
      });
      if (values.filter((value) => value !== null).length === 1) path += "h0.01";
      return path;
    }

    point(event) {
      if (!this.now || !this.data || !this.data.steps || !this.data.steps.length) return;
      const box = this.svg.getBoundingClientRect(), place = (event.clientX - box.left) / box.width * this.now.width;
      let best = 0;
      this.data.steps.forEach((step, n) => { if (Math.abs(this.now.x(step) - place) < Math.abs(this.now.x(this.data.steps[best]) - place)) best = n; });
      this.mark(best);
    }
    walk(event) {
      const moves = {ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity};
      if (!(event.key in moves) || event.altKey || event.ctrlKey || event.metaKey || !this.data || !this.data.steps.length) return;
      event.preventDefault();
      const last = this.data.steps.length - 1;
      this.mark(Math.max(0, Math.min(last, (this.at === null ? last + (event.key === "ArrowLeft" ? 1 : 0) : this.at) + moves[event.key])));
    }
    mark(n) {
      this.at = n;
      const {x, y, height, width} = this.now, {steps, lines} = this.data;
      const now = lines.map((line) => ({line, at: this.place(line, n)})).filter(({at}) => at >= 0);
      const dots = now.filter(({line, at}) => line.values[at] !== null && (!this.log || line.values[at] > 0))
        .map(({line, at}) => h("circle", {class: `dot ${line.kind}`, cx: x((line.steps || steps)[at]), cy: y(line.values[at]), r: 3.5}));
      this.cursor.replaceChildren(h("line", {x1: x(steps[n]), x2: x(steps[n]), y1: MARGIN.top, y2: height - MARGIN.bottom}), ...dots);
      const saved = (this.data.markers || []).includes(steps[n]);
      this.tip.replaceChildren(h("strong", {}, `${this.data.across ? this.data.across[0].toUpperCase() + this.data.across.slice(1) : "Step"} ${steps[n]}${saved ? ", saved" : ""}`),
        ...now.map(({line, at}) => h("span", {}, `${line.name} ${atelier.number(line.values[at])}${line.steps && line.steps[at] !== steps[n] ? ` (step ${line.steps[at]})` : ""}`)),
        ...(this.data.points || []).map((line) => { const at = this.place(line, n); return at < 0 ? null : h("span", {}, `${line.name} ${atelier.number(line.values[at])} (step ${line.steps[at]})`); }).filter(Boolean));
      this.tip.hidden = false;
      const share = x(steps[n]) / width;
      this.tip.style.left = share < 0.6 ? `calc(${share * 100}% + 12px)` : "";
      this.tip.style.right = share < 0.6 ? "" : `calc(${(1 - share) * 100}% + 12px)`;
    }
    unpoint() { this.at = null; this.tip.hidden = true; if (this.cursor) this.cursor.replaceChildren(); }
  };
  atelier.draws.chart = (node, data) => { node.classList.add("chart"); new atelier.Chart(node, data, data); };
})();
