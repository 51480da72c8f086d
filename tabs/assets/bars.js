"use strict";
/* Bars for a comma list of numbers by block (tabs/form/bars.py): below the text field that holds the list, both always say the same.
   A bar is a slider: up and down change it, left and right go to its neighbors. An element of its own, so that it is drawn wherever
   HTML brings it. */
(() => {
  const atelier = window.atelier, {h, text, attr} = atelier;
  const STYLE = `
    :host { display: block; grid-column: 1 / -1; margin-top: 6px; min-width: 0; }
    :host(.none) { display: none; }
    .row { display: flex; align-items: stretch; height: 66px; gap: 2px; width: fit-content; min-width: min(100%, 160px); max-width: 100%; padding: 3px; box-sizing: border-box; border: 1px solid var(--input-border-color); border-radius: 8px;
      background: var(--input-background-fill); touch-action: none; cursor: ns-resize; user-select: none; }
    .row:not(.many) .bar { flex: 0 0 50px; }
    .row.many { width: 100%; max-width: 640px; }
    .row.many .bar { max-width: none; }
    .bar { flex: 1; min-width: 0; max-width: 50px; position: relative; border-radius: 2px; outline-offset: 1px; }
    .bar:hover { background: color-mix(in srgb, var(--accent) 14%, transparent); }
    .bar.turn { margin-left: 4px; }
    .bar:focus-visible { outline: 2px solid var(--accent-text); }
    .bar i { position: absolute; left: 0; right: 0; min-height: 2px; border-radius: 2px; background: var(--accent); }
    .unset .bar i { opacity: .45; }
    .line { display: flex; flex-wrap: wrap; gap: 4px 10px; align-items: center; max-width: 640px; margin-top: 4px; font-size: 12px; line-height: 18px; color: var(--soft); }
    output { flex: 1; min-width: 130px; font-variant-numeric: tabular-nums; }
    output.wrong { color: var(--bad); }
    select { font: inherit; color: inherit; height: 26px; border: 1px solid var(--input-border-color); border-radius: 6px; background: var(--input-background-fill); }
    select:focus-visible { outline: 2px solid var(--accent-text); }`;
  const shown = (value) => String(Math.round(value * 1000) / 1000);
  const words = {sine: "Sine", cosine: "Cosine", linear: "Linear", reverse_linear: "Reverse linear", zeros: "Zeros"};
  let last = null;  // the bar that was changed last: it keeps the keyboard when its row is drawn anew

  class BlockBars extends HTMLElement {
    connectedCallback() {
      if (!this.shadowRoot) this.build();
      this.draw();
      const lost = last && last.for === this.dataset.for && Date.now() - last.when < 4000 && (document.activeElement === document.body || !document.activeElement);
      if (lost && this.row.children[last.at]) this.row.children[last.at].focus({preventScroll: true});
    }

    build() {
      this.facts = JSON.parse(this.dataset.facts);
      const root = this.attachShadow({mode: "open"});
      this.row = h("div", {class: "row", role: "group", "aria-label": `${this.dataset.title} by block`});
      this.says = h("output", {});
      this.choice = h("select", {"aria-label": `Preset: ${this.dataset.title}`});
      root.append(h("style", {}, STYLE), this.row, h("div", {class: "line"}, this.says, this.choice));
      this.choice.addEventListener("change", () => { this.write(this.presets[this.choice.value]); this.choice.value = ""; });
      this.row.addEventListener("pointerdown", (event) => { if (event.button === 0) { this.row.setPointerCapture(event.pointerId); this.drags = true; event.preventDefault(); this.drag(event); } });
      this.row.addEventListener("pointermove", (event) => { if (this.drags) this.drag(event); else this.tell(this.barAt(event)); });
      this.row.addEventListener("pointerup", () => this.drop());
      this.row.addEventListener("pointercancel", () => { this.drags = false; this.draw(); });
      this.row.addEventListener("pointerleave", () => { if (!this.drags) this.tell(-1); });
      this.row.addEventListener("keydown", (event) => this.press(event));
      this.row.addEventListener("focusin", (event) => this.tell([...this.row.children].indexOf(event.target)));
      this.row.addEventListener("focusout", () => this.tell(-1));
    }

    get input() { return document.getElementById(this.dataset.for); }

    /** The names of the bars: those of the model's family, or of the list's length; [] where they are not known. */
    names(list) {
      const {facts} = this;
      if (facts.names) return facts.names[atelier.family] || [];
      return facts.lists[(list && facts.lists[list.length]) ? list.length : facts.length];
    }

    base() {
      if (!this.facts.base) return 1;
      for (const path of this.facts.base) {
        const field = document.querySelector(`#train-form [data-set="${path}"]`), value = field ? Number(field.value) : 0;
        if (value > 0) return value;
      }
      return 0;
    }

    /** {names, values, unset: nothing is written, wrong: why the text is no list of these blocks} */
    read() {
      const {facts} = this, typed = this.input ? this.input.value.trim() : "", plain = typed ? typed.split(",").map((each) => Number(each.trim())) : null;
      const isList = !!plain && plain.every(Number.isFinite), names = this.names(isList ? plain : null), same = names.map(() => this.base());
      if (!names.length || !typed) return {names, values: same, unset: true, wrong: ""};
      if (facts.slots) {
        const preset = facts.presets[typed.toUpperCase()];
        if (preset) return {names, values: names.map((name) => preset[facts.slots.indexOf(name)]), wrong: ""};
        if (isList && facts.lists[plain.length]) return {names, values: plain, wrong: ""};
        return {names, values: same, unset: true, wrong: isList ? `${plain.length} numbers: lists have ${Object.keys(facts.lists).join(", ")}` : "Not a list of numbers"};
      }
      if (facts.rates) {
        const [name, plus] = typed.split("+").map((each) => each.trim()), curve = facts.curves[names.length][name], more = plus === undefined ? 0 : Number(plus);
        if (curve && Number.isFinite(more)) return {names, values: curve.map((value) => value + more), wrong: ""};
        if (isList) return {names, values: names.map((_, n) => plain.length === 1 && names.length > 3 ? plain[0] : n < plain.length ? plain[n] : 1), wrong: plain.length > names.length ? `${plain.length} numbers for ${names.length} blocks` : ""};
      } else if (isList && plain.length === names.length) return {names, values: plain, wrong: ""};
      return {names, values: same, unset: true, wrong: isList ? `${plain.length} numbers for ${names.length} blocks` : "Not a list of numbers"};
    }

    draw() {
      if (this.drags) return;
      const {facts} = this;
      this.now = this.read();
      const {names, values} = this.now, top = facts.base ? 2 * this.base() : facts.rates ? 2 : 1;
      this.high = Math.max(top || 16, ...values);
      this.low = Math.min(0, ...values);
      this.classList.toggle("none", !names.length);
      this.row.classList.toggle("unset", !!this.now.unset);
      this.row.classList.toggle("many", names.length > 3);
      if (this.row.childElementCount !== names.length || this.named !== names.join()) {
        this.named = names.join();
        const side = (name) => name.replace(/\d+$/, "");
        this.row.replaceChildren(...names.map((name, n) => h("div", {class: n && side(name) !== side(names[n - 1]) ? "bar turn" : "bar", role: "slider", "aria-orientation": "vertical", "aria-label": name, tabindex: n ? "-1" : "0"}, h("i", {}))));
        this.offer();
      }
      this.paint();
      this.tell([...this.row.children].indexOf(this.shadowRoot.activeElement));
    }

    paint() {
      const {facts, high, low} = this, whole = high - low || 1;
      this.now.values.forEach((value, n) => {
        const bar = this.row.children[n], fill = bar.firstChild;
        fill.style.bottom = `${(Math.min(value, 0) - low) / whole * 100}%`;
        fill.style.height = `${Math.abs(value) / whole * 100}%`;
        attr(bar, "aria-valuenow", shown(value));
        attr(bar, "aria-valuemin", String(facts.least));
        attr(bar, "aria-valuemax", String(facts.most));
      });
    }

    tell(at) {
      const {now} = this, {names, values} = now, many = `${names.length} block${names.length === 1 ? "" : "s"}`, mixed = new Set(values.map(shown)).size > 1;
      this.says.classList.toggle("wrong", at < 0 && !!now.wrong);
      text(this.says, at >= 0 && at < names.length ? `${names[at]}: ${shown(values[at])}` : now.wrong ? now.wrong : mixed ? `${many}, ${shown(Math.min(...values))} to ${shown(Math.max(...values))}` : `${many}, ${shown(values[0] || 0)}${names.length > 1 ? " each" : ""}`);
    }

    /** What the list of presets offers, {its words: the text it writes}. */
    offer() {
      const {facts} = this, {names} = this.now;
      this.presets = {"All the same": ""};
      if (facts.slots) for (const name of Object.keys(facts.presets)) this.presets[name] = name;
      else if (facts.rates && names.length > 3) { for (const name of Object.keys(facts.curves[names.length])) this.presets[words[name] || name] = name; }
      else if (facts.ranks) for (const [title, begin] of [["Only the middle", "MID"], ["Only the way down", "IN"], ["Only the way up", "OUT"]]) this.presets[title] = begin;
      this.choice.replaceChildren(h("option", {value: ""}, "Presets"), ...Object.keys(this.presets).map((title) => h("option", {value: title}, title)));
    }

    write(preset) {
      const begins = this.facts.ranks && preset;
      this.send(begins ? this.now.names.map((name) => name.startsWith(preset) ? this.base() || 16 : 0).join(",") : preset);
    }

    barAt({clientX}) {
      const bars = [...this.row.children], at = bars.findIndex((bar) => clientX <= bar.getBoundingClientRect().right + 1);
      return at < 0 ? bars.length - 1 : at;
    }

    set(at, value) {
      const {facts} = this, times = Math.round(value / facts.step) * facts.step;
      this.now.values = [...this.now.values];
      this.now.values[at] = Math.min(facts.most, Math.max(facts.least, times));
      this.at = at;
    }

    drag(event) {
      const place = this.row.getBoundingClientRect(), part = 1 - Math.min(1, Math.max(0, (event.clientY - place.top - 4) / (place.height - 8)));
      const at = this.barAt(event);
      this.set(at, this.low + part * (this.high - this.low));
      this.row.classList.remove("unset");
      this.paint();
      this.tell(at);
      this.reach(at);
    }

    drop() {
      if (!this.drags) return;
      this.drags = false;
      this.commit();
    }

    reach(at) {
      [...this.row.children].forEach((bar, n) => attr(bar, "tabindex", n === at ? "0" : "-1"));
      this.row.children[at].focus({preventScroll: true});
    }

    press(event) {
      const at = [...this.row.children].indexOf(event.target), {facts} = this, value = this.now.values[at];
      if (at < 0 || event.ctrlKey || event.altKey || event.metaKey) return;
      const steps = {ArrowUp: 1, ArrowDown: -1, PageUp: 10, PageDown: -10}[event.key], turn = {ArrowLeft: -1, ArrowRight: 1}[event.key];
      if (turn) this.reach(Math.min(this.row.childElementCount - 1, Math.max(0, at + turn)));
      else if (steps) this.set(at, value + steps * facts.step);
      else if (event.key === "Home") this.set(at, 0);
      else if (event.key === "End") this.set(at, this.high);
      else return;
      event.preventDefault();
      event.stopPropagation();
      if (!turn) this.commit();
    }

    commit() {
      last = {for: this.dataset.for, at: this.at, when: Date.now()};
      this.send(this.now.values.map(shown).join(","));
    }

    /** The text is written as if it were typed, so that the form takes it as it takes that. */
    send(value) {
      const {input} = this;
      if (!input || input.value === value) return this.draw();
      input.value = value;
      input.dispatchEvent(new Event("change", {bubbles: true}));
      this.draw();
    }
  }
  customElements.define("block-bars", BlockBars);

  atelier.drawBars = () => { for (const bars of document.querySelectorAll("block-bars")) if (bars.shadowRoot) bars.draw(); };
  document.addEventListener("input", ({target}) => {
    const bars = target.id && document.querySelector(`block-bars[data-for="${CSS.escape(target.id)}"]`);
    if (bars) bars.draw();
  });
})();
