"use strict";
/* Bars for comma lists of numbers by block (tabs/form/bars.py), folded below the text fields that hold the lists; both always say the
   same. A bar is a slider: up and down change it, left and right go to its neighbors. An element of its own, so that it is drawn
   wherever HTML brings it. */
(() => {
  const atelier = window.atelier, {h, text, attr} = atelier;
  const STYLE = `
    :host { display: block; grid-column: 1 / -1; margin-top: 4px; min-width: 0; max-width: 720px; container-type: inline-size; }
    :host(.none) { display: none; }
    .fold { display: flex; align-items: baseline; gap: 8px; width: 100%; padding: 3px 0; border: 0; background: none; font: inherit; font-size: 13px; text-align: left; color: var(--soft); cursor: pointer; border-radius: 6px; min-height: 26px; }
    .fold::before { content: ""; flex: none; align-self: center; width: 5px; height: 5px; margin: 0 3px; border: solid currentColor; border-width: 0 1.5px 1.5px 0; transform: rotate(-45deg); }
    .fold[aria-expanded=true]::before { transform: rotate(45deg); }
    .fold b { font-weight: 600; color: var(--accent-text); min-width: 0; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
    .fold span { flex: none; max-width: 75%; font-variant-numeric: tabular-nums; }
    .fold:focus-visible, select:focus-visible, .bar:focus-visible { outline: 2px solid var(--accent-text); outline-offset: 1px; }
    .wrong { color: var(--bad); }
    .row { display: flex; gap: 8px; padding: 3px; box-sizing: border-box; border: 1px solid var(--input-border-color); border-radius: 8px;
      background: var(--input-background-fill); touch-action: none; cursor: ns-resize; user-select: none; }
    .side { display: flex; flex-wrap: wrap; flex: 1 1 0; min-width: 0; }
    .side small { flex: 1 0 100%; font-size: 11px; line-height: 15px; color: var(--soft); overflow: hidden; }
    .bar { flex: 1 1 0; min-width: 0; max-width: 50px; height: 60px; margin: 0 1px; position: relative; border-radius: 2px; }
    .bar:hover { background: color-mix(in srgb, var(--accent) 14%, transparent); }
    .bar i { position: absolute; left: 0; right: 0; min-height: 2px; border-radius: 2px; background: var(--accent); }
    .unset .bar i { opacity: .45; }
    .line { display: flex; flex-wrap: wrap; gap: 4px 10px; align-items: center; margin-top: 4px; font-size: 12px; line-height: 18px; color: var(--soft); }
    output { flex: 1; min-width: 130px; font-variant-numeric: tabular-nums; }
    select { font: inherit; color: inherit; height: 26px; max-width: 100%; border: 1px solid var(--input-border-color); border-radius: 6px; background: var(--input-background-fill); }
    @container (max-width: 599px) { .row { flex-direction: column; } .side { flex: none !important; } .bar { height: 52px; } }`;
  const SIDES = ["Down", "Mid", "Up"];
  const sideOf = (name) => name.startsWith("MID") ? 1 : /^(OUT|LAST)/.test(name) ? 2 : 0;
  const shown = (value) => String(Math.round(value * 1000) / 1000);
  const opened = new Set();  // the bars that are open, also when they are drawn anew
  let last = null;  // the bar that was changed last: it keeps the keyboard when its row is drawn anew

  class BlockBars extends HTMLElement {
    static observedAttributes = ["data-facts", "data-label", "data-title", "data-line", "data-for"];

    /** What the bars are for may change in place: another file in this line, another multiplier. */
    attributeChangedCallback() {
      if (!this.shadowRoot) return;
      this.build();
      this.draw();
    }

    connectedCallback() {
      if (!this.shadowRoot) this.build();
      this.draw();
      const lost = last && last.key === this.key && Date.now() - last.when < 4000 && (document.activeElement === document.body || !document.activeElement);
      if (lost && this.bars[last.at]) this.bars[last.at].focus({preventScroll: true});
    }

    build() {
      this.facts = JSON.parse(this.dataset.facts);
      this.bars = [];
      this.named = null;
      const root = this.shadowRoot || this.attachShadow({mode: "open"}), title = this.dataset.title;
      this.brief = h("span", {});
      this.fold = h("button", {type: "button", class: "fold", title, "aria-controls": "body"}, h("b", {}, this.dataset.label || "Bars"), " ", this.brief);
      this.row = h("div", {class: "row", role: "group", "aria-label": `${title} by block`});
      this.says = h("output", {});
      this.choice = h("select", {"aria-label": `Preset: ${title}`});
      this.body = h("div", {id: "body"}, this.row, h("div", {class: "line"}, this.says, this.choice));
      root.replaceChildren(h("style", {}, STYLE), this.fold, this.body);
      this.fold.addEventListener("click", () => {
        if (!opened.delete(this.key)) opened.add(this.key);
        this.draw();
      });
      this.choice.addEventListener("change", () => { this.send(this.presets[this.choice.value]); this.choice.value = ""; });
      this.row.addEventListener("pointerdown", (event) => this.begin(event));
      this.row.addEventListener("pointermove", (event) => { if (this.dragged) this.drag(event); else this.tell(this.bars.indexOf(event.target.closest(".bar"))); });
      this.row.addEventListener("pointerup", () => { if (this.dragged) { this.dragged = null; this.commit(); } });
      this.row.addEventListener("pointercancel", () => { this.dragged = null; this.draw(); });
      this.row.addEventListener("pointerleave", () => { if (!this.dragged) this.tell(-1); });
      this.row.addEventListener("keydown", (event) => this.press(event));
      this.row.addEventListener("focusin", (event) => this.tell(this.bars.indexOf(event.target)));
      this.row.addEventListener("focusout", () => this.tell(-1));
    }

    get inputs() { return this.dataset.for.split(" ").map((id) => document.getElementById(id)); }

    /** Which bars these are. */
    get key() { return `${this.dataset.for} ${this.dataset.line || ""}`; }

    /** The text of a field that is about these bars: all of it, or a line. */
    typedIn(input) { return (this.dataset.line ? input.value.split("\n")[this.dataset.line] || "" : input.value).trim(); }

    /** The whole text of a field with another such text in it. */
    whole(input, value) {
      if (!this.dataset.line) return value;
      const lines = input.value.split("\n"), before = Array.from({length: this.dataset.line}, (_, n) => lines[n] || "");
      return [...before, value, ...lines.slice(before.length + 1)].join("\n").trimEnd();
    }

    base() {
      if (!this.facts.base) return this.facts.even === undefined ? 1 : this.facts.even;
      for (const path of this.facts.base) {
        const field = document.querySelector(`#train-form [data-set="${path}"]`), value = field ? Number(field.value) : 0;
        if (value > 0) return value;
      }
      return 0;
    }

    /** [what `readOne` says of each text field] */
    read() {
      const {facts} = this, known = facts.names ? facts.names[atelier.family] || [] : null;
      return this.inputs.map((input, n) => {
        const typed = input ? this.typedIn(input) : "", plain = typed ? typed.split(",").map((each) => Number(each.trim())) : null;
        const list = plain && plain.every(Number.isFinite) ? plain : null;
        return {...this.readOne(typed, list, known ? known[n] || [] : facts.lists[list && facts.lists[list.length] ? list.length : facts.length]), typed: list};
      });
    }

    /** {names, values, unset: nothing is written, wrong: why the text is no list of these blocks} */
    readOne(typed, list, names) {
      const {facts} = this, same = names.map(() => this.base()), wrong = list ? `${list.length} numbers for ${names.length} blocks` : "Not a list of numbers";
      if (!names.length || !typed) return {names, values: same, unset: true, wrong: ""};
      if (facts.lists) {
        const preset = facts.weights[typed.toUpperCase()];
        if (preset) return {names, values: names.map((name) => preset[facts.slots.indexOf(name)]), wrong: ""};
        if (list && facts.lists[list.length]) return {names, values: list, wrong: ""};
        return {names, values: same, unset: true, wrong: list ? `${list.length} numbers: lists have ${Object.keys(facts.lists).join(", ")}` : wrong};
      }
      if (facts.curves) {
        const [name, plus] = typed.split("+").map((each) => each.trim()), curve = facts.curves[names.length][name], more = plus === undefined ? 0 : Number(plus);
        if (curve && Number.isFinite(more)) return {names, values: curve.map((value) => value + more), wrong: ""};
        if (list) return {names, values: names.map((_, n) => list.length === 1 && names.length > 3 ? list[0] : n < list.length ? list[n] : 1), wrong: list.length > names.length ? wrong : ""};
      } else if (list && list.length === names.length) return {names, values: list, wrong: ""};
      return {names, values: same, unset: true, wrong};
    }

    draw() {
      if (this.dragged) return;
      const {facts} = this, parts = this.parts = this.read();
      this.names = parts.flatMap((part) => part.names);
      this.values = parts.flatMap((part) => part.values);
      const top = facts.base ? 2 * this.base() : facts.curves ? 2 : 1, isOpen = opened.has(this.key);
      this.high = Math.max(top || 16, ...this.values);
      this.low = Math.min(0, ...this.values);
      this.classList.toggle("none", !this.names.length);
      this.row.classList.toggle("unset", parts.every((part) => part.unset));
      attr(this.fold, "aria-expanded", String(isOpen));
      this.body.hidden = !isOpen;
      if (this.named !== this.names.join()) this.make();
      this.paint();
      this.tell(this.bars.indexOf(this.shadowRoot.activeElement));
    }

    /** The bars anew, by side of the U-Net. */
    make() {
      this.named = this.names.join();
      this.bars = this.names.map((name, n) => h("div", {class: "bar", role: "slider", "aria-orientation": "vertical", "aria-label": name, tabindex: n ? "-1" : "0"}, h("i", {})));
      this.row.replaceChildren(...SIDES.flatMap((title, side) => {
        const own = this.bars.filter((_, n) => sideOf(this.names[n]) === side);
        return own.length ? [h("div", {class: "side", style: `flex-grow: ${own.length}`}, own, h("small", {"aria-hidden": "true"}, title))] : [];
      }));
      this.offer();
    }

    paint() {
      const {facts, high, low} = this, whole = high - low || 1;
      this.values.forEach((value, n) => {
        const bar = this.bars[n], fill = bar.firstChild;
        fill.style.bottom = `${(Math.min(value, 0) - low) / whole * 100}%`;
        fill.style.height = `${Math.abs(value) / whole * 100}%`;
        attr(bar, "aria-valuenow", shown(value));
        attr(bar, "aria-valuemin", String(facts.least));
        attr(bar, "aria-valuemax", String(facts.most));
      });
    }

    tell(at) {
      const {names, values} = this, many = `${names.length} block${names.length === 1 ? "" : "s"}`, mixed = new Set(values.map(shown)).size > 1;
      const wrong = this.parts.map((part) => part.wrong).filter(Boolean).join(", ");
      const brief = wrong || (mixed ? `${many}, ${shown(Math.min(...values))} to ${shown(Math.max(...values))}` : `${many}, ${shown(values[0] || 0)} each`);
      for (const node of [this.brief, this.says]) node.classList.toggle("wrong", !!wrong);
      text(this.brief, brief);
      text(this.says, at >= 0 && at < names.length ? `${names[at]}: ${shown(values[at])}` : brief);
    }

    /** What the list of presets offers: {its words: the texts that it writes, null where one stays}. */
    offer() {
      const {facts} = this, only = (begin) => [this.names.map((name) => name.startsWith(begin) ? this.base() || 16 : 0).join(",")];
      this.presets = {"All the same": this.parts.map(() => ""), ...facts.presets};
      for (const name of Object.keys(facts.weights || {})) this.presets[name] = [name];
      if (facts.ranks) for (const [title, begin] of [["Only down", "IN"], ["Only the middle", "MID"], ["Only up", "OUT"]]) this.presets[title] = only(begin);
      this.choice.replaceChildren(h("option", {value: ""}, "Presets"), ...Object.keys(this.presets).map((title) => h("option", {value: title}, title)));
    }

    set(at, value) {
      const {facts} = this;
      this.values[at] = Math.min(facts.most, Math.max(facts.least, Math.round(value / facts.step) * facts.step));
      this.at = at;
    }

    begin(event) {
      if (event.button !== 0 || !event.target.closest(".bar")) return;
      this.row.setPointerCapture(event.pointerId);
      event.preventDefault();
      this.dragged = {at: this.bars.indexOf(event.target.closest(".bar")), value: null};
      this.drag(event);
    }

    /** Where the pointer is, among the bars that stand in one line with the one it began at. */
    under({clientX, clientY}) {
      const top = this.bars[this.dragged.at].getBoundingClientRect(), line = this.bars.filter((bar) => Math.abs(bar.getBoundingClientRect().top - top.top) < 1);
      const bar = line.find((each) => clientX <= each.getBoundingClientRect().right + 1) || line[line.length - 1];
      const part = 1 - Math.min(1, Math.max(0, (clientY - top.top) / top.height));
      return {at: this.bars.indexOf(bar), value: this.low + part * (this.high - this.low)};
    }

    /** A fast pointer skips bars: those between two of its places get what lies between. */
    drag(event) {
      const to = this.under(event), from = this.dragged.value === null ? to : this.dragged, steps = Math.abs(to.at - from.at);
      for (let n = steps ? 1 : 0; n <= steps; n += 1) this.set(from.at + Math.sign(to.at - from.at) * n, from.value + (to.value - from.value) * (steps ? n / steps : 1));
      this.dragged = to;
      this.row.classList.remove("unset");
      this.paint();
      this.tell(to.at);
      this.reach(to.at);
    }

    reach(at) {
      this.bars.forEach((bar, n) => attr(bar, "tabindex", n === at ? "0" : "-1"));
      this.bars[at].focus({preventScroll: true});
    }

    press(event) {
      const at = this.bars.indexOf(event.target), {facts} = this, value = this.values[at];
      if (at < 0 || event.ctrlKey || event.altKey || event.metaKey) return;
      const steps = {ArrowUp: 1, ArrowDown: -1, PageUp: 10, PageDown: -10}[event.key], turn = {ArrowLeft: -1, ArrowRight: 1}[event.key];
      if (turn) this.reach(Math.min(this.bars.length - 1, Math.max(0, at + turn)));
      else if (steps) this.set(at, value + steps * facts.step);
      else if (event.key === "Home") this.set(at, 0);
      else if (event.key === "End") this.set(at, this.high);
      else return;
      event.preventDefault();
      event.stopPropagation();
      if (!turn) this.commit();
    }

    /** The lists whose bars were changed. Numbers that were typed for the other bars stay as they are: 0 would skip a block. */
    commit() {
      last = {key: this.key, at: this.at, when: Date.now()};
      let begin = 0;
      this.send(this.parts.map((part) => {
        const own = this.values.slice(begin, begin += part.names.length);
        const stays = own.map((value, n) => value === part.values[n]);
        return stays.every(Boolean) ? null : own.map((value, n) => part.typed && stays[n] ? String(value) : shown(value)).join(",");
      }));
    }

    /** One text is written as if it were typed; several are one change of the Train form. */
    send(texts) {
      const {inputs} = this, given = inputs.map((input, n) => input && texts[n] !== null ? this.whole(input, texts[n]) : null);
      const changed = inputs.flatMap((input, n) => given[n] !== null && input.value !== given[n] ? [[input, given[n]]] : []);
      for (const [input, value] of changed) input.value = value;
      if (changed.length === 1) changed[0][0].dispatchEvent(new Event("change", {bubbles: true}));
      else if (changed.length) atelier.edit(Object.fromEntries(changed.map(([input, value]) => [input.dataset.set, value])), this.dataset.title);
      this.draw();
    }
  }
  customElements.define("block-bars", BlockBars);

  atelier.drawBars = () => { for (const bars of document.querySelectorAll("block-bars")) if (bars.shadowRoot) bars.draw(); };
  document.addEventListener("input", ({target}) => {
    if (target.id) for (const bars of document.querySelectorAll(`block-bars[data-for~="${CSS.escape(target.id)}"]`)) bars.draw();
  });
})();
